"""A swarm and all that was ever told to it, on disk: first the journal, then the swarm, then who watches.

    history = History(folder, make_swarm)
    history.open(num_workers=2)                           # newest snapshot, and the journal's lines after it
    orders = history.tell([record])                       # one line of journal.jsonl each
    history.save()                                        # a snapshot: makes the next `open` quick, nothing else

A swarm depends on nothing but what it is told and in which order. So the journal alone restores it, and events that a
killed driver had not written yet come out again with the same numbers.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any

from hsokv_ray.errors import CheckpointError
from hsokv_ray.swarm.counts import Counts
from hsokv_ray.swarm.journal import Journal
from hsokv_ray.swarm.messages import Order, Outcome
from hsokv_ray.swarm.run_folder import SearchFolder, read_json, write_json
from hsokv_ray.swarm.status import Watcher
from hsokv_ray.swarm.swarm import Swarm


class History:
    """The only one who tells the swarm anything.

    Args:
        folder: claimed by this process.
        make_swarm: makes the swarm of this search as it is before anything is told.
        watchers: are told of what is new, not of what is restored.
        clock: Unix seconds.
    """

    def __init__(
        self,
        folder: SearchFolder,
        make_swarm: Callable[[], Swarm],
        watchers: Sequence[Watcher] = (),
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._folder, self._make_swarm, self._watchers, self._clock = folder, make_swarm, watchers, clock
        self.swarm = make_swarm()
        self.counts = Counts()
        self.orders: dict[str, Order] = {}
        """Handed out and not told, in the order in which they were handed out."""
        self._journal, self._events = Journal(folder.journal), Journal(folder.events)
        self._next_event = 0
        self._num_workers = 0
        self._since = clock()
        self._is_open = False

    def open(self, *, num_workers: int) -> None:
        """Read what is on disk, bring the swarm to where that ends, and write the events that are missing.

        Raises:
            CheckpointError: the journal is damaged other than at its end.
            RunError: as `Swarm.tell`, where the last driver ended with that; or the disk refuses.
        """
        self._events.open()
        records = self._journal.open()
        begun = self._restore(len(records))
        try:
            for record in records[begun:]:
                self._replay(record)
        finally:
            self._cut_events()
        if records[begun:]:
            self.counts.pass_time(records[-1]["time"] - self._since, self._num_workers)
        self._since, self._num_workers, self._is_open = self._clock(), num_workers, True

    def tell(self, records: Sequence[dict[str, Any]]) -> list[Order]:
        """Write `records` to the journal, tell the swarm, then the watchers; return the orders that follow.

        Args:
            records: of orders among `orders`, in their present attempt.

        Raises:
            RunError: as `Swarm.tell`; the journal has all of `records` then.
        """
        self._journal.append(records)
        new: list[Order] = []
        for record in records:
            try:
                new += self._apply(record)
            finally:
                for watcher in self._watchers:
                    watcher.told(record)
                self._log_events(record["time"])
        return [order for order in new if self.orders.get(order.order_id) is order]

    def save(self) -> None:
        """Write a snapshot."""
        self.pass_time()
        self._events.flush()
        values = {
            "journal_lines": self._journal.num_lines,
            "time": self._clock(),
            "workers": self._num_workers,
            "counts": self.counts.to_json(),
            "orders": list(self.orders),
            "state": self.swarm.state_dict(),
        }
        write_json(self._folder.snapshot, values)

    def pass_time(self) -> None:
        """Count the time since the last call; none before `open` and after `close`."""
        if not self._is_open:
            return
        now = self._clock()
        self.counts.pass_time(now - self._since, self._num_workers)
        self._since = now

    def close(self) -> None:
        """Let go of the files; time stands still."""
        self.pass_time()
        self._is_open = False
        self._journal.close()
        self._events.close()

    def _restore(self, num_records: int) -> int:
        """Take over the snapshot where it fits the files; return how many records it has in it."""
        snapshot = self._read_snapshot()
        if snapshot is None or snapshot["journal_lines"] > num_records or not self._take_over(snapshot):
            self.swarm, self.counts, self.orders = self._make_swarm(), Counts(), {}
            self._hand_out(self.swarm.ask())
            self._log_events(self._since)
            return 0
        self._log_events(snapshot["time"])
        return snapshot["journal_lines"]

    def _read_snapshot(self) -> dict[str, Any] | None:
        """Return the snapshot; None where it cannot be read, which costs time only: the journal has it all."""
        try:
            snapshot = read_json(self._folder.snapshot)
        except CheckpointError:
            return None
        names = {"journal_lines", "time", "workers", "counts", "orders", "state"}
        return snapshot if isinstance(snapshot, dict) and names <= snapshot.keys() else None

    def _take_over(self, snapshot: dict[str, Any]) -> bool:
        """Bring the swarm to a snapshot; return whether it is whole, and joins up with the events on disk."""
        try:
            self.swarm.load_state_dict(snapshot["state"])
        except CheckpointError:
            return False
        kept = self.swarm.events()
        orders = {order.order_id: order for order in self.swarm.orders}
        if (kept and kept[0].number > self._events.num_lines) or orders.keys() != set(snapshot["orders"]):
            return False
        self.swarm.ask()  # gives the same orders, in another order
        self.orders = {order_id: orders[order_id] for order_id in snapshot["orders"]}
        self.counts = Counts(**snapshot["counts"])
        self._since, self._num_workers = snapshot["time"], snapshot["workers"]
        return True

    def _apply(self, record: dict[str, Any]) -> list[Order]:
        """Tell the swarm one thing; return the orders that follow."""
        order_id = record["order"]["order_id"]
        self.counts.count(record)
        if record["what"] == "lost":
            attempt, interrupted = record["order"]["attempt"], not record["worker"]
            again = self.swarm.lost(order_id, record["flops"], attempt=attempt, interrupted=interrupted)
            if again is None or again.order_id != order_id:
                self.orders.pop(order_id, None)
            return self._hand_out([*([again] if again else []), *self.swarm.ask()])
        self.orders.pop(order_id, None)
        return self._hand_out(self.swarm.tell(Outcome.from_json(record["outcome"])))

    def _replay(self, record: dict[str, Any]) -> None:
        try:
            self._apply(record)
        finally:
            self._log_events(record["time"])

    def _hand_out(self, orders: list[Order]) -> list[Order]:
        self.orders.update((order.order_id, order) for order in orders)  # one that is repeated keeps its place
        return orders

    def _log_events(self, time_s: float) -> None:
        """Write the events since the last call, and tell the watchers; passes over those that are on disk already."""
        events = self.swarm.events(self._next_event)
        self._next_event = events[-1].number + 1 if events else self._next_event
        new = [event for event in events if event.number >= self._events.num_lines]
        self._events.append(({**event.to_json(), "time": time_s} for event in new), flush=False)
        for event in new:
            for watcher in self._watchers:
                watcher.happened(event)

    def _cut_events(self) -> None:
        """Remove events beyond what the journal explains: they will happen again, perhaps otherwise."""
        if self._events.num_lines > self._next_event:
            self._events.close()
            self._events.open(cut_after=self._next_event)
