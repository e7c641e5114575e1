"""Labelled tasks: generated and real rare words, few-shot GLUE, Split-CIFAR-10, windows of text. No torch, no Ray."""

from hsokv_ray.data.tasks.base import SPLITS, Examples, Split, Splits, Task, check_disjoint, text_examples
from hsokv_ray.data.tasks.chimera import Chimera, chimera_episode, read_chimera
from hsokv_ray.data.tasks.cifar import Cifar10, load_cifar10
from hsokv_ray.data.tasks.definitional_nonce import FilteredNonces, Nonce, read_definitional_nonces
from hsokv_ray.data.tasks.episodes import Episode, make_episode
from hsokv_ray.data.tasks.few_shot import PUBLISHED_SEEDS, FewShotGlue
from hsokv_ray.data.tasks.rare_words import MIN_WORDS, RareWordConfig, RareWords
from hsokv_ray.data.tasks.real_words import DefinedWord, RealWords, read_rare_words
from hsokv_ray.data.tasks.split_cifar import Experience, SplitCifar
from hsokv_ray.data.tasks.text_windows import TextWindows, WindowConfig
from hsokv_ray.data.tasks.word_tokenizer import Encoded, WordTokenizer

__all__ = [
    "Chimera",
    "Cifar10",
    "DefinedWord",
    "Encoded",
    "Episode",
    "Examples",
    "Experience",
    "FewShotGlue",
    "FilteredNonces",
    "MIN_WORDS",
    "Nonce",
    "PUBLISHED_SEEDS",
    "RareWordConfig",
    "RareWords",
    "RealWords",
    "SPLITS",
    "Split",
    "SplitCifar",
    "Splits",
    "Task",
    "TextWindows",
    "WindowConfig",
    "WordTokenizer",
    "check_disjoint",
    "chimera_episode",
    "load_cifar10",
    "make_episode",
    "read_chimera",
    "read_definitional_nonces",
    "read_rare_words",
    "text_examples",
]
