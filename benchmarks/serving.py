#!/usr/bin/env python
"""The application beside `transformers serve` and models asked without HTTP: latency, throughput, documents, uploads.

    python benchmarks/serving.py            about 12 minutes on 2 cores
    python benchmarks/serving.py --quick    two minutes: does it run, not how fast

One random LLaMA (6 layers, 512 wide, window 1,024, float32) behind all of them, greedy, without an end token, so that
all write equally many tokens. Every system is asked in its turn with the same prompts, round after round;
medians over the rounds. Clients and servers share the machine's cores.
"""

import argparse
import json
import statistics
import tempfile
import time
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness import Target, write_result
from serving_client import Client, Load
from serving_systems import Direct, applications, save_model, sources, transformers_serve

OURS = "application"
UNGATHERED = "application, stream_interval_ms 0"
ROUTES = {OURS: ("/", {}), UNGATHERED: ("/ungathered", {"stream_interval_ms": 0})}
PORTS = {OURS: 8811, "transformers serve": 8812, "transformers serve, continuous batching": 8813}
DIRECT = {"transformers generate": "generate", "transformers generate, batched": "batch", "engine": "engine"}
STREAMS = (1, 4, 16)
MAX_GAP_S = 0.5
"""The longest a running stream may wait while a document is read."""

Row = dict[str, Any]


@dataclass(frozen=True)
class Plan:
    """How much is measured."""

    rounds: int = 3
    num_tokens: int = 128
    document_tokens: int = 100_000
    upload_streams: int = 4


