"""What trains a model over the stream of Split-CIFAR-10, in every variant.

Shapes: B images shown, R rehearsed, K key_dim, L labels, n images that are judged.
"""

import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from hsokv_ray.data.tasks import Experience, Split, SplitCifar
from hsokv_ray.errors import CheckpointError, RunError
from hsokv_ray.models.kv_statistics import gate_statistics
from hsokv_ray.swarm.learner import State
from hsokv_ray.swarm.learners.cifar_model import CifarModel
from hsokv_ray.swarm.learners.cifar_steps import Answer, Batch, answer, take_step
from hsokv_ray.swarm.learners.fixed_keys import MAX_FITTED, FixedKeys, KeyTable
from hsokv_ray.swarm.learners.packing import load_module, module_tensors
from hsokv_ray.swarm.learners.recipe import Recipe
from hsokv_ray.swarm.learners.small_net import pixels_of
from hsokv_ray.swarm.learners.stream import Judged, Order, figures, row_of
from hsokv_ray.swarm.space import Strategy

if TYPE_CHECKING:
    from hsokv_ray.swarm.learners.cifar import CifarTask

_EVALUATION_BATCH = 250


class CifarLearner:
    """Reads the images once, then trains one model after the other.

    `configure` does not disturb the random numbers of a model that is there: they go on where its state has them, so a
    model continues in the same way whether this learner or another one trained it before. The seed begins a fresh one.

    Args:
        task: variant and sizes.

    Raises:
        DataError: the images are missing or damaged.
    """

    def __init__(self, task: "CifarTask") -> None:
        self.task = task
        cifar = SplitCifar.from_folder(
            task.folder, train_per_class=task.train_per_class, test_per_class=task.test_per_class
        )
        self.stream = [_with_few(each, task.validation_per_class) for each in cifar.experiences(task.data_seed)]
        self.order = Order(tuple(len(each.splits.train) for each in self.stream), task.total_steps)
        first = self.stream[0].splits.train.inputs
        self.fixed: FixedKeys | None = None
        if task.key_features == "fixed":
            self.fixed = FixedKeys.fit(first, key_dim=task.key_dim, num_filters=task.num_filters)
        self._tables: dict[tuple[int, str], KeyTable] = {}
        self._recipe: Recipe | None = None
        self._model: CifarModel | None = None
        self._seed = self._flops = 0

    @property
    def flops(self) -> int:
        """FLOPs of all that this learner did: training, rehearsing, writing, evaluation."""
        return self._flops

    @property
    def recipe(self) -> Recipe:
        """The strategy in force. Raises `RunError`: `configure` was not called."""
        if self._recipe is None:
            raise RunError("learner: it has no strategy; call configure() first")
        return self._recipe

    @property
    def model(self) -> CifarModel:
        """The model in hand. Raises `RunError`: neither `reset` nor `load` was called."""
        if self._model is None:
            raise RunError("learner: it has no model; call reset() or load() first")
        return self._model

    def configure(self, strategy: Strategy, *, seed: int) -> None:
        """Train by `strategy` from now on; `seed` is that of the next fresh model."""
        self._seed, self._recipe = seed, self.task.recipe(strategy)
        if self._model is not None and self._model.optimizer is not None:
            self._model.optimizer = self._recipe.take_over(self._model.optimizer, strategy)

    def reset(self) -> None:
        """Begin a fresh model. With fixed keys it pays for the images that their filters and components come from."""
        self._model = self._fresh()
        if self.fixed is not None:
            self._flops += self.task.key_flops(min(MAX_FITTED, self.order.sizes[0]))

    def load(self, state: State) -> None:
        """Take over a model. Raises `CheckpointError`: it is of another task, or damaged."""
        model = self._fresh()
        model.load(state)
        self._model = model

    def state(self) -> State:
        """Return the model, copied."""
        return self.model.state()

    def train(self, num_steps: int) -> None:
        """Train that many steps; where a task ends, its row of the accuracy matrix is taken.

        Raises:
            RunError: the loss is no finite number.
        """
        if self.model.step == 0 and not self.model.rows["validation"]:
            self._take_row()
        for _ in range(num_steps):
            self._step()
            if self.order.ended_by(self.model.step) is not None:
                self._take_row()

    def evaluate(self) -> dict[str, float]:
        """Return the accuracy on validation images; nothing is written, and no read is counted.

        "score" is class-IL over all ten classes, those not yet seen included, so that scores of one step compare;
        `seen_class_il` and `seen_task_il` are over the tasks seen so far; `retention` is class-IL over those before the
        current one, the task of the last step done, and is left out during the first.
        """
        found = Totals()
        row = row_of(self.stream, "validation", lambda task: self._scores(task, "validation", found))
        num_seen = self._num_seen
        sizes = self._sizes("validation")
        means = {
            "score": np.average(row["class_il"], weights=sizes),
            "task_il": np.average(row["task_il"], weights=sizes),
            "seen_class_il": np.average(row["class_il"][:num_seen], weights=sizes[:num_seen]),
            "seen_task_il": np.average(row["task_il"][:num_seen], weights=sizes[:num_seen]),
        }
        kept = {"memory_bytes": float(self.model.memory_bytes)}
        if self.model.memory is not None:
            kept["memory_entries"] = float(self.model.num_entries)
        figures = {name: float(value) for name, value in means.items()}
        return figures | self._retention(row, sizes) | kept | found.figures()

    def test(self) -> dict[str, Any]:
        """Return what the tables need.

        "validation", and "test" where the task says `record_test`: the figures of the accuracy matrix by scenario, once
        the stream has ended. "final_test": accuracies on all "n" test images now; "retention": as in `evaluate`, of
        them. "without_memory": the mean class-IL accuracy of the net alone, where it learns beside a memory;
        "memory_utility": that with the memory less that without. What was rehearsed from the memory is in both. Also
        bytes, entries, hit rate and gate.
        """
        found = Totals()
        ended = self.model.step >= self.task.total_steps
        matrices = {split: figures(rows) for split, rows in self.model.rows.items() if rows and ended}
        row = row_of(self.stream, "test", lambda task: self._scores(task, "test", found))
        sizes = self._sizes("test")
        return {
            **matrices,
            "final_test": row,
            "n": int(sizes.sum()),
            **self._retention(row, sizes),
            **self._utility(row),
            "steps": self.model.step,
            "memory_bytes": self.model.memory_bytes,
            "memory_entries": self.model.num_entries,
            "fixed_bytes": 0 if self.fixed is None else self.fixed.num_bytes,
            **found.figures(),
        }

    def load_pretrained(self, folder: str | Path) -> None:
        """Begin with the weights that `save` wrote; the memory of a stream belongs to that stream and stays empty.

        Raises:
            CheckpointError: they are missing, damaged, or of another net.
        """
        path = Path(folder) / "net.safetensors"
        try:
            tensors = load_file(path)
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{path}: cannot be read ({error}); give a folder that a search saved") from None
        load_module("net", self.model.net, tensors)

    def save(self, folder: str | Path) -> None:
        """Write weights, task, strategy and memory to `folder`. Raises `StoreError`, `OSError`: the disk refuses."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        save_file(module_tensors("net", self.model.net), folder / "net.safetensors")
        facts = {"task": asdict(self.task), "strategy": self.recipe.strategy, "step": self.model.step}
        (folder / "learner.json").write_text(json.dumps(facts, indent=1), encoding="utf-8")
        if self.model.memory is not None:
            self.model.memory.entries.save(folder / "memory")

    @property
    def _num_seen(self) -> int:
        """Tasks up to that of the last step done."""
        return self.order.task_of(max(self.model.step - 1, 0)) + 1

    def _sizes(self, split: Judged) -> np.ndarray:
        """Return the number of images of each task."""
        return np.array([len(each.splits.of(split)) for each in self.stream])

    def _retention(self, row: dict[str, list[float]], sizes: np.ndarray) -> dict[str, float]:
        """Return class-IL accuracy on the tasks before the current one; nothing during the first."""
        earlier = slice(self._num_seen - 1)
        if not len(sizes[earlier]):
            return {}
        return {"retention": float(np.average(row["class_il"][earlier], weights=sizes[earlier]))}

    def _utility(self, row: dict[str, list[float]]) -> dict[str, float]:
        """Return the test without the memory; nothing where there is none, or nothing else that has learnt."""
        if self.model.memory is None or self.model.optimizer is None:
            return {}
        plain = row_of(self.stream, "test", lambda task: self._scores(task, "test", Totals(), use_memory=False))
        without = float(np.mean(plain["class_il"]))
        return {"without_memory": without, "memory_utility": float(np.mean(row["class_il"])) - without}

    def _fresh(self) -> CifarModel:
        return CifarModel(self.task, self.recipe, self._seed, self.stream[0].splits.train.inputs.shape[1:])

    def _step(self) -> None:
        model = self.model
        task = self.order.task_of(model.step)
        if model.step and task != self.order.task_of(model.step - 1):
            model.task_step = model.num_shown = 0
        shown = self.order.show(task, model.num_shown, self.recipe.batch_size, seed=model.seed)
        examples = self.stream[task].splits.train
        labels_B = torch.tensor(examples.labels[shown.rows_B])
        batch = Batch(
            examples.inputs[shown.rows_B],
            lambda more: self._keys(task, "train", shown.rows_B, more),
            labels_B,
            shown,
        )
        num_entries = model.num_entries
        learns = model.optimizer is not None
        model.net.train(learns)  # what learns nothing keeps the batch norms of its first day too
        with torch.set_grad_enabled(learns):
            num_rehearsed = take_step(model, self.recipe, batch)
        self._flops += self.task.step_flops(self.recipe, len(labels_B), num_rehearsed, num_entries)
        model.step, model.task_step = model.step + 1, model.task_step + 1
        model.num_shown += len(labels_B)

    def _take_row(self) -> None:
        """Judge every task now, on the test only where the task says so."""
        splits: tuple[Judged, ...] = ("validation", "test") if self.task.record_test else ("validation",)
        for split in splits:
            found = Totals()
            row = row_of(self.stream, split, lambda task, split=split, found=found: self._scores(task, split, found))
            self.model.rows[split].append(row)

    @torch.no_grad()
    def _scores(self, task: int, split: Judged, found: "Totals", *, use_memory: bool = True) -> np.ndarray:
        """Return the logits of a task's images [n, L], and add to `found` what the memory did for them."""
        model, examples = self.model, self.stream[task].splits.of(split)
        model.net.eval()
        parts = []
        for begin in range(0, len(examples), _EVALUATION_BATCH):
            rows_B = np.arange(begin, min(begin + _EVALUATION_BATCH, len(examples)))
            said = answer(model, self._keys(task, split, rows_B), self.recipe.top_k, use_memory=use_memory)
            if model.memory is not None and use_memory:
                found.add(said, model.memory.labels(), torch.from_numpy(examples.labels[rows_B]))
            parts.append(said.logits_BL.numpy())
        num = len(examples)
        self._flops += self.task.evaluation_flops(self.recipe, num, model.num_entries, use_memory=use_memory)
        return np.concatenate(parts)

    def _keys(self, task: int, split: Split, rows_B: np.ndarray, more: np.ndarray | None = None) -> Tensor:
        """Return the keys of images of a task, then those of `more` raw images."""
        images = self.stream[task].splits.of(split).inputs
        if self.fixed is None:
            shown = images[rows_B]
            whole = shown if more is None else np.concatenate([shown, more])
            return self.model.net.keys(pixels_of(whole, self.task.image_size))
        table = self._tables.setdefault((task, split), KeyTable(self.fixed, images))
        keys = torch.from_numpy(table.at(rows_B))
        return keys if more is None else torch.cat([keys, torch.from_numpy(self.fixed(more))])


