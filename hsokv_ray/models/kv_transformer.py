"""A small transformer beside a key-value memory: what is written once is found again, without a gradient step.

    model = TransformerWithKV(KVTransformerConfig.preset("tiny", vocab_size=2000, num_labels=20))
    model.write(definition_ids, labels=words)                      # keys from the encoder, values of the labels
    output = model(context_ids, labels=words)                      # logits, loss, gate and what was retrieved
    model.eval()                                                   # now the memory is read and never changed

The encoder's state asks the memory; a gate mixes what came back into the state; the head reads the mixture. Gradients
reach the encoder through the query, stored keys and values have none. Values of labels are fixed directions, so that
what is stored stays true while the head learns to read it. `BaselineTransformer` is the same without a memory.

Shapes: B batch, T time, N candidates to write, D hidden size, L labels (or the vocabulary).
"""

import os
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification

from hsokv_ray.errors import ConfigError, DataError, StoreError
from hsokv_ray.memory.key_value import Reencoded, Written
from hsokv_ray.models.configuration_kv_transformer import KVTransformerConfig
from hsokv_ray.models.kv_candidates import Candidates, collate, sequence_candidates, token_candidates
from hsokv_ray.models.kv_drift import follow, weights_digest
from hsokv_ray.models.kv_encoder import States
from hsokv_ray.models.kv_folder import MEMORY, Saves, SavesItself, StaleMemory, attach_memory, save_folder
from hsokv_ray.models.kv_output import Batch, losses_of, targets_of
from hsokv_ray.models.kv_reading import KVReadingModel
from hsokv_ray.models.kv_writing import WritePolicy, choose, policy_of


