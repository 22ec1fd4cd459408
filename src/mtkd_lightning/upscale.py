"""Enlarge photographs: ``python -m mtkd_lightning.upscale weights=lkdn_x4 input=photos output=enlarged``."""

import glob
import logging
import string
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig

from mtkd_lightning.config import CONF, check_keys
from mtkd_lightning.data.images import PICTURE_SUFFIXES
from mtkd_lightning.errors import MTKDError, out_of_memory, reported
from mtkd_lightning.files import replacing
from mtkd_lightning.places import Job, check_writable, find, plan

log = logging.getLogger(__name__)

FIELDS = {"stem", "suffix", "scale", "weights"}
CHOICES: dict[str, tuple[Any, ...]] = {
    "precision": ("32-true", "bf16-mixed"),
    "format": (None, *(suffix[1:] for suffix in PICTURE_SUFFIXES)),
    **dict.fromkeys(("overwrite", "compare", "self_ensemble"), (True, False)),
}
RANGES = {"tile": (1, None), "overlap": (0, None), "quality": (1, 100), "megapixels": (1, None)}
STALE = 24 * 3600
"""Seconds after which the temporary file of a process that was killed is removed."""


@hydra.main(config_path=str(CONF), config_name="upscale", version_base="1.3")
def main(config: DictConfig) -> None:
    """Check the configuration, then enlarge; bad input ends with its message and status 1."""
    with reported():
        check_keys(config, "upscale")
        run(config)


def run(config: DictConfig) -> None:
    """Enlarge what ``input`` names with what ``weights`` names.

    Raises:
        MTKDError: bad input, no space to write to, or, in the end, pictures that could not be read.
    """
    _check(config)
    output = Path(str(config.output)).expanduser()
    sources = find(config.input, output)
    # Late: an error above should not wait for torch.
    from mtkd_lightning.enlarging import Enlarger
    from mtkd_lightning.evaluation import float32_convolutions
    from mtkd_lightning.inference import choose_device
    from mtkd_lightning.networks import load, locate

    device = choose_device(config.device)
    weights = locate(str(config.weights), Path(config.paths.weights).expanduser())
    network: Any = load(weights)
    jobs = plan(sources, output, config, scale=network.scale, weights=weights.name)
    options = {key: config[key] for key in ("tile", "overlap", "precision", "self_ensemble")}
    enlarger = Enlarger(network, network.scale, device, **options)
    waiting = [job for job in jobs if config.overwrite or not job.target.exists()]
    for folder in sorted({job.target.parent for job in waiting}):
        check_writable(folder)
    if there := len(jobs) - len(waiting):
        log.info("%d of %d are there already; overwrite=true makes them again", there, len(jobs))
    with float32_convolutions():
        failed = list(_failures(enlarger, waiting, config))
    log.info("%d of %d enlarged with %s on %s", len(waiting) - len(failed), len(jobs), weights.name, device)
    if failed:
        raise MTKDError(f"{len(failed)} of {len(jobs)} failed:\n" + "\n".join(failed))


def _check(config: DictConfig) -> None:
    for key, allowed in CHOICES.items():
        if config[key] not in allowed or isinstance(config[key], int) is not isinstance(allowed[0], int):
            raise MTKDError(f"{key}={config[key]}: allowed are {', '.join(str(value).lower() for value in allowed)}")
    for key, (least, most) in RANGES.items():
        value = config[key]
        numbers = (int, float) if key == "megapixels" else (int,)
        if value is None and key == "tile":
            continue
        if isinstance(value, bool) or not isinstance(value, numbers) or value < least or (most and value > most):
            raise MTKDError(f"{key}={value}: it must be a number from {least} {f'to {most}' if most else 'up'}")
    try:
        fields = {field for _, field, *_ in string.Formatter().parse(str(config.pattern)) if field is not None}
    except ValueError as error:
        raise MTKDError(f"pattern={config.pattern}: {error}") from error
    if fields - FIELDS or "/" in str(config.pattern) or "\\" in str(config.pattern):
        raise MTKDError(
            f"pattern={config.pattern}: it is the name of a file, in which "
            f"{', '.join(f'{{{field}}}' for field in sorted(FIELDS))} are filled in; on a command line it takes "
            """quotes, 'pattern="{stem}.png"'"""
        )


