"""What the training loop asks of whoever runs it."""

from typing import Any, Protocol


class Host(Protocol):
    """What the training loop needs from whoever runs it; a plain process and a Ray worker both provide it."""

    def event(self, kind: str, **values: Any) -> None:
        """Tell the user something: kind is `row`, `note`, `saved` or `started`."""
        ...

    def report(self, metrics: dict[str, float]) -> None:
        """Hand metrics to whoever runs the loop, with each checkpoint; called equally often on every worker."""
        ...
