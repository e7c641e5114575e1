"""The prompt of `hsokv generate`: text to complete, or a command."""

import difflib
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from hsokv_ray.errors import ConfigError
from hsokv_ray.inference.config import SamplingConfig
from hsokv_ray.inference.generation import Completion, Generator

HELP = """\
Type text and press Enter to have it completed. Commands:
  set                show the settings
  set NAME VALUE     change one, as in: set temperature 0
  stats              what was generated so far, and how fast
  help               this text
  quit, exit         end (so does Ctrl-D); Ctrl-C stops the text being generated
A line that begins with a space is always text."""


class Session:
    """Reads lines until told to quit; holds the settings and what was generated."""

    def __init__(
        self,
        generator: Generator,
        sampling: SamplingConfig,
        *,
        read: Callable[[], str],
        write: Callable[[str], Any] = lambda text: print(text, end="", flush=True),
    ) -> None:
        self.sampling = sampling
        self.completions: list[Completion] = []
        self._generator, self._read, self._write = generator, read, write

    def run(self) -> None:
        """Answer lines until `quit`, `exit` or the end of input."""
        while True:
            try:
                line = self._read()
                if line.strip() in ("quit", "exit"):
                    return
                self._answer(line)
            except EOFError:
                self._write("\n")
                return
            except KeyboardInterrupt:
                self._write("\n(quit or Ctrl-D ends)\n")
            except ConfigError as error:
                self._write(f"error: {error}\n")

    def _answer(self, line: str) -> None:
        words = line.split()
        if not words:
            return
        if line[0] == " ":
            self._complete(line[1:])
        elif words[0] == "set":
            self._set(words[1:])
        elif words == ["stats"]:
            self._write(self._stats() + "\n")
        elif words == ["help"]:
            self._write(HELP + "\n")
        else:
            self._complete(line)

    def _complete(self, prompt: str) -> None:
        self._generator.encode(prompt)  # what is refused is not echoed
        self._write(prompt)
        completion = self._generator.generate(prompt, self.sampling, on_text=self._write)
        self.completions.append(completion)
        self._write(f"\n[{completion.describe()}]\n")

    def _set(self, words: list[str]) -> None:
        values = self.sampling.model_dump()
        if not words:
            self._write("\n".join(f"{name} = {value}" for name, value in values.items()) + "\n")
            return
        name = words[0].removeprefix("--").replace("-", "_")
        if len(words) != 2 or name not in values:
            close = difflib.get_close_matches(name, values, n=1)
            hint = f"did you mean {close[0]}?" if close else f"settings: {', '.join(values)}"
            raise ConfigError(
                f"set {' '.join(words)}: a setting and a value are needed; {hint} (begin with a space if it is text)"
            )
        value = None if words[1].lower() == "none" else words[1]
        self.sampling = SamplingConfig(**{**values, name: value})
        self._write(f"{name} = {getattr(self.sampling, name)}\n")

    def _stats(self) -> str:
        done = self.completions
        tokens, seconds = sum(c.num_tokens for c in done), sum(c.seconds for c in done)
        if not seconds:
            return "nothing generated yet"
        first = [c.first_token_s for c in done if c.first_token_s is not None]
        mean = f", first token after {sum(first) / len(first) * 1000:.0f} ms on average" if first else ""
        return f"{len(done)} texts, {tokens} tokens in {seconds:.2f} s ({tokens / seconds:.1f} tokens/s){mean}"


def read_line() -> str:
    """Read a line of standard input, with a prompt and line editing on a terminal. Raises `EOFError` at its end."""
    if not sys.stdin.isatty():
        return input()
    with suppress(ImportError):  # Python can be built without it
        import readline  # noqa: F401  gives input() line editing and a history
    return input("> ")
