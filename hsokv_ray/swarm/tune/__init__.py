'''The swarm as ordinary Ray Tune objects, for any trainable; imports Ray.

```python
import tempfile
from pathlib import Path

import numpy as np
from ray import tune

from hsokv_ray.swarm.config import SwarmConfig
from hsokv_ray.swarm.tune import SwarmScheduler, SwarmSearcher


def train(config):
    """Linear regression; any function that reports checkpoints, or a class Trainable, will do."""
    rng = np.random.default_rng(0)
    x, noise = rng.normal(size=(200, 20)), rng.normal(size=200)
    y = x @ np.linspace(0, 1, 20) + noise
    weights = np.zeros(20)
    if checkpoint := tune.get_checkpoint():  # the trial's own, or that of a better one
        with checkpoint.as_directory() as folder:
            weights = np.load(Path(folder, "weights.npy"))
    while True:  # the swarm ends it
        rows = rng.integers(100, size=16)
        gradient = x[rows].T @ (x[rows] @ weights - y[rows]) / 16
        weights -= config["rate"] * (gradient + config["decay"] * weights)
        loss = float(np.mean((x[100:] @ weights - y[100:]) ** 2))
        with tempfile.TemporaryDirectory() as folder:
            np.save(Path(folder, "weights.npy"), weights)
            tune.report({"loss": loss}, checkpoint=tune.Checkpoint.from_directory(folder))


space = {"rate": tune.loguniform(1e-4, 1.0), "decay": tune.uniform(0.0, 1.0)}
config = SwarmConfig(num_managers=1, agents_per_manager=4, max_steps=20, interval_steps=5)
searcher = SwarmSearcher(space, config, seed=0)
tuner = tune.Tuner(
    train,
    tune_config=tune.TuneConfig(
        metric="loss", mode="min", search_alg=searcher, scheduler=SwarmScheduler(), num_samples=-1
    ),
)
best = tuner.fit().get_best_result(scope="all")
print(best.metrics["loss"], searcher.best())
```
'''

from hsokv_ray.swarm.tune.hmst import hmst_trainable
from hsokv_ray.swarm.tune.scheduler import SwarmScheduler
from hsokv_ray.swarm.tune.searcher import SwarmSearcher
from hsokv_ray.swarm.tune.trainable import TaskTrainable, task_trainable

__all__ = ["SwarmScheduler", "SwarmSearcher", "TaskTrainable", "hmst_trainable", "task_trainable"]
