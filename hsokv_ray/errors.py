"""The exceptions users meet. Each message is one line: what, what was got, what is allowed, what to do next."""


class HsokvError(Exception):
    """Base of everything this project raises on purpose; commands print it without a traceback."""


class ConfigError(HsokvError, ValueError):
    """A flag, a YAML key or a combination of them is wrong."""


class DataError(HsokvError, ValueError):
    """A source, shard, document or tokenizer cannot be used as asked."""


class CheckpointError(HsokvError):
    """A checkpoint is missing, damaged or does not fit the model it is loaded into."""


class RunError(HsokvError):
    """A run cannot start or go on: resources, memory, disk, a loss that is not a number."""


class StoreError(HsokvError):
    """A memory is damaged, held by another writer, out of room, or cannot be reached."""


class Overloaded(StoreError):
    """A memory's queue is full; nothing of the call was done. Try again after `retry_after_s`."""

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message, retry_after_s)
        self.retry_after_s = retry_after_s

    def __str__(self) -> str:
        return f"{self.args[0]}; try again in {self.retry_after_s:.2g} s"
