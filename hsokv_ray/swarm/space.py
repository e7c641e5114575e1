"""A search space: named domains, each with its own way to be drawn, perturbed and laid on the unit interval.

    space = Space({"learning_rate": LogFloat(1e-5, 1e-2), "optimizer": Choice(("adam", "sgd"))})
    strategy = space.sample(rng)
    near = space.perturb(strategy, rng, factors=(0.8, 1.2), resample_probability=0.25)

A strategy is a plain dict of numbers and strings, so that it travels as JSON.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np

from hsokv_ray.errors import ConfigError

Value = float | int | str | bool
Strategy = dict[str, Value]


class Domain(Protocol):
    """The values one setting may take."""

    @property
    def num_options(self) -> int:
        """Options of a choice; 0 where values are numbers."""
        ...

    def sample(self, rng: np.random.Generator) -> Value:
        """Draw a value."""
        ...

    def perturb(self, value: Value, rng: np.random.Generator, factors: Sequence[float]) -> Value:
        """Return a value near `value`, always inside the domain."""
        ...

    def to_unit(self, value: Value) -> float:
        """Return where `value` lies in [0, 1]."""
        ...

    def from_unit(self, unit: float) -> Value:
        """Return the value at `unit`; what is outside [0, 1] counts as its nearest end."""
        ...

    def allows(self, value: Value) -> bool:
        """Return whether `value` is inside."""
        ...


@dataclass(frozen=True)
class _Number:
    low: float
    high: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise ConfigError(f"{type(self).__name__}: got low {self.low} and high {self.high}; low < high is needed")

    @property
    def num_options(self) -> int:
        return 0

    def sample(self, rng: np.random.Generator) -> Value:
        return self.from_unit(rng.random())

    def perturb(self, value: Value, rng: np.random.Generator, factors: Sequence[float]) -> Value:
        """Multiply by one of `factors` (a step of fixed length in log space), round where whole, clip."""
        return self._inside(float(value) * factors[int(rng.integers(len(factors)))])

    def to_unit(self, value: Value) -> float:
        return (float(value) - self.low) / (self.high - self.low)

    def from_unit(self, unit: float) -> Value:
        return self._inside(self.low + min(max(unit, 0.0), 1.0) * (self.high - self.low))

    def allows(self, value: Value) -> bool:
        return not isinstance(value, str | bool) and self.low <= value <= self.high

    def _inside(self, value: float) -> Value:
        return float(min(max(value, self.low), self.high))


class Float(_Number):
    """Any number from `low` to `high`."""


class LogFloat(_Number):
    """Any number from `low` to `high`, every factor as likely; `low` is above 0."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_positive(self)

    def to_unit(self, value: Value) -> float:
        return math.log(float(value) / self.low) / math.log(self.high / self.low)

    def from_unit(self, unit: float) -> Value:
        return self._inside(self.low * (self.high / self.low) ** min(max(unit, 0.0), 1.0))


class Int(_Number):
    """A whole number from `low` to `high`, both included."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_whole(self)

    def to_unit(self, value: Value) -> float:
        # Each number owns a cell of the unit interval and stands for its middle, so that the ends are no rarer.
        return (float(value) - self.low + 0.5) / (self.high - self.low + 1)

    def from_unit(self, unit: float) -> Value:
        return self._inside(self.low - 0.5 + min(max(unit, 0.0), 1.0) * (self.high - self.low + 1))

    def allows(self, value: Value) -> bool:
        return super().allows(value) and float(value).is_integer()

    def _inside(self, value: float) -> Value:
        return int(min(max(round(value), self.low), self.high))


class LogInt(Int):
    """A whole number from `low` to `high`, every factor as likely; `low` is above 0."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_positive(self)

    def to_unit(self, value: Value) -> float:
        return math.log(float(value) / (self.low - 0.5)) / self._width

    def from_unit(self, unit: float) -> Value:
        return self._inside((self.low - 0.5) * math.exp(min(max(unit, 0.0), 1.0) * self._width))

    @property
    def _width(self) -> float:
        return math.log((self.high + 0.5) / (self.low - 0.5))


