"""Generate over inputs far past a model's window.

with LongContext(model, tokenizer, LongContextConfig(enabled=True)) as lc:
    memory = lc.encode(open("book.txt").read())        # once per document
    print(lc.generate(memory, prompt="Who is Alice?").text)
    for text in lc.stream(memory, prompt="And the Hatter?", max_new_tokens=200):
        print(text, end="")
"""

import logging
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast

import numpy as np
import torch

from hsokv_ray.errors import ConfigError
from hsokv_ray.longcontext.attachment import Attachment
from hsokv_ray.longcontext.cache import RetrievalCache
from hsokv_ray.longcontext.config import LongContextConfig
from hsokv_ray.longcontext.decoder import DecoderReader
from hsokv_ray.longcontext.encoder import EncoderMemory, EncoderReader
from hsokv_ray.longcontext.families import is_encoder_decoder
from hsokv_ray.longcontext.memory import Memory
from hsokv_ray.longcontext.plain import PlainReader
from hsokv_ray.longcontext.prefill import feed
from hsokv_ray.longcontext.report import Report, make_report
from hsokv_ray.longcontext.requests import Request
from hsokv_ray.longcontext.streaming import FirstToken, Stream
from hsokv_ray.longcontext.text import Source, Tokenizing, Tokens
from hsokv_ray.meter import Meter

AnyMemory = Memory | EncoderMemory