class TransformerWithKV(KVReadingModel):
    """The model: it reads, writes, keeps its keys up to date, and is saved with its memory."""

    def write(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        *,
        vectors: Tensor | None = None,
        values: Tensor | None = None,
        labels: Tensor | None = None,
        policy: WritePolicy | str = "always",
        ids: Sequence[str] | None = None,
        metadata: Sequence[dict[str, Any]] | None = None,
        encoder_id: str | None = None,
    ) -> Written:
        """Store what the policy finds worth it; keys are made without dropout and without a gradient.

        Args:
            input_ids, attention_mask, vectors: as in `forward`.
            values: [B, value_dim]; or give `labels`.
            labels: int [B], whose values are the label embedding's rows; for the language model [B, T] as in
                `forward`: every token that has a target is a candidate, its value the target's embedding.
            policy: a name or a `WritePolicy`; "surprise" needs labels.
            ids: one per example; default a digest of the input, so that the same input again replaces its value. Not
                for a language model.
            metadata: one JSON object per example; a label is added. Not for a language model.
            encoder_id: version of the keys; default the digest of the weights, which costs a pass over them.

        Returns:
            What was written, of the chosen candidates alone.

        Raises:
            DataError: inputs, labels or values do not fit, or the memory holds keys of other weights and leaves such
                out (`exclude_stale`).
            StoreError: the model is in evaluation.
        """
        policy, batch = policy_of(policy), Batch(input_ids, attention_mask, vectors)
        self.required_memory()
        with torch.no_grad(), self._without_dropout():
            states = self.encoder(*batch)
            query = self._query(batch, states)
            targets = None if labels is None else targets_of(labels, states, self.config)
            if self.config.head == "language_model":
                if any(given is not None for given in (values, ids, metadata)):
                    raise DataError("write: a language model takes labels alone, without values, ids and metadata")
                candidates = token_candidates(batch, states, query, self._label_values(targets), targets)
            else:
                values = self._label_values(targets) if values is None else values
                candidates = sequence_candidates(batch, states, query, values, targets, ids=ids, metadata=metadata)
            chosen_N = self._chosen(policy, candidates, states, query, targets)
        return self._store(candidates.of(chosen_N), encoder_id)

    def reencode(self, *, batch_size: int = 256) -> Reencoded:
        """Encode the stored inputs of all keys that other weights made with the weights of now.

        Raises:
            DataError: an entry's input is not one that `write` stored.
            StoreError: the model is in evaluation; see `KeyValueMemory.writable`.
        """
        return self.required_memory().reencode(self.encoder_id(), self._encode_inputs, batch_size=batch_size)

    def update_key_encoder(self, decay: float = 0.0) -> None:
        """Move the frozen key encoder towards the live one: decay * its own + (1 - decay) * the live weights.

        Keys that were written before are then of an earlier version; `reencode` brings them up to date.

        Raises:
            ConfigError: the key encoder is live.
            DataError: `decay` is outside [0, 1).
        """
        if self.frozen is None:
            raise ConfigError("key_encoder: got 'live', which has no copy to move; 'frozen' is needed")
        follow(self.frozen, self._live_key_maker(), decay)

    def encoder_id(self) -> str:
        """Return the version of the keys that are made now: a digest of the weights that make them."""
        self.required_memory()
        maker = self._live_key_maker() if self.frozen is None else self.frozen
        facts = f"{self.config.num_attention_heads} {self.config.head} {self.config.layer_norm_eps}"
        return weights_digest(maker.state_dict(), facts=facts)

    def save_pretrained(  # pyright: ignore[reportIncompatibleMethodOverride]  transformers' own go by keyword
        self,
        save_directory: str | os.PathLike[str],
        is_main_process: bool = True,
        *,
        tokenizer: SavesItself | Saves | None = None,
        **kwargs: Any,
    ) -> None:
        """Write config, weights, memory and tokenizer to one folder; see `hsokv_ray.models.kv_folder`.

        Args:
            save_directory: other files in it stay.
            is_main_process: False writes nothing.
            tokenizer: anything with `save_pretrained(folder)` or `save(folder)`.
            kwargs: transformers' own, without `push_to_hub`.
        """
        if kwargs.pop("push_to_hub", False):
            raise ConfigError(
                "push_to_hub: the memory's folder would stay behind; save, then huggingface_hub.upload_folder"
            )
        if not is_main_process:
            return
        if self.memory is not None:
            self.config.key_versions = {"weights": self.encoder_id(), "memory": self.memory.encoder_id}
        save_weights = super().save_pretrained
        save_folder(save_directory, lambda stage: save_weights(stage, **kwargs), self.memory, tokenizer)

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: Any, *args: Any, stale_memory: StaleMemory = "refuse", **kwargs: Any
    ) -> Any:
        """Load what `save_pretrained` wrote, in evaluation.

        Args:
            pretrained_model_name_or_path: a local folder where the model has a memory.
            stale_memory: what becomes of a memory whose keys other weights made: refuse, reencode, keep, or empty.
            args, kwargs: transformers' own.

        Raises:
            CheckpointError: the memory is missing, damaged, or of another encoder.
        """
        loaded = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        if model.memory is not None:
            folder = Path(pretrained_model_name_or_path, kwargs.get("subfolder") or "")
            attach_memory(model, folder / MEMORY, stale_memory)
        return loaded

    def _chosen(
        self, policy: WritePolicy, candidates: Candidates, states: States, query: Tensor, targets: Tensor | None
    ) -> Tensor:
        losses_N = nearest_N = None
        if policy.name == "surprise":
            if targets is None:
                raise DataError("policy: got 'surprise' without labels; surprise is the loss on them")
            output = self._mix(states, query, record=False)
            losses = losses_of(cast("Tensor", output.logits), targets)
            losses_N = losses if candidates.where is None else losses[candidates.where]
        elif policy.name == "novelty":
            nearest_N = self.required_memory().read(candidates.keys_NK, 1, record=False).scores[:, 0]
        return choose(policy, len(candidates.keys_NK), losses_N=losses_N, nearest_N=nearest_N)

    def _store(self, kept: Candidates, encoder_id: str | None) -> Written:
        memory = self.required_memory()
        before = memory.encoder_id
        if len(kept.ids):
            version = self.encoder_id() if encoder_id is None else encoder_id
            if memory.config.exclude_stale and len(memory) and version != before:
                raise DataError(
                    f"write: the memory holds keys of {before!r}, the weights are {version!r}, and stale keys are left "
                    "out; call reencode() first, or set exclude_stale to False"
                )
            memory.encoder_id = version
        try:
            return memory.write(kept.keys_NK, kept.values_NV, ids=kept.ids, metadata=kept.metadata, inputs=kept.inputs)
        except (DataError, StoreError):
            memory.encoder_id = before  # what is refused changes nothing
            raise

    @torch.no_grad()
    def _encode_inputs(self, inputs: list[Any]) -> Tensor:
        batch = collate(inputs, self.device)
        with self._without_dropout():
            query = self._query(batch, None)
        if self.config.head != "language_model":
            return query
        assert batch.attention_mask is not None, "collate makes one"
        return query[torch.arange(len(inputs)), batch.attention_mask.sum(-1) - 1]


class BaselineTransformer(TransformerWithKV):
    """The same encoder and head without a memory, whatever the configuration says of one."""

    def __init__(self, config: KVTransformerConfig) -> None:
        config = deepcopy(config)
        config.memory, config.key_encoder = None, "live"
        super().__init__(config)


AutoConfig.register("kv_transformer", KVTransformerConfig, exist_ok=True)
AutoModel.register(KVTransformerConfig, TransformerWithKV, exist_ok=True)
AutoModelForSequenceClassification.register(KVTransformerConfig, TransformerWithKV, exist_ok=True)