@dataclass(frozen=True)
class Choice:
    """One of `options`. Perturbing moves to a neighbour in the order given, as Ray Tune does for lists."""

    options: tuple[Value, ...]

    def __init__(self, options: Iterable[Value]) -> None:
        object.__setattr__(self, "options", tuple(options))
        if not self.options or len(set(self.options)) < len(self.options):
            raise ConfigError(f"Choice: got {list(self.options)}; one or more different options are needed")

    @property
    def num_options(self) -> int:
        return len(self.options)

    def sample(self, rng: np.random.Generator) -> Value:
        return self.options[int(rng.integers(len(self.options)))]

    def perturb(self, value: Value, rng: np.random.Generator, factors: Sequence[float]) -> Value:
        at = self.options.index(value) + (-1, 1)[int(rng.integers(2))]
        return self.options[min(max(at, 0), len(self.options) - 1)]

    def to_unit(self, value: Value) -> float:
        return (self.options.index(value) + 0.5) / len(self.options)

    def from_unit(self, unit: float) -> Value:
        return self.options[min(int(min(max(unit, 0.0), 1.0) * len(self.options)), len(self.options) - 1)]

    def allows(self, value: Value) -> bool:
        return value in self.options


_KINDS: dict[str, type] = {kind.__name__: kind for kind in (Float, LogFloat, Int, LogInt, Choice)}


class Space:
    """Named domains, in a fixed order.

    Args:
        domains: name -> domain.

    Raises:
        ConfigError: there is none.
    """

    def __init__(self, domains: Mapping[str, Domain]) -> None:
        if not domains:
            raise ConfigError("Space: got no domain; at least one setting to search over is needed")
        self.domains: dict[str, Domain] = dict(domains)

    def __len__(self) -> int:
        return len(self.domains)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Space) and list(self.domains.items()) == list(other.domains.items())

    __hash__ = None  # pyright: ignore[reportAssignmentType]

    def sample(self, rng: np.random.Generator) -> Strategy:
        """Draw a strategy, one number of `rng` per domain, in order."""
        return {name: domain.sample(rng) for name, domain in self.domains.items()}

    def perturb(
        self,
        strategy: Strategy,
        rng: np.random.Generator,
        factors: Sequence[float] = (0.8, 1.2),
        resample_probability: float = 0.25,
    ) -> Strategy:
        """Return a neighbour: each setting is drawn anew with `resample_probability`, else perturbed.

        The rule and the order of random numbers are those of Ray Tune's PopulationBasedTraining (its `_explore`);
        unlike there, values stay inside their domain.
        """
        near = {}
        for name, domain in self.domains.items():
            anew = rng.random() < resample_probability
            near[name] = domain.sample(rng) if anew else domain.perturb(strategy[name], rng, factors)
        return near

    def to_unit(self, strategy: Strategy) -> np.ndarray:
        """Return `strategy` as float64 [len(self)] in the unit cube."""
        return np.array([domain.to_unit(strategy[name]) for name, domain in self.domains.items()])

    def from_unit(self, units: Sequence[float] | np.ndarray) -> Strategy:
        """Return the strategy at a point [len(self)] of the unit cube."""
        return {name: domain.from_unit(float(u)) for (name, domain), u in zip(self.domains.items(), units, strict=True)}

    def check(self, strategy: Mapping[str, Any]) -> None:
        """Raise `ConfigError` where `strategy` has a missing, unknown or impossible setting."""
        if strategy.keys() != self.domains.keys():
            raise ConfigError(f"strategy: got {sorted(strategy)}; exactly {sorted(self.domains)} are needed")
        for name, domain in self.domains.items():
            if not domain.allows(strategy[name]):
                raise ConfigError(f"strategy: {name} is {strategy[name]!r}; {domain} allows it not")

    def to_json(self) -> dict[str, Any]:
        """Return what `from_json` reads."""
        return {name: {"kind": type(d).__name__, **asdict(d)} for name, d in self.domains.items()}  # pyright: ignore[reportArgumentType]

    @classmethod
    def from_json(cls, values: Mapping[str, Mapping[str, Any]]) -> "Space":
        """Build a space from `{name: {"kind": "LogFloat", "low": ..., "high": ...}}`. Raises `ConfigError`."""
        return cls({name: _domain(name, value) for name, value in values.items()})


def _domain(name: str, value: Mapping[str, Any]) -> Domain:
    arguments = {key: item for key, item in value.items() if key != "kind"}
    kind = value.get("kind")
    if kind not in _KINDS:
        raise ConfigError(f"space: {name} is of kind {kind!r}; one of {sorted(_KINDS)} is needed")
    try:
        return _KINDS[kind](**arguments)
    except TypeError:
        raise ConfigError(f"space: {name} has {sorted(arguments)}, which a {kind} does not take") from None


def _check_positive(domain: _Number) -> None:
    if domain.low <= 0:
        raise ConfigError(f"{type(domain).__name__}: got low {domain.low}; above 0 is needed for a log scale")


def _check_whole(domain: _Number) -> None:
    if not (float(domain.low).is_integer() and float(domain.high).is_integer()):
        raise ConfigError(f"{type(domain).__name__}: got {domain.low} and {domain.high}; whole numbers are needed")
