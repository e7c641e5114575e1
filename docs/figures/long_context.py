"""Draw docs/figures/long_context.svg: what one query sees of a text far past the window.

python docs/figures/long_context.py
"""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
matplotlib.rcParams |= {"svg.fonttype": "none", "svg.hashsalt": "hsokv", "font.size": 9, "font.family": "sans-serif"}

from matplotlib import pyplot as plt  # noqa: E402
from matplotlib.axes import Axes  # noqa: E402
from matplotlib.patches import FancyArrowPatch, Rectangle  # noqa: E402

SINK, FAR, HIT, LOCAL, INK, PALE = "#d08c2f", "#dfe3e8", "#3a7d6b", "#3f6ea8", "#2b2f36", "#7d8793"
NUM_BLOCKS, HITS = 26, (3, 10, 11, 21)
BLOCK, GAP, SINKS, LOCALS = 0.9, 0.12, 0.7, 3.4
TEXT_Y, INDEX_Y, WINDOW_Y, HEIGHT = 6.2, 3.9, 1.0, 0.8


def main() -> None:
    figure, axes = plt.subplots(figsize=(9.6, 4.3))
    far_x = [SINKS + 0.3 + i * (BLOCK + GAP) for i in range(NUM_BLOCKS)]
    local_x = far_x[-1] + BLOCK + 0.3
    right = local_x + LOCALS
    draw_text(axes, far_x, local_x)
    draw_index(axes, far_x, right)
    draw_window(axes, far_x, local_x, right)
    axes.set_xlim(-0.4, right + 0.4)
    axes.set_ylim(-0.35, 8.3)
    axes.set_axis_off()
    figure.subplots_adjust(0, 0, 1, 1)
    figure.savefig(Path(__file__).with_suffix(".svg"), metadata={"Date": None})


def draw_text(axes: Axes, far_x: list[float], local_x: float) -> None:
    """The whole text of one layer and key-value head: sinks, blocks, local part."""
    box(axes, 0, TEXT_Y, SINKS, SINK)
    for i, x in enumerate(far_x):
        box(axes, x, TEXT_Y, BLOCK, HIT if i in HITS else FAR)
    box(axes, local_x, TEXT_Y, LOCALS, LOCAL)
    middle = (far_x[0] + far_x[-1] + BLOCK) / 2
    label(
        axes,
        0,
        TEXT_Y + 1.5,
        "everything read so far, kept in main memory: one layer, one head",
        align="left",
    )
    label(axes, SINKS / 2, TEXT_Y + 1.05, "sinks", color=SINK)
    label(axes, middle, TEXT_Y + 1.05, "far: whole blocks of tokens, as many as there are", color=PALE)
    label(axes, local_x + LOCALS / 2, TEXT_Y + 1.05, "local: the newest", color=LOCAL)


def draw_index(axes: Axes, far_x: list[float], right: float) -> None:
    """Every far token's score, and the blocks that the best ones lie in."""
    left, width = far_x[0], far_x[-1] + BLOCK - far_x[0]
    axes.add_patch(Rectangle((left, INDEX_Y), width, HEIGHT, facecolor="white", edgecolor=PALE, linewidth=1))
    for i, x in enumerate(far_x):
        for j in range(4):
            peak = i in HITS and j == (i * 7) % 4
            height = HEIGHT * (0.86 if peak else 0.08 + 0.05 * ((i * 5 + j * 3) % 7))
            axes.add_patch(
                Rectangle((x + 0.06 + j * 0.21, INDEX_Y), 0.14, height, facecolor=HIT if peak else FAR, linewidth=0)
            )
    label(
        axes,
        left,
        INDEX_Y + 1.15,
        "index: query · key for every far token; the best tokens name their blocks",
        align="left",
    )
    query = right - LOCALS / 2 - 0.1
    label(axes, query, INDEX_Y + 0.4, "query of the\nnewest token", color=INK)
    arrow(axes, (query - 1.4, INDEX_Y + 0.4), (left + width, INDEX_Y + 0.4), INK)


def draw_window(axes: Axes, far_x: list[float], local_x: float, right: float) -> None:
    """What attention sees: no more than the trained window, side by side, in the order of the text."""
    width = SINKS + len(HITS) * BLOCK + LOCALS + 0.1 * (len(HITS) + 1)
    x = left = (right - width) / 2
    box(axes, x, WINDOW_Y, SINKS, SINK)
    drop(axes, SINKS / 2, x + SINKS / 2, SINK)
    x += SINKS + 0.1
    for i in HITS:
        box(axes, x, WINDOW_Y, BLOCK, HIT)
        arrow(axes, (far_x[i] + BLOCK / 2, INDEX_Y), (x + BLOCK / 2, WINDOW_Y + HEIGHT), HIT)
        x += BLOCK + 0.1
    box(axes, x, WINDOW_Y, LOCALS, LOCAL)
    drop(axes, right - 0.1, x + LOCALS / 2, LOCAL)
    axes.plot([left, left + width], [WINDOW_Y - 0.3] * 2, color=INK, linewidth=1)
    for end in (left, left + width):
        axes.plot([end, end], [WINDOW_Y - 0.42, WINDOW_Y - 0.18], color=INK, linewidth=1)
    caption = "what attention sees: at most the trained window, in the order of the text, at positions the model knows"
    label(axes, (left + left + width) / 2, WINDOW_Y - 0.85, caption)


def box(axes: Axes, x: float, y: float, width: float, color: str) -> None:
    axes.add_patch(Rectangle((x, y), width, HEIGHT, facecolor=color, linewidth=0))


def drop(axes: Axes, begin: float, end: float, color: str) -> None:
    """Go straight down past the index, then to the window."""
    turn = INDEX_Y - 0.3
    axes.plot([begin, begin], [TEXT_Y, turn], color=color, linewidth=1)
    arrow(axes, (begin, turn), (end, WINDOW_Y + HEIGHT), color)


def label(axes: Axes, x: float, y: float, text: str, *, color: str = INK, align: str = "center") -> None:
    axes.text(x, y, text, color=color, ha=align, va="center")


def arrow(axes: Axes, begin: tuple[float, float], end: tuple[float, float], color: str) -> None:
    axes.add_patch(FancyArrowPatch(begin, end, arrowstyle="-|>", mutation_scale=9, linewidth=1, color=color, shrinkA=0))


if __name__ == "__main__":
    main()