QUICK = Plan(rounds=1, num_tokens=8, document_tokens=6000, upload_streams=2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args().quick
    plan = QUICK if quick else Plan()
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        model = save_model(Path(folder) / "model")
        clients = stack.enter_context(applications(model, PORTS[OURS], Path(folder), dict(ROUTES.values())))
        with ExitStack() as peers:  # gone before documents are encoded: one of them takes half of the memory
            systems, left_out = start_peers(model, peers)
            loads = measure_streams(dict(zip(ROUTES, clients, strict=True)) | systems, plan)
        tables = {"Streams at once": stream_rows(loads)} | ({"Left out": left_out} if left_out else {})
        results = stream_targets(loads)
        write_result("serving", tables=tables, targets=results, quick=quick)  # as far as it is
        document, upload = measure_document(clients[0], plan), measure_upload(clients[0], plan)
    tables |= {
        f"A document of {plan.document_tokens:,} tokens": document,
        f"{plan.upload_streams} streams while a document is encoded": upload,
    }
    results += document_targets(document, upload)
    write_result("serving", tables=tables, targets=results, quick=quick)


def start_peers(model: Path, stack: ExitStack) -> tuple[dict[str, Any], list[Row]]:
    """Return what else can be asked, and what could not be started, with the reason."""
    systems: dict[str, Any] = {}
    left_out = []
    for name, continuous in (("transformers serve", False), ("transformers serve, continuous batching", True)):
        try:
            client = stack.enter_context(transformers_serve(model, PORTS[name], continuous=continuous))
            client.ask(["Hello"], num_tokens=4)
            systems[name] = client
        except Exception as error:  # a peer that does not run here is named in the result
            left_out.append({"system": name, "why": f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"})
    for name, kind in DIRECT.items():
        systems[name] = Direct(kind, model)
        stack.callback(systems[name].close)
    return systems, left_out


def measure_streams(systems: Mapping[str, Any], plan: Plan) -> dict[tuple[str, int], list[Load]]:
    """Return the loads of each system and number of streams, a round after the other."""
    loads: dict[tuple[str, int], list[Load]] = {}
    for turn in range(-1, plan.rounds):  # the first round warms up
        for number in STREAMS:
            for name, system in systems.items():
                load = system.ask(prompts(number, turn), num_tokens=plan.num_tokens)
                print(f"round {turn}: {name}, {number} streams: {load.tokens_per_s:.0f} tokens/s", flush=True)
                if turn >= 0:
                    loads.setdefault((name, number), []).append(load)
    return loads


def prompts(number: int, turn: int) -> list[str]:
    """Return different prompts of 30 to 50 tokens."""
    text = sources(60)[turn % 20 + 20]
    return [f"{turn} {i}: {text[i * 120 : i * 120 + 120]}" for i in range(number)]


def stream_rows(loads: Mapping[tuple[str, int], Sequence[Load]]) -> list[Row]:
    """Return a row per system and number of streams."""
    return [
        {
            "system": name,
            "streams": number,
            "first_token_ms": 1e3 * middle(runs, lambda load: load.first_s),
            "per_token_ms": 1e3 * middle(runs, lambda load: load.token_s),
            "tokens_per_s": middle(runs, lambda load: load.tokens_per_s),
            "rounds": len(runs),
        }
        for (name, number), runs in sorted(loads.items(), key=lambda item: (item[0][1], item[0][0]))
    ]


def measure_document(client: Client, plan: Plan) -> list[Row]:
    """Return how long the first and later questions about a document wait for their first token."""
    document = upload(client, text_of(client, plan.document_tokens, seed=1), encode=False)
    waits = []
    for number in range(6):
        load = client.ask([f"Question {number}: what does it say?"], num_tokens=8, documents=[document])
        waits.append(load.first_s)
    return [
        {"question": "first, the document is encoded", "first_token_s": waits[0]},
        {"question": "later, median of 5", "first_token_s": statistics.median(waits[1:])},
    ]


def measure_upload(client: Client, plan: Plan) -> list[Row]:
    """Return what running streams notice of a document that is being encoded."""
    num_tokens = 4 * plan.num_tokens
    alone = client.ask(prompts(plan.upload_streams, 1), num_tokens=num_tokens)
    document = upload(client, text_of(client, plan.document_tokens, seed=2), encode=True)
    started = state(client, document)
    busy = client.ask(prompts(plan.upload_streams, 2), num_tokens=num_tokens)
    ended = state(client, document)
    read = ended["tokens_done"] - started["tokens_done"]
    rows = []
    for name, load, done in (("alone", alone, 0), ("while encoding", busy, read)):
        gaps = sorted(gap for heard in load.heard for gap in heard.gaps_s)
        rows.append(
            {
                "streams are": name,
                "per_token_ms": 1e3 * load.token_s,
                "gap_p99_ms": 1e3 * gaps[int(0.99 * (len(gaps) - 1))],
                "gap_max_ms": 1e3 * gaps[-1],
                "document_tokens_read": done,
                "document_tokens_per_s": done / load.seconds,
            }
        )
    return rows


def stream_targets(loads: Mapping[tuple[str, int], Sequence[Load]]) -> list[Target]:
    """Return what was promised of streams."""

    def per_token(name: str) -> float:
        return middle(loads[name, 1], lambda load: load.token_s)

    def rate(name: str, number: int) -> float:
        return middle(loads[name, number], lambda load: load.tokens_per_s)

    results = [
        Target(
            name="HTTP and Serve per token at 1 stream, application / engine",
            value=per_token(OURS) / per_token("engine"),
            bound=1.10,
            kind="at most",
        ),
        Target(
            name="tokens/s of 16 streams / of one at a time",
            value=rate(OURS, 16) / rate(OURS, 1),
            bound=4,
            kind="at least",
        ),
    ]
    for peer in (*list(PORTS)[1:], "transformers generate"):
        if (peer, 16) in loads:
            ratio = rate(OURS, 16) / rate(peer, 16)
            results.append(Target(name=f"tokens/s of 16 streams / {peer}", value=ratio, bound=1, kind="at least"))
    return results


def document_targets(document: Sequence[Row], upload: Sequence[Row]) -> list[Target]:
    """Return what was promised of documents."""
    return [
        Target(
            name="first token, first / second question on a document",
            value=document[0]["first_token_s"] / document[1]["first_token_s"],
            bound=50,
            kind="at least",
        ),
        Target(
            name="longest gap in streams while a document is encoded, ms",
            value=upload[1]["gap_max_ms"],
            bound=1e3 * MAX_GAP_S,
            kind="at most",
        ),
    ]


def middle(runs: Sequence[Load], value: Callable[[Load], float]) -> float:
    """Return the median of `value` over `runs`."""
    return statistics.median(map(value, runs))


def text_of(client: Client, num_tokens: int, *, seed: int) -> str:
    """Return a text of about `num_tokens` tokens; different for each seed."""
    text = f"{seed}\n" + "\n".join(sources(150)[seed::2])
    return text[: int(num_tokens * 3.0)]


def upload(client: Client, text: str, *, encode: bool) -> str:
    """Store `text` as a document; return its id."""
    query = f"?name=bench.txt&encode={str(encode).lower()}"
    request = urllib.request.Request(f"{client.url}/v1/documents{query}", data=text.encode(), method="POST")
    request.add_header("Content-Type", "text/plain")
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)["id"]


def state(client: Client, document: str) -> Row:
    """Return how far a document is encoded, once that has begun."""
    deadline = time.monotonic() + 60
    while True:
        with urllib.request.urlopen(f"{client.url}/v1/documents/{document}", timeout=30) as answer:
            found = json.load(answer)
        if found["state"] != "stored" or time.monotonic() > deadline:
            return found
        time.sleep(0.05)


if __name__ == "__main__":
    main()
