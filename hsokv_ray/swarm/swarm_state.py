"""A swarm's state as JSON, and back."""

from collections import deque
from typing import TYPE_CHECKING, Any

from hsokv_ray.errors import CheckpointError
from hsokv_ray.swarm.agent import Agent
from hsokv_ray.swarm.messages import Best

if TYPE_CHECKING:
    from hsokv_ray.swarm.swarm import Swarm

VERSION = 1


def dump(swarm: "Swarm") -> dict[str, Any]:
    """Return what `fill` reads."""
    return {
        **_identity(swarm),
        "agents": [agent.to_json() for agent in swarm._agents],
        "managers": [manager.to_json() for manager in swarm._managers],
        "evidence": swarm._evidence.to_json(),
        "ledger": swarm.ledger.to_json(),
        "budget": swarm._budget.to_json(),
        "allocation": swarm._allocation.to_json(),
        "events": swarm._events.to_json(),
        "best": swarm._best.to_json() if swarm._best else None,
        "num_begun": swarm._num_begun,
        "waiting": list(swarm._waiting),
        "idle": [list(each) for each in swarm._idle],
    }


def fill(swarm: "Swarm", state: dict[str, Any]) -> None:
    """Make `swarm` what it was when `dump` returned `state`.

    Raises:
        CheckpointError: it is of another configuration, space, seed or version, or damaged.
    """
    for name, value in _identity(swarm).items():
        if _as_json(state.get(name)) != _as_json(value):
            raise CheckpointError(
                f"swarm state: its {name} is {state.get(name)!r}, here it is {value!r}; they must be equal"
            )
    try:
        _fill(swarm, state)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise CheckpointError(f"swarm state: damaged ({type(error).__name__}: {error}); use another one") from None


def _identity(swarm: "Swarm") -> dict[str, Any]:
    config, space = swarm.config.model_dump(mode="json"), swarm.space.to_json()
    return {"version": VERSION, "config": config, "space": space, "seed": swarm.seed}


def _fill(swarm: "Swarm", state: dict[str, Any]) -> None:
    swarm._agents = [Agent.from_json(values) for values in state["agents"]]
    for manager, values in zip(swarm._managers, state["managers"], strict=True):
        alive = [agent for agent in swarm._agents if agent.manager == manager.index and not agent.has_ended]
        manager.agents = {agent.index: agent for agent in alive}
        manager.load(values)
    swarm._evidence.load(state["evidence"])
    swarm.ledger.load(state["ledger"])
    swarm._budget.load(state["budget"])
    swarm._allocation.load(state["allocation"])
    swarm._events.load(state["events"])
    swarm._best = Best.from_json(state["best"]) if state["best"] else None
    swarm._num_begun = state["num_begun"]
    swarm._waiting = deque(state["waiting"])
    swarm._idle = [deque(each) for each in state["idle"]]
    swarm._to_hand_out = deque(agent.index for agent in swarm._agents if agent.order and agent.is_started)
    swarm._num_running = len(swarm._to_hand_out)


def _as_json(value: Any) -> Any:
    """Return `value` with tuples as the lists that JSON makes of them."""
    if isinstance(value, dict):
        return {key: _as_json(item) for key, item in value.items()}
    return [_as_json(item) for item in value] if isinstance(value, list | tuple) else value
