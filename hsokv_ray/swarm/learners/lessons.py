"""Lessons: what is written to a fresh memory, and what is then asked of it, for training and for measuring.

The memory of a lesson lives as long as the lesson; the model's own one is not touched. Only a support is ever written,
never a query. Stored keys have no gradient, so reading alone moves the query's side towards keys that stay where the
first weights put them, which teaches next to nothing; `retrieval_loss` has gradients on both sides.

Shapes: N support, B queries, K key_dim, C slots.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from hsokv_ray.errors import RunError
from hsokv_ray.memory.key_value import KeyValueMemory
from hsokv_ray.models import TransformerWithKV
from hsokv_ray.models.kv_output import losses_of
from hsokv_ray.models.kv_statistics import gate_statistics
from hsokv_ray.models.kv_writing import WritePolicy
from hsokv_ray.swarm.learners.lesson_flops import asking_flops, lesson_flops, writing_flops

ASK_BATCH = 64
"""Queries of one forward pass where nothing is trained."""
WRITE_BATCH = 8
"""Examples that are written at once outside training: a policy sees what earlier ones left in the memory."""


@dataclass(frozen=True, eq=False)
class Items:
    """Inputs of a model and their labels."""

    inputs: Tensor
    """int64 [N, T] token ids, padded with 0; or float [N, input_dim]."""
    labels: Tensor
    """int64 [N]."""

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def given(self) -> dict[str, Tensor]:
        """The inputs under the name that the model's forward has for them."""
        return {"vectors" if self.inputs.is_floating_point() else "input_ids": self.inputs}

    @property
    def num_tokens(self) -> int:
        """T; 1 for vectors."""
        return 1 if self.inputs.is_floating_point() else self.inputs.shape[1]

    def select(self, rows: list[int]) -> "Items":
        """Return those at `rows`, without columns that are padding in all of them."""
        inputs = self.inputs[rows]
        if not inputs.is_floating_point():
            inputs = inputs[:, : int((inputs != 0).sum(-1).max())]
        return Items(inputs, self.labels[rows])

    def batches(self, size: int) -> Iterator["Items"]:
        """Yield all of them in order, `size` at a time."""
        for start in range(0, len(self), size):
            yield self.select(list(range(start, min(start + size, len(self)))))


@dataclass(frozen=True, eq=False)
class Lesson:
    """What is written, and what is asked."""

    support: Items
    queries: Items


@dataclass(frozen=True, eq=False)
class Answers:
    """What a model said to queries, each [B]."""

    right: Tensor
    """bool: the label is the right one."""
    losses: Tensor
    """Nats."""
    found: Tensor
    """bool: the nearest entry is a right one; False where nothing was read."""
    gate: Tensor | None
    """Share of the memory; None where nothing was read."""
    entries: Tensor
    """int64: what the memory that was read held; 0 where nothing was read."""
    flops: int

    @property
    def accuracy(self) -> float:
        """Share of right answers."""
        return float(self.right.double().mean())

    def figures(self) -> dict[str, float]:
        """Return accuracy, loss and n; where a memory was read its mean entries, hit rate and gate too.

        Raises:
            RunError: the loss is no finite number.
        """
        loss = float(self.losses.double().mean())
        if not torch.isfinite(self.losses).all():
            raise RunError(f"evaluation: the loss is {loss}; lower the learning rate")
        values = {"accuracy": self.accuracy, "loss": loss, "n": float(len(self.right))}
        if self.gate is None:
            return values
        gate = gate_statistics(self.gate)
        found, entries = float(self.found.double().mean()), float(self.entries.double().mean())
        read = {"memory_entries": entries, "hit_rate": found}
        return values | read | {"gate_mean": gate.mean, "gate_entropy_bits": gate.entropy_bits}


def joined(parts: list[Answers]) -> Answers:
    """Return the answers of several askings as one."""
    gates = [part.gate for part in parts if part.gate is not None]
    return Answers(
        right=torch.cat([part.right for part in parts]),
        losses=torch.cat([part.losses for part in parts]),
        found=torch.cat([part.found for part in parts]),
        gate=torch.cat(gates) if gates else None,
        entries=torch.cat([part.entries for part in parts]),
        flops=sum(part.flops for part in parts),
    )


