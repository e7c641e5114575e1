"""What routes work with, found at `request.app.state.services`."""

from dataclasses import dataclass, field
from typing import Any

from fastapi import Request

from serve.args import ServeArgs
from serve.keys import Keys
from serve.limits import OwnerLimit
from serve.metrics import GatewayMetrics


@dataclass(frozen=True)
class Services:
    """The parts of the application that a gateway talks to."""

    generator: Any
    """`DeploymentHandle` of the model's replicas."""
    documents: Any
    """`ActorLink` to the actor `Documents`."""
    segments: Any
    """`ActorLink` to the actor `SegmentRegistry`."""
    args: ServeArgs
    keys: Keys = Keys()
    model_name: str = "model"
    """What clients call the model."""
    encoder: Any = None
    """`DeploymentHandle` of the sentence encoder; None where none is configured."""
    board: Any = None
    """Handle of the actor that gathers the replicas' metrics."""
    limit: OwnerLimit = field(default_factory=lambda: OwnerLimit(32))
    """Generations of each owner at once."""
    metrics: GatewayMetrics = field(default_factory=GatewayMetrics)


def services_of(request: Request) -> Services:
    """Return the services of the application that got `request`."""
    return request.app.state.services


async def current_services(request: Request) -> Services:
    """Return the same, as a dependency: one that is no coroutine would run in a thread."""
    return request.app.state.services
