#!/usr/bin/env python
"""Write the README's table of targets, and the measured sections of documents, from benchmarks/results.

python benchmarks/readme_table.py
"""

import json
from pathlib import Path
from typing import Any

from harness import RESULTS, markdown

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
DOCS = ROOT / "docs"
SECTIONS = {
    DOCS / "serving.md": ["serving"],
    DOCS / "swarm.md": ["swarm_offline", "swarm_live", "swarm_overhead", "hsokv_tasks", "real_words", "rollouts"],
}
"""Document -> the results whose tables stand between its marks `NAME:begin` and `NAME:end`."""
BEGIN, END = "| Benchmark | What | Measured | Target | |\n|---|---|---|---|---|\n", "\n\n"
TITLES = {
    "moe_block": "MoE block, forward + backward, 4,096 tokens, 8 experts top-2",
    "micro_step": "Micro training step",
    "data_pipeline": "Data pipeline, 48 MB of books",
    "memory_engines": "Engines, 37,363 real sentence vectors",
    "memory_scale": "FAISS store, 10 thousand to 1 million vectors",
    "memory_shared": "Shared memory, 200,000 vectors, 2 cores",
    "longcontext_window": "Long context, LLaMA of 6 x 512, window 1,024",
    "longcontext_mha": "Long context, LLaMA of 6 x 512, window 1,024",
    "longcontext_gqa": "Long context, LLaMA of 6 x 512, window 1,024",
    "longcontext_recall": "Long context, a trained LLaMA of 1.5 M parameters, window 512",
    "longcontext_encoder_decoder": "Long context, T5 and BART",
    "serving": "Serving, LLaMA of 6 x 512",
    "swarm_offline": "Swarm search, 24 held-out lcbench surrogates, 10 seeds",
    "swarm_live": "Swarm search, live training of 4 tasks, 5 seeds",
    "swarm_overhead": "Swarm search, orchestration on 2 cores",
    "hsokv_tasks": "H-SOKV, 5 seeds",
    "real_words": "H-SOKV on vectors of a frozen MiniLM, real words, 5 seeds",
    "rollouts": "CartPole on distributed workers, 5 seeds",
    "search_presets": "`jobs/search_swarm.py` from command to exit, 2 cores",
}
"""Result -> what it measures, in the table's order."""


def main() -> None:
    README.write_text(with_table(README.read_text(encoding="utf-8")), encoding="utf-8")
    for path, names in SECTIONS.items():
        for name in names:
            path.write_text(with_section(path.read_text(encoding="utf-8"), name), encoding="utf-8")


def with_table(readme: str) -> str:
    """Return the text of the README with the table as the results have it."""
    before, _, rest = readme.partition(BEGIN)
    _, _, after = rest.partition(END)
    return before + BEGIN + "\n".join(rows()) + END + after


def with_section(document: str, name: str) -> str:
    """Return the text of a document with the tables of the result `name` between its marks."""
    begin, end = f"<!-- {name}:begin -->\n", f"<!-- {name}:end -->"
    before, _, rest = document.partition(begin)
    return before + begin + _section(name) + end + rest.partition(end)[2]


def _section(name: str) -> str:
    path = RESULTS / f"{name}.json"
    if not path.exists():
        return f"Not measured yet: `python benchmarks/{name}.py` does it.\n"
    result = json.loads(path.read_text(encoding="utf-8"))
    run = result["run"]
    machine = f"{run['machine']['cores']} cores, {run['machine']['cpu']}"
    said = f"`{run['command']}` at {run['revision']}, {run['date'][:10]}: {machine}."
    tables = [
        f"**{title}**\n\n{markdown([with_intervals(row) for row in rows])}" for title, rows in result["tables"].items()
    ]
    return "\n".join([f"{said}\n", *tables])


def with_intervals(row: dict[str, Any]) -> dict[str, Any]:
    """Return `row` with columns "x", "x, low" and "x, high" as one, and lists and settings as words."""
    shown: dict[str, Any] = {}
    for name, value in row.items():
        if name.endswith((", low", ", high")):
            continue
        ends = [row.get(f"{name}, {end}") for end in ("low", "high")]
        if None not in ends and value is not None:
            value = f"{_short(value)} [{_short(ends[0])}, {_short(ends[1])}]"
        elif isinstance(value, list | dict):
            pairs = value.items() if isinstance(value, dict) else [("", each) for each in value]
            value = ", ".join(f"{key} {each}".strip() for key, each in pairs)
        shown[name] = "" if value is None else value
    return shown


def rows() -> list[str]:
    """Return a row for every target of every committed result; a target measured twice stands with the first."""
    seen: set[str] = set()
    lines = []
    for name, title in TITLES.items():
        path = RESULTS / f"{name}.json"
        targets = json.loads(path.read_text(encoding="utf-8"))["targets"] if path.exists() else []
        for target in targets:
            if f"{title}{target['name']}" in seen:
                continue
            seen.add(f"{title}{target['name']}")
            verdict = "met" if target["met"] else "**missed**"
            bound = f"{target['kind']} {target['bound']:,g}"
            lines.append(f"| {title} | {target['name']} | {_short(target['value'])} | {bound} | {verdict} |")
    return lines


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


if __name__ == "__main__":
    main()
