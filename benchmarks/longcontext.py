#!/usr/bin/env python
"""Long context beside its peers: time, memory and accuracy from 1 thousand to 512 thousand tokens.

    python benchmarks/longcontext.py                   about 45 minutes on 2 cores, up to 20 GB of memory
    python benchmarks/longcontext.py --part recall     one part of MHA, GQA, window, recall; each writes its own result
    python benchmarks/longcontext.py --quick           a minute: does it run, not how fast
    python benchmarks/longcontext.py --device cuda     a 1B-parameter shape in bfloat16; PQ, a CPU method, is left out

Each system has a process of its own and they take turns, so what slows the machine slows them all: ratios are between
medians of one run. Writing is timed on contexts filled with random keys and values, on which speed does not depend;
reading is timed for real, but for full attention past 4 thousand tokens and all past 128 thousand, which are timed in
pieces at growing depth and added up. Accuracy is that of a small trained model with a window of its own
(`longcontext_recall.py`), since random weights recall nothing.
"""

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from harness import RESULTS, Target, markdown, write_result
from longcontext_peers import SYSTEMS, Shape
from longcontext_recall import measure_recall
from longcontext_speed import FULL, QUESTION_TOKENS, ModelRun, Plan, Row, measure_bandwidth

FULL_PLAN = Plan(lengths=(896, 4096, 16_384, 32_768, 65_536, 131_072), longest=524_288)
QUICK_PLAN = Plan(lengths=(896, 4096, 8192), longest=12_288, turns=1, steps=3, full_reads=1, long_read=1024)
SHAPES = {
    "MHA": Shape(),
    "GQA": Shape(num_key_value_heads=2),
    "1B": Shape(
        num_layers=16,
        hidden_size=2048,
        intermediate_size=8192,
        num_heads=32,
        num_key_value_heads=8,
        vocab_size=32_768,
        window=8192,
        dtype="bfloat16",
    ),
}
WINDOW_PLAN = Plan(lengths=(896,), longest=None, turns=40)
WINDOW_SYSTEMS = ("full", "flat", "pq")
PARTS = (*SHAPES, "window", "recall")
CUDA_LENGTHS = (7680, 16_384, 32_768, 65_536, 131_072)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--part", choices=PARTS, action="append", help="one part only; may be given again")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    arguments = parser.parse_args()
    parts = arguments.part or (("1B",) if arguments.device == "cuda" else ("MHA", "GQA", "window", "recall"))
    for part in parts:
        if part == "recall":
            write_recall(quick=arguments.quick)
        elif part == "window":
            write_window(device=arguments.device, quick=arguments.quick)
        else:
            write_speed(part, device=arguments.device, quick=arguments.quick)
        if not arguments.quick:
            write_markdown(RESULTS / "longcontext.md")


def write_speed(model: str, *, device: str, quick: bool) -> None:
    """Measure times and memory on the shape `model` and write them."""
    plan, systems = (QUICK_PLAN if quick else FULL_PLAN), SYSTEMS
    if device == "cuda":
        plan = replace(plan, lengths=CUDA_LENGTHS[: 2 if quick else None], longest=None)
        systems = tuple(name for name in SYSTEMS if name != "pq")
    shape = SHAPES[model]
    if shape.num_key_value_heads == shape.num_heads:
        plan = replace(plan, longest=None)
    started = time.perf_counter()
    bandwidth = measure_bandwidth(device)
    rows = ModelRun(shape, plan, systems, device, bandwidth).measure()
    conditions = {
        "device": device,
        "read_bandwidth_GB_per_s": bandwidth / 1e9,
        "minutes": (time.perf_counter() - started) / 60,
        "question_tokens": QUESTION_TOKENS,
        "tokens_timed_per_cell": plan.turns * plan.steps,
    }
    tables = {f"{model}: {describe(shape)}": rows, f"{model}: conditions": [conditions]}
    targets = speed_targets(model, rows, systems)
    write_result(f"longcontext_{model.lower()}", tables=tables, targets=targets, quick=quick)


def write_window(*, device: str, quick: bool) -> None:
    """Measure decoding within the window alone, where few milliseconds decide, in many turns; write it."""
    plan = replace(WINDOW_PLAN, turns=2) if quick else WINDOW_PLAN
    bandwidth = measure_bandwidth(device)
    tables, targets = {}, []
    for name in ("MHA", "GQA"):
        tables[f"{name}, within the window"] = ModelRun(SHAPES[name], plan, WINDOW_SYSTEMS, device, bandwidth).measure()
        targets.append(window_target(name, tables[f"{name}, within the window"], "pq"))
    write_result("longcontext_window", tables=tables, targets=targets, quick=quick)


def write_recall(*, quick: bool) -> None:
    """Measure accuracy and write it."""
    rows = measure_recall(quick=quick)
    tables = {"Accuracy of a small trained model, share of exact answers": rows}
    write_result("longcontext_recall", tables=tables, targets=recall_targets(rows), quick=quick)


def describe(shape: Shape) -> str:
    """Return what the title of a table says of a model."""
    return (
        f"{shape.num_layers} layers, width {shape.hidden_size}, {shape.num_heads} heads of {shape.head_dim}, "
        f"{shape.num_key_value_heads} key-value heads, {shape.dtype}, window {shape.window}"
    )