@contextmanager
def fresh_memory(model: TransformerWithKV, *, capacity: int | None = None) -> Iterator[KeyValueMemory]:
    """Put an empty memory in the place of the model's own inside the block.

    Args:
        capacity: entries; default as many as the model's own.
    """
    own = model.required_memory()
    config = own.config if capacity is None else own.config.model_copy(update={"capacity": capacity})
    model.memory = KeyValueMemory(config).train(model.training)
    try:
        yield model.memory
    finally:
        model.memory = own


def write(
    model: TransformerWithKV,
    support: Items,
    policy: WritePolicy,
    *,
    encoder_id: str | None,
    prefix: str = "",
    batch_size: int = WRITE_BATCH,
    values: Tensor | None = None,
) -> int:
    """Write a support to the model's memory, also in evaluation; return the FLOPs.

    Args:
        policy: which examples are worth it.
        encoder_id: version of the keys; None: the digest of the weights.
        prefix: of the entries' ids, which are positions.
        values: [N, value_dim] in place of those of the labels.
    """
    memory, flops, start = model.required_memory(), 0, 0
    with memory.writable():
        for part in support.batches(batch_size):
            rows = slice(start, start + len(part))
            flops += writing_flops(model.config, policy, len(part), part.num_tokens, num_slots(memory))
            model.write(
                input_ids=part.given.get("input_ids"),
                vectors=part.given.get("vectors"),
                labels=part.labels,
                values=None if values is None else values[rows],
                policy=policy,
                ids=[f"{prefix}{i}" for i in range(rows.start, rows.stop)],
                encoder_id=encoder_id,
            )
            start = rows.stop
    return flops


def num_slots(memory: KeyValueMemory) -> int:
    """Return how many slots a read compares with: up to the highest in use."""
    used = [slot for slot, entry in enumerate(memory.entries) if entry is not None]
    return used[-1] + 1 if used else 0


def slot_labels(memory: KeyValueMemory) -> Tensor:
    """Return the label of each slot's entry, int64 [C]; -1 where there is none."""
    return torch.tensor([-1 if entry is None else entry.metadata["label"] for entry in memory.entries])


def lesson_loss(
    model: TransformerWithKV, lesson: Lesson, policy: WritePolicy, *, retrieval_weight: float, encoder_id: str
) -> tuple[Tensor, int]:
    """Return the loss of a lesson and the FLOPs of its forward and backward pass.

    Cross entropy of the queries' labels, read through a memory that holds the support, and `retrieval_weight` times
    `retrieval_loss`. A model without a memory has the queries alone.
    """
    queries = lesson.queries
    if model.memory is None:
        output = model(**queries.given, labels=queries.labels)
        return output.loss, lesson_flops(model.config, lesson, policy, 0, retrieval_weight)
    with fresh_memory(model, capacity=len(lesson.support)) as memory:
        write(model, lesson.support, policy, encoder_id=encoder_id, batch_size=len(lesson.support))
        flops = lesson_flops(model.config, lesson, policy, num_slots(memory), retrieval_weight)
        output = model(**queries.given, labels=queries.labels)
    if not retrieval_weight:
        return output.loss, flops
    keys_NK = model.keys(**lesson.support.given)
    queries_BK = F.normalize(model.key_proj(output.pooled), dim=-1)
    found = retrieval_loss(
        queries_BK, keys_NK, queries.labels, lesson.support.labels, temperature=memory.config.temperature
    )
    return output.loss + retrieval_weight * found, flops


def retrieval_loss(
    queries_BK: Tensor, keys_NK: Tensor, labels_B: Tensor, labels_N: Tensor, *, temperature: float
) -> Tensor:
    """Return the mean of -log of the share that a softmax over all keys gives to those of the query's own label.

    Keys and queries at unit length; every label of a query has a key. With one key per label it is InfoNCE (Oord 2018,
    arXiv:1807.03748, eq. 4), and the share is what a matching network predicts (Vinyals 2016, arXiv:1606.04080, eq. 1).
    """
    shares_BN = F.log_softmax(queries_BK @ keys_NK.T / temperature, dim=-1)
    is_other_BN = labels_B[:, None] != labels_N
    return -shares_BN.masked_fill(is_other_BN, -torch.inf).logsumexp(-1).mean()


