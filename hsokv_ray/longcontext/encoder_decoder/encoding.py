"""Reading a long text through an encoder's window: overlapping windows, of each of which the middle half is kept.

Windows begin at fixed multiples of half a window, so that appending to a text gives what encoding all of it at once
would: only the last window, which did not know what would follow it, is read again.

Shapes: N tokens, M model width.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from hsokv_ray.errors import CheckpointError, ConfigError, DataError
from hsokv_ray.longcontext.config import Resolved
from hsokv_ray.longcontext.digest import model_digest
from hsokv_ray.longcontext.encoder_decoder.families import cross_attentions
from hsokv_ray.longcontext.encoder_decoder.text import EncodedText, GrowingRows
from hsokv_ray.longcontext.index import BlockIndex, make_index

OnTokens = Callable[[int], None]


@dataclass(frozen=True)
class Window:
    """Tokens `begin` to `end` go through the encoder together; the states from `keep_begin` to `keep_end` are kept."""

    begin: int
    end: int
    keep_begin: int
    keep_end: int
    is_last: bool


def windows(num_tokens: int, size: int, *, first: int = 0) -> Iterator[Window]:
    """Yield the windows over a text, from number `first` on.

    The first keeps its beginning and the last its end; in between a quarter of the window on either side is context.
    """
    margin = size // 4
    stride = size - 2 * margin
    number = first
    while True:
        begin = number * stride
        is_last = begin + size >= num_tokens
        end = num_tokens if is_last else begin + size
        yield Window(begin, end, begin + margin if number else 0, end if is_last else end - margin, is_last)
        if is_last:
            return
        number += 1


def encode_text(
    model: Any,
    token_ids: Sequence[int] | np.ndarray | torch.Tensor,
    settings: Resolved,
    *,
    on_tokens: OnTokens | None = None,
    store_dtype: torch.dtype | None = None,
    store_device: torch.device | str | None = None,
    index_options: dict[str, Any] | None = None,
    num_truncated_tokens: int = 0,
) -> EncodedText:
    """Read a text of any length; a text within the window is read at once, as the plain model would.

    Args:
        model: a BART or T5 in evaluation mode.
        token_ids: [N], with whatever special tokens the tokenizer adds to a whole text.
        settings: from `resolve`.
        on_tokens: called after each window with the number of tokens that are done.
        store_dtype: of the kept hidden states; None: the model's.
        store_device: where they are kept; None: the model's.
        index_options: further arguments of `make_index`.
        num_truncated_tokens: what was cut off before, kept for the record.

    Raises:
        ConfigError: the family is not served, or the model is in training mode.
        DataError: there are no tokens.
    """
    cross_attentions(model)
    like = model.get_input_embeddings().weight
    dtype, device = store_dtype or like.dtype, torch.device(store_device or like.device)
    width = model.config.d_model
    index = make_index(
        settings.index,
        num_heads=1,
        head_dim=width,
        block_size=settings.block,
        **{"device": device, **(index_options or {})},
    )
    ids = _checked_ids(token_ids)
    rows = GrowingRows.empty(width, dtype, device, capacity=len(ids))
    start = _State(rows, torch.empty(0, width, dtype=dtype, device=device), index)
    return _read(model, ids, settings, start, 0, on_tokens, model_digest(model), num_truncated_tokens)


def append_text(
    model: Any,
    text: EncodedText,
    token_ids: Sequence[int] | np.ndarray | torch.Tensor,
    settings: Resolved,
    *,
    on_tokens: OnTokens | None = None,
) -> EncodedText:
    """Return `text` with tokens appended, equal to reading all of it at once; `text` itself stays as it is.

    The encoder reads the last window again unless it was full, and the new tokens.

    Raises:
        CheckpointError: `text` was encoded by another model.
        ConfigError: `settings` have another window or block size; the model is in training mode.
        DataError: there are no tokens.
    """
    check_text(model, text, settings)
    number, final_end = _resumed(len(text), text.window)
    ids = np.concatenate([text.token_ids, _checked_ids(token_ids)])
    start = _State(text.settled, text.tail_NM[:0], text.index.fork())
    start.settle(text.tail_NM[: final_end - text.settled.length], settings.block)
    return _read(model, ids, settings, start, number, on_tokens, text.model_digest, text.num_truncated_tokens)


def _resumed(num_tokens: int, size: int) -> tuple[int, int]:
    """Return the first window to read once a text goes on, and the number of tokens whose states stay as they are."""
    last = list(windows(num_tokens, size))[-1]
    number = last.begin // (size - 2 * (size // 4))
    if last.end - last.begin == size:
        return number + 1, last.end - size // 4
    return number, last.keep_begin


def check_text(model: Any, text: EncodedText, settings: Resolved) -> None:
    """Raise `CheckpointError` where `model` did not encode `text`, `ConfigError` where `settings` did not."""
    digest = model_digest(model)
    if text.model_digest != digest:
        raise CheckpointError(
            f"the encoded text is of the model {text.model_digest[:12]}, this is {digest[:12]}; "
            "encode the text again with this model"
        )
    if (text.window, text.block_size) != (settings.window, settings.block):
        raise ConfigError(
            f"the text was encoded with a window of {text.window} and blocks of {text.block_size}, the settings say "
            f"{settings.window} and {settings.block}; give the former, or encode the text again"
        )


@dataclass
class _State:
    """A text being read: what is final, the part of it that fills no block yet, and the index over the former."""

    rows: GrowingRows
    rest_NM: torch.Tensor
    index: BlockIndex

    def settle(self, states_NM: torch.Tensor, block: int) -> None:
        """Take states that nothing after them will change."""
        states = torch.cat([self.rest_NM, states_NM.to(self.rest_NM)])
        cut = len(states) // block * block
        if cut:
            before = self.rows.length
            self.rows = self.rows.extended(states[:cut])
            everything = self.rows.rows_NM[None]
            self.index.add(everything[:, before:], everything)
        self.rest_NM = states[cut:]


@torch.no_grad()
def _read(
    model: Any,
    token_ids: np.ndarray,
    settings: Resolved,
    state: _State,
    first: int,
    on_tokens: OnTokens | None,
    digest: str,
    num_truncated_tokens: int,
) -> EncodedText:
    if model.training:
        raise ConfigError("the model is in training mode, where dropout changes what it reads; call model.eval() first")
    tail = state.rest_NM
    for window in windows(len(token_ids), settings.window, first=first):
        states = _encode(model, token_ids[window.begin : window.end])
        kept = states[window.keep_begin - window.begin : window.keep_end - window.begin]
        if window.is_last:
            tail = torch.cat([state.rest_NM, kept.to(state.rest_NM)])
        else:
            state.settle(kept, settings.block)
        if on_tokens is not None:
            on_tokens(window.keep_end)
    return EncodedText(
        token_ids=token_ids,
        settled=state.rows,
        tail_NM=tail,
        index=state.index,
        window=settings.window,
        block_size=settings.block,
        model_digest=digest,
        num_truncated_tokens=num_truncated_tokens,
    )


def _encode(model: Any, token_ids: np.ndarray) -> torch.Tensor:
    device = model.get_input_embeddings().weight.device
    ids = torch.from_numpy(token_ids).to(device)[None]
    return model.get_encoder()(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state[0]


def _checked_ids(token_ids: Sequence[int] | np.ndarray | torch.Tensor) -> np.ndarray:
    values = token_ids.detach().cpu().numpy() if isinstance(token_ids, torch.Tensor) else np.asarray(token_ids)
    if values.ndim != 1 or not len(values) or values.dtype.kind not in "iu":
        raise DataError(f"token ids have shape {values.shape} and type {values.dtype}; give integers in a row")
    return np.array(values, dtype=np.int64)
