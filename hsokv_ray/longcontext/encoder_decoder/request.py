"""What a request hands to `model.generate` or to the model so that its cross attention reads encoded texts.

Shapes: R texts, W rows of the batch, H heads, T new tokens, D head size, M model width, N tokens.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import DynamicCache, EncoderDecoderCache
from transformers.cache_utils import CacheLayerMixin
from transformers.modeling_outputs import BaseModelOutput

from hsokv_ray.errors import ConfigError
from hsokv_ray.longcontext.attention import PREFIX, tag
from hsokv_ray.longcontext.config import Resolved
from hsokv_ray.longcontext.encoder_decoder.attending import attend_hidden, attend_states
from hsokv_ray.longcontext.encoder_decoder.encoding import check_text
from hsokv_ray.longcontext.encoder_decoder.families import cross_attentions, heads, projections
from hsokv_ray.longcontext.encoder_decoder.text import EncodedText
from hsokv_ray.longcontext.report import Stopwatch


def generate_kwargs(
    model: Any,
    texts: EncodedText | Sequence[EncodedText],
    settings: Resolved,
    *,
    watch: Stopwatch | None = None,
) -> dict[str, Any]:
    """Return arguments for `model.generate(**...)`, or `model(decoder_input_ids=..., **...)`, of one request.

    Beams and several sequences per text are the generation's business. While every text fits the window these are
    the plain model's own inputs, and it need not be attached.

    Args:
        model: the model that encoded the texts.
        texts: one per row of the batch; the same text may be given for several, and to any number of requests.
        settings: from `resolve`.
        watch: counts what choosing and fetching take, a lap per forward pass.

    Raises:
        CheckpointError: another model encoded a text.
        ConfigError: no texts, other settings, or retrieval is not attached to the model.
    """
    rows = _rows(texts)
    if all(len(text) <= settings.window for text in rows):
        for text in _distinct(rows):
            check_text(model, text, settings)
        return _plain(model, rows)
    cache = cross_cache(model, rows, settings, watch=watch)
    like = model.get_input_embeddings().weight
    hidden = like.new_zeros(len(rows), 1, model.config.d_model)
    mask = torch.ones(len(rows), 1, dtype=torch.long, device=like.device)
    return _arguments(hidden, mask, cache)


def cross_cache(
    model: Any,
    texts: EncodedText | Sequence[EncodedText],
    settings: Resolved,
    *,
    watch: Stopwatch | None = None,
) -> EncoderDecoderCache:
    """Return a cache for one request whose cross attention retrieves from `texts`, one per row of the batch.

    Raises as `generate_kwargs`.
    """
    rows = _rows(texts)
    for text in _distinct(rows):
        check_text(model, text, settings)
    _check_attached(model)
    # a DynamicCache by type, or EncoderDecoderCache would refuse `crop` and the selection of rows
    cross = DynamicCache()
    modules = cross_attentions(model)
    cross.layers += [
        CrossRetrievalLayer(
            module, rows, settings, retrieves=settings.retrieves(number), watch=watch, is_last=module is modules[-1]
        )
        for number, module in enumerate(modules)
    ]
    return EncoderDecoderCache(DynamicCache(), cross)


class CrossRetrievalLayer(CacheLayerMixin):
    """The cross attention of one decoder layer in one request; holds texts where others hold keys and values.

    Its keys are a placeholder that leads the attention function here. They are not numbers: a model that ignored the
    tag would answer nan, never nonsense.

    Args:
        module: the model's cross attention.
        texts: one per row.
        settings: from `resolve`.
        retrieves: whether the layer fetches from the whole text; otherwise it sees the first window of it.
        watch: entered while it chooses and fetches.
        is_last: whether a forward pass ends here.
    """

    is_sliding = False
    is_compileable = False
    is_croppable = True

    def __init__(
        self,
        module: nn.Module,
        texts: list[EncodedText],
        settings: Resolved,
        *,
        retrieves: bool,
        watch: Stopwatch | None = None,
        is_last: bool = False,
    ) -> None:
        super().__init__()
        self._settings, self._retrieves = settings, retrieves
        self._watch, self._is_last = watch or Stopwatch(), is_last
        num_heads, head_dim = heads(module)
        weight = projections(module).key_HDM
        self.dtype, self.device = weight.dtype, weight.device
        self._placeholder = weight.new_full((1, num_heads, 1, head_dim), float("nan"))
        self._hold(texts)
        self.is_initialized = True

    def attend(
        self,
        module: nn.Module,
        query_BHTD: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        *,
        scaling: float,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Return the output [W, T, H, D]. The placeholders and their mask are not looked at."""
        project = projections(module)
        self._spread_over(query_BHTD.shape[0])
        query_WHTM = torch.einsum("whtd,hdm->whtm", query_BHTD * scaling, project.key_HDM)
        output_WTHD = torch.einsum("whtm,hdm->wthd", self._attend(query_WHTM), project.value_HDM)
        if self._is_last:
            self._watch.lap()
        return output_WTHD if project.value_bias_HD is None else output_WTHD + project.value_bias_HD

    def _attend(self, query_WHTM: torch.Tensor) -> torch.Tensor:
        output = torch.empty_like(query_WHTM)
        for text in _distinct(self._texts):
            rows = [row for row, other in enumerate(self._texts) if other is text]
            queries_QM = query_WHTM[rows].flatten(0, 2)
            output[rows] = self._summed(queries_QM, text).view(len(rows), *query_WHTM.shape[1:])
        return output

    def _summed(self, queries_QM: torch.Tensor, text: EncodedText) -> torch.Tensor:
        if not self._retrieves or len(text) <= self._settings.window:
            return attend_states(queries_QM, text.first(self._settings.window))
        return attend_hidden(queries_QM, text, self._settings.num_blocks, self._watch)

    def _spread_over(self, num_rows: int) -> None:
        """Give each text as many neighbouring rows as it has beams."""
        repeats, rest = divmod(num_rows, len(self._texts))
        if rest:
            raise ConfigError(
                f"a batch of {num_rows} rows for {len(self._texts)} encoded texts; "
                "give one text per row, or as many rows as texts, times beams"
            )
        if repeats > 1:
            self.batch_repeat_interleave(repeats)

    def _hold(self, texts: list[EncodedText]) -> None:
        self._texts = texts
        self.keys = self.values = tag(self._placeholder.expand(len(texts), -1, -1, -1), self)

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        """Follow the beams."""
        self._spread_over(len(beam_idx))
        self._hold([self._texts[row] for row in beam_idx.tolist()])

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every row."""
        self._hold([text for text in self._texts for _ in range(repeats)])

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep some rows, given by number or by a mask."""
        rows = torch.arange(len(self._texts))[indices.cpu()].tolist()
        self._hold([self._texts[row] for row in rows])

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """Return the placeholders; after `reset` the model offers states of its own."""
        return self.keys, self.values

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Nothing is left to do."""

    def get_seq_length(self) -> int:
        """Return the length of the placeholder."""
        return 1

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return length and offset of the placeholder."""
        return 1, 0

    def get_max_length(self) -> int:
        """Return -1: no limit."""
        return -1

    def get_max_cache_shape(self) -> int:
        """Return -1: no limit."""
        return -1

    def reset(self) -> None:
        """Keep the texts: they are the input, not the state."""

    def crop(self, tokens_to_remove: int) -> None:
        """Keep the texts: cropping is about generated tokens."""

    def offload(self) -> None:
        """Keep the placeholder: moving it would lose its tag."""

    def prefetch(self) -> None:
        """See `offload`."""


