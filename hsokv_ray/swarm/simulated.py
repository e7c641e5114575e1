"""A task that computes next to nothing: for tests, and to measure what a search costs beside its training.

Real in all that a search sees: models that train on from states, scores that depend on strategy and steps only, FLOPs,
and faults. The score of strategy u (in the unit cube) after n steps is 1 - exp(-(sum of q over the steps)), where
q = 1 / (1 + |u - best|^2 D) of the strategy that did the step.
"""

import json
import math
import os
import signal
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from hsokv_ray.errors import CheckpointError, DataError, RunError
from hsokv_ray.swarm.learner import State
from hsokv_ray.swarm.space import Choice, Float, LogFloat, Space, Strategy
from hsokv_ray.swarm.swarm import seed_of

Fault = Literal["nan", "raise", "kill", "kill_test"]
Faults = tuple[tuple[int, Fault], ...]


@dataclass(frozen=True)
class SimulatedTask:
    """A search space with a best point.

    Args:
        step_s: seconds that a step sleeps.
        step_flops: what a step is said to cost.
        state_size: float32 numbers of a state.
        needed_steps: steps of the best strategy until its score is 1 - 1/e.
        optimum_seed: where the best strategy lies.
        faults: what goes wrong in orders of these seeds, see `faults_of`. nan: the score is none. raise: the training
            raises. kill: the process ends at the order's last step, by SIGKILL. kill_test: so does it in the final
            test, whose seed is the search's own.
        faults_once: folder that remembers which fault has happened, so that each does once; None: each time.
        data: folder that has to exist; None: no data is needed.
    """

    step_s: float = 0.0
    step_flops: int = 1000
    state_size: int = 4
    needed_steps: int = 20
    optimum_seed: int = 0
    faults: Faults = ()
    faults_once: str | None = None
    data: str | None = None

    @property
    def name(self) -> str:
        return "simulated"

    @property
    def space(self) -> Space:
        return Space({"rate": LogFloat(1e-5, 1e-1), "decay": Float(0.0, 1.0), "kind": Choice(("a", "b", "c"))})

    def learner(self) -> "SimulatedLearner":
        if self.data is not None and not Path(self.data).is_dir():
            raise DataError(f"simulated: {self.data} is no folder; make it")
        return SimulatedLearner(self)

    def cost(self, strategy: Strategy) -> int:
        del strategy
        return self.step_flops


def faults_of(
    fault: Fault, agents: Iterable[int], *, seed: int, orders: Iterable[int]
) -> tuple[tuple[int, Fault], ...]:
    """Return `SimulatedTask.faults` that strike given agents of a swarm.

    Args:
        fault: what goes wrong.
        agents: in whose orders.
        seed: the swarm's.
        orders: in which of each agent's orders; the first is 1.
    """
    numbers = list(orders)
    return tuple((seed_of(seed, f"a{agent}.{number}"), fault) for agent in agents for number in numbers)


class SimulatedLearner:
    """Adds up how good its strategies were.

    Args:
        task: the numbers.
    """

    def __init__(self, task: SimulatedTask) -> None:
        self.flops = 0
        self._task, self._faults = task, dict(task.faults)
        self._optimum = np.random.default_rng(task.optimum_seed).random(len(task.space))
        self._quality, self._fault = 0.0, None
        self._seed = 0
        self._step, self._weights = 0, torch.zeros(task.state_size)

    def configure(self, strategy: Strategy, *, seed: int) -> None:
        distance = float(((self._task.space.to_unit(strategy) - self._optimum) ** 2).sum())
        self._quality = 1 / (1 + distance * len(self._optimum))
        self._seed, self._fault = seed, self._faults.get(seed)

    def reset(self) -> None:
        self._step, self._weights = 0, torch.zeros(self._task.state_size)

    def load(self, state: State) -> None:
        if state.tensors["weights"].shape != self._weights.shape:
            raise CheckpointError(
                f"simulated: got {len(state.tensors['weights'])} weights; {len(self._weights)} are needed"
            )
        self._step, self._weights = state.values["step"], state.tensors["weights"].clone()

    def train(self, num_steps: int) -> None:
        for i in range(num_steps):
            if self._task.step_s:
                time.sleep(self._task.step_s)
            if i + 1 == num_steps and self._fault in ("raise", "kill") and self._strikes():
                self._fail()
            self._weights += self._quality / self._task.needed_steps
            self._step += 1
            self.flops += self._task.step_flops

    def evaluate(self) -> dict[str, float]:
        if self._fault == "nan" and self._strikes():
            return {"score": math.nan}
        return {"score": 1 - math.exp(-float(self._weights[0])), "step": float(self._step)}

    def state(self) -> State:
        return State({"weights": self._weights.clone()}, {"step": self._step})

    def test(self) -> dict[str, Any]:
        """Return the score; costs as much as a step."""
        self.flops += self._task.step_flops
        if self._fault == "kill_test" and self._strikes():
            os.kill(os.getpid(), signal.SIGKILL)
        return {"score": 1 - math.exp(-float(self._weights[0]))}

    def save(self, folder: str) -> None:
        """Write the model to `folder`."""
        text = json.dumps({"step": self._step, "weights": self._weights.tolist()})
        (Path(folder) / "model.json").write_text(text, encoding="utf-8")

    def _strikes(self) -> bool:
        """Whether the fault happens now."""
        if self._task.faults_once is None:
            return True
        try:
            (Path(self._task.faults_once) / f"{self._fault}-{self._seed}").touch(exist_ok=False)
        except FileExistsError:
            return False
        return True

    def _fail(self) -> None:
        if self._fault == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        raise RunError("simulated: the training failed, as it was told to")
