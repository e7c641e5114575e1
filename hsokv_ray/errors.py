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
