"""`hsokv generate --long`: encode a text once, or read it encoded, and generate on it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from hsokv_ray.errors import ConfigError
from hsokv_ray.inference.config import GenerateConfig, SamplingConfig
from hsokv_ray.inference.generation import Generator
from hsokv_ray.inference.loading import LoadedModel
from hsokv_ray.longcontext import LongContext, LongContextConfig


class LongGenerator(Generator):
    """Generates on an encoded text; prompts may be as long as they like."""

    def __init__(self, loaded: LoadedModel, long_context: LongContext, memory: Any, say: Callable[[str], Any]) -> None:
        super().__init__(loaded)
        self._long, self._memory, self._say = long_context, memory, say

    def encode(self, prompt: str) -> torch.Tensor:
        """Return the ids of `prompt`, shape (1, tokens): it goes on with the text, so nothing begins it."""
        ids = self.loaded.tokenizer(prompt, add_special_tokens=False, verbose=False)["input_ids"]
        if not ids and not self.loaded.model.config.is_encoder_decoder:
            raise ConfigError("the prompt is empty; give some words to continue the text with")
        return torch.tensor([ids], dtype=torch.int64, device=self.loaded.model.device)

    def _new_tokens(self, ids: torch.Tensor, **arguments: Any) -> list[int]:
        answer = self._long.generate(self._memory, prompt=ids[0], **arguments)
        self._say(answer.report.describe_retrieval())
        return answer.token_ids

    def _limit(self, ids: torch.Tensor, sampling: SamplingConfig) -> int:
        return sampling.max_length


def check_text(config: GenerateConfig) -> None:
    """Raise `ConfigError` where the text cannot be read, before anything slow."""
    if config.input is not None:
        _read(config.input)
    elif not Path(config.memory or "").expanduser().is_dir():
        raise ConfigError(f"--memory {config.memory} is no folder; give --input too, to encode it there")


@contextmanager
def open_long(loaded: LoadedModel, config: GenerateConfig, say: Callable[[str], Any]) -> Iterator[LongGenerator]:
    """Encode or load the text of `config`, and yield what generates on it.

    Raises:
        ConfigError: the model's family is not served, or the settings or the memory do not fit it.
        CheckpointError: the memory is damaged.
        RunError: the memory cannot be written.
    """
    settings = LongContextConfig(**{**config.long_context.model_dump(), "enabled": True})
    with LongContext(loaded.model, loaded.tokenizer, settings) as long_context:
        if config.input is None:
            memory = long_context.load(config.memory or "")
        else:
            memory = long_context.encode(_read(config.input), progress=True)
            if config.memory is not None:
                memory.save(config.memory)
        cut = f", {memory.num_truncated_tokens:,} cut off" if memory.num_truncated_tokens else ""
        held = f"{memory.nbytes / 1e6:.1f} MB, index {memory.index_nbytes / 1e6:.1f} MB"
        say(f"{len(memory):,} tokens in memory ({held}){cut}")
        say(long_context.describe())
        yield LongGenerator(loaded, long_context, memory, say)


def _read(path: str) -> str:
    try:
        return Path(path).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--input {path} cannot be read ({error}); give a UTF-8 file") from None
