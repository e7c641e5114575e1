"""Whose turn it is: the answers that are being generated, or the inputs that are being read."""


class Turns:
    """Shares the time: a piece that was read is paid back in steps.

    Args:
        share: of the time, for reading, while both have something to do.
    """

    def __init__(self, share: float) -> None:
        self._owed_per_s = (1 - share) / share
        self._owed_s = 0.0
        self._waited = False

    def is_reading(self, *, has_steps: bool, has_pieces: bool) -> bool:
        """Return whether a piece comes next, rather than a step."""
        self._waited = has_steps
        if not (has_steps and has_pieces):
            self._owed_s = 0.0
            return has_pieces
        return self._owed_s <= 0

    def read(self, seconds: float) -> None:
        """Note a piece; it is owed to the answers that waited for it."""
        self._owed_s = seconds * self._owed_per_s if self._waited else 0.0

    def stepped(self, seconds: float) -> None:
        """Note a step."""
        self._owed_s -= seconds
