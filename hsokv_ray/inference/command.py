"""`hsokv generate`: parse, load, and run one of the three ways to generate."""

import sys
from collections.abc import Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING

from hsokv_ray.config import parse
from hsokv_ray.errors import ConfigError
from hsokv_ray.inference.checkpoints import resolve
from hsokv_ray.inference.config import GenerateConfig

if TYPE_CHECKING:
    from hsokv_ray.inference.generation import Generator
    from hsokv_ray.inference.loading import LoadedModel


def main(argv: Sequence[str]) -> int:
    """Run `hsokv generate` with the words after it; return the exit status."""
    config = parse(GenerateConfig, argv, prog="hsokv generate")
    if config.is_long:
        return _run_long(config)
    if config.input is not None:
        return _run_batch(config)
    return _run_prompt(config) if config.prompt is not None else _run_interactive(config)


def _run_prompt(config: GenerateConfig) -> int:
    return _answer(_generator(config), config)


def _run_long(config: GenerateConfig) -> int:
    from hsokv_ray.inference.long import check_text, open_long

    check_text(config)
    loaded = _loaded(config, encoder_decoders=True)
    with open_long(loaded, config, say=_note) as generator:
        return _answer(generator, config) if config.prompt is not None else _converse(generator, config)


def _answer(generator: "Generator", config: GenerateConfig) -> int:
    prompt = config.prompt or ""
    generator.encode(prompt)
    _write(prompt)
    completion = generator.generate(prompt, config.sampling, on_text=_write)
    print(flush=True)
    _note(completion.describe())
    if completion.finish == "interrupted":
        raise KeyboardInterrupt
    return 0


def _run_interactive(config: GenerateConfig) -> int:
    return _converse(_generator(config), config)


def _converse(generator: "Generator", config: GenerateConfig) -> int:
    from hsokv_ray.inference.interactive import Session, read_line

    session = Session(generator, config.sampling, read=read_line, write=_write)
    _note("type text to complete, or help")
    session.run()
    return 0


def _run_batch(config: GenerateConfig) -> int:
    from hsokv_ray.inference.prompts import read_prompts

    prompts = read_prompts(config.input or "")
    _check_writable(config.output)
    generator = _generator(config)
    from hsokv_ray.inference.batch import check_prompts, generate_batch

    check_prompts(generator, prompts)
    with open(config.output, "w", encoding="utf-8") if config.output else nullcontext(sys.stdout) as out:
        done = generate_batch(generator, (text for _, text in prompts.lines), config.sampling, out=out)
    tokens, seconds = sum(c.num_tokens for c in done), sum(c.seconds for c in done)
    skipped = f", {prompts.num_skipped} empty lines skipped" if prompts.num_skipped else ""
    _note(f"{len(done)} prompts, {tokens} tokens, {tokens / max(seconds, 1e-9):.1f} tokens/s{skipped}")
    return 0


def _generator(config: GenerateConfig) -> "Generator":
    loaded = _loaded(config)
    from hsokv_ray.inference.generation import Generator

    return Generator(loaded)


def _loaded(config: GenerateConfig, *, encoder_decoders: bool = False) -> "LoadedModel":
    source = resolve(config.checkpoint)  # before the imports that take seconds
    from transformers.utils import logging

    from hsokv_ray.inference.loading import load

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    model = (loaded := load(source, device=config.device, encoder_decoders=encoder_decoders)).model
    _note(f"{source.model}: {model.num_parameters() / 1e6:.1f}M parameters on {model.device}, {model.dtype}")
    return loaded


def _check_writable(path: str | None) -> None:
    if path is None:
        return
    try:
        with open(path, "a", encoding="utf-8"):
            pass
    except OSError as error:
        raise ConfigError(f"--output {path} cannot be written ({error.strerror}); give another file") from None


def _write(text: str) -> None:
    print(text, end="", flush=True)


def _note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