@torch.no_grad()
def ask(
    model: TransformerWithKV,
    queries: Items,
    labels_C: Tensor | None = None,
    *,
    gate: float | None = None,
    use_memory: bool = True,
) -> Answers:
    """Ask a model in evaluation; its memory is read and not changed.

    Args:
        labels_C: of the entries that are right for a query of the same label; see `slot_labels`.
        gate, use_memory: as the model's forward takes them.
    """
    reads = use_memory and model.memory is not None
    slots = num_slots(model.required_memory()) if reads else None
    held = len(model.required_memory()) if reads else 0
    parts = []
    for part in queries.batches(ASK_BATCH):
        output = model(**part.given, gate=gate, use_memory=use_memory)
        logits = cast("Tensor", output.logits)
        flops = asking_flops(model.config, len(part), part.num_tokens, slots, forced_gate=gate is not None)
        found = torch.zeros(len(part), dtype=torch.bool)
        if reads and labels_C is not None and output.retrieval is not None:
            nearest_B, hit_B = output.retrieval.indices[:, 0], output.retrieval.hits[:, 0]
            found = hit_B & (labels_C[nearest_B.clamp(min=0)] == part.labels)
        right, losses = logits.argmax(-1) == part.labels, losses_of(logits, part.labels)
        entries = torch.full((len(part),), held)
        parts.append(Answers(right, losses, found, output.gate if reads else None, entries, flops))
    return joined(parts)


Ablation = Literal["gate_0", "gate_1", "without_memory", "shuffled_values", "random_keys"]


def ablations(
    model: TransformerWithKV,
    lesson: Lesson,
    policy: WritePolicy,
    *,
    generator: torch.Generator,
    gate: float | None = None,
) -> dict[str, Answers]:
    """Return what a model answers as it is ("memory"), and under each `Ablation`.

    gate_0 and gate_1 force the gate; without_memory does not read; shuffled_values gives every entry the value of
    another one drawn by `generator`; random_keys gives every entry a random key.
    """
    answers = {}
    with fresh_memory(model, capacity=len(lesson.support)) as memory:
        flops = write(model, lesson.support, policy, encoder_id="ablation")
        labels_C = slot_labels(memory)
        answers["memory"] = _with_flops(ask(model, lesson.queries, labels_C, gate=gate), flops)
        answers["gate_0"] = ask(model, lesson.queries, labels_C, gate=0.0)
        answers["gate_1"] = ask(model, lesson.queries, labels_C, gate=1.0)
        answers["without_memory"] = ask(model, lesson.queries, use_memory=False)
    values_NV = model.get_buffer("label_values")[lesson.support.labels]
    with fresh_memory(model, capacity=len(lesson.support)) as memory:
        order = torch.randperm(len(lesson.support), generator=generator)
        flops = write(model, lesson.support, policy, encoder_id="ablation", values=values_NV[order])
        answers["shuffled_values"] = _with_flops(ask(model, lesson.queries, slot_labels(memory), gate=gate), flops)
    with fresh_memory(model, capacity=len(lesson.support)) as memory:
        keys_NK = torch.randn(len(lesson.support), memory.config.key_dim, generator=generator)
        facts = [{"label": label} for label in lesson.support.labels.tolist()]
        with memory.writable():
            memory.write(keys_NK, values_NV, metadata=facts, ids=[str(i) for i in range(len(facts))])
        answers["random_keys"] = ask(model, lesson.queries, slot_labels(memory), gate=gate)
    return answers


def _with_flops(answers: Answers, more: int) -> Answers:
    return replace(answers, flops=answers.flops + more)


def ablation_figures(answers: dict[str, Answers]) -> dict[str, float]:
    """Return the figures of what the model answers as it is, the accuracy of each ablation by its name, and utility."""
    figures = answers["memory"].figures()
    figures |= {name: each.accuracy for name, each in answers.items() if name != "memory"}
    return figures | {"memory_utility": figures["accuracy"] - figures["without_memory"]}
