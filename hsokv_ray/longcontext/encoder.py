"""Long inputs for encoder-decoder models behind the same methods as for decoder-only ones."""

import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from hsokv_ray.errors import ConfigError
from hsokv_ray.longcontext.config import LongContextConfig
from hsokv_ray.longcontext.encoder_decoder import (
    EncodedText,
    append_text,
    encode_text,
    generate_kwargs,
    load_encoded,
    resolve,
    save_encoded,
)
from hsokv_ray.longcontext.placement import place_layers
from hsokv_ray.longcontext.report import Stopwatch
from hsokv_ray.longcontext.requests import OnTokens, Request


@dataclass
class EncoderMemory:
    """A text read by an encoder: its hidden states, which serve all layers and heads, and one index over them."""

    text: EncodedText
    num_truncated_tokens: int = 0
    """Tokens cut off because of `max_source_length`."""
    lock: threading.RLock = field(default_factory=threading.RLock, repr=False, compare=False)
    """Held while the memory changes."""

    def __len__(self) -> int:
        return len(self.text)

    @property
    def token_ids(self) -> np.ndarray:
        """[N] int64."""
        return self.text.token_ids

    @property
    def nbytes(self) -> int:
        """Bytes of the hidden states, the index apart."""
        return self.text.nbytes

    @property
    def index_nbytes(self) -> int:
        """Bytes of the index."""
        return self.text.index_nbytes

    def save(self, path: str | Path) -> None:
        """Write the memory to the folder `path`: safetensors and a manifest. Raises `RunError`."""
        save_encoded(self.text, path)

    @classmethod
    def load(cls, path: str | Path) -> "EncoderMemory":
        """Read what `save` wrote. Raises `CheckpointError`: missing, damaged, or of another kind."""
        text = load_encoded(path)
        return cls(text, text.num_truncated_tokens)


class EncoderReader:
    """Reads texts with one encoder-decoder model."""

    def __init__(self, model: Any, config: LongContextConfig) -> None:
        self.model, self.config = model, config
        self.settings = resolve(config, model)
        self._place = place_layers([model.get_encoder()], model.dtype, config)[0]

    def describe(self) -> str:
        """Return settings and placement in one line."""
        return f"{self.settings.describe()}; {self._place.describe()}"

    def encode(self, token_ids: np.ndarray, on_tokens: OnTokens) -> EncoderMemory:
        """Return the memory of the text `token_ids` [N]."""
        return EncoderMemory(
            encode_text(
                self.model,
                token_ids,
                self.settings,
                on_tokens=on_tokens,
                store_dtype=self._place.store_dtype,
                store_device=self._place.store_device,
                index_options={"gpu": self._place.index_gpu},
            )
        )

    def append(self, memory: EncoderMemory, token_ids: np.ndarray, on_tokens: OnTokens) -> None:
        """Read `token_ids` behind the text of `memory`, and the end of the last window again."""
        self._check(memory)
        memory.text = append_text(self.model, memory.text, token_ids, self.settings, on_tokens=on_tokens)

    def request(
        self,
        memory: EncoderMemory | None,
        prompts: list[list[int]],
        *,
        num_prefix_tokens: int,
        pad_token: int,
        reads_prompts: bool = True,
    ) -> Request:
        """Return a request whose rows read the memory with a prompt behind it, which may be empty.

        The encoder sees the prompt as the end of the text; prefixes stand there too.
        """
        if memory is not None:
            self._check(memory)
        texts = [self._text(memory, np.array(prompt, dtype=np.int64)) for prompt in prompts]
        watch = Stopwatch()
        return Request(
            arguments=generate_kwargs(self.model, texts, self.settings, watch=watch),
            watch=watch,
            num_given=1,  # the token a decoder begins with
            num_memory_tokens=0 if memory is None else len(memory),
            num_prompt_tokens=sum(map(len, prompts)),
            memory_bytes=max(text.nbytes for text in texts),
            index_bytes=max(text.index_nbytes for text in texts),
        )

    def _text(self, memory: EncoderMemory | None, prompt_ids: np.ndarray) -> EncodedText:
        if memory is None:
            return self.encode(prompt_ids, lambda num_tokens: None).text
        return append_text(self.model, memory.text, prompt_ids, self.settings) if len(prompt_ids) else memory.text

    def _check(self, memory: Any) -> None:
        if not isinstance(memory, EncoderMemory):
            raise ConfigError(
                f"an encoder-decoder model reads an EncoderMemory, got {type(memory).__name__}; encode the text with it"
            )
