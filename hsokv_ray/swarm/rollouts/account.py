"""What the steps of a run were spent on; an order counts once, however often its result arrives."""

from dataclasses import dataclass, field

from hsokv_ray.swarm.rollouts.messages import Order, Result


@dataclass(frozen=True)
class Steps:
    """Environment steps by what became of them."""

    used: int = 0
    """Of training, in a gradient."""
    evaluation: int = 0
    stale: int = 0
    """Of training, dropped because the result came too many versions late."""
    repeated: int = 0
    """Of orders done again after a worker's death: what their earlier attempts had spent, at most. A dead worker cannot
    say how far it was."""
    duplicate: int = 0
    """Of results that arrived a second time."""
    left_over: int = 0
    """Of orders still under way when the run ended."""

    @property
    def total(self) -> int:
        """All steps."""
        return self.used + self.evaluation + self.wasted

    @property
    def wasted(self) -> int:
        """Steps that nothing came of."""
        return self.stale + self.repeated + self.duplicate + self.left_over

    @property
    def wasted_share(self) -> float:
        """Of all steps; 0 where there is none."""
        return self.wasted / self.total if self.total else 0.0


@dataclass
class Account:
    """Counts orders and steps of one run."""

    outstanding: dict[int, Order] = field(default_factory=dict)
    """Orders handed out and not answered, by number."""
    steps: dict[str, int] = field(default_factory=lambda: dict.fromkeys(Steps.__dataclass_fields__, 0))
    num_orders: int = 0
    """Orders answered, each once."""
    num_episodes: int = 0
    """Of training, used or stale."""

    def handed_out(self, order: Order) -> None:
        """Expect the order's result."""
        self.outstanding[order.number] = order

    def take(self, result: Result) -> Order | None:
        """Return the order that the result answers; None where it was answered before, which counts as wasted."""
        order = self.outstanding.pop(result.number, None)
        if order is None:
            self.steps["duplicate"] += result.steps
            return None
        self.num_orders += 1
        if order.attempt > 1:
            self.steps["repeated"] += result.steps
        return order

    def spend(self, result: Result, kind: str) -> None:
        """Count the result's steps as `kind`, a field of `Steps`."""
        self.steps[kind] += result.steps
        if kind in ("used", "stale"):
            self.num_episodes += result.episodes

    def total(self) -> Steps:
        """Return what has been counted."""
        return Steps(**self.steps)
