"""The reading half of the key-value transformer: encode, ask the memory, mix what came back, score.

Shapes: B batch, T time, D hidden size, L labels (or the vocabulary).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Self, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import initialization
from transformers.modeling_utils import PreTrainedModel

from hsokv_ray.errors import DataError
from hsokv_ray.memory.config import KeyValueConfig
from hsokv_ray.memory.key_value import KeyValueMemory
from hsokv_ray.memory.retrieval import GatedRead
from hsokv_ray.models.configuration_kv_transformer import KVTransformerConfig
from hsokv_ray.models.kv_encoder import KVEncoder, States
from hsokv_ray.models.kv_flops import GATE_HIDDEN_SIZE
from hsokv_ray.models.kv_output import Batch, KVOutput, losses_of, num_outputs, targets_of
from hsokv_ray.models.loss import IGNORE_INDEX


class KVReadingModel(PreTrainedModel):
    """Encoder, gated read of a `KeyValueMemory` and a head; without a memory where the configuration has none."""

    config: KVTransformerConfig
    config_class = KVTransformerConfig
    base_model_prefix = "model"
    _no_split_modules = ["KVLayer"]

    def __init__(self, config: KVTransformerConfig) -> None:
        super().__init__(config)
        self.encoder = KVEncoder(config)
        classifies = config.head == "classification"
        self.classifier = nn.Linear(config.hidden_size, num_outputs(config)) if classifies else None
        self.memory: KeyValueMemory | None = None
        self.frozen: nn.ModuleDict | None = None
        if config.memory is not None:
            self._build_memory(KeyValueConfig(**config.memory))
        self.post_init()

    def _build_memory(self, memory_config: KeyValueConfig) -> None:
        config = self.config
        self.memory = KeyValueMemory(memory_config)
        self.key_proj = nn.Linear(config.hidden_size, memory_config.key_dim, bias=False)
        self.gated_read = GatedRead(config.hidden_size, memory_config.value_dim, gate_hidden_size=GATE_HIDDEN_SIZE)
        if config.head == "classification":
            self.register_buffer("label_values", torch.zeros(num_outputs(config), memory_config.value_dim))
        if config.key_encoder == "frozen":
            copy = nn.Linear(config.hidden_size, memory_config.key_dim, bias=False)
            self.frozen = nn.ModuleDict({"encoder": KVEncoder(config), "key_proj": copy}).requires_grad_(False).eval()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Initialise a module by its part; transformers asks for those with weights of their own, children first."""
        super()._init_weights(module)
        if self.memory is None:
            return
        if module is self.key_proj:
            initialization.orthogonal_(self.key_proj.weight)  # keeps cosines between states, where the sizes allow
        elif isinstance(module, nn.Linear) and module is getattr(self.encoder, "input_proj", None):
            if module.in_features <= module.out_features:  # cosines between vectors too: the start is their neighbours
                initialization.orthogonal_(module.weight)
        elif module is self.gated_read.gate[-1]:
            initialization.constant_(cast("nn.Linear", module).bias, float(self.config.gate_init))
        elif module is self and self.classifier is not None:
            self._init_label_values(self.classifier.weight, self.get_buffer("label_values"))
        elif self.frozen is not None:
            self._init_frozen(self.frozen, module)

    def _init_label_values(self, weight: Tensor, values: Tensor) -> None:
        # The classifier's own directions where the sizes allow: what a label's value says is read from the start.
        directions = weight if weight.shape == values.shape else torch.empty_like(values).normal_()
        initialization.copy_(values, F.normalize(directions, dim=-1) * values.shape[-1] ** 0.5)

    def _init_frozen(self, frozen: nn.ModuleDict, module: nn.Module) -> None:
        for name, own in frozen.named_modules():
            if own is module:  # a copy of the live one, whose turn was before
                live = self._live_key_maker().get_submodule(name)
                for target, source in zip(own.parameters(recurse=False), live.parameters(recurse=False), strict=True):
                    initialization.copy_(target, source)

    def train(self, mode: bool = True) -> Self:
        """As torch's; a frozen key encoder stays in evaluation, and the memory follows the model."""
        super().train(mode)
        if self.frozen is not None:
            self.frozen.eval()
        return self

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        *,
        vectors: Tensor | None = None,
        gate: float | None = None,
        use_memory: bool = True,
        top_k: int | None = None,
    ) -> KVOutput:
        """Encode, read, mix, and score.

        Args:
            input_ids: int [B, T]; or give `vectors` [B, input_dim], as the configuration's `input` says.
            attention_mask: [B, T], 0 at padding; None: padding is where the id is `pad_token_id`.
            labels: int [B]; for the language model [B, T] token ids, shifted here. -100 is ignored.
            gate: in place of the learned gate where something hit: 0 leaves the memory out, 1 leaves the state out.
            use_memory: False does not read at all.
            top_k: entries per query; None: the memory's own.

        Raises:
            DataError: inputs or labels do not fit.
        """
        batch = Batch(input_ids, attention_mask, vectors)
        states = self.encoder(*batch)
        query = self._query(batch, states) if use_memory and self.memory is not None else None
        output = self._mix(states, query, gate=gate, top_k=top_k)
        if labels is not None:
            targets = targets_of(labels, states, self.config)
            losses = losses_of(cast("Tensor", output.logits), targets)
            output.loss = losses.sum() / targets.ne(IGNORE_INDEX).sum().clamp(min=1)
        return output

    def keys(
        self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, *, vectors: Tensor | None = None
    ) -> Tensor:
        """Return what is written and read with, at unit length: [B, key_dim], for the language model [B, T, key_dim].

        Gradients reach the encoder unless the key encoder is frozen. A token of padding has a zero key.
        """
        self.required_memory()
        return F.normalize(self._query(Batch(input_ids, attention_mask, vectors), None), dim=-1)

    def required_memory(self) -> KeyValueMemory:
        """Return the memory. Raises `DataError`: there is none."""
        if self.memory is None:
            raise DataError("this model has no memory; build it with memory={} in its configuration")
        return self.memory

    def _live_key_maker(self) -> nn.ModuleDict:
        return nn.ModuleDict({"encoder": self.encoder, "key_proj": self.key_proj})

    def _query(self, batch: Batch, states: States | None) -> Tensor:
        """Return keys of any length; `states` are the live encoder's, where they are there already."""
        if self.frozen is not None:
            with torch.no_grad():
                asking = cast("KVEncoder", self.frozen["encoder"])(*batch)
                query = self.frozen["key_proj"](asking.read_with)
        else:
            asking = self.encoder(*batch) if states is None else states
            query = self.key_proj(asking.read_with)
        if asking.pooled_BD is not None or asking.mask_BT is None:
            return query
        # A zero query is near nothing, so that padding retrieves (and counts) nothing.
        return query * asking.mask_BT[..., None]

    def _mix(
        self,
        states: States,
        query: Tensor | None,
        *,
        gate: float | None = None,
        top_k: int | None = None,
        record: bool = True,
    ) -> KVOutput:
        output = KVOutput(pooled=states.pooled_BD, hidden=states.hidden_BTD, mixed=states.read_with)
        if query is not None:
            output.retrieval = self.required_memory().read(query, top_k, record=record)
            mixed = self.gated_read(states.read_with, output.retrieval, force=gate)
            output.mixed, output.gate = mixed.output, mixed.gate
        output.logits = self._logits(cast("Tensor", output.mixed))
        return output

    def _logits(self, mixed: Tensor) -> Tensor | None:
        if self.config.head == "language_model":
            return F.linear(mixed, self.encoder.embed_tokens.weight)
        return None if self.classifier is None else self.classifier(mixed)

    @torch.no_grad()
    def values_of(self, labels: Tensor) -> Tensor:
        """Return what is written for each of `labels`, int [...]: [..., value_dim]."""
        return self._label_values(labels)

    def _label_values(self, targets: Tensor | None) -> Tensor:
        """Return the value of each target, [..., value_dim]; zeros where there is none."""
        if targets is None:
            raise DataError("write: got neither values nor labels; give one of them")
        rows = targets.clamp(min=0)
        if self.config.head != "language_model":
            return self.get_buffer("label_values")[rows]
        width, hidden_size = self.required_memory().config.value_dim, self.config.hidden_size
        if width != hidden_size:
            raise DataError(f"write: values are {width} wide; a language model's need value_dim {hidden_size}")
        # As long as the states beside which they are mixed in.
        return F.normalize(self.encoder.embed_tokens(rows), dim=-1) * hidden_size**0.5

    @contextmanager
    def _without_dropout(self) -> Iterator[None]:
        before = self.encoder.training
        self.encoder.eval()
        try:
            yield
        finally:
            self.encoder.train(before)
