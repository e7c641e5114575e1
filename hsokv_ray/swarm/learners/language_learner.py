"""What trains a language model beside a key-value memory.

Shapes: B windows, T tokens that are read and predict one each, N tokens of many windows, D hidden size.
"""

import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor

from hsokv_ray.data.tasks import Examples, Split, TextWindows
from hsokv_ray.errors import DataError, RunError
from hsokv_ray.evaluation.baselines.knn_lm import Datastore, KnnLm, Queries
from hsokv_ray.memory.key_value import KeyValueMemory
from hsokv_ray.models import BaselineTransformer, TransformerWithKV
from hsokv_ray.models.kv_candidates import TOKENS
from hsokv_ray.models.kv_flops import write_flops
from hsokv_ray.models.kv_output import KVOutput
from hsokv_ray.models.kv_statistics import gate_statistics, memory_bytes
from hsokv_ray.swarm.learner import State
from hsokv_ray.swarm.learners import packing
from hsokv_ray.swarm.learners.recipe import Recipe
from hsokv_ray.swarm.learners.saved_model import take_over
from hsokv_ray.swarm.learners.stream import Order
from hsokv_ray.swarm.space import Strategy

if TYPE_CHECKING:
    from hsokv_ray.swarm.learners.language import LanguageTask

_EVALUATION_BATCH = 32
_MODEL = "model"


