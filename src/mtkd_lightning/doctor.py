"""``python -m mtkd_lightning.doctor``: what is here, what is not, and what to do about it."""

import argparse
import importlib
import logging
import os
import platform
import shutil
import sys
import warnings
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import NamedTuple

from packaging.requirements import Requirement

PACKAGE = "mtkd-lightning"
log = logging.getLogger(__name__)


class Finding(NamedTuple):
    """One line of the report; ``remedy`` is what to do if it is not ``good``."""

    topic: str
    good: bool
    what: str
    remedy: str = ""


def findings(root: Path) -> Iterator[Finding]:
    """Look at Python, the packages, the devices, and the folders under ``root``."""
    yield Finding(
        "python",
        sys.version_info >= (3, 11),
        f"{platform.python_version()} on {platform.machine()}, {os.cpu_count()} cores",
        "install Python 3.11 or newer",
    )
    yield from _packages()
    yield from _devices()
    yield from _pictures(root)
    finished = sorted(path.name for path in (root / "weights").glob("*.json"))
    yield Finding("weights", True, f"{len(finished)} finished networks in {root / 'weights'}")
    yield _catalogue()
    free = shutil.disk_usage(root).free / 2**30
    yield Finding("disk", free > 2, f"{free:.1f} GiB free at {root.resolve()}", "free some, or use paths.root=...")


def main() -> None:
    """Print the findings; status 1 if something that is needed is missing."""
    parser = argparse.ArgumentParser(prog="python -m mtkd_lightning.doctor", description=__doc__)
    parser.add_argument("--root", type=Path, default=Path(), help="the folder that paths.root names (default: here)")
    arguments = parser.parse_args()
    logging.basicConfig(format="%(message)s", level=logging.INFO, stream=sys.stdout)
    if not arguments.root.is_dir():
        parser.error(f"there is no folder {arguments.root}")
    bad = False
    for finding in findings(arguments.root):
        bad |= not finding.good
        log.info("%s %-9s %s", "ok " if finding.good else "BAD", finding.topic, finding.what)
        if not finding.good:
            log.info("              -> %s", finding.remedy)
    sys.exit(bad)


def _catalogue() -> Finding:
    from mtkd_lightning.catalogue import cache_folder, entries

    known = entries().values()
    there = [entry.name for entry in known if (cache_folder() / "weights" / entry.file).is_file()]
    what = f"{len(there)} of the catalogue's {len(known)} files in {cache_folder() / 'weights'}"
    return Finding("catalogue", True, what + (f": {', '.join(there)}" if there else ""))


def _packages() -> Iterator[Finding]:
    try:
        wanted = [Requirement(line) for line in requires(PACKAGE) or []]
    except PackageNotFoundError:
        yield Finding("package", False, f"{PACKAGE} is not installed", "pip install -c constraints.txt -e .")
        return
    for requirement in wanted:
        extra = requirement.marker is not None and "extra" in str(requirement.marker)
        try:
            found = version(requirement.name)
        except PackageNotFoundError:
            what = f"{requirement.name} is not installed" + (f" (optional, {requirement.marker})" if extra else "")
            yield Finding("package", extra, what, f"pip install '{requirement.name}{requirement.specifier}'")
            continue
        fits = requirement.specifier.contains(found, prereleases=True)
        remedy = f"pip install '{requirement.name}{requirement.specifier}'"
        yield Finding("package", fits, f"{requirement.name} {found} ({requirement.specifier} wanted)", remedy)
    for name in ("torch", "lightning", "pytorch_wavelets", "torchmetrics"):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # what matters here is whether it can be imported
                importlib.import_module(name)
        except Exception as error:  # whatever a broken installation raises is the finding
            remedy = "a torchvision for another torch does this: pip uninstall torchvision; else reinstall the package"
            yield Finding("import", False, f"{name}: {type(error).__name__}: {error}", remedy)


def _devices() -> Iterator[Finding]:
    try:
        import torch
    except ImportError:
        return  # reported with the packages
    if not torch.cuda.is_available():
        build = "a CUDA build, but no driver or device answers" if torch.version.cuda else "a CPU build"
        yield Finding(
            "device", True, f"no GPU: torch {torch.__version__} is {build}; {torch.get_num_threads()} threads"
        )
        flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
        fast = "avx512_bf16" in flags or "amx_bf16" in flags
        advice = "worth a try: trainer.precision=bf16-mixed" if fast else "slow here: keep trainer.precision=32-true"
        yield Finding("bf16", True, f"{'in hardware' if fast else 'emulated'}; {advice}")
    for i in range(torch.cuda.device_count()):
        card = torch.cuda.get_device_properties(i)
        bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        advice = "bf16: trainer.precision=bf16-mixed" if bf16 else "no bf16: keep trainer.precision=32-true"
        yield Finding("device", True, f"GPU {i}: {card.name}, {card.total_memory / 2**30:.0f} GiB; {advice}")


def _pictures(root: Path) -> Iterator[Finding]:
    from mtkd_lightning.data.sources import demo_photographs
    from mtkd_lightning.errors import MTKDError

    try:
        yield Finding("data", True, demo_photographs(4, root / "cache").note)
    except MTKDError as error:
        yield Finding("data", False, "the demonstration's photographs are missing", str(error))
    div2k = root / "data" / "DIV2K"
    there = (div2k / "DIV2K_train_HR").is_dir()
    where = (
        f"DIV2K at {div2k}"
        if there
        else f"no DIV2K at {div2k} (only preset=paper needs it): python -m mtkd_lightning.data name=div2k"
    )
    yield Finding("data", True, where)


if __name__ == "__main__":
    main()