def _failures(enlarger: Any, jobs: list[Job], config: DictConfig) -> Iterator[str]:
    """Enlarge one after the other; say what was wrong with those that cannot be."""
    progress = _Progress(len(jobs))
    for done, job in enumerate(jobs):
        progress.begin(job)
        try:
            _enlarge(enlarger, job, config, progress)
        except _Refused as error:
            yield progress.failed(job, str(error))
        except MTKDError as error:
            raise MTKDError(f"{error} {done} of {len(jobs)} are done and kept.") from error
        except Exception as error:
            reason = f"it cannot be enlarged or written ({type(error).__name__}: {error})"
            if out_of_memory(error):
                reason = "not enough memory; set tile to less than it chose, 128 for one"
            log.debug("%s", job.source, exc_info=True)
            yield progress.failed(job, f"{job.source}: {reason}")
        else:
            progress.finished(job)


class _Refused(Exception):
    """A picture that cannot be read or written; the others can."""


def _enlarge(enlarger: Any, job: Job, config: DictConfig, progress: "_Progress") -> None:
    from mtkd_lightning.photographs import read
    from mtkd_lightning.writers import Sheet, check, held, write

    suffix = job.target.suffix.lower()[1:]
    try:
        photograph = read(job.source, config.megapixels)
        height, width, channels = photograph.pixels.shape
        sheet = Sheet(
            enlarger.scale * height,
            enlarger.scale * width * (2 if config.compare else 1),
            channels + (photograph.alpha is not None),
            photograph,
            config.quality,
        )
        check(sheet, suffix, job.target)
    except MTKDError as error:
        raise _Refused(str(error)) from error
    for left in job.target.parent.glob(f".{glob.escape(job.target.name)}.*.tmp"):
        if time.time() - left.stat().st_mtime > STALE:
            left.unlink(missing_ok=True)
    strips = enlarger.strips(photograph, held(sheet, suffix), compare=config.compare)
    with replacing(job.target) as temporary, closing(strips):
        write(temporary, suffix, sheet, progress.counted(strips, sheet.height))


class _Progress:
    """Pictures done, and megapixels made a second: a line that is kept up in a terminal, a line a picture elsewhere."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._number = 0
        self._live = sys.stderr.isatty()

    def begin(self, job: Job) -> None:
        self._number += 1
        self._began, self._pixels = time.perf_counter(), 0
        self._show(job.source.name, 0)
        self._name = job.source.name

    def counted(self, strips: Iterator[Any], height: int) -> Iterator[Any]:
        rows = 0
        for strip in strips:
            yield strip
            rows += len(strip)
            self._pixels += strip.shape[0] * strip.shape[1]
            self._show(self._name, rows / height)

    def finished(self, job: Job) -> None:
        self._clear()
        log.info("%d of %d: %s, %s", self._number, self._total, job.target, self._speed())

    def failed(self, job: Job, reason: str) -> str:
        self._clear()
        log.warning("%d of %d: %s failed", self._number, self._total, job.source)
        return reason

    def _speed(self) -> str:
        return f"{self._pixels / 1e6 / (time.perf_counter() - self._began):.2g} MP/s"

    def _show(self, name: str, share: float) -> None:
        if self._live:
            speed = f", {self._speed()}" if share else ""
            sys.stderr.write(f"\r\x1b[K{self._number} of {self._total}: {name} {share:.0%}{speed}")
            sys.stderr.flush()

    def _clear(self) -> None:
        if self._live:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()


if __name__ == "__main__":
    main()