class LanguageLearner:
    """Reads the text once, then trains one model after the other.

    All that is random in a training comes from the seed of its `reset`, which travels with its state: a model goes on
    in the same way whichever learner trains it.

    Args:
        task: source and sizes.

    Raises:
        DataError: the text cannot be read, or is too little.
    """

    def __init__(self, task: "LanguageTask") -> None:
        self.task = task
        text = TextWindows(task.windows, seed=task.data_seed)
        self.tokenizer, splits = text.tokenizer, text.splits(task.data_seed)
        num_stored = max(1, round(task.stored_share * len(splits.train))) if task.use_kv else 0
        whole = tokens_of(splits.train)
        self.learnt = whole[num_stored:]
        self.stored = _without(whole[:num_stored], self.learnt)
        if not len(self.learnt) or (task.use_kv and not len(self.stored)):
            parts = f"{len(self.learnt)} to learn from and {len(self.stored)} others to store"
            raise DataError(f"{task.source}: the training windows are {parts}; give more text")
        self.train_windows = whole
        self.held_out: dict[Split, Tensor] = {
            "validation": tokens_of(splits.validation)[: task.num_evaluated],
            "test": tokens_of(splits.test)[: task.num_tested],
        }
        self._recipe: Recipe | None = None
        self._model: TransformerWithKV | None = None
        self._optimizer: torch.optim.Optimizer | None = None
        self._seed = self._flops = self.step = self.num_shown = self.model_seed = 0

    @property
    def flops(self) -> int:
        """FLOPs of all that this learner did: training, writing, evaluation; a kNN baseline's search is not counted."""
        return self._flops

    @property
    def recipe(self) -> Recipe:
        """The strategy in force. Raises `RunError`: `configure` was not called."""
        if self._recipe is None:
            raise RunError("learner: it has no strategy; call configure() first")
        return self._recipe

    @property
    def model(self) -> TransformerWithKV:
        """The model in hand. Raises `RunError`: neither `reset` nor `load` was called."""
        if self._model is None:
            raise RunError("learner: it has no model; call reset() or load() first")
        return self._model

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """Of the model in hand."""
        assert self._optimizer is not None, "it is made with the model"
        return self._optimizer

    def configure(self, strategy: Strategy, *, seed: int) -> None:
        """Train by `strategy` from now on; `seed` is that of the next fresh model."""
        self._seed, self._recipe = seed, Recipe(strategy, self.task.total_steps)
        if self._optimizer is not None:
            self._optimizer = self._recipe.take_over(self._optimizer, strategy)
            self._follow_top_k()

    def reset(self) -> None:
        """Begin a fresh model."""
        config = self.task.model_config(self.tokenizer.vocab_size, self.recipe)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self._seed)
            self._model = TransformerWithKV(config) if self.task.use_kv else BaselineTransformer(config)
        self._optimizer = self.recipe.optimizer(self._model.parameters())
        self.step, self.num_shown, self.model_seed = 0, 0, self._seed

    def state(self) -> State:
        """Return the model, copied."""
        tensors = packing.module_tensors(_MODEL, self.model) | packing.optimizer_tensors(self.optimizer)
        values: dict[str, Any] = {
            "task": self.task.name,
            "step": self.step,
            "num_shown": self.num_shown,
            "seed": self.model_seed,
            "optimizer": type(self.optimizer).__name__,
        }
        if self.model.memory is not None:
            tensors |= packing.memory_tensors(self.model.memory)
            values["memory"] = packing.memory_values(self.model.memory)
        return State(tensors, values)

    def load(self, state: State) -> None:
        """Take over a model; of an optimiser of another kind the moments are left behind.

        Raises:
            CheckpointError: it is of another task, or damaged.
        """
        tensors, values = state.tensors, state.values
        needed = ("step", "num_shown", "seed", "optimizer", *(["memory"] if self.task.use_kv else []))
        packing.check_values(values, task=self.task.name, needed=needed)
        self.reset()
        packing.load_module(_MODEL, self.model, tensors)
        if values["optimizer"] == type(self.optimizer).__name__:
            packing.load_optimizer(self.optimizer, tensors)
        if self.task.use_kv:
            self.model.memory = packing.load_memory(tensors, values["memory"])
            self._follow_top_k()
        self.step, self.num_shown, self.model_seed = values["step"], values["num_shown"], values["seed"]

    def train(self, num_steps: int) -> None:
        """Train that many steps, each with a write after it. Raises `RunError`: the loss is no finite number."""
        self.model.train()
        for _ in range(num_steps):
            num_entries = self._num_entries()
            self._learn(self._next(self.learnt))
            if self.task.use_kv:
                self._write()
            self._flops += self.task.step_flops(self.model.config, self.recipe, num_entries)
            self.num_shown += self.recipe.batch_size
            self.step += 1

    def evaluate(self) -> dict[str, float]:
        """Return "score", minus the validation loss in nats per token. Nothing is written, no read is counted."""
        found = self._judge("validation")
        return {"score": -found.loss, "perplexity": math.exp(found.loss), **found.figures(), **self._kept()}

    def test(self) -> dict[str, Any]:
        """Return what the tables need, on test windows: perplexity with and without the memory, and the kNN-LM's.

        The kNN-LM mixes this model, without its memory, with neighbours among its hidden states of training text;
        weight and temperature are chosen on the validation windows.
        """
        found = self._judge("test")
        plain = self._judge("test", use_memory=False) if self.task.use_kv else found
        return {
            "loss": found.loss,
            "perplexity": math.exp(found.loss),
            "perplexity_without_memory": math.exp(plain.loss),
            "knn_lm": self._knn_lm(),
            "num_tokens": found.num_tokens,
            "steps": self.step,
            **found.figures(),
            **self._kept(),
        }

    @property
    def memory(self) -> KeyValueMemory | None:
        """The memory of the model in hand."""
        return self.model.memory

    def bring_up_to_date(self) -> None:
        """Make keys and values of all entries those of the weights as they are now, whoever wrote them."""
        model, memory = self.model, self.model.required_memory()
        entries = [entry for entry in memory.entries if entry is not None]
        if not entries:
            return
        with memory.writable():
            model.reencode()
            slots = [slot for slot in memory.slots_of([entry.id for entry in entries]) if slot is not None]
            labels_N = torch.tensor([int(entry.metadata["label"]) for entry in entries])
            memory.write(
                memory.keys[slots], model.values_of(labels_N), ids=[entry.id for entry in entries],
                metadata=[entry.metadata for entry in entries], inputs=[entry.input for entry in entries],
            )  # fmt: skip
        longest = max(len(entry.input[TOKENS]) for entry in entries)
        self._flops += write_flops(model.config, len(entries), longest)

    def load_pretrained(self, folder: str | Path) -> None:
        """Begin with the weights and the memory that `save` wrote. Raises `CheckpointError`: they do not fit."""
        take_over(self.model, folder)

    def save(self, folder: str | Path) -> None:
        """Write model, memory and tokenizer so that `from_pretrained` reads them, and the task beside them."""
        self.model.save_pretrained(str(folder), tokenizer=cast("Any", self.tokenizer))
        facts = {"task": asdict(self.task), "strategy": self.recipe.strategy, "step": self.step}
        (Path(folder) / "learner.json").write_text(json.dumps(facts, indent=1), encoding="utf-8")

    def _next(self, windows: Tensor) -> Tensor:
        order = Order((len(windows),), self.task.total_steps)
        return windows[order.show(0, self.num_shown, self.recipe.batch_size, seed=self.model_seed).rows_B]

    def _learn(self, ids_BT: Tensor) -> None:
        loss = self._forward(ids_BT, labels=ids_BT).loss
        assert loss is not None, "labels were given"
        if not torch.isfinite(loss):
            raise RunError(f"step {self.step}: the loss is {loss.item()}; train with a lower learning rate")
        self.recipe.set_rate(self.optimizer, self.step)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()

    def _write(self) -> None:
        num = self.task.windows_per_write
        shown = Order((len(self.stored),), self.task.total_steps).show(0, self.step * num, num, seed=self.model_seed)
        ids_BT = self.stored[shown.rows_B]
        mask = torch.ones_like(ids_BT)
        # The step names the weights: their digest would cost a pass over them at every write.
        version = f"{self.model_seed}/{self.step + 1}"
        self.model.write(ids_BT, mask, labels=ids_BT, policy=self.recipe.policy, encoder_id=version)

    def _forward(self, ids_BT: Tensor, **options: Any) -> KVOutput:
        return self.model(ids_BT, torch.ones_like(ids_BT), **options)

    @torch.no_grad()
    def _outputs(self, windows: Tensor, **options: Any) -> Iterator[tuple[Tensor, KVOutput]]:
        """Yield windows and what the model, in evaluation, makes of them."""
        self.model.eval()
        for ids_BT in windows.split(_EVALUATION_BATCH):
            yield ids_BT, self._forward(ids_BT, **options)

    def _judge(self, split: Split, *, use_memory: bool = True) -> "Judged":
        windows, found = self.held_out[split], Judged()
        labels_C = None if self.model.memory is None else _labels(self.model)
        for ids_BT, output in self._outputs(windows, use_memory=use_memory):
            found.add(ids_BT, output, labels_C)
        if not math.isfinite(found.loss):
            raise RunError(f"step {self.step}: the {split} loss is {found.loss}; train with a lower learning rate")
        self._flops += self.task.evaluation_flops(self.model.config, len(windows), self._num_entries())
        return found

    def _knn_lm(self) -> dict[str, float]:
        num_windows = max(1, self.task.knn_tokens // self.task.seq_len)
        stored, validation, test = (
            self._queries(windows) for windows in (self.train_windows[:num_windows], *self.held_out.values())
        )
        datastore = Datastore(stored.hidden_QD, stored.targets_Q)
        knn = KnnLm.choose(datastore, validation, num_neighbours=self.task.knn_neighbours)
        return {
            "perplexity": float(np.exp(-knn.log_probabilities(test).mean())),
            "perplexity_of_model": float(np.exp(-test.log_probabilities_Q.mean())),
            "weight": knn.weight,
            "temperature": knn.temperature,
            "num_entries": float(len(datastore)),
        }

    def _queries(self, windows: Tensor) -> Queries:
        hidden, targets, likely = [], [], []
        for ids_BT, output in self._outputs(windows, use_memory=False):
            assert output.hidden is not None, "tokens have states"
            hidden.append(output.hidden[:, :-1].flatten(0, 1))
            targets.append(ids_BT[:, 1:].flatten())
            likely.append(-_losses(ids_BT, output).flatten())
        self._flops += self.task.evaluation_flops(self.model.config, len(windows), 0)
        return Queries(*(torch.cat(parts).numpy() for parts in (hidden, targets, likely)))

    def _num_entries(self) -> int:
        """Return the slots a read goes over: up to the highest in use."""
        memory = self.model.memory
        return 0 if memory is None else 1 + max((slot or 0 for slot in memory.slots_of(memory.ids)), default=-1)

    def _kept(self) -> dict[str, float]:
        memory = self.model.memory
        if memory is None:
            return {}
        return {"memory_entries": float(len(memory)), "memory_bytes": float(memory_bytes(memory))}

    def _follow_top_k(self) -> None:
        """Let the memory retrieve as many entries as the strategy says, in writes too."""
        if (memory := self.model.memory) is not None:
            memory.config = memory.config.model_copy(update={"top_k": self.recipe.top_k})
            self.model.config.memory = memory.config.model_dump(mode="json")


@dataclass
class Judged:
    """Loss and reads over several batches."""

    total: float = 0.0
    num_tokens: int = 0
    num_right: int = 0
    num_among: int = 0
    gates: list[Tensor] = field(default_factory=list)

    def add(self, ids_BT: Tensor, output: KVOutput, labels_C: Tensor | None) -> None:
        """Add a batch; `labels_C` is the next token of each of the memory's slots."""
        losses_BT = _losses(ids_BT, output)
        self.total += float(losses_BT.double().sum())
        self.num_tokens += losses_BT.numel()
        if output.retrieval is None or output.gate is None or labels_C is None:
            return
        slots, hits = output.retrieval.indices[:, :-1], output.retrieval.hits[:, :-1]
        right = hits & (labels_C[slots.clamp(min=0)] == ids_BT[:, 1:, None])
        self.num_right += int(right[..., 0].sum())
        self.num_among += int(right.any(-1).sum())
        self.gates.append(output.gate[:, :-1].flatten())

    @property
    def loss(self) -> float:
        """Mean, in nats per token."""
        return self.total / self.num_tokens

    def figures(self) -> dict[str, float]:
        """Return rates of the reads; hit_rate: share of tokens whose nearest entry was followed by the right one."""
        if not self.gates:
            return {}
        gate = gate_statistics(torch.cat(self.gates))
        return {
            "hit_rate": self.num_right / self.num_tokens,
            "hit_rate_top_k": self.num_among / self.num_tokens,
            "gate_mean": gate.mean,
            "gate_entropy_bits": gate.entropy_bits,
        }


def tokens_of(examples: Examples) -> Tensor:
    """Return windows with the token after them, int64 [n, T + 1]."""
    return torch.tensor(np.concatenate([examples.inputs, examples.labels[:, -1:]], axis=1))


def _without(windows: Tensor, others: Tensor) -> Tensor:
    """Return the windows that are not among `others`: texts repeat, as licences do."""
    taken = {row.tobytes() for row in others.numpy()}
    return windows[[row.tobytes() not in taken for row in windows.numpy()]]


def _losses(ids_BT: Tensor, output: KVOutput) -> Tensor:
    """Return the cross entropy of each token but the first, [B, T], in nats."""
    assert output.logits is not None, "a language model has a head"
    logits = output.logits[:, :-1].float()
    return torch.nn.functional.cross_entropy(logits.transpose(1, 2), ids_BT[:, 1:], reduction="none")


def _labels(model: TransformerWithKV) -> Tensor:
    entries = model.required_memory().entries
    return torch.tensor([-1 if entry is None else entry.metadata["label"] for entry in entries])
