"""The comparison as a figure: a dot plot in SVG, the same file for the same scores."""

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, quantiles

from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from mtkd_lightning.comparison import Group, footnotes, per_seed
from mtkd_lightning.files import replacing

# Of Okabe and Ito's colours for all kinds of colour vision; size and dashes tell the same.
MEAN, SEED, BASELINE = "#0072B2", "#E69F00", "#D55E00"
LONGEST = 48  # characters of a name, so that room is left for the dots


def draw(groups: Sequence[Group], titles: Sequence[str], path: Path) -> None:
    """Draw a line of panels a group and a panel a benchmark: variants ranked, each seed's PSNR and their mean.

    A variant that is far below the others is a triangle at the edge and a number, so that the others stay apart. A name
    with an asterisk has a footnote in the table.
    """
    columns = max(len(group.benchmarks) for group in groups)
    heights = [1.1 + 0.28 * len(group.variants) for group in groups]
    # Whatever a matplotlibrc says.
    with style.context(["default", {"svg.hashsalt": "mtkd_lightning", "font.size": 9}]):
        figure = Figure(figsize=(2.2 + 2.6 * columns, sum(heights)), layout="constrained", facecolor="white")
        lines = figure.subfigures(len(groups), height_ratios=heights, squeeze=False)[:, 0]
        for group, title, line in zip(groups, titles, lines, strict=True):
            line.suptitle(_short(title, 2 * LONGEST), fontsize=10, parse_math=False)
            panels = line.subplots(1, len(group.benchmarks), sharey=True, squeeze=False)[0]
            for benchmark, axes in zip(group.benchmarks, panels, strict=True):
                _panel(axes, group, benchmark)
        lines[-1].supxlabel(
            "large: mean over seeds; small: a seed; dashed: baseline; triangle: below the scale", fontsize=8
        )
        with replacing(path) as temporary:
            figure.savefig(temporary, format="svg", metadata={"Date": None})


def _panel(axes: Axes, group: Group, benchmark: str) -> None:
    scores = {name: per_seed(seeds, benchmark) for name, seeds in group.variants.items()}
    low = _far_below([fmean(psnr) for psnr in scores.values()])
    for place, (name, psnr) in enumerate(scores.items()):
        if name != group.baseline and fmean(psnr) < low:
            _below(axes, place, fmean(psnr))
            continue
        axes.plot(psnr, [place] * len(psnr), "o", color=SEED, markersize=3.5, markeredgewidth=0, zorder=3)
        axes.plot(fmean(psnr), place, "o", color=MEAN, markersize=7, zorder=2)
        if name == group.baseline:
            axes.axvline(fmean(psnr), color=BASELINE, linestyle="--", linewidth=1, zorder=1)
    marked = footnotes(group)
    labels = [_short(name, LONGEST) + "*" * (name in marked) for name in group.variants]
    axes.set_yticks(range(len(labels)), labels, parse_math=False)
    axes.set_ylim(len(labels) - 0.5, -0.5)  # the best on top
    axes.set_title(_short(benchmark, LONGEST), fontsize=9, parse_math=False)
    axes.set_xlabel("PSNR (dB)")
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.ticklabel_format(axis="x", useOffset=False)
    axes.margins(x=0.12)
    axes.grid(axis="x", color="#DDDDDD", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(axis="y", length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)


def _far_below(means: list[float]) -> float:
    """Give the lower outer fence of Tukey's box plot: three times the box's width below it, 0.3 dB at least."""
    lower, _, upper = quantiles(means * 2 if len(means) == 1 else means, method="inclusive")
    return lower - max(3 * (upper - lower), 0.3)


def _below(axes: Axes, place: int, mean: float) -> None:
    across = axes.get_yaxis_transform()
    axes.plot(0.03, place, "<", color=MEAN, markersize=7, transform=across)
    axes.text(0.03, place, f"   {mean:.2f}", transform=across, ha="left", va="center", fontsize=8, color=MEAN)


def _short(text: str, most: int) -> str:
    text = " ".join(text.split())
    return text if len(text) <= most else text[: most - 1] + "…"
