"""Drives a search: orders go to workers, outcomes to the journal and then to the swarm, until no order is left.

    states = States(folder / "states")
    drive = Drive(task, config, folder, LocalBackend(task, states), seed=0)
    summary = drive.run()                                 # meanwhile, from another thread: drive.status(), drive.stop()

There is no barrier: whichever worker reports, what follows from it is handed out at once. The order of things is what
makes a search survive SIGKILL at any moment: a worker puts its state on disk and reports; the report is in the journal,
on disk, before the swarm hears it; a state is dropped only after the report that made it useless is in the journal.
"""

import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hsokv_ray.errors import CheckpointError, RunError
from hsokv_ray.swarm.backends.base import Backend, Conclusion, Done, Lost, WorkerLost, most_flops
from hsokv_ray.swarm.config import SwarmConfig
from hsokv_ray.swarm.history import History
from hsokv_ray.swarm.learner import Task
from hsokv_ray.swarm.messages import Best, Order
from hsokv_ray.swarm.run_folder import SearchFolder, describe, read_json, write_json
from hsokv_ray.swarm.states import States
from hsokv_ray.swarm.status import Status, Watcher, agents_of, managers_of
from hsokv_ray.swarm.summary import Summary
from hsokv_ray.swarm.swarm import Swarm

__all__ = ["Backend", "Done", "Drive", "Lost", "Status", "Summary", "Watcher"]

WAIT_S = 1.0
"""After which `stop` is noticed where nothing else happens."""
SNAPSHOT_SHARE = 0.02
"""Of the time that snapshots may take."""
MAX_TESTS = 3
"""Workers in a row that may be lost in the final test."""
TEST = "test.1"
"""The final test, where orders are named."""


