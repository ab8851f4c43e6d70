"""plot: figures that grow with a fleet, as an SVG: a panel each, sizes on a logarithmic axis. Needs matplotlib."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path


def save(path: Path, sizes: Sequence[int], of_what: str, panels: Mapping[str, Sequence[float]]) -> None:
    """Write ``panels``, title -> a value for each of ``sizes``; axes of values begin at 0."""
    import matplotlib

    matplotlib.use("svg")
    # The same figures give the same file.
    matplotlib.rcParams.update({"svg.hashsalt": "x2gofleet", "svg.fonttype": "none", "font.size": 9})
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(panels), figsize=(3.2 * len(panels), 2.8), layout="constrained")
    for axis, (title, values) in zip(axes, panels.items(), strict=True):
        axis.plot(sizes, values, marker="o")
        axis.set(title=title, xlabel=of_what, xscale="log", ylim=(0, max(values) * 1.25))
        axis.set_xticks(sizes, [str(size) for size in sizes])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
        for size, value in zip(sizes, values, strict=True):
            axis.annotate(f"{value:.2g}", (size, value), textcoords="offset points", xytext=(0, 6), ha="center")
        axis.margins(x=0.12)
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
