"""The `hsokv` command: looks up the sub-command, and turns what goes wrong into one line.

Sub-commands are imported when called, so help answers without torch and ray.
"""

import os
import sys
import traceback
from collections.abc import Callable, Sequence
from importlib import import_module

from hsokv_ray.errors import ConfigError, HsokvError

COMMANDS = {
    "doctor": ("hsokv_ray.doctor", "check this machine and say what to do"),
    "generate": ("hsokv_ray.inference.command", "generate text from a checkpoint"),
    "memory": ("hsokv_ray.memory.command", "write, search, copy and look after a vector memory"),
}
"""Name -> module with a `main(argv) -> int`, and one line of help."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run `hsokv` with `argv` (default `sys.argv[1:]`); return the exit status, as `guard` does."""
    words = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in words
    if debug:
        words.remove("--debug")
    return guard(lambda: _dispatch(words), debug=debug)


def guard(work: Callable[[], int], *, debug: bool = False) -> int:
    """Return the exit status of `work`; what this project raises on purpose becomes one line on standard error.

    1: the work failed. 2: it was asked for wrongly. 130: Ctrl-C. 141: whoever read the output is gone.

    Args:
        debug: print the traceback too.
    """
    try:
        return work()
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains when it flushes at exit
        return 141
    except HsokvError as error:
        if debug:
            traceback.print_exc()
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, ConfigError) else 1


def _dispatch(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(_usage())
        return 0
    if words[0] not in COMMANDS:
        raise ConfigError(f"hsokv has no command {words[0]!r}; its commands: {', '.join(COMMANDS)}")
    module, _ = COMMANDS[words[0]]
    return import_module(module).main(words[1:])


def _usage() -> str:
    lines = [f"  {name:<10} {text}" for name, (_, text) in COMMANDS.items()]
    last = "hsokv COMMAND --help says more; --debug shows tracebacks."
    return "\n".join(["usage: hsokv [--debug] COMMAND ...", "", *lines, "", last])


if __name__ == "__main__":
    sys.exit(main())