def _plain(model: Any, rows: list[EncodedText]) -> dict[str, Any]:
    like = model.get_input_embeddings().weight
    states = [text.hidden_NM.to(like) for text in rows]
    hidden = nn.utils.rnn.pad_sequence(states, batch_first=True)
    lengths = torch.tensor([len(text) for text in rows], device=like.device)
    mask = torch.arange(hidden.shape[1], device=like.device) < lengths[:, None]
    return _arguments(hidden, mask.long(), EncoderDecoderCache(DynamicCache(), DynamicCache()))


def _arguments(hidden: torch.Tensor, mask: torch.Tensor, cache: EncoderDecoderCache) -> dict[str, Any]:
    outputs = BaseModelOutput(last_hidden_state=hidden)
    return {"encoder_outputs": outputs, "attention_mask": mask, "past_key_values": cache}


def _rows(texts: EncodedText | Sequence[EncodedText]) -> list[EncodedText]:
    rows = [texts] if isinstance(texts, EncodedText) else list(texts)
    if not rows:
        raise ConfigError("no encoded text was given; give one per row of the batch")
    return rows


def _distinct(texts: list[EncodedText]) -> list[EncodedText]:
    return list({id(text): text for text in texts}.values())


def _check_attached(model: Any) -> None:
    name = model.get_decoder().config._attn_implementation
    if not str(name).startswith(PREFIX):
        raise ConfigError(
            f"the model's attention is {name!r}, which does not know retrieval; "
            "attach it: model.set_attn_implementation(register(model.config._attn_implementation))"
        )
