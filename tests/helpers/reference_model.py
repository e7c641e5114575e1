"""What an answer must be: the plain model's own `generate`, run here."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


@dataclass(frozen=True)
class Reference:
    """The model of an application, loaded in this process."""

    model: Any
    tokenizer: Any

    @classmethod
    def load(cls, folder: Path) -> "Reference":
        return cls(AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder))

    def ids(self, text: str) -> list[int]:
        return self.tokenizer(text)["input_ids"]

    def chat_ids(self, messages: list[dict[str, str]]) -> list[int]:
        text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def greedy(self, ids: list[int], max_tokens: int) -> list[int]:
        """Return the new ids of greedy generation, the end token included."""
        given = torch.tensor([ids])
        with torch.no_grad():
            output = self.model.generate(
                given,
                attention_mask=torch.ones_like(given),
                max_new_tokens=max_tokens,
                do_sample=False,
                pad_token_id=0,
            )
        return output[0, len(ids) :].tolist()

    def text(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=True)

    def logprobs(self, ids: list[int], new: list[int]) -> list[float]:
        """Return the log probability of each of `new` behind `ids`."""
        with torch.no_grad():
            logits = self.model(torch.tensor([ids + new])).logits[0].float().log_softmax(-1)
        return [logits[len(ids) - 1 + i, token].item() for i, token in enumerate(new)]
