"""With long context off: the text before each prompt, read by the plain model, which must hold it all."""

from typing import Any

import numpy as np

from hsokv_ray.errors import ConfigError
from hsokv_ray.longcontext.decoder import left_padded
from hsokv_ray.longcontext.memory import Memory
from hsokv_ray.longcontext.report import Stopwatch
from hsokv_ray.longcontext.requests import OnTokens, Request


class PlainReader:
    """Puts texts before prompts; nothing is registered on the model."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.window: int | None = getattr(model.config, "max_position_embeddings", None)

    def describe(self) -> str:
        """Return one line."""
        return f"off; the plain model, window {self.window}"

    def encode(self, token_ids: np.ndarray, on_tokens: OnTokens) -> Memory:
        """Return the text `token_ids` [N] as it is. Raises `ConfigError` where the window cannot hold it."""
        self._check(len(token_ids))
        return Memory(token_ids=token_ids, model_digest="", layout={}, rows=[])

    def append(self, memory: Memory, token_ids: np.ndarray, on_tokens: OnTokens) -> None:
        """Put `token_ids` behind the text."""
        self._check(len(memory) + len(token_ids))
        memory.token_ids = np.concatenate([memory.token_ids, token_ids])

    def request(
        self,
        memory: Memory | None,
        prompts: list[list[int]],
        *,
        num_prefix_tokens: int,
        pad_token: int,
        reads_prompts: bool = True,
    ) -> Request:
        """Return a request of the text and each prompt."""
        if memory is None and not all(prompts):
            raise ConfigError("the prompt is empty; give at least one token to continue from")
        before = [] if memory is None else memory.token_ids.tolist()
        self._check(len(before) + max(map(len, prompts)))
        ids_BT, mask_BT = left_padded([before + prompt for prompt in prompts], pad_token, self.model.device)
        arguments: dict[str, Any] = {"attention_mask": mask_BT, "input_ids": ids_BT}
        given = 1 if self.model.config.is_encoder_decoder else ids_BT.shape[1]
        return Request(arguments, Stopwatch(), given, len(before), sum(map(len, prompts)), 0, 0)

    def _check(self, num_tokens: int) -> None:
        if self.window is not None and num_tokens > self.window:
            raise ConfigError(
                f"the input has {num_tokens:,} tokens, the model's window is {self.window:,}; shorten it, or set "
                "enabled: true to read it by retrieval"
            )
