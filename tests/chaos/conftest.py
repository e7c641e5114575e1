"""The application that tests of this folder put under load, and kill parts of."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from chat_model import save_chat_model
from served_app import CHAOS_APP, MODEL, free_port


@pytest.fixture(scope="module")
def url(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The application with two replicas of the tiny model."""
    from ray import serve as ray_serve

    from serve.actors import end_actors
    from serve.app import build
    from serve.args import ServeArgs

    folder: Path = tmp_path_factory.mktemp("chaos")
    args = ServeArgs(
        model=str(save_chat_model(folder / "model")),
        name=MODEL,
        threads=1,
        num_replicas=2,
        replica_cpus=0.1,
        gateway_cpus=0.1,
        documents_dir=str(folder / "documents"),
    )
    port = free_port()
    ray_serve.start(http_options={"host": "127.0.0.1", "port": port})
    ray_serve.run(build(args), name=CHAOS_APP, route_prefix="/")
    yield f"http://127.0.0.1:{port}"
    ray_serve.shutdown()
    end_actors(CHAOS_APP)
