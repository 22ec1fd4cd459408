"""Which student is better: variants trained and scored alike are put side by side, and their differences measured.

A variant is the runs of one label, which may differ in their seed alone. Two variants are in one group, and so in one
table, only if everything matches that a run records as having to.
"""

import difflib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import combinations
from statistics import fmean, stdev
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtkd_lightning.errors import MTKDError
from mtkd_lightning.runs import BEFORE, Run, flat, shortened
from mtkd_lightning.tables import aligned, escaped, protocols

Seeds = Mapping[int, Run]
# Pairs of variants that are in no group together -> key -> the value of each.
Unmatched = Mapping[tuple[str, str], Mapping[str, Sequence[str]]]

LEGEND = (
    "PSNR in dB, mean ± standard deviation over seeds / SSIM; the best mean PSNR over benchmarks first. Differences: "
    "of PSNR, by picture, over the seeds that both have; in brackets the 95 % interval of their mean when pictures "
    "are drawn anew (bootstrap, 10,000 draws), which says nothing of other seeds; (2/3): two of three seeds differ in "
    "this direction, where nothing stands all do. Seconds: of training, mean over seeds, each on the machine of its "
    "run. Teacher passes: pictures or patches that teachers enlarged, mean over seeds; kept: read from pictures made "
    "once, before. Before: what was made once and is in no other column, pictures of the training set that members "
    "enlarged (eight times each with self-ensemble) and the aggregator's training. Code: git revisions that trained "
    "the students, with + changed beyond that."
)


@dataclass(frozen=True)
class Group:
    """Variants that may be compared, the best first: their runs by seed.

    Attributes:
        baseline: one of them, if any.
        elsewhere: seeds of a variant that are in other groups and not in this one.
    """

    must_match: dict[str, str]
    variants: dict[str, dict[int, Run]]
    baseline: str | None
    elsewhere: Mapping[str, set[int]] = field(default_factory=dict)

    @property
    def first(self) -> Run:
        """A run, for what all of them have in common."""
        return next(iter(next(iter(self.variants.values())).values()))

    @property
    def benchmarks(self) -> list[str]:
        """In the order of the tables."""
        return list(self.first.psnr)


def selected(runs: Sequence[Run], only: Sequence[str], baselines: Sequence[str]) -> list[Run]:
    """Give the runs of the variants that are asked for and of the baselines, all if ``only`` names none.

    Raises:
        MTKDError: a name is none of them.
    """
    known = sorted({run.variant for run in runs})
    for key, names in (("only", only), ("baseline", baselines)):
        for name in names:
            if name not in known:
                close = difflib.get_close_matches(name, known, n=1)
                hint = f"did you mean {close[0]}? " if close else ""
                raise MTKDError(f"{key}: there is no variant {name!r}: {hint}There is {', '.join(known)}")
    return [run for run in runs if not only or run.variant in {*only, *baselines}]


def _refuse(message: str) -> None:
    raise MTKDError(message)


def grouped(
    runs: Sequence[Run], baselines: Sequence[str] = (), complain: Callable[[str], None] = _refuse
) -> list[Group]:
    """Put together what may be compared; a copy of a run counts once.

    Args:
        runs: at least one.
        baselines: variants that differences are taken to; a group without any takes the one whose method is scratch.
        complain: is told that one variant and seed has two results, that runs of a variant differ in more than their
            seed, or that a group has two baselines. The first result, all of the runs and the better baseline are taken
            if it returns; by default it raises MTKDError.
    """
    by_match: dict[tuple[tuple[str, str], ...], dict[str, dict[int, Run]]] = {}
    for run in sorted(
        runs, key=lambda run: (run.student, run.scale, run.steps, run.fingerprint, run.variant, run.seed)
    ):
        variants = by_match.setdefault(tuple(sorted(run.must_match().items())), {})
        same = variants.setdefault(run.variant, {}).setdefault(run.seed, run)
        if (same.psnr, same.ssim) != (run.psnr, run.ssim):
            complain(
                f"{run.variant} has two results of seed {run.seed}, {same.path} and {run.path}: leave one out of "
                "runs=[...], or train them under different labels"
            )
    groups = []
    everywhere: dict[str, set[int]] = {}
    for run in runs:
        everywhere.setdefault(run.variant, set()).add(run.seed)
    for match, variants in by_match.items():
        for name, seeds in variants.items():
            for one, other in combinations(seeds.values(), 2):
                if keys := _unlike(one, other):
                    complain(
                        f"{name} is not one variant, {one.path} and {other.path} differ in {_told(keys)}: leave one "
                        "out of runs=[...], or train them under different labels, label=..."
                    )
                    break
        ranked = sorted(variants, key=lambda name: -mean_psnr(variants[name]))
        scratch = [name for name in ranked if any(run.method == "scratch" for run in variants[name].values())]
        candidates = [name for name in ranked if name in baselines] or scratch
        if len(candidates) > 1:
            complain(f"{' and '.join(candidates)} may each be the baseline of a table: say baseline=... for one")
        elsewhere = {name: everywhere[name] - set(seeds) for name, seeds in variants.items()}
        ordered = {name: variants[name] for name in ranked}
        groups.append(Group(dict(match), ordered, next(iter(candidates), None), elsewhere))
    return groups


