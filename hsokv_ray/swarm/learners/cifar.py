"""Split-CIFAR-10 as a task of the swarm: one model learns five tasks in their order, and is judged on all ten classes.

    task = CifarTask(folder="cifar10", variant="hsokv", total_steps=500)
    learner = task.learner()
    learner.configure(DEFAULT_STRATEGY, seed=0)
    learner.reset()
    learner.train(500)
    learner.evaluate()["score"]                      # class-IL accuracy on the validation images of all ten classes
    learner.test()["validation"]["class_il"]         # the accuracy matrix and its figures

One run gives both scenarios: class-IL picks the best of all classes, task-IL the best of the image's task.
"""

from dataclasses import dataclass, replace
from typing import Literal

from hsokv_ray.errors import ConfigError
from hsokv_ray.swarm.learners import small_net
from hsokv_ray.swarm.learners.cifar_learner import CifarLearner
from hsokv_ray.swarm.learners.fixed_keys import fixed_key_flops
from hsokv_ray.swarm.learners.recipe import PLAIN_SPACE, Recipe
from hsokv_ray.swarm.learners.small_net import KeyFeatures, SmallNetConfig
from hsokv_ray.swarm.space import Space, Strategy
from hsokv_ray.swarm.strategy import KV_SPACE

Variant = Literal["hsokv", "fine_tune", "kv_only", "experience_replay"]
NUM_TASKS = 5
IMAGE_SHAPE = (32, 32, 3)
"""What the fixed keys are made from; the convolutions see `image_size`."""
REHEARSING = ("hsokv", "experience_replay")


