"""Configuration of a swarm. Imports neither torch nor ray, so `--help` answers at once.

SwarmConfig(num_managers=2, agents_per_manager=8, max_steps=200, interval_steps=10, exploit="copy")
"""

from typing import Any, Literal

import pydantic

from hsokv_ray.config import Config


class SwarmConfig(Config):
    """How many agents search, how they decide, and what they may spend."""

    num_managers: int = pydantic.Field(default=2, ge=1)
    """Sub-populations, each of which decides at its own interval."""
    agents_per_manager: int = pydantic.Field(default=4, ge=1)
    """Agents of each; an agent trains one model at a time. More agents than CPUs wait for their turn."""
    max_steps: int = pydantic.Field(default=100, ge=1)
    """Steps of one whole training."""
    min_steps: int = pydantic.Field(default=1, ge=1)
    """Steps before the first decision about a model."""
    interval_steps: int = pydantic.Field(default=10, ge=1)
    """Steps between two decisions about a model of the first manager; not for exploit `restart`, which has rungs."""
    interval_factor: int = pydantic.Field(default=5, ge=1)
    """Each further manager's interval is this many times longer (MF-PBT, arXiv:2506.03225)."""
    exploit: Literal["copy", "restart", "none"] = "copy"
    """What becomes of weak models. copy: they take over state and strategy of a strong one (population based training).
    restart: they are dropped, only the best 1/eta of a rung trains on (asynchronous successive halving,
    arXiv:1810.05934); manager m starts at rung m. none: all train to the end (random search)."""
    proposals: Literal["random", "evolve", "density"] = "evolve"
    """Where new strategies come from. random: drawn. evolve: perturbed from a good one. density: where good ones lie
    denser than others (TPE; as BOHB, arXiv:1807.01774)."""
    random_share: float = pydantic.Field(default=0.25, ge=0, le=1)
    """Share of new models whose strategy is drawn whatever `proposals` says; exploit `restart` only."""
    eta: int = pydantic.Field(default=3, ge=2)
    """Of a rung, one in this many trains on; rungs are this factor apart."""
    quantile: float = pydantic.Field(default=0.25, gt=0, le=0.5)
    """Share of a manager's agents that counts as strong, and share that counts as weak."""
    resample_probability: float = pydantic.Field(default=0.25, ge=0, le=1)
    """Probability that a setting of a perturbed strategy is drawn anew."""
    perturb_factors: tuple[float, ...] = pydantic.Field(default=(0.8, 1.2), min_length=1)
    """A perturbed number is multiplied by one of these."""
    migration_every: int = pydantic.Field(default=1, ge=0)
    """Exploit `copy`: outcomes of a manager from one migration into it to the next; 0: never."""
    min_diversity: float = pydantic.Field(default=0.1, ge=0, le=1)
    """Entropy of a manager's strategies, as a share of the largest, below which it has collapsed and its weaker half
    gets strategies drawn anew; 0: never."""
    allocation_every: int = pydantic.Field(default=0, ge=0)
    """Outcomes after which the manager whose FLOPs improved the best score least gives an agent to the one where they
    did most; 0: never."""
    flops_budget: int | None = pydantic.Field(default=None, ge=1)
    """FLOPs of everything together, wasted and repeated work included; None: no limit."""
    num_trials: int | None = pydantic.Field(default=None, ge=1)
    """Models begun at most, for exploits `restart` and `none`; None: what the budget allows, without one the number of
    agents."""
    first_strategies: tuple[dict[str, Any], ...] = ()
    """Strategies of the models begun first, such as one that is known to be good; what follows is as without them."""
    max_restarts: int = pydantic.Field(default=3, ge=0)
    """How often in a row a manager all of whose agents failed starts anew, and how often one order is handed out again
    after its worker was lost."""
    max_failures: int = pydantic.Field(default=20, ge=1)
    """Failures in a row after which an agent ends."""

    @pydantic.model_validator(mode="after")
    def _ordered(self) -> "SwarmConfig":
        if self.min_steps > self.max_steps:
            raise ValueError(f"min_steps: got {self.min_steps}; at most max_steps ({self.max_steps}) is needed")
        if any(factor <= 0 for factor in self.perturb_factors):
            raise ValueError(f"perturb_factors: got {list(self.perturb_factors)}; all above 0 are needed")
        return self

    @property
    def num_agents(self) -> int:
        """Agents of all managers."""
        return self.num_managers * self.agents_per_manager

    def interval(self, manager: int) -> int:
        """Steps between two decisions of a manager."""
        return min(self.interval_steps * self.interval_factor**manager, self.max_steps)

    def rungs(self, manager: int) -> list[int]:
        """Steps at which a manager halves: min_steps * eta**k from k = manager on, then max_steps."""
        steps, step = [], self.min_steps
        while step < self.max_steps:
            steps.append(step)
            step *= self.eta
        return [*steps[manager:], self.max_steps]