def speed_targets(model: str, rows: Sequence[Row], systems: Sequence[str]) -> list[Target]:
    """Return the promises on time and size; `pq`, what `auto` becomes on a CPU, has to keep them."""
    ours = "pq" if "pq" in systems else "flat"
    cells = {(row["system"], row["context"]): row for row in rows}
    lengths = sorted({row["context"] for row in rows if row["system"] == FULL})

    def ratio(field: str, of: tuple[str, int], to: tuple[str, int]) -> float:
        return cells[of][field] / cells[to][field]

    targets = [window_target(model, rows, ours)]
    for length, bound in ((32_768, 3), (131_072, 8)):
        if length in lengths:
            name = f"{model}: full / {ours}, decode at {length}"
            value = cells[ours, length]["full_over_this"]
            targets.append(Target(name=name, value=value, bound=bound, kind="at least"))
    if {16_384, 131_072} <= set(lengths):
        slower = ratio("decode_p50_ms", (ours, 131_072), (ours, 16_384))
        name = f"{model}: {ours} at 131072 / at 16384, decode"
        targets.append(Target(name=name, value=slower, bound=2, kind="at most"))
        faster = ratio("prefill_tokens_per_s", (ours, 131_072), (FULL, 131_072))
        name = f"{model}: {ours} / full, prefill tokens/s at 131072"
        targets.append(Target(name=name, value=faster, bound=8, kind="at least"))
    longest = cells[ours, lengths[-1]]
    share = longest["index_bytes_per_token"] / longest["kv_bytes_per_token"]
    targets.append(Target(name=f"{model}: {ours} index / keys and values", value=share, bound=0.04, kind="at most"))
    return targets


def window_target(model: str, rows: Sequence[Row], ours: str) -> Target:
    """Return the promise on decoding within the window, the first length of `rows`."""
    within = next(row for row in rows if row["system"] == ours)
    name = f"{model}: {ours} / full, decode within the window"
    return Target(name=name, value=1 / within["full_over_this"], bound=1.10, kind="at most")


def recall_targets(rows: Sequence[Row]) -> list[Target]:
    """Return the promises on accuracy at the greatest length."""
    cells = {(row["system"], row["context"]): row for row in rows}
    lengths = sorted({row["context"] for row in rows if row["system"] == "pq"})
    first, last = lengths[0], lengths[-1]
    lost = round(cells[FULL, first]["multi_key"] - cells["pq", last]["multi_key"], 9)  # shares of counts, not floats
    ahead = cells["pq", last]["passkey"] - cells["streaming", last]["passkey"]
    passkey = min(cells["pq", length]["passkey"] for length in lengths)
    return [
        Target(name="pq: passkey, worst length", value=passkey, bound=0.99, kind="at least"),
        Target(name=f"multi-key, full at {first} - pq at {last}", value=lost, bound=0.02, kind="at most"),
        Target(name=f"passkey, pq - streaming at {last}", value=ahead, bound=0.5, kind="at least"),
    ]


def write_markdown(path: Path) -> None:
    """Write the tables and targets of all parts that were measured, for people."""
    lines = ["# Long context beside its peers", "", f"`{Path(__file__).name}`: {(__doc__ or '').splitlines()[0]}", ""]
    lines += [*NOTES.splitlines(), ""]
    targets: list[str] = []
    for part in PARTS:
        measured = RESULTS / f"longcontext_{part.lower()}.json"
        if not measured.exists():
            continue
        result = json.loads(measured.read_text(encoding="utf-8"))
        lines += [
            f"# {part}",
            "",
            f"`{result['run']['command']}`, {result['run']['date']}, {machine(result['run'])}",
            "",
        ]
        for title, rows in result["tables"].items():
            lines += [f"## {title}", "", markdown([shown(row) for row in rows])]
        targets += [
            f"- {'met' if target['met'] else '**missed**'}: {target['name']} is {target['value']:.3g}, "
            f"promised {target['kind']} {target['bound']:g}"
            for target in result["targets"]
        ]
    lines += ["# Targets", "", *targets]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"written to {path}")


def machine(run: Row) -> str:
    """Return what a reader has to know of the machine of a run."""
    where, versions = run["machine"], run["versions"]
    name = where["gpu"] or f"{where['cpu']}, {where['cores']} cores"
    return f"{name}, torch {versions['torch']}, transformers {versions['transformers']}"


def shown(row: Row) -> Row:
    """Return a row for reading: three significant digits, a dash for what was not measured."""

    def cell(value: Any) -> Any:
        if value is None:
            return "–"
        if isinstance(value, float):
            return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
        return value

    return {key: cell(value) for key, value in row.items()}


NOTES = """
- `context`: tokens read before the question. The first row lies within the window: all systems are exact there.
- `first_token_s`: reading the context, then a question of 32 tokens, to the first token of the answer. `question_ms`:
  the second part alone, as for every further question on a context that is kept.
- Reading is timed for real up to 131,072 tokens; for full attention past 4,096 it is added up from pieces of 512 tokens
  at eight depths, on a cache filled with random keys and values; up to 524,288 ours is added up from its
  speed at 131,072 and that of 8,192 tokens at the end.
- `decode`: milliseconds per token written, wall clock, on filled contexts. `full_over_this`: full attention's median
  over this one's, both of the same turns. Full attention is transformers' own path; it copies its cache every step.
- `limit_ms`: bytes a step cannot do without (weights, what is attended to, what is searched) over the bandwidth of
  reading memory, measured in the same run.
- `peak_MB`: highest resident set of the system's process up to this length, Python and torch included; on a GPU the
  highest allocation.
- `passkey`, `multi_key`: share of exact answers of another model, small and trained, with a window of its own, by the
  same method; the models timed have random weights, which recall nothing. `truncated`: the newest tokens that fit.
- The part `window` decodes within the window alone, in 40 turns instead of 6: there a few milliseconds decide.
- Systems: full attention, Mistral's sliding window, StreamingLLM (4 sinks), ours by index; a process each, in turns.
""".strip()


if __name__ == "__main__":
    main()
