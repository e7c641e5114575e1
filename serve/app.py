"""The application. `serve run serve.app:build model=PATH`, `serve deploy serve/config.yaml`, `python -m serve`."""

import logging
import threading
from typing import Any

from fastapi import FastAPI
from ray import serve
from ray.serve import Application
from ray.serve.config import AutoscalingConfig
from ray.serve.handle import DeploymentHandle

from serve.actors import get_or_create
from serve.args import ServeArgs
from serve.board import Board, Report, families_of, keep_posting, rss_bytes
from serve.documents.actor import documents_link
from serve.encoder import encoder_deployment
from serve.gateway import make_app
from serve.generator import Generator
from serve.keys import Keys, read_keys
from serve.limits import OwnerLimit
from serve.newest import documents_folder, model_name, model_path
from serve.segments import renewed_segments, segments_bytes
from serve.services import Services

logger = logging.getLogger(__name__)

_SPARE_CALLS = 64
"""Of a replica: health, counting and encoding besides what the engine runs and queues, so that the engine refuses."""
_OPEN_CONNECTIONS = 1000
"""Of a gateway: progress events and slow uploads hold theirs for long."""


class GeneratorReplica(Generator):
    """A replica of the model, as Serve runs it."""

    def __init__(self, args: ServeArgs, model: str) -> None:
        super().__init__(args, model, *_names())

    def __del__(self) -> None:
        if hasattr(self, "_encoders"):  # its beginning may have failed
            self.close()


@serve.ingress()
class Gateway:
    """A replica of the HTTP side, as Serve runs it."""

    def __init__(
        self, args: ServeArgs, name: str, keys: Keys, generator: DeploymentHandle, encoder: DeploymentHandle | None
    ) -> None:
        app, self._source = _names()
        self._services = Services(
            generator=generator,
            documents=documents_link(app, root=documents_folder(args.documents_dir), limits=args.limits),
            segments=renewed_segments(app, max_bytes=segments_bytes(args), max_age_s=args.segments_age_s),
            args=args,
            keys=keys,
            model_name=name,
            encoder=encoder,
            board=get_or_create(Board, app, "board"),
            limit=OwnerLimit(args.limits.requests_per_owner),
        )
        self._ended = threading.Event()
        posting = (self._services.board, self._report, self._ended)
        threading.Thread(target=keep_posting, args=posting, name="report", daemon=True).start()

    def __serve_build_asgi_app__(self) -> FastAPI:
        return make_app(self._services)

    def _report(self) -> Report:
        return Report(self._source, "gateway", families_of(self._services.metrics.registry), rss_bytes())


def build(args: ServeArgs) -> Application:
    """Return the application that `args` describe.

    Raises `ConfigError` or `CheckpointError`: no model, or keys that cannot be read.
    """
    model, keys = model_path(args.model), read_keys(args.keys_file)
    args = args.model_copy(update={"segments_bytes": segments_bytes(args)})  # once, for nodes come and go
    name = args.name or model_name(model)
    print(f"serving {name} from {model}; {access(args, keys)}", flush=True)
    generator = _generator(args).bind(args, model)
    deployment: Any = serve.deployment(Gateway, name="Gateway")
    gateway = deployment.options(
        num_replicas=args.num_gateways,
        max_ongoing_requests=_OPEN_CONNECTIONS,
        ray_actor_options={"num_cpus": args.gateway_cpus},
        graceful_shutdown_timeout_s=args.drain_s,
        graceful_shutdown_wait_loop_s=0.2,
    )
    return gateway.bind(args, name, keys, generator, encoder_deployment(args.encoder))


def access(args: ServeArgs, keys: Keys) -> str:
    """Return who is answered, in one phrase."""
    if not keys:
        return "no API key is set, so only this machine is answered (set HSOKV_API_KEYS or keys_file for others)"
    hosts = f", under the names {', '.join(args.allowed_hosts)}" if args.allowed_hosts else ""
    return f"{len(keys.entries)} API keys{hosts}"


def _generator(args: ServeArgs) -> serve.Deployment:
    scaling = args.autoscaling
    number = {"num_replicas": args.num_replicas}
    if scaling is not None:
        config = AutoscalingConfig(
            min_replicas=scaling.min_replicas,
            max_replicas=scaling.max_replicas,
            target_ongoing_requests=scaling.target_queue,
        )
        number = {"autoscaling_config": config}
    deployment: Any = serve.deployment(GeneratorReplica, name="Generator")
    return deployment.options(
        **number,
        max_ongoing_requests=args.engine.max_running + args.engine.max_queued + _SPARE_CALLS,
        max_queued_requests=args.engine.max_queued,
        ray_actor_options={"num_cpus": args.replica_cpus, "num_gpus": args.replica_gpus},
        graceful_shutdown_timeout_s=args.drain_s,
        graceful_shutdown_wait_loop_s=0.2,
        health_check_period_s=5,
        health_check_timeout_s=30,
    )


def _names() -> tuple[str, str]:
    """Return the application's name and this replica's."""
    context = serve.get_replica_context()
    return context.app_name, f"{context.deployment}-{context.replica_id.unique_id}"
