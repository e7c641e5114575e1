"""A run folder as a search leaves it: a real swarm over a made-up objective, on workers with a made-up clock.

    write_run(tmp_path / "run", SwarmConfig(num_managers=2, agents_per_manager=8), seed=0)

A model is one number, its progress, which grows by how well the learning rate, the optimiser and the memory suit it.
"""

import heapq
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from hsokv_ray.swarm.config import SwarmConfig
from hsokv_ray.swarm.messages import Order, Outcome
from hsokv_ray.swarm.strategy import KV_SPACE
from hsokv_ray.swarm.swarm import Swarm

BEGUN_S = 1_700_000_000.0


def cost(strategy: dict[str, Any]) -> int:
    """FLOPs of one step: they grow with the batch."""
    return 4_000_000 * strategy["batch_size"]


class SyntheticSearch:
    """A swarm, its workers, and what it writes.

    Args:
        folder: of the run; made.
        config: of the swarm.
        seed: of the swarm, of noise and of losses.
        num_workers: orders at a time.
        loss_probability: that a worker dies in an order.
    """

    def __init__(
        self, folder: Path, config: SwarmConfig, *, seed: int = 0, num_workers: int = 6, loss_probability: float = 0.02
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.swarm = folder, Swarm(KV_SPACE, config, seed=seed, cost=cost)
        self.num_workers, self.loss_probability = num_workers, loss_probability
        search = {"format": 1, "space": KV_SPACE.to_json(), "swarm": config.model_dump(mode="json"), "seed": seed}
        (folder / "search.json").write_text(json.dumps(search))
        self.rng = np.random.default_rng([seed, 1])
        self.progress: dict[str, float] = {}
        self.queue = self.swarm.ask()
        self.running: list[tuple[float, int, float, Order]] = []
        self.clock_s, self.num_events = BEGUN_S, 0
        self.lines: list[dict[str, Any]] = []

    def run(self, num_lines: int | None = None) -> "SyntheticSearch":
        """Go on until the swarm is finished or `num_lines` lines have been told; write what it leaves."""
        with (
            (self.folder / "journal.jsonl").open("a") as journal,
            (self.folder / "events.jsonl").open("a") as events,
        ):
            while (self.queue or self.running) and (num_lines is None or len(self.lines) < num_lines):
                self.lines.append(self._next())
                journal.write(json.dumps(self.lines[-1]) + "\n")
                self._tell(self.lines[-1])
                for event in self.swarm.events(self.num_events):
                    events.write(json.dumps({**event.to_json(), "time": self.clock_s}) + "\n")
                    self.num_events = event.number + 1
        return self

    def _next(self) -> dict[str, Any]:
        """Carry out the order that ends next; return its line."""
        while self.queue and len(self.running) < self.num_workers:
            order = self.queue.pop(0)
            busy = {worker for _, worker, _, _ in self.running}
            worker = next(w for w in range(self.num_workers) if w not in busy)
            seconds = order.num_steps * (0.5 + self.rng.random()) * math.sqrt(order.strategy["batch_size"]) / 10
            heapq.heappush(self.running, (self.clock_s + seconds, worker, self.clock_s, order))
        self.clock_s, worker, begun, order = heapq.heappop(self.running)
        line = {"time": self.clock_s, "begun": begun, "worker": f"worker-{worker}", "order": order.to_json()}
        if self.rng.random() < self.loss_probability:
            half = cost(order.strategy) * order.num_steps // 2
            return {"what": "lost", **line, "flops": half, "why": "its process was killed"}
        return {"what": "tell", **line, "outcome": self._train(order, self.clock_s - begun).to_json()}

    def _tell(self, line: dict[str, Any]) -> None:
        if line["what"] == "tell":
            self.queue += self.swarm.tell(Outcome.from_json(line["outcome"]))
            return
        order = Order.from_json(line["order"])
        again = self.swarm.lost(order.order_id, line["flops"], attempt=order.attempt)
        self.queue += [*self.swarm.ask(), *([again] if again else [])]

    def _train(self, order: Order, seconds: float) -> Outcome:
        strategy, flops = order.strategy, cost(order.strategy) * order.num_steps
        rate = math.log10(strategy["learning_rate"])
        outcome = Outcome(order.order_id, None, flops, seconds)
        if strategy["optimizer"] == "sgd" and rate > -2.15:
            return replace(outcome, failure="the loss is nan at the first step")
        before = self.progress.get(order.source or "", 0.0)
        suits = math.exp(-((rate + 3.0 + before / 100) ** 2) / 0.6)
        suits *= {"adamw": 1.0, "rmsprop": 0.75, "sgd": 0.4}[strategy["optimizer"]]
        suits *= 1 - abs(strategy["memory_top_k"] - 6) / 20
        progress = self.progress[order.order_id] = (
            before + suits * order.num_steps * (strategy["batch_size"] / 32) ** 0.4
        )
        score = 0.1 + 0.85 * (1 - math.exp(-progress / 45)) + float(self.rng.normal(0, 0.006))
        share = {"always": 1.0, "surprise": 0.4, "novelty": 0.6}[strategy["write_policy"]]
        opened = 1 / (1 + math.exp(-strategy["gate_init"] - progress / 20))
        metrics = {
            "gate_entropy_bits": -(opened * math.log2(opened) + (1 - opened) * math.log2(max(1 - opened, 1e-9))),
            "retention": 0.55 + 0.4 * share * (1 - math.exp(-progress / 60)),
            "memory_entries": int(share * 12 * order.end_step),
            "hit_rate": 0.2 + 0.7 * (1 - math.exp(-progress / 40)),
        }
        return replace(outcome, score=score, metrics=metrics)


def write_run(folder: Path, config: SwarmConfig, *, seed: int = 0, **options: Any) -> SyntheticSearch:
    """Run a search to its end; return it."""
    return SyntheticSearch(folder, config, seed=seed, **options).run()