@dataclass(frozen=True)
class CifarTask:
    """One variant; all see the same images in the same order where seed and batch size are the same."""

    folder: str
    """Folder of CIFAR-10, see `load_cifar10`."""
    variant: Variant = "hsokv"
    """hsokv: net and memory, whose entries are rehearsed. fine_tune: the net alone. kv_only: the memory alone, no
    gradient. experience_replay: the net, rehearsing raw images of as many bytes."""
    key_features: KeyFeatures = "fixed"
    """What makes keys, and what the net sees: a convolutional net that learns ("live"), or frozen patches."""
    total_steps: int = 500
    """Steps of the whole stream, divided evenly among its tasks."""
    size: Literal["tiny", "base"] = "tiny"
    memory_bytes: int = 614_400
    """Bytes of the memory, or of the replay's images; the default is 200 raw images."""
    train_per_class: int | None = None
    """Images read per class, a tenth of which is for validation; None: all."""
    test_per_class: int | None = None
    validation_per_class: int = 100
    """Validation images per class that are used, at most."""
    key_dim: int = 128
    num_filters: int = 32
    """Filters of the fixed patches."""
    image_size: int = 16
    """Side of what the convolutional net sees, in pixels."""
    confidence_threshold: float = 0.15
    """Cosine below which a memory's entry is no hit."""
    record_test: bool = False
    """Whether test accuracies are taken at the end of each task: for the last run, never in a search."""
    data_seed: int = 0
    """Decides which images are for validation."""

    def __post_init__(self) -> None:
        if self.variant not in ("hsokv", "fine_tune", "kv_only", "experience_replay"):
            raise ConfigError(
                f"variant: got {self.variant!r}; hsokv, fine_tune, kv_only or experience_replay is needed"
            )
        if self.size not in small_net.SIZES:
            raise ConfigError(f"size: got {self.size!r}; {' or '.join(small_net.SIZES)} is needed")
        if self.total_steps < NUM_TASKS:
            raise ConfigError(f"total_steps: got {self.total_steps}; {NUM_TASKS} tasks need a step each, at least")
        if self.validation_per_class < 1:
            raise ConfigError(f"validation_per_class: got {self.validation_per_class}; at least 1 is needed")

    @property
    def name(self) -> str:
        """A word for logs and files."""
        return f"split_cifar10_{self.variant}_{self.key_features}"

    @property
    def space(self) -> Space:
        """The strategies a swarm may choose from; settings that move nothing are left out."""
        match self.variant:
            case "hsokv":
                return KV_SPACE
            case "kv_only":
                names = ("batch_size", "memory_top_k", "write_policy")
                return Space({name: KV_SPACE.domains[name] for name in names})
        return PLAIN_SPACE

    def recipe(self, strategy: Strategy) -> Recipe:
        """Return what `strategy` says of one task of the stream: each begins the schedule of the learning rate anew."""
        recipe = Recipe(strategy, -(-self.total_steps // NUM_TASKS))
        if self.key_features == "live" and recipe.batch_size < 2:
            raise ConfigError("strategy: batch_size is 1; a net with batch norm needs 2 images a step, at least")
        return recipe

    @property
    def has_memory(self) -> bool:
        """Whether there is a key-value memory."""
        return self.variant in ("hsokv", "kv_only")

    def net_config(self, gate_init: float = 0.0) -> SmallNetConfig:
        """Return the shape of the model."""
        return SmallNetConfig(
            key_features=self.key_features,
            image_size=self.image_size,
            key_dim=self.key_dim,
            has_memory=self.has_memory,
            gate_init=gate_init,
            **small_net.SIZES[self.size],
        )

    @property
    def num_entries(self) -> int:
        """Entries the memory holds when it is full; 0 without one."""
        return self.memory_bytes // (4 * (self.key_dim + self.net_config().num_labels)) if self.has_memory else 0

    def learner(self) -> CifarLearner:
        """Make a learner: read the images. Raises `DataError`: they are missing or damaged; says how to get them."""
        return CifarLearner(self)

    def cost(self, strategy: Strategy) -> int:
        """Return the FLOPs of a step with a full memory, the most a step costs; evaluation not included.

        Fixed keys are charged whenever an image is shown, though a learner keeps those it has computed.
        """
        recipe = self.recipe(strategy)
        num_rehearsed = recipe.batch_size if self.variant in REHEARSING else 0
        return self.step_flops(recipe, recipe.batch_size, num_rehearsed, self.num_entries)

    def step_flops(self, recipe: Recipe, num_images: int, num_rehearsed: int, num_entries: int) -> int:
        """Return the FLOPs of a step that shows and rehearses so many, beside a memory of so many entries."""
        config, num_keys = self.net_config(), num_images + num_rehearsed
        if self.variant == "kv_only":
            reads = recipe.policy.name != "always"
            read = small_net.read_products(config, num_images, num_entries, recipe.top_k) if reads else []
            return self.key_flops(num_images) + small_net.forward_flops(read)
        num_encoded = num_keys if self.variant == "experience_replay" else num_images
        head = small_net.head_products(config, num_keys, num_entries, recipe.top_k)
        return self.key_flops(num_encoded, learning=True) + small_net.step_flops(head)

    def evaluation_flops(self, recipe: Recipe, num_images: int, num_entries: int, *, use_memory: bool = True) -> int:
        """Return the FLOPs of scoring `num_images`."""
        config = self.net_config()
        config = config if use_memory else replace(config, has_memory=False)
        head = small_net.read_products if self.variant == "kv_only" else small_net.head_products
        products = head(config, num_images, num_entries, recipe.top_k)
        return self.key_flops(num_images) + small_net.forward_flops(products)

    def key_flops(self, num_images: int, *, learning: bool = False) -> int:
        """Return the FLOPs of the keys of `num_images` images, and where they learn of their gradient."""
        if self.key_features == "fixed":
            return num_images * fixed_key_flops(IMAGE_SHAPE, num_filters=self.num_filters, key_dim=self.key_dim)
        products = small_net.extractor_products(self.net_config(), num_images)
        return small_net.step_flops(products) if learning else small_net.forward_flops(products)
