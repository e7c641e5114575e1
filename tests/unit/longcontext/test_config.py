"""The settings: names, derived numbers, and what is refused."""

from pathlib import Path
from typing import Any

import pytest

from hsokv_ray.config import load_yaml
from hsokv_ray.errors import ConfigError
from hsokv_ray.longcontext.config import LongContextConfig

KEYS = [
    "enabled",
    "layer_begin",
    "layer_end",
    "context_window_size",
    "sink_tokens",
    "local_tokens",
    "budget_tokens",
    "block_size",
    "index",
    "positions",
    "granularity",
    "chunk_size",
    "use_datastore",
    "store_dtype",
    "gpu_datastore",
    "gpu_index",
    "datastore_device",
    "index_devices",
    "max_source_length",
    "on_too_long",
]


def test_every_setting_is_in_the_schema_with_its_help_and_off_is_the_default():
    properties = LongContextConfig.model_json_schema()["properties"]
    assert set(KEYS) <= set(properties)
    assert all(properties[key]["description"] for key in KEYS)
    assert LongContextConfig().enabled is False


def test_the_origins_names_are_understood_in_python_and_in_yaml(tmp_path: Path):
    expected = LongContextConfig(index="flat", max_source_length=7)
    assert LongContextConfig(knn=False, eval_max_source_length=7) == expected
    (tmp_path / "c.yaml").write_text("knn: false\neval_max_source_length: 7\n")
    assert load_yaml(LongContextConfig, tmp_path / "c.yaml") == expected
    assert LongContextConfig(knn=True, index="pq").index == "pq"
    with pytest.raises(ConfigError, match="knn: false searches exactly, index: pq does not"):
        LongContextConfig(knn=False, index="pq")


@pytest.mark.parametrize("window", [16, 17, 64, 100, 512, 1024, 4096, 131_072])
@pytest.mark.parametrize("settings", [{}, {"encoding": "parallel"}, {"granularity": "token"}])
def test_what_is_derived_always_fits_the_window(window: int, settings: dict[str, Any]):
    resolved = LongContextConfig(**settings).resolve(window=window, num_layers=4)
    assert resolved.sink + resolved.budget + resolved.local + resolved.block + resolved.chunk <= window
    assert resolved.sink + resolved.local + resolved.piece <= window
    assert resolved.num_blocks >= 1
    assert (resolved.layer_begin, resolved.layer_end) == (0, 4)
    assert max(resolved.local, resolved.budget) <= 4096
    assert resolved.chunk <= 512


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"budget_tokens": 900}, r"exceed the window of 1024; lower --budget-tokens to \d+"),
        ({"budget_tokens": 7, "block_size": 8}, "less than a block of 8, so nothing would be fetched"),
        ({"layer_begin": 4}, "--layer-begin 4: the model has 4 layers"),
        ({"layer_end": 5}, "--layer-end 5: the model has 4 layers"),
        ({"layer_begin": 3, "layer_end": 2}, "not below --layer-end 2"),
        ({"granularity": "token", "index": "block_minmax"}, "with --granularity token use flat, pq or ivf"),
        ({"index_devices": ()}, "give numbers of GPUs"),
        ({"positions": "relative"}, "--positions: got 'relative'"),
    ],
)
def test_what_cannot_be_is_refused_with_what_could(settings: dict[str, Any], message: str):
    with pytest.raises(ConfigError, match=message):
        LongContextConfig(**settings).resolve(window=1024, num_layers=4)