class Drive:
    """One search, once.

    Args:
        task: what is learned.
        swarm_config: who searches how.
        folder: of the run.
        backend: where orders are carried out; ended with the search.
        seed: reproduces the decisions.
        watchers: are told what happens, in the thread of `run`.
        snapshot_every_s: seconds between two snapshots; more where they take long.
        resume: go on with the search in `folder`; False: there must be none.
        on_claim: see `SearchFolder.claim`.
        clock: Unix seconds.

    Raises:
        ConfigError: the budget is too small for one step. Nothing was created then.
    """

    def __init__(
        self,
        task: Task,
        swarm_config: SwarmConfig,
        folder: str | Path,
        backend: Backend,
        *,
        seed: int,
        watchers: Sequence[Watcher] = (),
        snapshot_every_s: float = 5,
        resume: bool = False,
        on_claim: Callable[[], None] | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.folder = SearchFolder(folder)
        self.states = States(self.folder.states)
        self._task, self._config, self._backend, self._seed = task, swarm_config, backend, seed
        self._watchers, self._snapshot_every_s, self._resume, self._clock = watchers, snapshot_every_s, resume, clock
        self._on_claim = on_claim
        self._history = History(self.folder, self._make_swarm, watchers, clock=clock)
        self._lock = threading.RLock()
        self._stopping = threading.Event()
        self._running: dict[str, int] = {}
        """Order -> attempt, of those that were in workers when last looked at."""
        self._stored: set[str] = set()
        self._room = 0
        """States that may lie on disk before those not needed are looked for."""
        self._snapshot_at = 0.0

    def run(self) -> Summary:
        """Search to the end, test the best model and return the summary; of a search that has ended, return it again.

        Raises:
            ConfigError: see `SearchFolder.claim`.
            DataError: a worker found no data.
            RunError: the folder is held by another process; all agents of a manager failed again and again; no model
                got a score; `stop` was called. What there is stays, and can be resumed.
        """
        try:
            description = describe(self._task, self._config, self._seed)
            with self.folder.claim(description, resume=self._resume, on_claim=self._on_claim):
                if self.folder.summary.exists():
                    return Summary.from_json(read_json(self.folder.summary))
                self._open()
                self._search()
                return self._conclude()
        finally:
            self._backend.close()
            self._history.close()
            for watcher in self._watchers:
                watcher.close()

    def stop(self) -> None:
        """Make `run` raise `RunError` soon, whatever the workers are doing; from any thread."""
        self._stopping.set()

    def status(self) -> Status:
        """Return how things stand; from any thread."""
        with self._lock:
            history, running = self._history, self._running
            history.pass_time()
            swarm, counts = history.swarm, history.counts
            return Status(
                running=len(running),
                waiting=len(history.orders) - len(running.keys() & history.orders.keys()),
                told=counts.told,
                failed=counts.failed,
                lost=counts.lost,
                flops={str(kind): flops for kind, flops in swarm.ledger.totals.items()},
                flops_budget=swarm.ledger.budget_flops,
                best=swarm.best() if counts.told > counts.failed else None,
                managers=managers_of(swarm),
                agents=agents_of(swarm, running.keys()),
                workers=self._backend.num_workers,
                utilisation=counts.utilisation,
                seconds=counts.seconds,
                message=self._message(),
            )

    def _make_swarm(self) -> Swarm:
        return Swarm(self._task.space, self._config, seed=self._seed, cost=self._task.cost)

    def _message(self) -> str:
        agents, workers = self._config.num_agents, self._backend.num_workers
        return f"{agents} agents share {workers} workers; the others wait their turn" if agents > workers else ""

    def _open(self) -> None:
        """Bring the swarm to where the last driver left it, and hand out what had not been told."""
        self.states.clean()
        with self._lock:
            self._history.open(num_workers=self._backend.num_workers)
            self._stored = self.states.names()
            self._history.tell([self._interrupted(order) for order in self._begun_before()])
            self._save()
        self._submit(list(self._history.orders.values()))

    def _begun_before(self) -> list[Order]:
        """Return the orders that were in the last driver's workers; those that only waited have lost nothing."""
        begun = self._noted()
        return [order for order in self._history.orders.values() if begun.get(order.order_id) == order.attempt]

    def _noted(self) -> dict[str, int]:
        """Return what was in workers when last noted down: order -> attempt."""
        try:
            return read_json(self.folder.running)
        except CheckpointError:  # a first start
            return {}

    def _search(self) -> None:
        while self._history.orders:
            if self._stopping.is_set():
                self._save()
                raise RunError(f"{self.folder.name} was stopped; {self.folder.resume_command} goes on with it")
            self._note_running()
            self._take(self._backend.wait(WAIT_S))
            if self._clock() >= self._snapshot_at:
                self._save()

    def _take(self, reports: Sequence[Done | Lost]) -> None:
        orders = self._history.orders
        fresh = [each for each in reports if orders.get(each.order.order_id) == each.order]
        if not fresh:
            return
        # a lost worker may have stored a state too, or half of one
        self._stored |= {each.order.order_id for each in fresh if isinstance(each, Lost) or not each.outcome.failure}
        for each in fresh:
            if isinstance(each, Lost):
                self.states.clean(each.order.order_id)
        with self._lock:
            new = self._history.tell([self._record(each) for each in fresh])
        self._submit(new)
        if len(self._stored) > self._room:
            self._drop()

    def _submit(self, orders: Sequence[Order]) -> None:
        for order in orders:
            self._backend.submit(order)

    def _drop(self) -> None:
        """Remove the states nobody needs; rarely enough that looking for them costs no more than making them."""
        kept = self._history.swarm.needed() | self._history.orders.keys()
        gone = self._stored - kept
        self._backend.forget(gone)
        self.states.drop(gone)
        self._stored -= gone
        self._room = len(kept) + len(kept) // 4 + 4

    def _note_running(self) -> None:
        """Write down which orders are in workers, for whoever resumes; it need not survive a power cut."""
        orders = self._history.orders
        running = {order_id: orders[order_id].attempt for order_id in self._backend.running() if order_id in orders}
        if running != self._running:
            write_json(self.folder.running, running, flush=False)
            self._running = running

    def _save(self) -> None:
        begun = time.perf_counter()
        with self._lock:
            self._history.save()
        pause_s = max(self._snapshot_every_s, (time.perf_counter() - begun) / SNAPSHOT_SHARE)
        self._snapshot_at = self._clock() + pause_s

    def _record(self, report: Done | Lost) -> dict[str, Any]:
        common = {
            "time": self._clock(),
            "begun": report.begun,
            "worker": report.worker,
            "order": report.order.to_json(),
        }
        if isinstance(report, Done):
            return {"what": "tell", **common, "outcome": report.outcome.to_json()}
        return {"what": "lost", **common, "flops": report.flops, "why": report.why}

    def _interrupted(self, order: Order) -> dict[str, Any]:
        now = self._clock()
        why = "whoever drove the search ended, and its workers with it"
        return self._record(Lost(order, most_flops(self._task, order), why, begun=now, worker=""))

    def _conclude(self) -> Summary:
        """Test the best model, drop all other states, and write the summary."""
        self._running = {}
        self._save()
        best = self._history.swarm.best()
        conclusion, attempts = self._test(best)
        with self._lock:
            for attempt in range(1, attempts + 1):  # what a lost one had spent died with it: the most it can have been
                self._history.swarm.ledger.charge(TEST, attempt, conclusion.flops, "evaluation")
        summary = self._summary(best, conclusion)
        write_json(self.folder.summary, summary.to_json(), indent=1)
        self.states.drop(self._stored - {best.order_id})
        return summary

    def _test(self, best: Best) -> tuple[Conclusion, int]:
        """Test the best model; return what came of it, and how often that was begun, by earlier drivers too."""
        begun = self._noted().get(TEST, 0)
        for attempt in range(begun + 1, begun + MAX_TESTS + 1):
            write_json(self.folder.running, {TEST: attempt}, flush=False)
            try:
                return self._backend.conclude(best, seed=self._seed, folder=str(self.folder.best)), attempt
            except WorkerLost:
                continue
        raise RunError(
            f"{self.folder.name}: {MAX_TESTS} workers in a row were lost while they tested the best model, perhaps for "
            f"want of memory; {self.folder.resume_command} tests it again"
        )

    def _summary(self, best: Best, conclusion: Conclusion) -> Summary:
        history = self._history
        counts, ledger = history.counts, history.swarm.ledger
        return Summary(
            name=self.folder.name,
            task=self._task.name,
            best=best,
            flops={str(kind): flops for kind, flops in ledger.totals.items()},
            flops_budget=ledger.budget_flops,
            told=counts.told,
            failed=counts.failed,
            lost=counts.lost,
            failures=counts.failures,
            seconds=counts.seconds,
            workers=self._backend.num_workers,
            utilisation=counts.utilisation,
            test=conclusion.test,
            test_failure=conclusion.failure,
            saved=str(self.folder.best) if conclusion.saved else None,
        )
