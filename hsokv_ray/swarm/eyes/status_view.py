"""A status as a table for terminals of 80 columns and more, and as one line."""

import math
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from hsokv_ray.swarm.eyes.text import flops_text, score_text, strategy_short, strategy_text
from hsokv_ray.swarm.status import Status
from hsokv_ray.training.metrics import duration

BAR_COLUMNS = 24
MAX_MANAGERS = 6
FIXED_LINES = 13
"""All that is neither a manager's nor an agent's row: head, two tables' own lines, message, and the cursor's line."""
MIN_AGENTS = 3


def status_view(status: Status, *, name: str = "", height: int = 40) -> RenderableType:
    """Return what a terminal shows. Its height depends on the number of managers and agents only.

    Args:
        status: a search at one moment.
        name: of the run.
        height: lines of the terminal.
    """
    num_managers = min(len(status.managers), MAX_MANAGERS)
    room = max(height - FIXED_LINES - num_managers, MIN_AGENTS)
    return Group(
        _head(status, name),
        _managers(status, num_managers),
        Text(" "),
        _agents(status, room),
        _line(status.message, "yellow"),
    )


def status_line(status: Status, *, is_better: bool = False) -> str:
    """Return a status as a line: `2m10s  best 0.8524 (new, a13.7 at step 120)  174 told, 3 failed, 1 lost  42 %`."""
    best = status.best
    new = f" ({'new, ' if is_better else ''}{best.order_id} at step {best.step})" if best else ""
    found = f"best {score_text(best.score)}{new}" if best else "no score yet"
    settings = f"  {strategy_text(best.strategy)}" if best and is_better else ""
    counts = f"{status.told} told, {status.failed} failed, {status.lost} lost"
    return f"{duration(status.seconds)}  {found}  {counts}  {_spent(status)}{settings}"


def _head(status: Status, name: str) -> Group:
    best = status.best
    workers = f"{status.workers} worker{'' if status.workers == 1 else 's'} {status.utilisation:4.0%} busy"
    counts = Text(f"{status.told} told, ")
    counts.append(f"{status.failed} failed, {status.lost} lost", "red" if status.failed or status.lost else "")
    now = Text(f"{duration(status.seconds):>7}  {workers}  {status.running} running, {status.waiting} waiting  ")
    found = f"best {score_text(best.score)}  {best.order_id}, step {best.step}" if best else "no score yet"
    settings = strategy_text(best.strategy) if best else ""
    return Group(
        _cut(Text.assemble((f"{name}  " if name else "", "bold"), (_bar(status), "cyan"), f" {_spent(status)}")),
        _cut(now.append_text(counts)),
        _line(found, "bold green" if best else ""),
        _line(settings, "green"),
    )


def _managers(status: Status, num: int) -> Table:
    table = _table("manager", "agents", "best", "entropy", "ancestors")
    for manager in status.managers[:num]:
        table.add_row(
            str(manager["index"]), str(manager["agents"]), score_text(manager["best"]),
            f"{manager['entropy']:.2f}", f"{manager['ancestors']:.2f}",
        )  # fmt: skip
    left_out = len(status.managers) - num
    table.caption = f"and {left_out} more managers" if left_out else None
    return table


def _agents(status: Status, room: int) -> Table:
    table = _table("agent", "mgr", "doing", "score", "strategy")
    table.columns[2].width, table.columns[3].width = 24, 8
    table.columns[4].ratio = 1
    table.expand = True
    for agent in _chosen(status.agents, room):
        table.add_row(
            f"a{agent['agent']}", str(agent["manager"]), agent["doing"], score_text(agent["score"]),
            strategy_short(agent["strategy"]), style="dim" if agent["doing"] == "ended" else "",
        )  # fmt: skip
    left_out = len(status.agents) - room
    table.caption = f"and {left_out:,} more agents, of lower scores" if left_out > 0 else None
    return table


def _chosen(agents: list[dict[str, Any]], room: int) -> list[dict[str, Any]]:
    """Return all agents, or where there is no room those of the best scores, best first."""
    if len(agents) <= room:
        return agents
    return sorted(agents, key=lambda agent: math.inf if agent["score"] is None else -agent["score"])[:room]


def _table(*columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False, caption_justify="left", show_edge=False)
    for column in columns:
        right = column in ("agents", "best", "entropy", "ancestors", "score", "mgr")
        table.add_column(column, justify="right" if right else "left", no_wrap=True, overflow="ellipsis")
    return table


def _bar(status: Status) -> str:
    """Return the share of the budget spent as a bar; without a budget, or past it, nothing and all."""
    full = round(BAR_COLUMNS * min(_share(status) or 0.0, 1.0))
    return "█" * full + "░" * (BAR_COLUMNS - full) if status.flops_budget else ""


def _spent(status: Status) -> str:
    total, share = sum(status.flops.values()), _share(status)
    if share is None or status.flops_budget is None:
        return f"{flops_text(total)}, no budget"
    return f"{share:.0%} of {flops_text(status.flops_budget)}"


def _share(status: Status) -> float | None:
    return sum(status.flops.values()) / status.flops_budget if status.flops_budget else None


def _line(text: str, style: str) -> Text:
    return _cut(Text(text or " ", style))


def _cut(text: Text) -> Text:
    text.no_wrap, text.overflow = True, "ellipsis"
    return text
