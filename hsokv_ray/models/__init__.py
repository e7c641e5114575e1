"""The HMST model and what it costs.

`hsokv_ray.models.config` and `.presets` import neither torch nor transformers. The names below load both when they are
first used, and register the model with transformers' Auto classes; `register()` does that and nothing else.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hsokv_ray.models.balance import LoadBalancer, RouterMetrics
    from hsokv_ray.models.configuration_hmst import HMSTConfig
    from hsokv_ray.models.modeling_hmst import HMSTForCausalLM, HMSTModel

__all__ = ["HMSTConfig", "HMSTForCausalLM", "HMSTModel", "LoadBalancer", "RouterMetrics", "register"]

_MODULES = {
    "HMSTConfig": "configuration_hmst",
    "HMSTForCausalLM": "modeling_hmst",
    "HMSTModel": "modeling_hmst",
    "LoadBalancer": "balance",
    "RouterMetrics": "balance",
}


def register() -> None:
    """Make `AutoConfig`, `AutoModel` and `AutoModelForCausalLM` know the model type `hmst`."""
    import_module("hsokv_ray.models.modeling_hmst")  # registers at its end


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    register()
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
