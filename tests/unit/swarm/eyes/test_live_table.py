"""The live view: what it says is the status, it keeps to the terminal, and it does not jump."""

import io
import re
from pathlib import Path

import pytest
from rich.console import Console
from swarm_status import status_of
from synthetic_search import SyntheticSearch

from hsokv_ray.swarm.config import SwarmConfig
from hsokv_ray.swarm.eyes.live_table import LiveTable
from hsokv_ray.swarm.eyes.status_view import status_line, status_view
from hsokv_ray.swarm.eyes.text import flops_text, strategy_short, strategy_text
from hsokv_ray.swarm.status import Status

SMALL = SwarmConfig(num_managers=2, agents_per_manager=3, max_steps=60, interval_steps=6, flops_budget=4 * 10**10)
LARGE = SwarmConfig(num_managers=9, agents_per_manager=112, max_steps=60, interval_steps=6)


class Clock:
    """Seconds that pass when they are told to."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def moments(folder: Path, config: SwarmConfig) -> list[Status]:
    """Return the status at the beginning, on the way, and at the end."""
    search = SyntheticSearch(folder, config, loss_probability=0.1)
    return [status_of(search.run(num)) for num in (0, 1, 7, 20, 60)] + [status_of(search.run(400))]


def rendered(status: Status, *, width: int = 80, height: int = 40) -> list[str]:
    out = io.StringIO()
    console = Console(file=out, width=width, height=height, force_terminal=True, color_system=None)
    console.print(status_view(status, name="words", height=height))
    return out.getvalue().splitlines()


@pytest.mark.parametrize("config", [SMALL, LARGE], ids=["6 agents", "1,008 agents"])
def test_it_fits_80_columns_and_the_terminal_and_keeps_its_height(config: SwarmConfig, tmp_path: Path) -> None:
    for height in (24, 40):
        views = [rendered(status, height=height) for status in moments(tmp_path / str(height), config)]
        assert max(len(line) for view in views for line in view) <= 80
        assert len({len(view) for view in views}) == 1
        assert len(views[0]) < height


def test_columns_stay_where_they_are_while_the_search_goes_on(tmp_path: Path) -> None:
    heads = [[line for line in rendered(s) if line.startswith("agent ")] for s in moments(tmp_path, SMALL)]
    assert all(len(head) == 1 for head in heads)
    assert len({head[0] for head in heads}) == 1


def test_it_shows_budget_workers_failures_best_managers_and_what_each_agent_does(tmp_path: Path) -> None:
    status = moments(tmp_path, SMALL)[3]
    text = "\n".join(rendered(status, width=200))
    best = status.best
    assert best is not None
    spent = sum(status.flops.values()) / 4e10
    assert f"{spent:.0%} of 40 GFLOP" in text
    assert text.count("█") == round(24 * spent)
    assert f"{status.told} told, {status.failed} failed, {status.lost} lost" in text
    assert f"{status.running} running, {status.waiting} waiting" in text
    assert "6 workers  93% busy" in text
    assert f"best {best.score:.4f}  {best.order_id}, step {best.step}" in text
    assert strategy_text(best.strategy) in text
    for manager in status.managers:
        numbers = [str(manager["index"]), str(manager["agents"])]
        numbers += ["-" if manager["best"] is None else f"{manager['best']:.4f}"]
        numbers += [f"{manager['entropy']:.2f}", f"{manager['ancestors']:.2f}"]
        assert re.search(r"^" + r"\s+".join(map(re.escape, numbers)) + r"\s*$", text, re.MULTILINE)
    for agent in status.agents:
        score = "-" if agent["score"] is None else f"{agent['score']:.4f}"
        row = [f"a{agent['agent']}", str(agent["manager"]), agent["doing"], score, strategy_short(agent["strategy"])]
        assert re.search(r"^" + r"\s+".join(map(re.escape, row)), text, re.MULTILINE)
    assert any("training" in agent["doing"] for agent in status.agents)


def test_of_many_agents_it_shows_the_best_and_says_how_many_more_there_are(tmp_path: Path) -> None:
    status = moments(tmp_path, LARGE)[4]
    lines = rendered(status, height=40)
    shown = [int(line.split()[0][1:]) for line in lines if re.match(r"a\d+ ", line)]
    scores = {agent["agent"]: agent["score"] for agent in status.agents if agent["score"] is not None}
    best = sorted(scores, key=lambda agent: -scores[agent])
    assert shown[: len(best)] == best[: len(shown)]
    assert f"and {1008 - len(shown):,} more agents" in "\n".join(lines)
    assert "and 3 more managers" in "\n".join(lines)


def test_markup_in_a_message_or_a_setting_is_shown_as_it_is(tmp_path: Path) -> None:
    status = status_of(SyntheticSearch(tmp_path, SMALL), message="disk [red]full[/] [/nonsense]")
    assert "disk [red]full[/] [/nonsense]" in "\n".join(rendered(status))


def test_lines_tell_each_improvement_and_once_a_minute_how_it_goes(tmp_path: Path) -> None:
    out, clock = io.StringIO(), Clock()
    search = SyntheticSearch(tmp_path, SMALL, loss_probability=0.1)
    improvements, minute, begun, best = 0, 60.0, None, None
    with LiveTable(console=Console(file=out, width=80), clock=clock) as table:
        for num in range(1, 60):
            status = status_of(search.run(num))
            clock.now_s += 7.0
            table(status)
            now = status.best.score if status.best else None
            better = now is not None and (best is None or now > best)
            improvements += better or begun is None or clock.now_s - begun >= minute
            begun = clock.now_s if better or begun is None or clock.now_s - begun >= minute else begun
            best = now if better else best
        shown_last = begun == clock.now_s
    lines = out.getvalue().splitlines()
    assert len(lines) == improvements + (not shown_last)
    assert sum("new, " in line for line in lines) > 3
    assert "\x1b" not in out.getvalue()


def test_a_line_that_is_longer_than_the_screen_is_not_broken(tmp_path: Path) -> None:
    out = io.StringIO()
    with LiveTable(console=Console(file=out, width=40)) as table:
        table(moments(tmp_path, SMALL)[3])
    assert len(out.getvalue().splitlines()) == 1


def test_a_terminal_is_drawn_at_most_4_times_a_second_and_ends_with_the_last_status(tmp_path: Path) -> None:
    out, clock = io.StringIO(), Clock()
    search = SyntheticSearch(tmp_path, SMALL)
    with LiveTable(console=Console(file=out, width=80, height=40, force_terminal=True), clock=clock) as table:
        for num in range(1, 41):
            clock.now_s += 0.05
            table(status_of(search.run(num)))
    drawn = re.findall(r"(\d+) told", out.getvalue())
    assert 8 <= len(drawn) <= 10 + 2
    assert int(drawn[-1]) == status_of(search).told


def test_nothing_shown_is_nothing_printed() -> None:
    out = io.StringIO()
    with LiveTable(console=Console(file=out, width=80)):
        pass
    assert out.getvalue() == ""


def test_without_a_budget_or_a_score_the_line_says_so(tmp_path: Path) -> None:
    line = status_line(status_of(SyntheticSearch(tmp_path, LARGE)))
    assert line == "0s  no score yet  0 told, 0 failed, 0 lost  0 FLOP, no budget"


@pytest.mark.parametrize(
    ("flops", "text"),
    [(0, "0 FLOP"), (999, "999 FLOP"), (1.25e12, "1.25 TFLOP"), (4e10, "40 GFLOP"), (3e21, "3e+03 EFLOP")],
)
def test_flops_have_the_prefix_that_makes_them_short(flops: float, text: str) -> None:
    assert flops_text(flops) == text