def unmatched(groups: Sequence[Group], only: Sequence[str]) -> Unmatched:
    """Pairs of ``only`` that are in no group together, each with the keys and values in which they differ least."""
    found = {}
    for pair in combinations(dict.fromkeys(only), 2):
        if not any(group.variants.keys() >= set(pair) for group in groups):
            ours, theirs = ([group for group in groups if name in group.variants] for name in pair)
            found[pair] = min((differing([x, y]) for x in ours for y in theirs), key=len)
    return found


def refuse_unmatched(pairs: Unmatched) -> None:
    """Refuse the first pair, if any.

    Raises:
        MTKDError: names the keys and both values.
    """
    for (one, other), keys in pairs.items():
        raise MTKDError(
            f"{one} and {other} cannot be compared fairly, they differ in {_told(keys)}. Train both alike, or say "
            "unmatched=mark for tables apart"
        )


def differing(groups: Sequence[Group]) -> dict[str, list[str]]:
    """Keys that have to match and do not, each with the value in every group."""
    return _differing([group.must_match for group in groups])


def _differing(mappings: Sequence[Mapping[str, str]]) -> dict[str, list[str]]:
    keys = dict.fromkeys(key for mapping in mappings for key in mapping)
    values = {key: [mapping.get(key, "absent") for mapping in mappings] for key in keys}
    return {key: found for key, found in values.items() if len(set(found)) > 1}


def _unlike(one: Run, other: Run) -> dict[str, list[str]]:
    """Settings in which two runs differ, as far as both have recorded them."""
    if not (one.settings and other.settings):
        return {}
    found = _differing([dict(flat(run.settings)) for run in (one, other)])
    # Which teachers exactly, older records do not say.
    return {key: both for key, both in found.items() if key != "teacher.made_by" or "absent" not in both}


def _told(keys: Mapping[str, Sequence[str]]) -> str:
    return "; ".join(f"{key} ({' and '.join(map(shortened, both))})" for key, both in keys.items())


def per_seed(seeds: Seeds, benchmark: str, measure: str = "psnr") -> list[float]:
    """Each run's mean over the pictures of a benchmark."""
    return [fmean(getattr(run, measure)[benchmark].values()) for run in seeds.values()]


def mean_psnr(seeds: Seeds) -> float:
    """Mean over benchmarks of the mean over seeds, by which variants are ranked."""
    return fmean(fmean(per_seed(seeds, benchmark)) for benchmark in next(iter(seeds.values())).psnr)


def differences(seeds: Seeds, others: Seeds, benchmark: str) -> NDArray[np.float64]:
    """PSNR of ``seeds`` less that of ``others``, by picture, a mean over the seeds that both have; empty if none."""
    paired = [(seeds[seed].psnr[benchmark], others[seed].psnr[benchmark]) for seed in seeds if seed in others]
    return np.array([fmean(a[image] - b[image] for a, b in paired) for image in paired[0][0]] if paired else [])


