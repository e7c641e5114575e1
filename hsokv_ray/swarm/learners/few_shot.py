"""Few-shot GLUE as a task of the swarm: the training examples are the memory, and what the encoder learns from.

    task = FewShotTask(glue="SST-2", data="data/glue", split_seed=13)
    learner = task.learner()
    learner.configure(DEFAULT_STRATEGY, seed=0)
    learner.reset()
    learner.train(200)
    learner.evaluate()["score"], learner.test()["accuracy"]

A step writes one half of the training examples and asks for the other, each class halved at random: an example that
was asked beside itself would only find itself. Between orders the memory holds all of them, under the keys of now.
Texts are words from scratch, or vectors of a frozen encoder or of a folder, whose FLOPs are not counted: they are made
once.
"""

import dataclasses
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
import torch

from hsokv_ray.data.tasks import SPLITS, Examples, FewShotGlue, Splits, WordTokenizer
from hsokv_ray.errors import ConfigError, DataError
from hsokv_ray.memory.config import KeyValueConfig
from hsokv_ray.memory.encoders import open_encoder
from hsokv_ray.memory.key_value import KeyValueMemory
from hsokv_ray.memory.stored_vectors import StoredVectors
from hsokv_ray.models import KVTransformerConfig
from hsokv_ray.swarm.learners.kv_learner import KVLearner
from hsokv_ray.swarm.learners.lesson_flops import lesson_flops, writing_flops
from hsokv_ray.swarm.learners.lessons import (
    WRITE_BATCH,
    Answers,
    Items,
    Lesson,
    ablation_figures,
    ablations,
    ask,
    slot_labels,
    write,
)
from hsokv_ray.swarm.learners.recipe import Recipe, space_of
from hsokv_ray.swarm.space import Space, Strategy

COST_STEPS = 8
"""Steps over which the cost of one is averaged."""


@dataclass(frozen=True)
class FewShotTask:
    """One GLUE task with a few examples per class. A step is `batch_size` queries."""

    glue: str = "SST-2"
    """SST-2, MNLI, RTE, MRPC or CoLA."""
    data: str | None = None
    """Data folder, see `FewShotGlue`; None: only the hub, where `allow_download` lets it."""
    shots: int = 16
    """Examples per class in training, and in validation."""
    split_seed: int = 13
    """Of the examples that are drawn, or the published split."""
    allow_download: bool = False
    """Whether the hub may be asked."""
    encoder: str | None = None
    """Frozen encoder that makes texts vectors, or `vectors:FOLDER`, see `open_encoder`; None: words, from scratch."""
    mode: Literal["train", "kv_only"] = "train"
    """kv_only: nothing is trained, the memory alone answers (gate 1)."""
    use_kv: bool = True
    """False: the same encoder without a memory, fine-tuned."""
    total_steps: int = 200
    """Steps of a whole training, over which the schedule is laid."""
    size: Literal["tiny", "base"] = "tiny"
    confidence_threshold: float = 0.15
    """Cosine below which an entry is no hit."""
    max_length: int = 96
    """Words of a text, or a pair of texts, that are looked at."""
    dropout: float = 0.1
    retrieval_weight: float = 1.0
    """Of the loss on keys."""

    def __post_init__(self) -> None:
        if self.shots < 2 or self.total_steps < 1:
            got = f"shots {self.shots} and total_steps {self.total_steps}"
            raise ConfigError(f"few-shot: got {got}; at least 2 (one to write, one to ask) and 1 are needed")
        if self.mode == "kv_only" and not self.use_kv:
            raise ConfigError("mode: got 'kv_only' without a memory; set use_kv")
        if not 0 <= self.retrieval_weight < float("inf"):
            raise ConfigError(f"retrieval_weight: got {self.retrieval_weight}; at least 0 is needed")

    @property
    def name(self) -> str:
        """For logs and files."""
        return f"few_shot_{self.glue.lower()}"

    @property
    def space(self) -> Space:
        """The strategies."""
        return space_of(use_kv=self.use_kv)

    def learner(self) -> "FewShotLearner":
        """Make a learner. Raises `DataError`: there is no data; says how to get it."""
        return FewShotLearner(self)

    def cost(self, strategy: Strategy) -> int:
        """Return the FLOPs of one step, the mean of a few; for `kv_only` those of writing the memory."""
        recipe = Recipe(strategy, self.total_steps)
        return _step_flops(self, recipe.batch_size, recipe.top_k, recipe.policy.name)

    def _count_step_flops(self, strategy: Strategy) -> int:
        learner, recipe = FewShotLearner(self), Recipe(strategy, self.total_steps)
        config = learner.model_config(recipe)
        if self.mode == "kv_only":
            parts = learner.support.batches(WRITE_BATCH)
            return sum(
                writing_flops(config, recipe.policy, len(part), part.num_tokens, i * WRITE_BATCH)
                for i, part in enumerate(parts)
            )
        lessons = [
            lesson for step in range(COST_STEPS) for lesson in learner.lessons(recipe, np.random.default_rng(step))
        ]
        weight = self.retrieval_weight
        return round(
            sum(lesson_flops(config, each, recipe.policy, len(each.support), weight) for each in lessons) / COST_STEPS
        )


