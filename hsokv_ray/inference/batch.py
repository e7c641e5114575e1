"""Generate for the lines of a file: one JSON object per prompt, in order, written as they come."""

import json
from collections.abc import Iterable
from typing import TextIO

from hsokv_ray.errors import ConfigError
from hsokv_ray.inference.config import SamplingConfig
from hsokv_ray.inference.generation import Completion, Generator
from hsokv_ray.inference.prompts import Prompts


def check_prompts(generator: Generator, prompts: Prompts) -> None:
    """Raise `ConfigError` naming the first line that does not fit the model, before anything is generated."""
    for number, prompt in prompts.lines:
        try:
            generator.encode(prompt)
        except ConfigError as error:
            raise ConfigError(f"line {number}: {error}") from None


def generate_batch(
    generator: Generator, prompts: Iterable[str], sampling: SamplingConfig, *, out: TextIO
) -> list[Completion]:
    """Complete each prompt with the same sampling and write it to `out` at once; return all.

    Raises `KeyboardInterrupt` on Ctrl-C; the prompts before are written.
    """
    done = []
    for prompt in prompts:
        completion = generator.generate(prompt, sampling)
        if completion.finish == "interrupted":
            raise KeyboardInterrupt
        print(json.dumps(as_json(completion), ensure_ascii=False), file=out, flush=True)
        done.append(completion)
    return done


def as_json(completion: Completion) -> dict[str, object]:
    """Return the line written for `completion`: prompt, completion, tokens, seconds and the rest of its numbers."""
    return {
        "prompt": completion.prompt,
        "completion": completion.text,
        "tokens": completion.num_tokens,
        "prompt_tokens": completion.num_prompt_tokens,
        "seconds": round(completion.seconds, 4),
        "tokens_per_s": round(completion.tokens_per_s, 2),
        "finish": completion.finish,
        "seed": completion.seed,
    }
