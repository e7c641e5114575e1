"""Numbers and strategies as short text."""

from collections.abc import Mapping
from typing import Any

_PREFIXES = ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def flops_text(flops: float) -> str:
    """Return FLOPs as `1.25 TFLOP`."""
    for factor, prefix in _PREFIXES:
        if flops >= factor:
            return f"{flops / factor:.3g} {prefix}FLOP"
    return f"{flops:.3g} FLOP"


def strategy_text(strategy: Mapping[str, Any]) -> str:
    """Return settings as `learning_rate 0.00123, optimizer adamw`."""
    return ", ".join(f"{name} {setting_text(value)}" for name, value in strategy.items())


def strategy_short(strategy: Mapping[str, Any]) -> str:
    """Return settings for a narrow column, as `adamw lr 0.0012`: names cut to initials, words without their names."""
    texts = (value if isinstance(value, str) else f"{_initials(n)} {value:.2g}" for n, value in strategy.items())
    return " ".join(texts)


def setting_text(value: Any) -> str:
    """Return a setting; numbers with 3 digits."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def score_text(score: float | None) -> str:
    """Return a score with 4 digits after the point, `-` where there is none."""
    return "-" if score is None else f"{score:.4f}"


def _initials(name: str) -> str:
    return "".join(word[:1] for word in name.split("_"))