_MAX_NEW_TOKENS = 256
_READS_PROMPTS_ITSELF = ("assistant_model", "prompt_lookup_num_tokens", "assistant_early_exit")
"""Options with which transformers' `generate` starts from the first token whatever the cache holds."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Answer:
    """What was generated for one prompt."""

    text: str
    """Without special tokens; empty where there is no tokenizer."""
    token_ids: list[int]
    """New tokens only."""
    report: Report
    """What the request cost, all its rows together."""

    def __str__(self) -> str:
        return self.text


class LongContext:
    """One model that reads by retrieval. Several threads may ask at once; the model keeps no state of a request.

    Args:
        model: a transformers model of a served family (`families.DECODERS`, `families.ENCODER_DECODERS`).
        tokenizer: its tokenizer; None where only token ids will be given.
        config: with `enabled` false the plain model is used and nothing is registered on it.

    Raises `ConfigError`: the model's family is not served, or the settings do not fit the model.
    """

    def __init__(self, model: Any, tokenizer: Any = None, config: LongContextConfig | None = None) -> None:
        self.model, self.config = _unwrapped(model), config or LongContextConfig()
        self._tokenizing = Tokenizing(tokenizer, self.config, self.model.get_input_embeddings().num_embeddings)
        self._reader = self._make_reader()
        self._attachment = Attachment(self.model) if self.config.enabled else None
        if self._attachment is not None:
            weakref.finalize(self, self._attachment.release)
        logger.info("long context: %s", self._reader.describe())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give the model back as it was. Memories stay usable by another `LongContext` of the same model."""
        if self._attachment is not None:
            self._attachment.release()

    def describe(self) -> str:
        """Return settings and placement in one line."""
        return self._reader.describe()

    def encode(self, source: Source, *, progress: bool = False) -> AnyMemory:
        """Read a text once, for any number of requests.

        Args:
            source: text, token ids, or an iterable of chunks of either.
            progress: show a bar on standard error.

        Raises:
            ConfigError: longer than `max_source_length`, or, with long context off, than the window.
            DataError: it is empty.
        """
        self._check_open()
        tokens = self.tokens(source)
        memory = self._timed(len(tokens.ids), progress, lambda say: self._reader.encode(tokens.ids, say))
        memory.num_truncated_tokens = tokens.num_truncated
        return memory

    def append(self, memory: AnyMemory, source: Source, *, progress: bool = False) -> None:
        """Read more text behind a memory; only the new tokens are encoded.

        Requests that run on the memory go on with what they began with.
        """
        self._check_open()
        with memory.lock:
            tokens = self._tokenizing.document(source, before=len(memory))
            if len(tokens.ids):
                self._timed(len(tokens.ids), progress, lambda say: self._reader.append(memory, tokens.ids, say))
            memory.num_truncated_tokens += tokens.num_truncated

    def generate(
        self,
        memory: AnyMemory | None = None,
        *,
        prompt: Source | Sequence[Source] = "",
        prefix: Source = "",
        suffix: Source = "",
        max_new_tokens: int | None = None,
        **options: Any,
    ) -> Any:
        """Continue `memory`, prefix, prompt and suffix; return an `Answer`, or a list of them for several rows.

        Args:
            memory: what `encode` returned; None: the prompt alone, however long.
            prompt: text or ids; a list of texts, or of lists of ids, is a batch.
            prefix: kept in sight for good, before what is fetched.
            suffix: put behind every prompt.
            max_new_tokens: at most; None: 256, or what `options` say.
            options: of transformers' `generate`: `do_sample`, `num_beams`, `num_return_sequences`, ...
        """
        start = time.perf_counter()
        request = self._request(memory, prompt, prefix, suffix, options)
        first = FirstToken()
        output = self.model.generate(**self._arguments(request, max_new_tokens, options, first))
        request.watch.lap()
        sequences = output if isinstance(output, torch.Tensor) else output.sequences
        ends = self._end_tokens(options)
        new = [_until(ends, row[request.num_given :].tolist()) for row in sequences]
        report = self._report(request, first, start, sum(map(len, new)))
        answers = [Answer(self._tokenizing.text(ids), ids, report) for ids in new]
        return answers[0] if len(answers) == 1 and not _is_batch(prompt) else answers

    def stream(
        self,
        memory: AnyMemory | None = None,
        *,
        prompt: Source = "",
        prefix: Source = "",
        suffix: Source = "",
        max_new_tokens: int | None = None,
        on_report: Callable[[Report], Any] = lambda report: None,
        **options: Any,
    ) -> Iterator[str]:
        """Yield pieces of text as they are generated; leaving the loop ends the generation.

        Args:
            on_report: called with the measurements at the end.

        Other arguments are those of `generate`; beams cannot stream.
        """
        start = time.perf_counter()
        stream = Stream(self._tokenizing.tokenizer)
        request = self._request(memory, prompt, prefix, suffix, options)
        first = FirstToken()
        arguments = self._arguments(request, max_new_tokens, options, first, stream.stopper)
        yield from stream.run(lambda: self.model.generate(streamer=stream.streamer, **arguments))
        request.watch.lap()
        on_report(self._report(request, first, start, first.num_tokens))

    def cache(self, memory: Memory | None = None, batch_size: int = 1) -> RetrievalCache:
        """Return a transformers cache that begins with `memory`, for `model(ids, past_key_values=cache)`.

        The cache does not count the memory: positions and `get_seq_length` are those of the request's own tokens.
        """
        self._check_open()
        return self.decoder().cache(memory, batch_size)

    def prefill(self, cache: RetrievalCache, prompts: Sequence[torch.Tensor]) -> None:
        """Read the token ids [T] of each row into `cache` in pieces, without logits."""
        self._check_open()
        self.decoder()
        feed(self.model, cache, prompts)

    def load(self, path: str | Path) -> AnyMemory:
        """Read a memory that this model wrote. Raises `CheckpointError`, `ConfigError`."""
        if isinstance(self._reader, EncoderReader):
            return EncoderMemory.load(path)
        memory = Memory.load(path)
        if isinstance(self._reader, DecoderReader):
            self._reader.take(memory)
        return memory

    def tokens(self, source: Source) -> Tokens:
        """Return the token ids of a text as `encode` would read them. Raises `ConfigError`, `DataError`, as it does."""
        return self._tokenizing.document(source)

    def _make_reader(self) -> Any:
        if not self.config.enabled:
            return PlainReader(self.model)
        if is_encoder_decoder(self.model):
            return EncoderReader(self.model, self.config)
        return DecoderReader(self.model, self.config)

    def decoder(self) -> DecoderReader:
        """Return what reads texts; only decoder-only models have one that makes caches. Raises `ConfigError`."""
        if not isinstance(self._reader, DecoderReader):
            raise ConfigError("caches are made for decoder-only models with long context enabled; use generate()")
        return self._reader

    def _request(
        self, memory: AnyMemory | None, prompt: Any, prefix: Source, suffix: Source, options: dict[str, Any]
    ) -> Request:
        self._check_open()
        if options.get("use_cache") is False:
            raise ConfigError("use_cache=False: what was read is in the cache; leave it on")
        begins = memory is None
        before = self._tokenizing.ids(prefix, begins_text=begins)
        after = self._tokenizing.ids(suffix, begins_text=False)
        prompts = list(prompt) if _is_batch(prompt) else [prompt]
        rows = [before + self._tokenizing.ids(each, begins_text=begins and not before) + after for each in prompts]
        return self._reader.request(
            memory,
            rows,
            num_prefix_tokens=len(before),
            pad_token=self._pad_token(),
            reads_prompts=not self._reads_prompts_itself(options),
        )

    def _arguments(
        self, request: Request, max_new_tokens: int | None, options: dict[str, Any], *criteria: Any
    ) -> dict[str, Any]:
        """Return the arguments of transformers' `generate`; what the request carries cannot be overridden."""
        ours: dict[str, Any] = {"pad_token_id": self._pad_token()}
        if max_new_tokens is not None or not {"generation_config", "max_length"}.intersection(options):
            ours["max_new_tokens"] = max_new_tokens or _MAX_NEW_TOKENS
        watched = {"stopping_criteria": [*(options.get("stopping_criteria") or []), *criteria]}
        return ours | options | watched | request.arguments

    def _reads_prompts_itself(self, options: dict[str, Any]) -> bool:
        configs = [options.get("generation_config"), self.model.generation_config]
        return any(
            name in options or any(getattr(config, name, None) for config in configs) for name in _READS_PROMPTS_ITSELF
        )

    def _end_tokens(self, options: dict[str, Any]) -> set[int]:
        generation = options.get("generation_config") or self.model.generation_config
        ends = options.get("eos_token_id", generation.eos_token_id)
        return set(ends if isinstance(ends, list | tuple) else [] if ends is None else [ends])

    def _check_open(self) -> None:
        if self._attachment is None:
            return
        if not self._attachment.is_held:
            raise ConfigError("this LongContext was closed; make another one of the model")
        if self.model.training:
            raise ConfigError("the model is in training mode; call model.eval() before it reads")

    def _timed(self, num_tokens: int, progress: bool, work: Callable[[Callable[[int], Any]], Any]) -> Any:
        start = time.perf_counter()
        if progress:
            with Meter("encode", total=num_tokens, unit="tokens") as meter:
                result = work(meter.update)
        else:
            result = work(lambda num_tokens: None)
        seconds = time.perf_counter() - start
        logger.info("encoded %d tokens in %.2f s (%.0f tokens/s)", num_tokens, seconds, num_tokens / max(seconds, 1e-9))
        return result

    def _report(self, request: Request, first: FirstToken, start: float, num_new_tokens: int) -> Report:
        end = time.perf_counter()
        report = make_report(
            request.watch,
            seconds=end - start,
            first_token_s=(first.at or end) - start,
            num_memory_tokens=request.num_memory_tokens,
            num_prompt_tokens=request.num_prompt_tokens,
            num_new_tokens=num_new_tokens,
            memory_bytes=request.memory_bytes,
            index_bytes=request.index_bytes,
        )
        logger.info("%s", report.describe())
        return report

    def _pad_token(self) -> int:
        generation = self.model.generation_config
        ends = generation.eos_token_id
        for token in (generation.pad_token_id, ends[0] if isinstance(ends, list) else ends):
            if token is not None:
                return token
        return 0


def _is_batch(prompt: Any) -> bool:
    """Return whether `prompt` is a list of prompts rather than one: texts, or lists of ids."""
    if isinstance(prompt, str | np.ndarray | torch.Tensor) or not isinstance(prompt, Sequence) or not prompt:
        return False
    return not isinstance(cast("Sequence[Any]", prompt)[0], int | np.integer)


def _until(ends: set[int], ids: list[int]) -> list[int]:
    """Return the ids up to the first end token; what follows is padding."""
    return next((ids[: number + 1] for number, token in enumerate(ids) if token in ends), ids)


def _unwrapped(model: Any) -> Any:
    """Return the transformers model inside a PEFT wrapper; its adapters stay in its layers."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model
