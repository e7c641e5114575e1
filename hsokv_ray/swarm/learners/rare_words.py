"""Rare words, one shot, as a task of the swarm: definitions go to the memory, contexts ask for their word.

    task = RareWordTask(total_steps=600)
    learner = task.learner()
    learner.configure(DEFAULT_STRATEGY, seed=0)
    learner.reset()
    learner.train(600)
    learner.evaluate()["score"], learner.test()["retention"]

An episode's definitions are its support: they are written when it is trained on and when it is measured, to a memory of
its own. Labels are positions of candidates, so a model without a memory can do no better than chance.

Words are generated, or real (`data`). Texts are words from scratch, or vectors of a frozen encoder, whose FLOPs are not
counted: the first learner of a process encodes all texts once, 13,000 of rare_words in about a minute of one core.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
import torch

from hsokv_ray.data.tasks import (
    MIN_WORDS,
    DefinedWord,
    Episode,
    Examples,
    RareWordConfig,
    RealWords,
    WordTokenizer,
    read_definitional_nonces,
    read_rare_words,
)
from hsokv_ray.errors import ConfigError, DataError
from hsokv_ray.memory.encoders import open_encoder
from hsokv_ray.models import KVTransformerConfig
from hsokv_ray.swarm.learners.episode_sources import EpisodeSource, GeneratedEpisodes, RealEpisodes
from hsokv_ray.swarm.learners.kv_learner import KVLearner
from hsokv_ray.swarm.learners.lesson_flops import lesson_flops
from hsokv_ray.swarm.learners.lessons import (
    Answers,
    Items,
    Lesson,
    ablation_figures,
    ablations,
    ask,
    fresh_memory,
    joined,
    slot_labels,
    write,
)
from hsokv_ray.swarm.learners.recipe import Recipe, space_of
from hsokv_ray.swarm.learners.text_vectors import TextVectors
from hsokv_ray.swarm.space import Space, Strategy

WordSet = Literal["rare_words", "definitional_nonce"]

COST_STEPS = 8
"""Steps over which the cost of one is averaged: lengths differ from episode to episode."""


@dataclass(frozen=True)
class RareWordTask:
    """One-shot episodes, generated or of real words. A step is `batch_size` queries.

    The write policy decides little here: an episode is written at once, to an empty memory, by a model that cannot know
    its labels.
    """

    data: str | None = None
    """Folder of real words, or one that holds it; None generates."""
    words: WordSet = "rare_words"
    """What the folder holds: rare_words, a dictionary's definitions and examples; definitional_nonce, halves of the
    first sentences of Wikipedia articles, see `FilteredNonces.halves`."""
    encoder: str | None = None
    """Frozen encoder that makes real words' texts vectors, see `open_encoder`; None: words, from scratch."""
    use_kv: bool = True
    """False: the same encoder without a memory."""
    total_steps: int = 600
    """Steps of a whole training, over which the schedule is laid."""
    size: Literal["tiny", "base"] = "tiny"
    """Of a model of words; one of vectors is as wide as they are."""
    confidence_threshold: float = 0.15
    """Cosine below which an entry is no hit."""
    num_candidates: int = 20
    """Words of an episode."""
    form: Literal["nonce", "removed"] = "nonce"
    """What stands for the word in a generated definition."""
    vocabulary: Literal["english", "sampled"] = "english"
    """Of the generator."""
    max_length: int = 96
    """Words of a definition or context that are looked at."""
    dropout: float = 0.0
    """Generated episodes never repeat, so there is nothing to overfit."""
    retrieval_weight: float = 1.0
    """Of the loss on keys; 0 trains through the read alone, which learns next to nothing."""
    num_test_words: int = MIN_WORDS
    """One-shot words of the test, and of the validation; at least 200. Of definitional_nonce all there are: 160."""
    distractor_factor: int = 5
    """Definitions written after an episode's own, per definition, before its words are asked for again (retention)."""
    seed: int = 0
    """Of the data: what is held out and measured. Training has the seed of its order."""

    def __post_init__(self) -> None:
        if self.num_test_words < MIN_WORDS:
            raise ConfigError(f"num_test_words: got {self.num_test_words}; at least {MIN_WORDS} are needed")
        if self.distractor_factor < 1 or self.total_steps < 1:
            got = f"distractor_factor {self.distractor_factor} and total_steps {self.total_steps}"
            raise ConfigError(f"rare words: got {got}; at least 1 of each is needed")
        if self.distractor_factor >= -(-self.num_test_words // self.num_candidates):
            got = f"{self.distractor_factor} with {self.num_test_words} words in episodes of {self.num_candidates}"
            raise ConfigError(f"distractor_factor: got {got}; there must be more test episodes than that")
        if self.data is None and (self.encoder is not None or self.words != "rare_words"):
            given = f"words {self.words!r}" if self.encoder is None else f"encoder {self.encoder!r}"
            raise ConfigError(f"rare words: got {given} for generated words; give data, a folder of real words")
        if not 0 <= self.retrieval_weight < float("inf"):
            raise ConfigError(f"retrieval_weight: got {self.retrieval_weight}; at least 0 is needed")

    @property
    def name(self) -> str:
        """For logs and files."""
        return "rare_words"

    @property
    def space(self) -> Space:
        """The strategies."""
        return space_of(use_kv=self.use_kv)

    def learner(self) -> "RareWordLearner":
        """Make a learner. Raises `DataError`: the folder is missing or damaged; `ConfigError`: there is no encoder."""
        return RareWordLearner(self)

    def cost(self, strategy: Strategy) -> int:
        """Return the FLOPs of one step, the mean of a few."""
        recipe = Recipe(strategy, self.total_steps)
        return _step_flops(self, recipe.batch_size, recipe.top_k, recipe.policy.name)

    def _count_step_flops(self, strategy: Strategy) -> int:
        learner, recipe = RareWordLearner(self), Recipe(strategy, self.total_steps)
        config = learner.model_config(recipe)
        lessons = [
            lesson
            for step in range(COST_STEPS)
            for lesson in learner.lessons(recipe, np.random.default_rng([self.seed, step]))
        ]
        weight = self.retrieval_weight
        return round(
            sum(lesson_flops(config, each, recipe.policy, len(each.support), weight) for each in lessons) / COST_STEPS
        )


class RareWordLearner(KVLearner):
    """The learner of `RareWordTask`."""

    def __init__(self, task: RareWordTask) -> None:
        super().__init__(total_steps=task.total_steps, use_kv=task.use_kv, retrieval_weight=task.retrieval_weight)
        self._task = task
        self._source = _source(task)
        self._vectors = _vectors(task.data, task.words, task.encoder) if task.data and task.encoder else None
        self._validation = self._measured("validation")
        if len(self._validation) <= task.distractor_factor:
            got = f"{len(self._validation)} episodes in a fifth of the words"
            raise DataError(f"{task.data}: {got}; more than distractor_factor, {task.distractor_factor}, are needed")

    @property
    def tokenizer(self) -> WordTokenizer | None:
        """Of the training words; None for vectors."""
        return self._source.tokenizer if self._vectors is None else None

    @property
    def vectors(self) -> TextVectors | None:
        """Of all texts, for those who measure something else on them; None where there is no encoder."""
        return self._vectors

    def model_config(self, recipe: Recipe) -> KVTransformerConfig:
        """See `KVLearner`."""
        task = self._task
        memory = {"capacity": task.num_candidates, "top_k": recipe.top_k, "threshold": task.confidence_threshold}
        if self._vectors is not None:
            dim = self._vectors.dim  # a narrower model begins below the nearest vector and does not catch up
            shape = {"input": "vectors", "input_dim": dim, "hidden_size": dim, "num_attention_heads": 1}
        else:
            shape = {"vocab_size": self._source.tokenizer.vocab_size, "max_position_embeddings": task.max_length}
        return KVTransformerConfig.preset(
            task.size,
            num_labels=task.num_candidates,
            dropout=task.dropout,
            gate_init=recipe.gate_init,
            memory=memory if task.use_kv else None,
            **shape,
        )

    def lessons(self, recipe: Recipe, rng: np.random.Generator) -> list[Lesson]:
        """See `KVLearner`."""
        lessons, left = [], recipe.batch_size
        for episode in self._source.training(int(rng.integers(2**32)), recipe.batch_size):
            lesson = self._lesson(episode)
            lessons.append(Lesson(lesson.support, lesson.queries.select(list(range(min(left, len(lesson.queries)))))))
            left -= len(lessons[-1].queries)
        return lessons

    def evaluate(self) -> dict[str, float]:
        """Return accuracy on validation episodes as "score", and what was read."""
        self.model.eval()
        answers = joined([self._asked(lesson) for lesson in self._validation])
        self.charge(answers.flops)
        figures = answers.figures()
        return {"score": figures.pop("accuracy"), **figures}

    def test(self) -> dict[str, float]:
        """Return figures of test words, never seen before: accuracy, what was read, ablations, retention."""
        self.model.eval()
        lessons = self._measured("test")
        if not self.use_kv:
            answers = joined([self._asked(lesson) for lesson in lessons])
            self.charge(answers.flops)
            return answers.figures()
        generator = torch.Generator().manual_seed(self._task.seed)
        each = [ablations(self.model, lesson, self.recipe.policy, generator=generator) for lesson in lessons]
        answers = {name: joined([one[name] for one in each]) for name in each[0]}
        retained = joined([self._retained(lessons, i) for i in range(len(lessons))])
        self.charge(retained.flops + sum(answer.flops for answer in answers.values()))
        figures = retained.figures()
        return ablation_figures(answers) | {
            "retention": figures["accuracy"],
            "retention_hit_rate": figures["hit_rate"],
            "chance": 1 / self._task.num_candidates,
        }

    def _asked(self, lesson: Lesson) -> Answers:
        if not self.use_kv:
            return ask(self.model, lesson.queries)
        with fresh_memory(self.model, capacity=len(lesson.support)) as memory:
            self.charge(write(self.model, lesson.support, self.recipe.policy, encoder_id=f"step {self.step}"))
            return ask(self.model, lesson.queries, slot_labels(memory))

    def _retained(self, lessons: list[Lesson], at: int) -> Answers:
        """Ask for the words of one episode after the definitions of the ones after it (cyclic) were written too."""
        own, factor, encoder_id = lessons[at], self._task.distractor_factor, f"step {self.step}"
        with fresh_memory(self.model, capacity=len(own.support) * (1 + factor)) as memory:
            flops = write(self.model, own.support, self.recipe.policy, encoder_id=encoder_id)
            labels_C = slot_labels(memory)  # a distractor is no right entry, whatever its label
            for i in range(factor):
                other = lessons[(at + 1 + i) % len(lessons)].support
                flops += write(self.model, other, self.recipe.policy, encoder_id=encoder_id, prefix=f"other {i} ")
            self.charge(flops)
            return ask(self.model, own.queries, labels_C)

    def episodes(self, split: Literal["validation", "test"]) -> list[Episode]:
        """Return what is measured on, for those who measure something else on it."""
        return self._source.measured(split, self._task.num_test_words)

    def _measured(self, split: Literal["validation", "test"]) -> list[Lesson]:
        return [self._lesson(episode) for episode in self.episodes(split)]

    def _lesson(self, episode: Episode) -> Lesson:
        return Lesson(self._items(episode.support), self._items(episode.queries))

    def _items(self, examples: Examples) -> Items:
        if self._vectors is not None:
            return Items(self._vectors.of(examples.inputs.tolist()), torch.from_numpy(examples.labels.copy()))
        tokens = self._source.tokenizer.examples(examples, max_length=self._task.max_length)
        return Items(torch.from_numpy(tokens.inputs.copy()), torch.from_numpy(tokens.labels.copy()))


@lru_cache(maxsize=1024)
def _step_flops(task: RareWordTask, batch_size: int, top_k: int, policy: str) -> int:
    """Return what a step costs; nothing else of a strategy moves it."""
    return task._count_step_flops({"batch_size": batch_size, "memory_top_k": top_k, "write_policy": policy})


@lru_cache(maxsize=4)
def _source(task: RareWordTask) -> EpisodeSource:
    """Read, or set up, what a task learns from; what a process has read it does not read again."""
    if task.data is not None:
        words = _words(task.data, task.words)
        real = RealWords(words, name=task.words, seed=task.seed, num_candidates=task.num_candidates)
        return RealEpisodes(real, task.seed, measures_all=task.words == "definitional_nonce")
    config = RareWordConfig(num_candidates=task.num_candidates, form=task.form, vocabulary=task.vocabulary)
    return GeneratedEpisodes(config, task.seed)


@lru_cache(maxsize=2)
def _words(folder: str, words: WordSet) -> list[DefinedWord]:
    if words == "rare_words":
        return read_rare_words(folder).words
    return [word for part in ("train", "test") for word in read_definitional_nonces(folder, part).halves()]


@lru_cache(maxsize=2)
def _vectors(folder: str, words: WordSet, encoder: str) -> TextVectors:
    texts = [text for word in _words(folder, words) for text in (word.definition, *word.contexts)]
    return TextVectors(open_encoder(encoder), texts)