class FewShotLearner(KVLearner):
    """The learner of `FewShotTask`."""

    def __init__(self, task: FewShotTask) -> None:
        super().__init__(total_steps=task.total_steps, use_kv=task.use_kv, retrieval_weight=task.retrieval_weight)
        self._task = task
        self._data = _data(task)
        self.support, self._validation = self._data.items("train"), self._data.items("validation")
        counts = self.support.labels.bincount(minlength=self._data.num_labels)
        if int(counts.min()) < 2:
            raise DataError(f"{task.glue}: a class has {int(counts.min())} training examples; at least 2 are needed")

    def items(self, split: Literal["train", "validation", "test"]) -> Items:
        """Return a split as the model is given it, for those who fit something else to it."""
        return self._data.items(split)

    @property
    def splits(self) -> Splits:
        """The texts, for those who measure something else on them."""
        return self._data.splits

    @property
    def tokenizer(self) -> WordTokenizer | None:
        """Of the training texts; None for vectors."""
        return self._data.tokenizer

    def model_config(self, recipe: Recipe) -> KVTransformerConfig:
        """See `KVLearner`."""
        task, inputs = self._task, self.support.inputs
        memory = {"capacity": len(self.support), "top_k": recipe.top_k, "threshold": task.confidence_threshold}
        if self.tokenizer is None:
            shape = {"input": "vectors", "input_dim": inputs.shape[1]}
        else:
            shape = {"vocab_size": self.tokenizer.vocab_size, "max_position_embeddings": task.max_length}
        return KVTransformerConfig.preset(
            task.size,
            num_labels=self._data.num_labels,
            dropout=task.dropout,
            gate_init=recipe.gate_init,
            memory=memory if task.use_kv else None,
            **shape,
        )

    def lessons(self, recipe: Recipe, rng: np.random.Generator) -> list[Lesson]:
        """See `KVLearner`; as many halvings as the batch takes."""
        lessons, left = [], recipe.batch_size
        while left > 0:
            written, asked = self._halved(rng)
            lessons.append(Lesson(self.support.select(written), self.support.select(asked[:left])))
            left -= len(lessons[-1].queries)
        return lessons

    def train(self, num_steps: int) -> None:
        """Train, or count the steps of `kv_only`, whose model stays as it began."""
        if self._task.mode == "train":
            super().train(num_steps)
            return
        self.step += num_steps
        self.after_training()

    def after_training(self) -> None:
        """Write all training examples to an empty memory, under the keys of the weights as they are now."""
        model = self.model
        if model.memory is None:
            return
        model.memory = KeyValueMemory(KeyValueConfig(**(model.config.memory or {})))
        model.eval()
        self.charge(write(model, self.support, self.recipe.policy, encoder_id=model.encoder_id()))

    def evaluate(self) -> dict[str, float]:
        """Return accuracy on the validation examples as "score", and what was read. Nothing is written."""
        figures = self._asked(self._validation).figures()
        return {"score": figures.pop("accuracy"), **figures}

    def test(self) -> dict[str, float]:
        """Return figures of the test split: accuracy, what was read, ablations."""
        self.model.eval()
        items = self._data.items("test")
        if not self.use_kv:
            return self._asked(items).figures()
        generator = torch.Generator().manual_seed(self._task.split_seed)
        answers = ablations(
            self.model, Lesson(self.support, items), self.recipe.policy, generator=generator, gate=self._gate
        )
        self.charge(sum(each.flops for each in answers.values()))
        return ablation_figures(answers)

    @property
    def _gate(self) -> float | None:
        return 1.0 if self._task.mode == "kv_only" else None

    def _asked(self, items: Items) -> Answers:
        memory = self.model.eval().memory
        answers = ask(self.model, items, None if memory is None else slot_labels(memory), gate=self._gate)
        self.charge(answers.flops)
        return answers

    def _halved(self, rng: np.random.Generator) -> tuple[list[int], list[int]]:
        """Return the rows to write and to ask, each class halved, those to ask in random order."""
        written, asked, labels = [], [], self.support.labels.numpy()
        for label in range(self._data.num_labels):
            rows = rng.permutation(np.flatnonzero(labels == label)).tolist()
            written += rows[: (len(rows) + 1) // 2]
            asked += rows[(len(rows) + 1) // 2 :]
        return written, rng.permutation(asked).tolist()


class _Data:
    """The splits of a task as inputs of a model; the test is turned into vectors when it is asked for."""

    def __init__(self, task: FewShotTask) -> None:
        glue = FewShotGlue(task.glue, task.data, shots=task.shots, allow_download=task.allow_download)
        self.splits = glue.splits(task.split_seed)
        self._max_length = task.max_length
        encoder = None if task.encoder is None else open_encoder(task.encoder)
        if isinstance(encoder, StoredVectors):
            encoder.require(self.splits.texts())  # now, not when a search comes to its final test
        self._encode = None if encoder is None else encoder.encode
        self.num_labels = self.splits.num_labels
        texts = [text for row in self.splits.train.inputs.tolist() for text in ([row] if isinstance(row, str) else row)]
        self.tokenizer = WordTokenizer.fit(texts) if self._encode is None else None
        self._items: dict[str, Items] = {}

    def items(self, split: Literal["train", "validation", "test"]) -> Items:
        """Return a split."""
        if split not in self._items:
            given = self._read(split)
            self._items[split] = Items(torch.from_numpy(given.inputs.copy()), torch.from_numpy(given.labels.copy()))
        return self._items[split]

    def _read(self, split: Literal["train", "validation", "test"]) -> Examples:
        examples = self.splits.of(split)
        if self._encode is None:
            assert self.tokenizer is not None, "words are taken where there is no encoder"
            return self.tokenizer.examples(examples, max_length=self._max_length)
        empty = dict.fromkeys(SPLITS, examples.select([]))
        alone = dataclasses.replace(self.splits, **(empty | {split: examples}))
        return alone.with_vectors(self._encode).of(split)


@lru_cache(maxsize=1024)
def _step_flops(task: FewShotTask, batch_size: int, top_k: int, policy: str) -> int:
    """Return what a step costs; nothing else of a strategy moves it."""
    return task._count_step_flops({"batch_size": batch_size, "memory_top_k": top_k, "write_policy": policy})


@lru_cache(maxsize=4)
def _data(task: FewShotTask) -> _Data:
    """Read a task's data; what a process has read it does not read again."""
    return _Data(task)
