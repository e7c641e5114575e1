"""One account of FLOPs for a whole search, in which nothing is counted twice.

    ledger = Ledger(10**15, minimum=10**12)
    ledger.charge("a3.17", attempt=1, flops=2 * 10**12, kind="wasted")      # its worker died
    ledger.charge("a3.17", attempt=2, flops=10**13, kind="useful")          # counts as repeated

An order is named "account.number" and the numbers of one account rise, so that the highest number is all that has to be
remembered of an account.
"""

from typing import Any, Literal

from hsokv_ray.errors import ConfigError, RunError

Kind = Literal["useful", "wasted", "repeated", "evaluation"]
KINDS: tuple[Kind, ...] = ("useful", "wasted", "repeated", "evaluation")


class Ledger:
    """FLOPs by kind: useful, wasted (thrown away), repeated (done again after a loss), evaluation.

    Args:
        budget_flops: what may be spent; None: no limit.
        minimum: FLOPs of the cheapest single step.

    Raises:
        ConfigError: the budget is below one step.
    """

    def __init__(self, budget_flops: int | None, *, minimum: int = 1) -> None:
        if budget_flops is not None and budget_flops < minimum:
            raise ConfigError(
                f"flops_budget: got {budget_flops}; one step costs {minimum}: give at least {minimum} FLOPs"
            )
        self.budget_flops = budget_flops
        self.totals: dict[Kind, int] = dict.fromkeys(KINDS, 0)
        self._last: dict[str, tuple[int, list[int]]] = {}

    @property
    def spent(self) -> int:
        """FLOPs of all kinds."""
        return sum(self.totals.values())

    @property
    def remaining(self) -> int | None:
        """FLOPs left, at least 0; None: no limit."""
        return None if self.budget_flops is None else max(self.budget_flops - self.spent, 0)

    def charge(self, order_id: str, attempt: int, flops: int, kind: Kind) -> bool:
        """Count `flops` of one attempt of an order; return whether they were new.

        The same attempt counts once; a further attempt of the same order counts as repeated. An order older than its
        account's newest one is closed and counts no more.

        Raises:
            RunError: a negative number or an unknown kind.
        """
        if flops < 0 or kind not in KINDS:
            raise RunError(f"ledger: got {flops} FLOPs of kind {kind!r}; at least 0 of one of {KINDS} are needed")
        account, number = _split(order_id)
        last, attempts = self._last.get(account, (-1, []))
        if number < last or (number == last and attempt in attempts):
            return False
        again = number == last
        self._last[account] = (number, [*attempts, attempt] if again else [attempt])
        self.totals["repeated" if again else kind] += flops
        return True

    def to_json(self) -> dict[str, Any]:
        """Return what `load` reads."""
        return {"totals": dict(self.totals), "last": {k: [n, list(a)] for k, (n, a) in self._last.items()}}

    def load(self, values: dict[str, Any]) -> None:
        """Take over what `to_json` returned; the budget stays as constructed."""
        self.totals = {kind: int(values["totals"][kind]) for kind in KINDS}
        self._last = {key: (int(number), list(attempts)) for key, (number, attempts) in values["last"].items()}


def _split(order_id: str) -> tuple[str, int]:
    account, _, number = order_id.rpartition(".")
    return (account, int(number)) if account and number.isdigit() else (order_id, 0)
