"""What the swarm is compared with, written out: random search, successive halving, ASHA, TPE; and the swarm itself.

A searcher is a generator: it yields a `Trial` (a strategy, trained from one epoch to another), is sent its score and
ends when its budget is spent. So many searches advance side by side and the surrogate answers all of them at once.
"""

import heapq
from collections.abc import Callable, Generator
from dataclasses import dataclass

import numpy as np
import optuna
from yahpo import EPOCHS, SPACE

from hsokv_ray.swarm.config import SwarmConfig
from hsokv_ray.swarm.messages import Order, Outcome
from hsokv_ray.swarm.space import LogFloat, LogInt, Strategy
from hsokv_ray.swarm.swarm import Swarm

ETA = 3
RUNGS = (1, 3, 9, 27, EPOCHS)
LATER_RUNGS = RUNGS[1:]


@dataclass(frozen=True)
class Trial:
    """Train `strategy` from one epoch to another; costs the difference."""

    strategy: Strategy
    begin: int
    end: int


Search = Generator[Trial, float, None]
Searcher = Callable[[int, int], Search]
"""(epochs to spend, seed) -> search."""


def random_search(budget: int, seed: int) -> Search:
    """Train drawn strategies to the end."""
    rng = np.random.default_rng(seed)
    for _ in range(budget // EPOCHS):
        yield Trial(SPACE.sample(rng), 0, EPOCHS)


def successive_halving(budget: int, seed: int) -> Search:
    """Synchronous successive halving (arXiv:1502.07943), one bracket of all rungs, as wide as the budget allows."""
    rng = np.random.default_rng(seed)
    width = max(n for n in range(1, budget + 1) if _bracket_cost(n) <= budget)
    alive = [SPACE.sample(rng) for _ in range(width)]
    begin = 0
    for end in RUNGS:
        scored = []
        for strategy in alive:
            scored.append(((yield Trial(strategy, begin, end)), strategy))
        scored.sort(key=lambda each: -each[0])
        alive = [strategy for _, strategy in scored[: max(len(scored) // ETA, 1)]]
        begin = end


def asha(budget: int, seed: int, steps: tuple[int, ...] = RUNGS) -> Search:
    """ASHA (arXiv:1810.05934, algorithm 2), one worker: what may be promoted is, else a new strategy begins."""
    rng = np.random.default_rng(seed)
    rungs: list[list[tuple[float, Strategy]]] = [[] for _ in steps]
    promoted: list[set[int]] = [set() for _ in steps]
    while True:
        level, strategy = _promotable(rungs, promoted) or (-1, SPACE.sample(rng))
        begin = steps[level] if level >= 0 else 0
        end = min(steps[level + 1], begin + budget)
        if end == begin:
            return
        budget -= end - begin
        score = yield Trial(strategy, begin, end)
        if end == steps[level + 1]:
            rungs[level + 1].append((score, strategy))


def later_asha(budget: int, seed: int) -> Search:
    """ASHA whose first rung is that of the swarm."""
    return asha(budget, seed, LATER_RUNGS)


def tpe(budget: int, seed: int) -> Search:
    """Train what Optuna's TPE suggests to the end, its settings as they come."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=seed))
    for _ in range(budget // EPOCHS):
        asked = study.ask()
        study.tell(asked, (yield Trial(_suggest(asked), 0, EPOCHS)))


def swarm(config: SwarmConfig) -> Searcher:
    """Return the swarm under `config` with the budget given; its agents train side by side in simulated time."""

    def search(budget: int, seed: int) -> Search:
        limited = config.model_copy(update={"flops_budget": budget})
        searching = Swarm(SPACE, limited, seed=seed, cost=lambda strategy: 1)
        running: list[tuple[int, int, Order]] = []
        clock = count = 0
        orders = searching.ask()
        while orders or running:
            for order in orders:
                count += 1
                heapq.heappush(running, (clock + order.num_steps, count, order))
            clock, _, order = heapq.heappop(running)
            score = yield Trial(order.strategy, order.begin_step, order.end_step)
            orders = searching.tell(Outcome(order.order_id, score, order.num_steps, 0.0))
        assert searching.ledger.spent <= budget

    return search


def _bracket_cost(width: int) -> int:
    cost, begin = 0, 0
    for end in RUNGS:
        cost += width * (end - begin)
        width, begin = max(width // ETA, 1), end
    return cost


def _promotable(rungs: list[list[tuple[float, Strategy]]], promoted: list[set[int]]) -> tuple[int, Strategy] | None:
    for level in reversed(range(len(rungs) - 1)):
        order = sorted(range(len(rungs[level])), key=lambda i: -rungs[level][i][0])
        for i in order[: len(order) // ETA]:
            if i not in promoted[level]:
                promoted[level].add(i)
                return level, rungs[level][i][1]
    return None


def _suggest(asked: optuna.Trial) -> Strategy:
    strategy: Strategy = {}
    for name, domain in SPACE.domains.items():
        log = isinstance(domain, LogFloat | LogInt)
        whole = isinstance(domain.from_unit(0.5), int)
        suggest = asked.suggest_int if whole else asked.suggest_float
        strategy[name] = suggest(name, domain.low, domain.high, log=log)  # pyright: ignore
    return strategy
