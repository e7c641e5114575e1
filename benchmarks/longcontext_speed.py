"""The measurements of `longcontext.py` on one model: questions, written tokens, reading, memory."""

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import psutil
import torch
from longcontext_peers import GROWING, INDEXES, Shape
from longcontext_worker import READ_CHUNK, Worker

FULL = "full"
QUESTION_TOKENS = 32
MEMORY_SHARE = 0.6
"""Of the memory that is free: what the contexts of one group of systems may take."""

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How much is measured."""

    lengths: Sequence[int]
    """Tokens of context. The first is the row `within the window`: question and answer fit beside it."""
    longest: int | None
    """One more length, for ours alone and for the model with few key-value heads."""
    turns: int = 6
    steps: int = 8
    """Tokens written in a turn; one more warms up."""
    read_turn: int = 4096
    full_reads: int = 2
    """Timed pieces of full attention per depth."""
    long_read: int = 8192
    """Tokens read behind the longest; PQ encodes in strides of half of it."""


class Cell:
    """One system at one length."""

    def __init__(self, worker: Worker, length: int) -> None:
        self.worker, self.length = worker, length
        self.asked_s: list[float] = []
        self.written_s: list[float] = []
        self.kv_bytes = self.index_bytes = 0

    def take_turn(self, steps: int, *, fill: bool) -> None:
        """Ask once and write `steps` tokens."""
        if fill:
            self.worker.call("fill", self.length)
            self.kv_bytes, self.index_bytes = self.worker.call("held_bytes")
        self.asked_s.append(self.worker.call("ask", QUESTION_TOKENS))
        self.written_s += self.worker.call("write", steps)


class ModelRun:
    """All measurements of one shape."""

    def __init__(self, shape: Shape, plan: Plan, systems: Sequence[str], device: str, bandwidth: float) -> None:
        self.shape, self.plan, self.systems, self.bandwidth = shape, plan, systems, bandwidth
        self.workers = {name: Worker(name, shape, device=device) for name in systems}
        self.free_bytes = free_bytes(device) * MEMORY_SHARE
        self._far_s: dict[str, float] = {}
        """Seconds per token of reading at the longest length."""

    def measure(self) -> list[Row]:
        """Return a row per system and length."""
        try:
            self.weight_bytes = self.workers[FULL].call("weight_bytes")
            rows = [row for length in self.plan.lengths for row in self._measure_length(length, self.systems)]
            if self.plan.longest:
                rows += self._measure_length(self.plan.longest, [name for name in self.systems if name in INDEXES])
            reading = self._measure_reading()
        finally:
            for worker in self.workers.values():
                worker.close()
        return [self._with_reading(row, reading) for row in rows]

    def _measure_length(self, length: int, systems: Sequence[str]) -> list[Row]:
        """Return the rows of one length: questions and written tokens, in turns; peers that grow in groups."""
        rows: dict[str, Row] = {}
        for group in self._groups(length, systems):
            cells = {name: Cell(self.workers[name], length) for name in group}
            for turn in range(self.plan.turns):
                for cell in cells.values():
                    # within the window the next answer would outgrow it
                    cell.take_turn(self.plan.steps, fill=turn == 0 or length <= self.shape.window)
            anchor = statistics.median(cells[FULL].written_s) if FULL in group else None
            for name in group:
                if name not in rows:
                    rows[name] = self._row(name, cells[name], anchor)
                if length == self.plan.longest:
                    self._far_s[name] = cells[name].worker.call("read", self.plan.long_read) / self.plan.long_read
            for cell in cells.values():
                cell.worker.call("clear")
        return [rows[name] for name in systems]

    def _row(self, name: str, cell: "Cell", anchor: float | None) -> Row:
        p50, p95 = np.percentile(cell.written_s, [50, 95])
        limit = self._step_bytes(name, cell) / self.bandwidth
        return {
            "system": name,
            "context": cell.length,
            "first_token_s": None,
            "prefill_tokens_per_s": None,
            "question_ms": 1e3 * statistics.median(cell.asked_s),
            "decode_p50_ms": 1e3 * float(p50),
            "decode_p95_ms": 1e3 * float(p95),
            "full_over_this": anchor / float(p50) if anchor else None,
            "limit_ms": 1e3 * limit,
            "p50_over_limit": float(p50) / limit,
            "peak_MB": cell.worker.call("peak_bytes") / 1e6,
            "kv_bytes_per_token": cell.kv_bytes / cell.length,
            "index_bytes_per_token": cell.index_bytes / cell.length,
        }

    def _step_bytes(self, name: str, cell: "Cell") -> float:
        """Return the bytes that writing a token cannot do without: weights, what is attended to, what is searched."""
        token, length = self.shape.kv_bytes_per_token(), cell.length
        if name == FULL:
            return self.weight_bytes + length * token
        window = self.weight_bytes + min(length, self.shape.window) * token
        if name not in INDEXES or length <= self.shape.window:
            return window
        return window + (length * token / 2 if name == "flat" else cell.index_bytes)

    def _measure_reading(self) -> dict[str, list[tuple[int, float]]]:
        """Return of each system (tokens, seconds from the beginning) at growing length."""
        curves: dict[str, list[tuple[int, float]]] = {}
        last = self.plan.lengths[-1]
        ends = sorted({*self.plan.lengths, *range(self.plan.read_turn, last + 1, self.plan.read_turn)})
        full: dict[int, list[float]] = {}
        for group in self._groups(last, self.systems):
            for name in group:
                self.workers[name].call("start", last)
                curves[name] = []
            self._read_in_turns(group, ends, curves, full)
            for name in group:
                self.workers[name].call("clear")
        curves[FULL] = added_up({depth: statistics.median(seconds) for depth, seconds in full.items()}, ends)
        for name, rate in self._far_s.items():
            curves[name].append((self.plan.longest, extended(curves[name], self.plan.longest, rate)))
        return curves

    def _read_in_turns(
        self,
        group: Sequence[str],
        ends: Sequence[int],
        curves: dict[str, list[tuple[int, float]]],
        full: dict[int, list[float]],
    ) -> None:
        """Let all but full attention read to each of `ends` in turn; time pieces of full attention at some of them."""
        seconds = dict.fromkeys(group, 0.0)
        begin = 0
        for end in ends:
            for name in group:
                if name == FULL:
                    self._read_full(begin, end, full)
                    continue
                seconds[name] += self.workers[name].call("read", end - begin)
                curves[name].append((end, seconds[name]))
            begin = end

    def _read_full(self, begin: int, end: int, full: dict[int, list[float]]) -> None:
        """Time pieces of `READ_CHUNK`: all in the first `read_turn`, then at `full_depths`."""
        worker = self.workers[FULL]
        if end <= self.plan.read_turn:
            if begin == 0 and not full:
                for depth in range(0, self.plan.read_turn, READ_CHUNK):
                    full.setdefault(depth, []).append(worker.call("read", READ_CHUNK))
            return
        if end not in full_depths(self.plan) or end in full:  # a second group need not repeat it
            return
        worker.call("fill", end)
        for _ in range(self.plan.full_reads):
            full.setdefault(end, []).append(worker.call("read", READ_CHUNK))
        worker.call("clear")

    def _with_reading(self, row: Row, reading: dict[str, list[tuple[int, float]]]) -> Row:
        seconds = dict(reading[row["system"]])[row["context"]]
        first = seconds + row["question_ms"] / 1e3
        return row | {"first_token_s": first, "prefill_tokens_per_s": row["context"] / seconds}

    def _groups(self, length: int, systems: Sequence[str]) -> list[list[str]]:
        """Return groups of systems whose contexts fit into memory side by side; full attention is in each."""
        size = 1.1 * length * self.shape.kv_bytes_per_token()
        always = [name for name in systems if name == FULL or name not in GROWING]
        others = [name for name in systems if name not in always]
        room = max(1, int((self.free_bytes - (FULL in always) * size) / size))
        parts = [others[i : i + room] for i in range(0, len(others), room)]
        return [[*(always if i == 0 else [name for name in always if name == FULL]), *p] for i, p in enumerate(parts)]


def extended(curve: list[tuple[int, float]], length: int, rate: float) -> float:
    """Return the seconds to `length`, where a token takes `rate`; linear from the end of `curve`."""
    (before, before_s), (last, last_s) = curve[-2:]
    return last_s + (length - last) * (rate + (last_s - before_s) / (last - before)) / 2


def full_depths(plan: Plan) -> set[int]:
    """Return the depths, past the first turn, at which full attention is timed: eight of them up to 128 thousand."""
    last, turn = plan.lengths[-1], plan.read_turn
    wanted = {2 * turn, 4 * turn, 6 * turn, 8 * turn, last // 2, last * 3 // 8, last * 3 // 4, last}
    return {depth for depth in wanted if turn < depth <= last}


def added_up(piece_s: dict[int, float], ends: Sequence[int]) -> list[tuple[int, float]]:
    """Return (tokens, seconds from the beginning), the seconds of `READ_CHUNK` tokens being known at some depths."""
    depths = sorted(piece_s)
    starts = np.arange(0, ends[-1], READ_CHUNK)
    pieces = np.interp(starts, depths, [piece_s[depth] for depth in depths])
    total = np.concatenate(([0.0], np.cumsum(pieces)))
    return [(end, float(np.interp(end, np.append(starts, starts[-1] + READ_CHUNK), total))) for end in ends]


def measure_bandwidth(device: str) -> float:
    """Return the bytes per second of reading 1 GB, the best of several."""
    x = torch.ones(2**28, device=device)
    times = []
    for _ in range(6):
        start = time.perf_counter()
        x.sum().item()
        times.append(time.perf_counter() - start)
    return x.nbytes / min(times)


def free_bytes(device: str) -> int:
    """Return the memory that contexts may lie in."""
    return psutil.virtual_memory().available if device == "cpu" else torch.cuda.mem_get_info()[0]
