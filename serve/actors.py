"""The actors that outlive replicas: documents, segments, board. Whoever needs one first creates it."""

from typing import Any

from hsokv_ray.runtime import NAMESPACE

KINDS = ("documents", "segments", "board")


def actor_name(app: str, kind: str) -> str:
    """Return the name of an actor of the application `app`."""
    return f"serve:{app}:{kind}"


def get_or_create(cls: type[Any], app: str, kind: str, **arguments: Any) -> Any:
    """Return the handle of an actor of class `cls`, which is created where it is not there.

    Args:
        arguments: of its constructor; paths and numbers only, because a restart gets them again.
    """
    import ray

    return (
        ray.remote(cls)
        .options(
            name=actor_name(app, kind),
            namespace=NAMESPACE,
            get_if_exists=True,
            lifetime="detached",
            num_cpus=0,
            max_restarts=-1,
            max_concurrency=1,
        )
        .remote(**arguments)
    )


def end_actors(app: str) -> list[str]:
    """End the actors of the application `app`; return the names of those that were there."""
    import ray

    ended = []
    for kind in KINDS:
        try:
            handle = ray.get_actor(actor_name(app, kind), namespace=NAMESPACE)
        except ValueError:
            continue
        ray.kill(handle, no_restart=True)
        ended.append(actor_name(app, kind))
    return ended
