"""What `serving.py` compares: the application, `transformers serve`, and models asked without HTTP."""

import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from serving_client import Client, Heard, Load
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

WINDOW = 1024
VOCABULARY = 4096
TEMPLATE = "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}assistant: "
THREADS = 2
_START_S = 180


def save_model(folder: Path) -> Path:
    """Write a random LLaMA of 6 layers, 512 wide, with a byte-level tokenizer learnt from the standard library.

    It has no end token, so every system writes as many tokens as it is asked for.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=["<pad>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(sources(40), trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>")
    fast.chat_template = TEMPLATE
    fast.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=512,
        intermediate_size=2048,
        num_hidden_layers=6,
        num_attention_heads=8,
        max_position_embeddings=WINDOW,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def sources(number: int) -> list[str]:
    """Return texts of the standard library, the same on every machine with this Python."""
    paths = sorted(Path(os.__file__).parent.glob("*.py"))[:number]
    return [path.read_text(encoding="utf-8", errors="ignore") for path in paths]


class Direct:
    """A model asked in a process of its own, without HTTP.

    Args:
        kind: `generate` is transformers', one prompt after the other; `batch` all of them left-padded at once;
            `engine` is ours.
    """

    def __init__(self, kind: str, folder: Path) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, other = context.Pipe()
        self._process = context.Process(target=_serve_pipe, args=(other, kind, str(folder)), daemon=True)
        self._process.start()
        self._pipe.recv()

    def ask(self, prompts: Sequence[str], *, num_tokens: int) -> Load:
        """Answer all `prompts` with `num_tokens` each, greedily."""
        self._pipe.send((list(prompts), num_tokens))
        result = self._pipe.recv()
        if isinstance(result, str):
            raise RuntimeError(result)
        return result

    def close(self) -> None:
        self._pipe.close()
        self._process.join(timeout=10)
        self._process.kill()


@contextmanager
def transformers_serve(folder: Path, port: int, *, continuous: bool) -> Iterator[Client]:
    """Run `transformers serve` on the model."""
    program = Path(sys.executable).with_name("transformers")
    command = [str(program), "serve", "--port", str(port), "--host", "127.0.0.1", "--device", "cpu"]
    command += ["--continuous-batching"] if continuous else []
    environment = {**os.environ, "OMP_NUM_THREADS": str(THREADS), "HF_HUB_OFFLINE": "1"}
    with tempfile.TemporaryFile() as log:
        server = subprocess.Popen([*command, str(folder)], stdout=log, stderr=log, env=environment)
        try:
            wait_until_ready(f"http://127.0.0.1:{port}/health", server)
            yield Client(f"http://127.0.0.1:{port}", str(folder))
        finally:
            server.terminate()
            server.wait(timeout=30)


@contextmanager
def applications(folder: Path, port: int, root: Path, each: Mapping[str, Mapping[str, Any]]) -> Iterator[list[Client]]:
    """Run an application of one replica at every route of `each`, with these arguments, on a Ray of its own."""
    os.environ |= {"RAY_AUTH_MODE": "disabled", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
    sys.path.insert(0, str(Path(__file__).parents[1]))
    import ray
    from ray import serve as ray_serve

    from serve.app import build
    from serve.args import ServeArgs

    ray.init(
        address="local",
        num_cpus=4,
        namespace="hsokv",
        object_store_memory=4_000_000_000,
        logging_level="ERROR",
        log_to_driver=False,
        include_dashboard=False,
        runtime_env={"env_vars": {"PYTHONPATH": str(Path(__file__).parents[1])}},
    )
    try:
        ray_serve.start(http_options={"host": "127.0.0.1", "port": port})
        clients = []
        for number, (route, changed) in enumerate(each.items()):
            documents = str(root / f"documents-{number}")
            args = ServeArgs(
                model=str(folder), name="bench", threads=THREADS, documents_dir=documents, replica_cpus=1, **changed
            )
            ray_serve.run(build(args), name=f"bench-{number}", route_prefix=route)
            url = f"http://127.0.0.1:{port}{route.rstrip('/')}"
            wait_until_ready(f"{url}/health", None)
            clients.append(Client(url, "bench"))
        yield clients
    finally:
        ray_serve.shutdown()
        ray.shutdown()


def wait_until_ready(url: str, server: "subprocess.Popen[bytes] | None") -> None:
    """Return once `url` answers 200. Raises `TimeoutError`, or `RuntimeError` where the server ended."""
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline:
        if server is not None and server.poll() is not None:
            raise RuntimeError(f"the server behind {url} ended with {server.returncode}")
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
    raise TimeoutError(f"{url} did not answer within {_START_S} s")


def _serve_pipe(pipe: Any, kind: str, folder: str) -> None:
    torch.set_num_threads(1 if kind == "engine" else THREADS)
    answer = _engine(folder) if kind == "engine" else _generate(folder, batched=kind == "batch")
    pipe.send("ready")
    while True:
        try:
            prompts, num_tokens = pipe.recv()
        except EOFError:
            return
        try:
            pipe.send(answer(prompts, num_tokens))
        except Exception as error:  # told to whom asked, who raises it
            pipe.send(f"{type(error).__name__}: {error}")


def _generate(folder: str, *, batched: bool) -> Any:
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.generation import BaseStreamer

    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")

    class Clock(BaseStreamer):
        def __init__(self, start: float) -> None:
            self.start, self.at = start, []

        def put(self, value: torch.Tensor) -> None:
            self.at.append(time.perf_counter() - self.start)

        def end(self) -> None:
            return

    def answer(prompts: list[str], num_tokens: int) -> Load:
        texts = [chat_text(tokenizer, prompt) for prompt in prompts]
        start, heard = time.perf_counter(), []
        for group in [texts] if batched else [[text] for text in texts]:
            inputs = tokenizer(group, return_tensors="pt", padding=True)
            clock = None if batched else Clock(start)
            model.generate(**inputs, max_new_tokens=num_tokens, do_sample=False, streamer=clock, eos_token_id=None)
            end = time.perf_counter() - start
            arrivals = [end] if clock is None else clock.at[1:]  # the first call hands over the prompt
            heard += [Heard(arrivals[0], end, num_tokens, arrivals) for _ in group]
        return Load(heard, time.perf_counter() - start)

    return answer


def _engine(folder: str) -> Any:
    from hsokv_ray.inference.checkpoints import ModelSource
    from hsokv_ray.inference.engine import Engine, EngineConfig, Generation, Sampling
    from hsokv_ray.inference.engine.events import Event, Piece
    from hsokv_ray.inference.loading import load
    from hsokv_ray.longcontext.prefixes import LocalPrefixes

    loaded = load(ModelSource(model=folder, tokenizer=folder, folder=Path(folder)), device="cpu")
    engine = Engine(loaded, EngineConfig(), prefixes=LocalPrefixes(2**30), num_threads=THREADS)

    def answer(prompts: list[str], num_tokens: int) -> Load:
        texts = [chat_text(loaded.tokenizer, prompt) for prompt in prompts]
        start = time.perf_counter()
        sampling = Sampling(max_tokens=num_tokens, temperature=0, ignore_eos=True)
        streams = [
            engine.submit(Generation(str(number), loaded.tokenizer(text)["input_ids"], sampling=sampling))
            for number, text in enumerate(texts)
        ]

        def hear(stream: Iterable[Event]) -> Heard:
            arrivals = [time.perf_counter() - start for event in stream if isinstance(event, Piece)]
            return Heard(arrivals[0], time.perf_counter() - start, num_tokens, arrivals)

        with ThreadPoolExecutor(len(streams)) as threads:
            heard = list(threads.map(hear, streams))
        return Load(heard, time.perf_counter() - start)

    return answer


def chat_text(tokenizer: Any, prompt: str) -> str:
    """Return the text of a chat of one message."""
    return tokenizer.apply_chat_template([{"role": "user", "content": prompt}], tokenize=False)