@dataclass
class Totals:
    """What the memory did over several batches."""

    gates: list[Tensor] = field(default_factory=list)
    num_hits: int = 0
    num_right: int = 0
    num_reads: int = 0

    def add(self, said: Answer, label_of_slot: Tensor, labels_B: Tensor) -> None:
        """Add a batch that was answered with the memory."""
        assert said.retrieval is not None, "there is a memory"
        if said.gate_B is not None:
            self.gates.append(said.gate_B)
        hits_B = said.retrieval.hits[:, 0]
        nearest_B = label_of_slot[said.retrieval.indices[:, 0].clamp(min=0)]
        self.num_hits += int(hits_B.sum())
        self.num_right += int((hits_B & (nearest_B == labels_B)).sum())
        self.num_reads += len(labels_B)

    def figures(self) -> dict[str, float]:
        """Return the rates; hit_rate: share of images whose nearest entry, above the threshold, has their label."""
        if not self.num_reads:
            return {}
        found = {"hit_rate": self.num_right / self.num_reads, "answered": self.num_hits / self.num_reads}
        if self.gates:
            gate = gate_statistics(torch.cat(self.gates))
            found |= {"gate_mean": gate.mean, "gate_entropy_bits": gate.entropy_bits}
        return found


def _with_few(experience: Experience, per_class: int) -> Experience:
    """Return `experience` with at most `per_class` validation images of each class."""
    validation = experience.splits.validation
    kept = [np.flatnonzero(validation.labels == label)[:per_class] for label in experience.classes]
    few = validation.select(np.sort(np.concatenate(kept)))
    return replace(experience, splits=replace(experience.splits, validation=few))
