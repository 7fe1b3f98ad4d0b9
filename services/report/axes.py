"""Axes that several plots share."""

from __future__ import annotations

from collections.abc import Iterable

from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

_ROUND = tuple(m * 10.0**e for e in range(-5, 8) for m in (1, 2, 5))


def by_batch_size(axes: Axes, sizes: Iterable[int]) -> None:
    """Make the horizontal axis one of batch sizes: powers of two, every second one named."""
    axes.set_xscale("log", base=2)
    axes.set_xticks([n for n in sizes if n.bit_length() % 2 and n & (n - 1) == 0])
    axes.xaxis.set_major_formatter(FuncFormatter(lambda n, _: f"{n:.0f}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("batch size")


def logarithmic(axes: Axes) -> None:
    """Make the vertical axis logarithmic, written in plain numbers; draw before, since its ends are kept."""
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    shown = [y for y in _ROUND if low <= y <= high]
    while len(shown) > 7:  # 1 2 5 10 ... to 1 10 100 ..., then every second of those
        tens = [y for y in shown if f"{y:e}".startswith("1.0")]
        shown = tens if len(tens) < len(shown) else shown[::2]
    axes.yaxis.set_major_locator(FixedLocator(shown))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:,g}" if y < 1e6 else f"{y:.0e}"))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_ylim(low, high)
