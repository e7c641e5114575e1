"""Workers as processes of this machine, begun afresh (spawn); a killed one is noticed and replaced.

Orders and outcomes go through pipes as JSON; states lie on disk and go by name.
"""

import contextlib
import dataclasses
import json
import multiprocessing
import multiprocessing.connection
import os
import signal
import socket
import threading
import time
from collections.abc import Collection
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from typing import Any

import torch

from hsokv_ray.errors import RunError
from hsokv_ray.swarm.backends.base import Conclusion, Done, Lost, WorkerLost, most_flops, refusal
from hsokv_ray.swarm.backends.queue import OrderQueue
from hsokv_ray.swarm.backends.worker import Worker
from hsokv_ray.swarm.execution import one_line
from hsokv_ray.swarm.learner import Task
from hsokv_ray.swarm.messages import Best, Order, Outcome
from hsokv_ray.swarm.states import States

MAX_FALSE_STARTS = 3
"""Workers in a row that may end before they are ready."""
_PATIENCE_S = 10
"""For a worker to end by itself before it is killed."""


@dataclass
class _Process:
    process: SpawnProcess
    pipe: Connection
    name: str
    is_ready: bool = False
    order: Order | None = None
    begun: float = 0.0


class ProcessBackend:
    """Workers that share nothing but the folder of states.

    Args:
        task: what is learned; pickled by the standard library on its way to the processes.
        states: where results go.
        num_workers: processes.
        threads: of torch, each.
    """

    def __init__(self, task: Task, states: States, num_workers: int, *, threads: int = 1) -> None:
        self.num_workers = num_workers
        self._task, self._states, self._threads = task, states, threads
        self._processes: dict[str, _Process] = {}
        self._queue = OrderQueue()
        self._false_starts = 0

    def submit(self, order: Order) -> None:
        while len(self._processes) < self.num_workers:
            self._start()
        self._queue.add(order)
        self._assign()

    def running(self) -> dict[str, float]:
        return {each.order.order_id: each.begun for each in self._processes.values() if each.order}

    def wait(self, timeout_s: float) -> list[Done | Lost]:
        deadline = time.monotonic() + timeout_s
        while True:
            waited_for = {each.pipe: each for each in self._processes.values()}
            ready: Any = multiprocessing.connection.wait(waited_for, max(deadline - time.monotonic(), 0))
            reports = [report for pipe in ready if (report := self._read(waited_for[pipe]))]
            if self._assign() or reports or not ready:
                return reports

    def forget(self, order_ids: Collection[str]) -> None:
        del order_ids  # nothing is kept but on disk

    def conclude(self, best: Best, *, seed: int, folder: str) -> Conclusion:
        while not (free := [each for each in self._processes.values() if each.is_ready and not each.order]):
            if not self._processes:
                self._start()
            self.wait(1.0)
        pipe = free[0].pipe
        try:
            _send(pipe, {"conclude": best.to_json(), "seed": seed, "folder": folder})
            return Conclusion(**_receive(pipe)["conclusion"])
        except (EOFError, OSError):
            self._replace(free[0])
            raise WorkerLost from None

    def close(self) -> None:
        for each in self._processes.values():
            each.pipe.close()
            each.process.terminate()
        for each in self._processes.values():
            each.process.join(_PATIENCE_S)
            each.process.kill()
            each.process.join()
            each.process.close()
        self._processes.clear()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        here, there = context.Pipe()
        arguments = (self._task, str(self._states.folder), self._threads, there)
        process = context.Process(target=_work, args=arguments, daemon=True)
        process.start()
        there.close()
        name = f"{socket.gethostname()}:{process.pid}"
        self._processes[name] = _Process(process, here, name)

    def _assign(self) -> int:
        """Give orders to free workers; return how many."""
        num_assigned = 0
        while pair := self._queue.next():
            each = self._processes[pair[0]]
            each.order, each.begun = pair[1], time.time()
            num_assigned += 1
            # one that has just ended is found by `wait`, which reports the order as lost
            with contextlib.suppress(OSError):
                _send(each.pipe, {"order": pair[1].to_json()})
        return num_assigned

    def _read(self, each: _Process) -> Done | Lost | None:
        try:
            message = _receive(each.pipe)
        except (EOFError, OSError):
            return self._replace(each)
        if "refused" in message:
            raise refusal(message)
        order, each.order, each.is_ready = each.order, None, True
        self._false_starts = 0
        self._queue.free(each.name, message["holds"])
        if order is None:
            return None
        return Done(order, Outcome.from_json(message["outcome"]), each.begun, each.name)

    def _replace(self, each: _Process) -> Lost | None:
        """Start another worker in place of one that ended."""
        each.process.join()
        why = f"its process {_ending(each.process.exitcode)}"
        each.pipe.close()
        each.process.close()
        del self._processes[each.name]
        self._queue.remove(each.name)
        self._false_starts += not each.is_ready
        if self._false_starts >= MAX_FALSE_STARTS:
            raise RunError(f"swarm: {self._false_starts} workers in a row ended while starting; of the last, {why}")
        self._start()
        if each.order is None:
            return None
        return Lost(each.order, most_flops(self._task, each.order), why, each.begun, each.name)


def _work(task: Task, folder: str, threads: int, pipe: Connection) -> None:
    """Be a worker until the pipe is closed or whoever started it has ended."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the one who started it, who then ends this
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    try:
        worker = Worker(task, States(folder))
        _send(pipe, {"holds": None})
        while True:
            _send(pipe, _answer(worker, _receive(pipe)))
    except (EOFError, BrokenPipeError):
        return
    except Exception as error:
        _send(pipe, {"refused": one_line(error), "kind": type(error).__name__})


def _answer(worker: Worker, message: dict[str, Any]) -> dict[str, Any]:
    if "conclude" in message:
        best = Best.from_json(message["conclude"])
        conclusion = worker.conclude(best, seed=message["seed"], folder=message["folder"])
        return {"conclusion": dataclasses.asdict(conclusion)}
    outcome, _ = worker.run(Order.from_json(message["order"]))
    return {"outcome": outcome.to_json(), "holds": worker.holds}


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _send(pipe: Connection, message: dict[str, Any]) -> None:
    pipe.send_bytes(json.dumps(message, allow_nan=False).encode())


def _receive(pipe: Connection) -> dict[str, Any]:
    return json.loads(pipe.recv_bytes())


def _ending(code: int | None) -> str:
    return f"was killed by signal {-code}" if code is not None and code < 0 else f"ended with status {code}"
