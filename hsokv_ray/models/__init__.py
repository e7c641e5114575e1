"""The HMST model, the key-value transformer, and what they cost.

`hsokv_ray.models.config` and `.presets` import neither torch nor transformers. The names below load both when they are
first used, and register the models with transformers' Auto classes; `register()` does that and nothing else.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hsokv_ray.models.balance import LoadBalancer, RouterMetrics
    from hsokv_ray.models.configuration_hmst import HMSTConfig
    from hsokv_ray.models.configuration_kv_transformer import KVTransformerConfig
    from hsokv_ray.models.kv_transformer import BaselineTransformer, TransformerWithKV
    from hsokv_ray.models.modeling_hmst import HMSTForCausalLM, HMSTModel

__all__ = [
    "BaselineTransformer",
    "HMSTConfig",
    "HMSTForCausalLM",
    "HMSTModel",
    "KVTransformerConfig",
    "LoadBalancer",
    "RouterMetrics",
    "TransformerWithKV",
    "register",
]

_MODULES = {
    "BaselineTransformer": "kv_transformer",
    "HMSTConfig": "configuration_hmst",
    "HMSTForCausalLM": "modeling_hmst",
    "HMSTModel": "modeling_hmst",
    "KVTransformerConfig": "configuration_kv_transformer",
    "LoadBalancer": "balance",
    "RouterMetrics": "balance",
    "TransformerWithKV": "kv_transformer",
}


def register() -> None:
    """Make `AutoConfig`, `AutoModel` and the classes by task know the model types `hmst` and `kv_transformer`."""
    for name in ("modeling_hmst", "kv_transformer"):
        import_module(f"{__name__}.{name}")  # registers at its end


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    register()
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
