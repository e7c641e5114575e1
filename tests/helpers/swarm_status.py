"""The status of a synthetic search, made of the same parts as that of a real one."""

from typing import Any

from synthetic_search import BEGUN_S, SyntheticSearch

from hsokv_ray.errors import RunError
from hsokv_ray.swarm.status import Status, agents_of, managers_of


def status_of(search: SyntheticSearch, **changes: Any) -> Status:
    """Return how things stand, with `changes`."""
    swarm, running = search.swarm, {order.order_id for *_, order in search.running}
    told = [line for line in search.lines if line["what"] == "tell"]
    try:
        best = swarm.best()
    except RunError:
        best = None
    values = {
        "running": len(running),
        "waiting": len(search.queue),
        "told": len(told),
        "failed": sum(bool(line["outcome"]["failure"]) for line in told),
        "lost": len(search.lines) - len(told),
        "flops": {str(kind): flops for kind, flops in swarm.ledger.totals.items()},
        "flops_budget": swarm.ledger.budget_flops,
        "best": best,
        "managers": managers_of(swarm),
        "agents": agents_of(swarm, running),
        "workers": search.num_workers,
        "utilisation": 0.93,
        "seconds": search.clock_s - BEGUN_S,
    }
    return Status(**{**values, **changes})
