"""A causal language model with a key-value memory as a task of the swarm, on the text of any source.

    task = LanguageTask(source="python://stdlib", total_steps=500)
    learner = task.learner()
    learner.configure(DEFAULT_STRATEGY, seed=0)
    learner.reset()
    learner.train(500)
    learner.evaluate()["score"]                      # minus the validation loss, in nats per token
    learner.test()["knn_lm"]                         # the baseline of Khandelwal et al. (2020) on the same text

The training windows are divided: most are learnt from, the others are only written to the memory. So no read in
training finds the very window it is to predict, which no read in evaluation could. (Windows that overlap, see `stride`,
share their text all the same.)
"""

from dataclasses import dataclass
from typing import Literal

from hsokv_ray.data.tasks import WindowConfig
from hsokv_ray.errors import ConfigError
from hsokv_ray.models.configuration_kv_transformer import KVTransformerConfig
from hsokv_ray.models.kv_flops import forward_flops, step_flops, write_flops
from hsokv_ray.swarm.learners.language_learner import LanguageLearner
from hsokv_ray.swarm.learners.recipe import Recipe, space_of
from hsokv_ray.swarm.space import Space, Strategy


@dataclass(frozen=True)
class LanguageTask:
    """A language model on one source."""

    source: str = "python://stdlib"
    """URI of the text, in any form jobs take."""
    use_kv: bool = True
    """False: the same transformer without a memory, which learns from all training windows."""
    total_steps: int = 500
    size: Literal["tiny", "base"] = "tiny"
    seq_len: int = 32
    """Tokens of a window, each of which predicts its next one."""
    stride: int | None = None
    """Tokens between the starts of training windows; None: `seq_len`."""
    max_windows: int = 20_000
    """Training windows, at most."""
    vocab_size: int = 512
    max_bytes: int = 2_000_000
    """Text that is read from the front of the source."""
    capacity: int = 1024
    """Entries of the memory: tokens of training text."""
    stored_share: float = 0.2
    """Share of the training windows that are written to the memory and not learnt from."""
    windows_per_write: int = 1
    """Windows offered to the memory after each step; the least useful entries make room."""
    confidence_threshold: float = 0.15
    """Cosine below which an entry is no hit."""
    num_evaluated: int = 64
    """Validation windows of an evaluation, at most."""
    num_tested: int = 500
    """Test windows, at most."""
    knn_tokens: int = 50_000
    """Tokens of training text in the datastore of the kNN-LM baseline, at most."""
    knn_neighbours: int = 16
    data_seed: int = 0
    """Decides which documents are held out."""

    def __post_init__(self) -> None:
        for name in ("total_steps", "windows_per_write", "num_evaluated", "num_tested", "knn_tokens", "knn_neighbours"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: got {getattr(self, name)}; at least 1 is needed")
        if not 0 < self.stored_share < 1:
            raise ConfigError(f"stored_share: got {self.stored_share}; above 0 and below 1 is needed")
        offered = self.windows_per_write * self.seq_len
        if self.use_kv and self.capacity < offered:
            raise ConfigError(f"capacity: got {self.capacity}; one write offers {offered} tokens, so at least as many")

    @property
    def name(self) -> str:
        """A word for logs and files."""
        return "language_model_kv" if self.use_kv else "language_model"

    @property
    def space(self) -> Space:
        """The strategies a swarm may choose from."""
        return space_of(use_kv=self.use_kv)

    @property
    def windows(self) -> WindowConfig:
        """What is cut into windows."""
        return WindowConfig(
            source=self.source,
            seq_len=self.seq_len,
            stride=self.stride,
            max_windows=self.max_windows,
            vocab_size=self.vocab_size,
            max_bytes=self.max_bytes,
        )

    def model_config(self, vocab_size: int, recipe: Recipe) -> KVTransformerConfig:
        """Return the shape of the model; without dropout, so that nothing in a step is random but its windows."""
        memory = {
            "capacity": self.capacity,
            "top_k": recipe.top_k,
            "threshold": self.confidence_threshold,
            "exclude_stale": False,
        }
        return KVTransformerConfig.preset(
            self.size,
            vocab_size=vocab_size,
            max_position_embeddings=self.seq_len + 1,
            head="language_model",
            dropout=0.0,
            memory=memory if self.use_kv else None,
            gate_init=recipe.gate_init,
        )

    def learner(self) -> LanguageLearner:
        """Make a learner: read the text. Raises `DataError`: it cannot be read, or is too little."""
        return LanguageLearner(self)

    def cost(self, strategy: Strategy) -> int:
        """Return the FLOPs of a step with a full memory and the write after it; evaluation not included."""
        recipe = Recipe(strategy, self.total_steps)
        return self.step_flops(self.model_config(self.vocab_size, recipe), recipe, self.capacity)

    def step_flops(self, config: KVTransformerConfig, recipe: Recipe, num_entries: int) -> int:
        """Return the FLOPs of a step that reads from `num_entries`, and of the write after it."""
        learning = step_flops(config, recipe.batch_size, self.seq_len + 1, num_entries)
        return learning + (self._write_flops(config, recipe, num_entries) if self.use_kv else 0)

    def evaluation_flops(self, config: KVTransformerConfig, num_windows: int, num_entries: int) -> int:
        """Return the FLOPs of the loss of so many windows."""
        return forward_flops(config, num_windows, self.seq_len + 1, num_entries)

    def _write_flops(self, config: KVTransformerConfig, recipe: Recipe, num_entries: int) -> int:
        num, length = self.windows_per_write, self.seq_len + 1
        if recipe.policy.name == "surprise":  # its loss takes a whole forward pass
            return forward_flops(config, num, length, num_entries)
        making = write_flops(config, num, length)
        if recipe.policy.name == "always":
            return making
        # novelty: one read of one entry for each token that has a target
        return making + 2 * num * self.seq_len * config.hidden_size * (max(num_entries, 1) + 1)
