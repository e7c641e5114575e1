"""Searches that train for real, one model at a time: each spends the lab's budget of steps and nothing else.

One long default training, random search, ASHA, TPE (Optuna), and the swarm. Ray Tune's own are in live_tune.py.
"""

import heapq
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import optuna
from live_lab import FAILED, Lab

from hsokv_ray.swarm.config import SwarmConfig
from hsokv_ray.swarm.learner import State
from hsokv_ray.swarm.learners.recipe import DEFAULT_STRATEGY
from hsokv_ray.swarm.messages import Outcome
from hsokv_ray.swarm.space import Choice, LogFloat, LogInt, Space, Strategy
from hsokv_ray.swarm.swarm import Swarm

ETA = 3
Searcher = Callable[[Lab, int], None]
"""(lab, seed): trains until the budget is spent."""


def default(lab: Lab, seed: int) -> None:
    """Train one model by the default strategy over the whole budget, which the lab's schedules are laid over."""
    strategy = {name: DEFAULT_STRATEGY[name] for name in lab.space.domains}
    step, model, every = 0, None, lab.total_steps // 24
    while lab.remaining:
        end = min(step + every, lab.total_steps)
        _, model = lab.train(strategy, seed=seed + step, begin=step, end=end, source=model)
        step = end


def random_search(lab: Lab, seed: int) -> None:
    """Train drawn strategies to the end, looking at each as often as the swarm looks at its models."""
    rng = np.random.default_rng(seed)
    while lab.remaining >= lab.total_steps:
        _whole_training(lab, lab.space.sample(rng), int(rng.integers(2**31)))


def tpe(lab: Lab, seed: int) -> None:
    """Train what Optuna's TPE suggests to the end, its settings as they come."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=seed))
    while lab.remaining >= lab.total_steps:
        asked = study.ask()
        score = _whole_training(lab, suggest(lab.space, asked), seed + 1000 * asked.number)
        failed = score == FAILED
        study.tell(asked, None if failed else score, state=optuna.trial.TrialState.FAIL if failed else None)


def asha(lab: Lab, seed: int) -> None:
    """ASHA (arXiv:1810.05934, algorithm 2), one worker, rungs a factor of 3 apart, the first a ninth of a training."""
    rng = np.random.default_rng(seed)
    ends = [lab.total_steps // ETA**2, lab.total_steps // ETA, lab.total_steps]
    rungs: list[list[_Paused]] = [[] for _ in ends]
    while lab.remaining >= ends[0]:
        level, paused = _promotable(rungs) or (-1, _Paused(0.0, lab.space.sample(rng), None))
        begin = ends[level] if level >= 0 else 0
        end = min(ends[level + 1], begin + lab.remaining)
        score, model = lab.train(
            paused.strategy, seed=int(rng.integers(2**31)), begin=begin, end=end, source=paused.model
        )
        if end == ends[level + 1]:
            rungs[level + 1].append(_Paused(score, paused.strategy, model, promoted=model is None))


def swarm(config: SwarmConfig, *, knows_default: bool = False) -> Searcher:
    """Return the swarm; its agents take turns as if each had a worker of its own.

    Args:
        config: without budget and steps, which are the lab's.
        knows_default: the first agent begins with the default strategy, as in `jobs/search_swarm.py`.
    """

    def search(lab: Lab, seed: int) -> None:
        limited = config.model_copy(update={"flops_budget": lab.budget_steps, "max_steps": lab.total_steps})
        if knows_default:
            first = {name: DEFAULT_STRATEGY[name] for name in lab.space.domains}
            limited = limited.model_copy(update={"first_strategies": (first,)})
        searching = Swarm(lab.space, limited, seed=seed, cost=lambda strategy: 1)
        models: dict[str, State | None] = {}
        running: list[tuple[int, int]] = []
        waiting, orders, clock, count = {}, searching.ask(), 0, 0
        while orders or running:
            for order in orders:
                count += 1
                waiting[count] = order
                heapq.heappush(running, (clock + order.num_steps, count))
            clock, at = heapq.heappop(running)
            order = waiting.pop(at)
            score, model = lab.train(
                order.strategy, seed=order.seed, begin=order.begin_step, end=order.end_step,
                source=models[order.source] if order.source else None,
            )  # fmt: skip
            models[order.order_id] = model
            failure = "" if model is not None else "no finite score"
            orders = searching.tell(Outcome(order.order_id, score, order.num_steps, 0.0, failure))
            needed = searching.needed() | {each.source for each in waiting.values()}
            needed |= {each.source for each in orders}
            models = {name: each for name, each in models.items() if name in needed}

    return search


@dataclass
class _Paused:
    score: float
    strategy: Strategy
    model: State | None
    promoted: bool = False


def _whole_training(lab: Lab, strategy: Strategy, seed: int, *, looks: int = 6) -> float:
    """Train a fresh model to the end; return its last score."""
    ends = [lab.total_steps * i // looks for i in range(1, looks + 1)]
    begin, model, score = 0, None, 0.0
    for end in ends:
        score, model = lab.train(strategy, seed=seed + begin, begin=begin, end=end, source=model)
        if model is None:  # failed: what it would have cost is spent, as for those who do not look
            lab.steps += lab.total_steps - end
            return score
        begin = end
    return score


def _promotable(rungs: list[list[_Paused]]) -> tuple[int, _Paused] | None:
    for level in reversed(range(len(rungs) - 1)):
        ranked = sorted(rungs[level], key=lambda each: -each.score)
        for paused in ranked[: len(ranked) // ETA]:
            if not paused.promoted:
                paused.promoted = True
                return level, paused
    return None


def suggest(space: Space, asked: optuna.Trial) -> Strategy:
    """Return a strategy of `space` that `asked` suggests."""
    strategy: Strategy = {}
    for name, domain in space.domains.items():
        if isinstance(domain, Choice):
            strategy[name] = asked.suggest_categorical(name, list(domain.options))
            continue
        log = isinstance(domain, LogFloat | LogInt)
        whole = isinstance(domain.from_unit(0.5), int)
        number = asked.suggest_int if whole else asked.suggest_float
        strategy[name] = number(name, domain.low, domain.high, log=log)  # pyright: ignore
    return strategy
