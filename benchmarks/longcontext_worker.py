"""One system in a process of its own, told over a pipe what to do next: they take turns, memory is each one's own."""

import gc
import multiprocessing
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import psutil
import torch
from longcontext_peers import Reader, Shape, make_reader, random_model

READ_CHUNK = 512
"""Tokens of one forward pass while reading; ours reads in pieces of as many."""


class Worker:
    """A process that holds one system over random weights."""

    def __init__(self, name: str, shape: Shape, *, device: str, seed: int = 0) -> None:
        self.name = name
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, name, shape, device, seed), daemon=True)
        self._process.start()
        theirs.close()

    def call(self, method: str, *args: Any) -> Any:
        """Return what `Bench.method(*args)` returns over there."""
        self._pipe.send((method, args))
        try:
            result, error = self._pipe.recv()
        except EOFError:
            raise RuntimeError(f"the process of {self.name} died in {method}{args}; was memory short?") from None
        if error:
            raise RuntimeError(f"{self.name}, {method}{args}: {error}")
        return result

    def close(self) -> None:
        self._pipe.close()
        self._process.join()


def _serve(pipe: Connection, name: str, shape: Shape, device: str, seed: int) -> None:
    model = random_model(shape, device)
    bench = Bench(make_reader(name, model, chunk=READ_CHUNK), model, seed=seed)
    with torch.inference_mode():
        while True:
            try:
                method, args = pipe.recv()
            except EOFError:
                return
            try:
                pipe.send((getattr(bench, method)(*args), None))
            except Exception as error:  # told to the other side, which raises it
                pipe.send((None, repr(error)))


class Bench:
    """Times what a reader does, in seconds of wall clock."""

    def __init__(self, reader: Reader, model: Any, *, seed: int) -> None:
        self.reader, self.model, self.seed = reader, model, seed
        self._generator = torch.Generator().manual_seed(seed)

    def clear(self) -> None:
        """Forget the context and give its memory back."""
        self.reader.clear()
        gc.collect()

    def fill(self, num_tokens: int) -> None:
        """Be as after reading `num_tokens`."""
        self.clear()
        self.reader.fill(num_tokens, self.seed)

    def start(self, num_tokens: int) -> None:
        """Begin to read a context that will have `num_tokens`."""
        self.clear()
        self.reader.reserve(num_tokens)

    def read(self, num_tokens: int) -> float:
        """Return the seconds it takes to read on."""
        ids = self._ids(num_tokens)
        start = self._now()
        self.reader.read(ids)
        return self._now() - start

    def ask(self, num_tokens: int) -> float:
        """Return the seconds from a question to the first token of the answer, the context having been read."""
        ids = self._ids(num_tokens)
        start = self._now()
        self.reader.forward(ids).argmax().item()
        return self._now() - start

    def write(self, num_tokens: int) -> Sequence[float]:
        """Return the seconds of each token written, but for the first, which finds cold caches."""
        seconds = []
        ids = self._ids(1)
        for _ in range(num_tokens + 1):
            start = self._now()
            ids = self.reader.forward(ids).argmax().view(1, 1)
            seconds.append(self._now() - start)
        return seconds[1:]

    def held_bytes(self) -> tuple[int, int]:
        """Return the bytes of keys and values, and of the index."""
        return self.reader.kv_bytes, self.reader.index_bytes

    def peak_bytes(self) -> int:
        """Return the peak of the whole process so far; on a GPU that of what torch allocated."""
        if self.model.device.type != "cpu":
            return torch.cuda.max_memory_allocated()
        status = Path("/proc/self/status")
        if status.exists():  # unlike getrusage, blind to the parent's peak
            [line] = [line for line in status.read_text().splitlines() if line.startswith("VmHWM")]
            return 1024 * int(line.split()[1])
        return psutil.Process().memory_info().rss

    def weight_bytes(self) -> int:
        """Return the bytes of the weights that a step reads: all but the table of embeddings."""
        return sum(p.nbytes for name, p in self.model.named_parameters() if "embed_tokens" not in name)

    def _ids(self, num_tokens: int) -> torch.Tensor:
        ids = torch.randint(self.model.config.vocab_size, (1, num_tokens), generator=self._generator)
        return ids.to(self.model.device)

    def _now(self) -> float:
        if self.model.device.type != "cpu":
            torch.cuda.synchronize()
        return time.perf_counter()
