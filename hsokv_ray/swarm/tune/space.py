"""Search spaces of Ray Tune as the swarm's, and strategies as Tune's nested configurations.

space_of({"lr": tune.loguniform(1e-5, 1e-2), "head": {"layers": tune.randint(1, 5)}})
# Space({"lr": LogFloat(1e-05, 0.01), "head/layers": Int(1, 4)})
"""

from collections.abc import Iterator, Mapping
from typing import Any

from ray.tune.search import sample

from hsokv_ray.errors import ConfigError
from hsokv_ray.swarm.space import Choice, Domain, Float, Int, LogFloat, LogInt, Space, Strategy

MAX_OPTIONS = 1000
"""Values of a quantised range at most: each becomes an option of a choice."""


def space_of(param_space: Mapping[str, Any]) -> Space:
    """Return the space of all domains in `param_space`, at any depth; names of nested ones are joined by "/".

    uniform, loguniform, randint, lograndint, choice, quniform and qrandint are taken over; the last two become ordered
    choices. What is no domain is a constant, and Tune's own business.

    Raises:
        ConfigError: there is no domain, or one that has no bounds, is a function, or a grid.
    """
    domains = {name: _domain(name, value) for name, value in _leaves(param_space) if is_domain(value)}
    if not domains:
        raise ConfigError(f"param_space: got no domain among {sorted(param_space)}; give the swarm one to search over")
    return Space(domains)


def has_domains(param_space: Mapping[str, Any]) -> bool:
    """Return whether anything in `param_space` is to be searched over."""
    return any(is_domain(value) for _, value in _leaves(param_space))


def is_domain(value: Any) -> bool:
    """Return whether `value` is one of Tune's domains, or one of its grids."""
    return isinstance(value, sample.Domain) or (isinstance(value, dict) and value.keys() == {"grid_search"})


def nested(strategy: Strategy) -> dict[str, Any]:
    """Return `strategy` as a configuration: "head/layers" is `layers` inside of `head`."""
    config: dict[str, Any] = {}
    for name, value in strategy.items():
        *folders, last = name.split("/")
        inner = config
        for folder in folders:
            inner = inner.setdefault(folder, {})
        inner[last] = value
    return config


def _leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping) and not is_domain(value):
            yield from _leaves(value, f"{prefix}{name}/")
        else:
            yield f"{prefix}{name}", value


def _domain(name: str, domain: Any) -> Domain:
    """Return the swarm's counterpart of one of Tune's domains."""
    sampler = domain.get_sampler() if isinstance(domain, sample.Domain) else None
    step = sampler.q if isinstance(sampler, sample.Quantized) else None
    if isinstance(sampler, sample.Quantized):
        sampler = sampler.get_sampler()
    if isinstance(domain, sample.Categorical) and step is None:
        return _choice(name, list(domain.categories))
    is_uniform, is_log = isinstance(sampler, sample.Uniform), isinstance(sampler, sample.LogUniform)
    if isinstance(domain, sample.Float | sample.Integer) and step is not None and is_uniform:
        return _grid(name, domain, step)
    if isinstance(domain, sample.Float) and step is None and (is_uniform or is_log):
        return (Float if is_uniform else LogFloat)(domain.lower, domain.upper)
    if isinstance(domain, sample.Integer) and step is None and (is_uniform or is_log):
        return _whole(domain.lower, domain.upper - 1, is_log=is_log)
    kind = "grid_search" if sampler is None else f"{type(domain).__name__} drawn by {type(sampler).__name__.strip('_')}"
    raise ConfigError(
        f"param_space: {name} is a {kind}; the swarm takes uniform, loguniform, randint, lograndint, choice, quniform "
        "and qrandint"
    )


def _choice(name: str, options: list[Any]) -> Domain:
    strange = [option for option in options if not isinstance(option, bool | int | float | str)]
    if strange:
        raise ConfigError(
            f"param_space: {name} has the option {strange[0]!r}; the swarm takes numbers, strings and booleans: name "
            "the options, and look the values up in the trainable"
        )
    return Choice(options)


def _grid(name: str, domain: Any, step: float) -> Domain:
    """Return the multiples of `step` inside the bounds, both included, in order: neighbours are one step apart."""
    if isinstance(domain, sample.Integer):
        if step == 1:  # as Tune has it: randint, whose upper end is left out
            return _whole(domain.lower, domain.upper - 1, is_log=False)
        first, last = -(-domain.lower // step), domain.upper // step
    else:
        first, last = round(domain.lower / step), round(domain.upper / step)  # Tune allows multiples of q only
    if not 0 <= last - first < MAX_OPTIONS:
        raise ConfigError(
            f"param_space: {name} has {last - first + 1} values; 1 to {MAX_OPTIONS} are allowed, take another q"
        )
    return Choice([domain.cast(k * step) for k in range(int(first), int(last) + 1)])


def _whole(low: int, high: int, *, is_log: bool) -> Domain:
    if low == high:
        return Choice([low])
    return LogInt(low, high) if is_log else Int(low, high)
