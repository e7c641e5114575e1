"""Stop strings, found across the borders of tokens."""


class StopStrings:
    """Passes text on until one of the stop strings begins in it."""

    def __init__(self, stops: tuple[str, ...]) -> None:
        self._stops = stops
        self._longest = max(map(len, stops), default=0)
        self._held = ""
        self.found = False

    def step(self, text: str) -> str:
        """Return the text that may be shown: not a stop string, nor what may be the beginning of one."""
        if not self._stops:
            return text
        assert not self.found, "text behind a stop string"
        text = self._held + text
        places = [place for stop in self._stops if (place := text.find(stop)) >= 0]
        if places:
            self.found, self._held = True, ""
            return text[: min(places)]
        cut = len(text) - self._num_held(text)
        self._held = text[cut:]
        return text[:cut]

    def end(self) -> str:
        """Return what is held: no stop string came of it."""
        held, self._held = self._held, ""
        return held

    def _num_held(self, text: str) -> int:
        """Return the length of the longest end of `text` with which a stop string begins."""
        lengths = range(min(self._longest - 1, len(text)), 0, -1)
        return next((n for n in lengths if any(stop.startswith(text[-n:]) for stop in self._stops)), 0)
