"""What a run would do and cost, without starting it: neither Ray nor torch is imported, nothing is written."""

from hsokv_ray.config import dump_yaml
from hsokv_ray.training.config import TrainHMSTConfig
from hsokv_ray.training.cost import cost_of, describe, warmup_steps
from hsokv_ray.training.prepare import preview


def dry_run(config: TrainHMSTConfig) -> str:
    """Return the resolved configuration, the cost of the run and the first documents of the source.

    Raises `ConfigError` or `DataError` as the run itself would.
    """
    seen = preview(config)
    cost = cost_of(config, seen.shape, seen.length)
    warmup_steps(config, cost.length.max_steps)
    costs = describe(cost, size=config.model.size, num_workers=config.run.num_workers)
    return "\n".join([dump_yaml(config), costs, *seen.lines])
