"""What anything learnt is compared with. Each is a function of (train, test) that returns int64 labels [len(test)].

An episode is judged by the same functions: its support is `train`, its queries are `test`.
"""

# ruff: noqa: F401
import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hsokv_ray.evaluation.baselines.frozen_vectors import logistic_regression, nearest
    from hsokv_ray.evaluation.baselines.majority_label import majority
    from hsokv_ray.evaluation.baselines.oracle import attribute_oracle
    from hsokv_ray.evaluation.baselines.patches import PatchFeatures
    from hsokv_ray.evaluation.baselines.random_vectors import random_embedding_nearest
    from hsokv_ray.evaluation.baselines.ridge import StreamingRidge, streaming_ridge
    from hsokv_ray.evaluation.baselines.shared_words import string_match
    from hsokv_ray.evaluation.baselines.tfidf import tfidf_logistic_regression, tfidf_nearest
    from hsokv_ray.evaluation.baselines.word_vectors import additive, additive_vectors

_MODULES = {
    "PatchFeatures": "patches",
    "StreamingRidge": "ridge",
    "additive": "word_vectors",
    "additive_vectors": "word_vectors",
    "attribute_oracle": "oracle",
    "logistic_regression": "frozen_vectors",
    "majority": "majority_label",
    "nearest": "frozen_vectors",
    "random_embedding_nearest": "random_vectors",
    "streaming_ridge": "ridge",
    "string_match": "shared_words",
    "tfidf_logistic_regression": "tfidf",
    "tfidf_nearest": "tfidf",
}

__all__ = [
    "PatchFeatures",
    "StreamingRidge",
    "additive",
    "additive_vectors",
    "attribute_oracle",
    "logistic_regression",
    "majority",
    "nearest",
    "random_embedding_nearest",
    "streaming_ridge",
    "string_match",
    "tfidf_logistic_regression",
    "tfidf_nearest",
]


def __getattr__(name: str) -> Any:
    # On first use: scikit-learn takes a second to import, and most of these do without.
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
