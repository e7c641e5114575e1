"""Rollouts in processes of this machine, with a pipe to each; what goes through it is JSON."""

import json
import multiprocessing
import traceback
from collections.abc import Mapping
from dataclasses import asdict
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

import numpy as np

from hsokv_ray.errors import RunError
from hsokv_ray.swarm.rollouts.config import RolloutConfig
from hsokv_ray.swarm.rollouts.messages import Done, Lost, Order, Place, Result
from hsokv_ray.swarm.rollouts.roster import Roster
from hsokv_ray.swarm.rollouts.worker import Worker, here

_SPAWN = multiprocessing.get_context("spawn")
_END_S = 10
"""Seconds for a process to end by itself."""


class ProcessBackend:
    """Spawned processes; one that dies is started again. A script that uses it needs a `__main__` guard.

    Args:
        config: for the workers.
        seed: for the workers.
        num_workers: processes.

    Raises:
        RunError: one does not start within `config.worker_timeout_s`.
    """

    def __init__(self, config: RolloutConfig, seed: int, num_workers: int) -> None:
        self.num_workers = num_workers
        self._config, self._seed = config, seed
        self._roster = Roster(num_workers)
        self._parameters: dict[int, np.ndarray] = {}
        self._workers = [_Process(config, seed) for _ in range(num_workers)]
        try:
            self.places = tuple(worker.place(config.worker_timeout_s) for worker in self._workers)
        except BaseException:
            self.close()
            raise

    def submit(self, order: Order, parameters_P: np.ndarray) -> None:
        """Send an order to the process that has the fewest; parameters only where it does not have that version."""
        self._parameters[order.number] = parameters_P
        self._assign(order)

    def wait(self, timeout_s: float) -> list[Done | Lost]:
        """Return results and losses."""
        listening = {worker.pipe: i for i, worker in enumerate(self._workers) if not worker.pipe.closed}
        happened: list[Done | Lost] = []
        for pipe in wait(list(listening), timeout_s):
            happened += self._hear(listening[pipe])  # pyright: ignore[reportArgumentType]
        return happened

    def kill(self, worker: int) -> None:
        """Send SIGKILL."""
        self._workers[worker].process.kill()

    def close(self) -> None:
        """Close the pipes, which ends the processes; kill those that have not ended in time."""
        for worker in self._workers:
            worker.pipe.close()
        for worker in self._workers:
            worker.end()

    def _assign(self, order: Order) -> None:
        worker = self._roster.assign(order)
        if worker is not None:
            self._workers[worker].send(order, self._parameters[order.number])

    def _hear(self, worker: int) -> list[Done | Lost]:
        process = self._workers[worker]
        try:
            message = process.receive()
        except (EOFError, OSError):
            return self._lose(worker)
        if "place" in message:  # started again
            for order in self._roster.lives(worker):
                self._assign(order)
            return []
        if "error" in message:
            raise RunError(f"rollouts: worker {worker} failed: {message['error']}")
        result = Result.from_json(message["result"])
        self._roster.done(worker, result.number)
        self._parameters.pop(result.number, None)
        return [Done(result, worker)]

    def _lose(self, worker: int) -> list[Done | Lost]:
        process = self._workers[worker]
        process.pipe.close()
        process.end()
        lost = self._roster.died(worker)
        if self._roster.may_restart(worker):
            self._workers[worker] = _Process(self._config, self._seed)
        return [Lost(lost, worker, f"its process ended with exit code {process.process.exitcode}")]


class _Process:
    """One process, the driver's end of its pipe, and the version of the parameters that was sent last."""

    def __init__(self, config: RolloutConfig, seed: int) -> None:
        self.pipe, other = _SPAWN.Pipe()
        arguments = (other, config.model_dump_json(), seed)
        self.process: BaseProcess = _SPAWN.Process(target=_serve, args=arguments, name="rollout", daemon=True)
        self.process.start()
        other.close()  # else the pipe stays open when the process dies, and its death is not seen
        self._version: int | None = None

    def place(self, timeout_s: float) -> Place:
        try:
            introduced = self.receive() if self.pipe.poll(timeout_s) else None
        except EOFError:  # it died before it could introduce itself
            introduced = None
        if introduced is not None:
            return Place(**introduced["place"])
        raise RunError(
            f"rollouts: a worker process did not start within {timeout_s:g} s (exit code {self.process.exitcode}); a "
            "script that starts processes needs `if __name__ == '__main__':`"
        )

    def send(self, order: Order, parameters_P: np.ndarray) -> None:
        message: dict[str, Any] = {"order": order.to_json()}
        if order.version != self._version:
            message["parameters"], self._version = parameters_P.tolist(), order.version
        try:
            self.pipe.send_bytes(json.dumps(message).encode())
        except OSError:
            return  # it is dead: the next `wait` reads the end of the pipe and reports this order as lost

    def receive(self) -> Mapping[str, Any]:
        return json.loads(self.pipe.recv_bytes())

    def end(self) -> None:
        self.process.join(_END_S)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()


def _serve(pipe: Connection, config: str, seed: int) -> None:
    """Carry out what comes through the pipe until it closes."""
    worker = Worker(RolloutConfig.model_validate_json(config), seed)
    parameters_P = np.zeros(0)
    try:
        pipe.send_bytes(json.dumps({"place": asdict(here())}).encode())
        while True:
            message = json.loads(pipe.recv_bytes())
            if "parameters" in message:
                parameters_P = np.array(message["parameters"])
            answer = _answer(worker, Order.from_json(message["order"]), parameters_P)
            pipe.send_bytes(json.dumps(answer).encode())
    except (EOFError, OSError):
        return  # the driver has closed its end, or is gone


def _answer(worker: Worker, order: Order, parameters_P: np.ndarray) -> dict[str, Any]:
    try:
        return {"result": worker.run(order, parameters_P).to_json()}
    except Exception as error:
        return {"error": " ".join(traceback.format_exception_only(error)).strip()}
