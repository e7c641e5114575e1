"""Honest figures: intervals, continual learning from the whole accuracy matrix, Chimera's correlation, baselines."""

from hsokv_ray.evaluation.chimera_score import chimera_score
from hsokv_ray.evaluation.continual import Continual, accuracy_matrix, continual_metrics
from hsokv_ray.evaluation.intervals import Score, over_seeds, paired_bootstrap, wilson
from hsokv_ray.evaluation.scenarios import Scenarios, over_stream, streaming_ridge_over_stream

__all__ = [
    "Continual",
    "Scenarios",
    "Score",
    "accuracy_matrix",
    "chimera_score",
    "continual_metrics",
    "over_seeds",
    "over_stream",
    "paired_bootstrap",
    "streaming_ridge_over_stream",
    "wilson",
]
