"""Where pictures come from: training, validation and benchmarks of one scale. Nothing is downloaded."""

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from mtkd_lightning.data.paired import Pair, PairedImages, find_pairs
from mtkd_lightning.data.store import PictureStore
from mtkd_lightning.errors import MTKDError

TRAIN = {
    "coffee": "coffee.png",
    "rocket": "rocket.jpg",
    "hubble_deep_field": "hubble_deep_field.jpg",
    "retina": "retina.jpg",
}
VALIDATION = {"immunohistochemistry": "ihc.png"}
HELD_OUT = {"astronaut": "astronaut.png", "chelsea": "chelsea.png"}


@dataclass(frozen=True)
class Pictures:
    """The pictures of a run; `note` is one sentence on them for its report."""

    train: PairedImages
    validation: PairedImages
    benchmarks: dict[str, PairedImages]
    note: str


def demo_photographs(scale: int, cache: str | Path) -> Pictures:
    """Seven colour photographs that scikit-image brings along: enough to see it work, never a benchmark."""
    store = _store(cache)
    spec = find_spec("skimage")
    if spec is None or spec.origin is None:
        raise MTKDError("the demonstration photographs come with scikit-image: pip install scikit-image")
    folder = Path(spec.origin).parent / "data"

    def images(files: dict[str, str]) -> PairedImages:
        pairs = [Pair(name, folder / file) for name, file in files.items()]
        absent = [str(pair.hr) for pair in pairs if not pair.hr.is_file()]
        if absent:
            raise MTKDError(
                f"scikit-image came without {', '.join(absent)}: reinstall scikit-image from its wheel, or "
                "use pictures of your own with data=folders data.root=..."
            )
        return PairedImages(pairs, scale, store)

    return Pictures(
        train=images(TRAIN),
        validation=images(VALIDATION),
        benchmarks={"photographs": images(HELD_OUT)},
        note="Seven photographs of scikit-image: a demonstration, not a benchmark.",
    )


def folders(
    root: str | Path, scale: int, cache: str | Path, validation_pictures: int = 8, strict_size: bool = False
) -> Pictures:
    """Take pictures of folders; a set is a folder of pictures, or HR with LR_bicubic/X{scale} beside it.

    Args:
        root: holds `train`, maybe `validation`, maybe `benchmarks/<name>`.
        scale: of LR to HR; LR pictures that are not there are made, bicubic.
        cache: folder for decoded pictures.
        validation_pictures: how many, evenly spaced, are taken out of training where `validation` is absent.
        strict_size: refuse HR pictures that are not a multiple of the scale, instead of cropping them.
    """
    root = Path(root).expanduser()
    if not (root / "train").is_dir():
        raise MTKDError(
            f"no pictures at {root / 'train'}. Wanted (in brackets: optional) is\n"
            f"  {root}/\n"
            "    train/*.png                          or train/HR/*.png\n"
            f"                                        [and train/LR_bicubic/X{scale}/*.png]\n"
            "   [validation/                          laid out like train]\n"
            "   [benchmarks/Set5/HR/*.png]\n"
            f"   [benchmarks/Set5/LR_bicubic/X{scale}/*x{scale}.png]\n"
            "Give the folder with data.root=..."
        )
    store = _store(cache)
    train = _pairs(root / "train", scale)
    if (root / "validation").is_dir():
        validation = _pairs(root / "validation", scale)
        where = f"{len(validation)} of {root / 'validation'}"
    else:
        if not 1 <= validation_pictures < len(train):
            raise MTKDError(
                f"cannot hold {validation_pictures} of the {len(train)} pictures of {root / 'train'} out for "
                "validation: hold out at least 1 and leave at least 1 with data.validation_pictures=..., or "
                f"put validation pictures in {root / 'validation'}"
            )
        count = len(train)
        held = {(2 * k + 1) * count // (2 * validation_pictures) for k in range(validation_pictures)}
        validation = [train[k] for k in sorted(held)]
        train = [pair for k, pair in enumerate(train) if k not in held]
        where = f"{len(validation)} held out, evenly spaced"
    return Pictures(
        train=PairedImages(train, scale, store, strict_size=strict_size),
        validation=PairedImages(validation, scale, store, strict_size=strict_size),
        benchmarks=_benchmarks(root, scale, store, strict_size),
        note=f"Training on {len(train)} pictures of {root / 'train'}; validation on {where}.",
    )


def div2k(
    root: str | Path, scale: int, cache: str | Path, validation_pictures: int = 10, strict_size: bool = False
) -> Pictures:
    """Take DIV2K as its archives unpack: all of train, the first of valid; `benchmarks` as in `folders`.

    The LR pictures of a scale are used where they are there and made, bicubic, where not.
    """
    root = Path(root).expanduser()
    absent = [name for name in ("DIV2K_train_HR", "DIV2K_valid_HR") if not (root / name).is_dir()]
    if absent:
        raise MTKDError(
            f"DIV2K is not at {root}: no folder {' and no '.join(absent)}. Get DIV2K_train_HR.zip and "
            f"DIV2K_valid_HR.zip, if wanted also DIV2K_train_LR_bicubic_X{scale}.zip and "
            f"DIV2K_valid_LR_bicubic_X{scale}.zip (LR is made when absent), from "
            "https://data.vision.ee.ethz.ch/cvl/DIV2K/ (for academic use), unpack them into one folder and "
            "give that folder with data.root=..."
        )
    if validation_pictures < 1:
        raise MTKDError(f"got validation_pictures {validation_pictures}; at least 1 is needed")
    store = _store(cache)

    def pairs(part: str) -> list[Pair]:
        return _with_lr(root / f"DIV2K_{part}_HR", root / f"DIV2K_{part}_LR_bicubic", scale)

    train, validation = pairs("train"), pairs("valid")[:validation_pictures]
    return Pictures(
        train=PairedImages(train, scale, store, strict_size=strict_size),
        validation=PairedImages(validation, scale, store, strict_size=strict_size),
        benchmarks=_benchmarks(root, scale, store, strict_size=strict_size),
        note=f"DIV2K (academic use): {len(train)} training, the first {len(validation)} validation pictures.",
    )


def _store(cache: str | Path) -> PictureStore:
    return PictureStore(Path(cache).expanduser() / "pictures")


def _benchmarks(root: Path, scale: int, store: PictureStore, strict_size: bool) -> dict[str, PairedImages]:
    folder = root / "benchmarks"
    names = sorted(path.name for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
    return {
        name: PairedImages(_pairs(folder / name, scale), scale, store, strict_size=strict_size)
        for name in names
        if not name.startswith(".")
    }


def _pairs(folder: Path, scale: int) -> list[Pair]:
    if (folder / "HR").is_dir():
        return _with_lr(folder / "HR", folder / "LR_bicubic", scale)
    return find_pairs(folder, None, scale)


def _with_lr(hr: Path, lr: Path, scale: int) -> list[Pair]:
    small = lr / f"X{scale}"
    return find_pairs(hr, small if small.is_dir() else None, scale)