def interval(values: NDArray[np.float64], level: float = 0.95, draws: int = 10_000) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean; the same values give the same interval.

    Args:
        values: (n,), resampled with replacement.
        level: share of the resampled means inside.
        draws: resamplings, a multiple of 100.
    """
    ((low, high),) = intervals(values[:, None], level, draws)
    return float(low), float(high)


def intervals(columns: NDArray[np.float64], level: float = 0.95, draws: int = 10_000) -> NDArray[np.float64]:
    """`interval` of every column of (n, k), by the same draws: (k, 2)."""
    counts = np.array_split(_drawn(len(columns), draws), draws // 100)
    means = np.concatenate([part.astype(np.float64) @ columns for part in counts]) / len(columns)
    return np.quantile(means, [(1 - level) / 2, (1 + level) / 2], axis=0).T


@lru_cache(maxsize=8)
def _drawn(count: int, draws: int) -> NDArray[np.uint8]:
    """How often each of ``count`` pictures is in each draw, (draws, count); in parts, so that memory stays small."""
    generator, rows = np.random.default_rng(0), count * np.arange(100)[:, None]
    parts = (generator.integers(count, size=(100, count)) + rows for _ in range(draws // 100))
    return np.concatenate(
        [np.bincount(part.ravel(), minlength=100 * count).reshape(100, count).astype(np.uint8) for part in parts]
    )


def footnotes(group: Group) -> dict[str, list[str]]:
    """What of a variant is not as of the others: seeds that it lacks, other initial weights of the same seed."""
    notes: dict[str, list[str]] = {}
    seeds = sorted({seed for runs in group.variants.values() for seed in runs})
    for name, runs in group.variants.items():
        if lacking := [seed for seed in seeds if seed not in runs]:
            apart = ", ".join(str(seed) for seed in lacking if seed in group.elsewhere.get(name, ()))
            notes.setdefault(name, []).append(
                f"has no seed {', '.join(map(str, lacking))}, which others have"
                + (f" (trained or scored otherwise, {apart} is in another table)" if apart else "")
                + "; differences are over the seeds that both have"
            )
    for seed in seeds:
        start = {name: runs[seed].initial_sha256 for name, runs in group.variants.items() if seed in runs}
        counts = Counter(start.values()).most_common(2)
        usual = counts[0][0] if len(counts) == 1 or counts[0][1] > counts[1][1] else None
        for name, sha256 in start.items():
            if sha256 != usual:
                notes.setdefault(name, []).append(
                    f"started from other weights than the others with seed {seed} ({shortened(sha256)})"
                )
    return notes


def rows(groups: Sequence[Group]) -> list[dict[str, Any]]:
    """One row per run and benchmark: means over pictures."""
    return [
        {
            "student": run.student,
            "scale": run.scale,
            "method": run.method,
            "variant": run.variant,
            "seed": run.seed,
            "benchmark": benchmark,
            "psnr_y": round(fmean(run.psnr[benchmark].values()), 4),
            "ssim_y": round(fmean(run.ssim[benchmark].values()), 5),
            "steps": run.steps,
            "seconds": round(run.seconds, 1),
            "fingerprint": run.fingerprint,
        }
        for group in groups
        for seeds in group.variants.values()
        for run in seeds.values()
        for benchmark in group.benchmarks
    ]


def markdown(groups: Sequence[Group], pairs: Unmatched, left_out: Sequence[str] = ()) -> str:
    """A table a group with its footnotes, in what the groups differ, what was left out, and how to read it all."""
    parts = ["# Comparison", ""]
    for group in groups:
        parts += [f"## {escaped(title(group, pairs))}", "", *_table(group), ""]
        notes = [rf"- \* {escaped(name)} {note}." for name, texts in footnotes(group).items() for note in texts]
        if others := strangers(group, pairs):
            notes.append(f"- Unmatched: not to be compared with {escaped(', '.join(others))}, in another table.")
        parts += [*notes, *([""] if notes else []), escaped(protocols({"protocols": group.first.protocols})), ""]
        if code := sorted({run.code for seeds in group.variants.values() for run in seeds.values() if run.code}):
            parts += [f"Code: {', '.join(code)}.", ""]
    if len(groups) > 1:
        parts += ["## In what the tables differ", ""]
        for key, values in differing(groups).items():
            by_value: dict[str, list[str]] = {}
            for group, value in zip(groups, values, strict=True):
                by_value.setdefault(shortened(value), []).append(group.first.fingerprint)
            shown = "; ".join(f"{value} ({', '.join(fingerprints)})" for value, fingerprints in by_value.items())
            parts.append(f"- {escaped(f'{key}: {shown}')}")
        parts.append("")
    if left_out:
        parts += ["## Left out", "", *(f"- {escaped(reason)}" for reason in left_out), ""]
    return "\n".join([*parts, LEGEND, ""])


def title(group: Group, pairs: Unmatched) -> str:
    """What tells a group from others."""
    run = group.first
    marked = ", unmatched" if strangers(group, pairs) else ""
    return f"{run.student}, x{run.scale}, {run.steps:,} steps, fingerprint {run.fingerprint}{marked}"


def strangers(group: Group, pairs: Unmatched) -> list[str]:
    """Variants elsewhere that one of the group was asked to be compared with, and cannot."""
    return sorted({other for pair in pairs for one, other in (pair, pair[::-1]) if one in group.variants})


def _table(group: Group) -> list[str]:
    to = group.baseline and f"to {escaped(group.baseline)}"
    head = ["variant", "seeds", "mean"]
    for benchmark in map(escaped, group.benchmarks):
        head += [benchmark, f"{benchmark} {to}"] if to else [benchmark]
    head += ["seconds", *([f"s / step {to}"] if to else []), "teacher passes", "before"]
    return aligned(head, [_cells(group, name, seeds) for name, seeds in group.variants.items()], left=1)


def _cells(group: Group, name: str, seeds: Seeds) -> list[str]:
    others = group.variants[group.baseline] if group.baseline else None
    cells = [escaped(name) + r"\*" * (name in footnotes(group)), str(len(seeds)), f"{mean_psnr(seeds):.3f}"]
    for benchmark in group.benchmarks:
        psnr = per_seed(seeds, benchmark)
        spread = f"{stdev(psnr):.3f}" if len(psnr) > 1 else "-"
        cells.append(f"{fmean(psnr):.3f} ± {spread} / {fmean(per_seed(seeds, benchmark, 'ssim')):.4f}")
        if others is not None:
            cells.append("baseline" if name == group.baseline else _difference(seeds, others, benchmark))
    cells.append(f"{fmean(run.seconds for run in seeds.values()):,.0f}")
    if others is not None:
        base = _seconds_per_step(others)
        devices = {run.device for run in (*seeds.values(), *others.values())} - {None}
        cells.append(f"{_seconds_per_step(seeds) / base:.2f}" if base and len(devices) < 2 else "-")
    pictures = sorted({run.teacher_pictures for run in seeds.values() if run.teacher_pictures})
    passes = fmean(run.teacher_passes for run in seeds.values())
    return [*cells, " ".join([f"{passes:,.0f}", ", ".join(pictures)]).strip(), before(seeds)]


def before(seeds: Seeds) -> str:
    """What was made before the trainings, mean over seeds; ``-`` where no record says."""
    known = [run.before for run in seeds.values() if run.before is not None]
    if not known:
        return "-"
    pictures, seconds = (fmean(made[key] for made in known) for key in BEFORE)
    parts = [f"{pictures:,.0f} pictures" if pictures else "", f"aggregator {seconds:,.0f} s" if seconds else ""]
    return "; ".join(filter(None, parts)) or "0"


def _difference(seeds: Seeds, others: Seeds, benchmark: str) -> str:
    values = differences(seeds, others, benchmark)
    if len(values) == 0:
        return "-"
    bounds = "[{:+.3f}, {:+.3f}]".format(*interval(values)) if len(values) > 1 else "[-]"
    by_seed = [differences({seed: seeds[seed]}, others, benchmark).mean() for seed in seeds if seed in others]
    alike = sum(x * values.mean() >= 0 for x in by_seed)
    return f"{values.mean():+.3f} {bounds}" + (f" ({alike}/{len(by_seed)})" if alike < len(by_seed) else "")


def _seconds_per_step(seeds: Seeds) -> float:
    return fmean(run.seconds / max(run.steps, 1) for run in seeds.values())
