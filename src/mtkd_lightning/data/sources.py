"""Where pictures come from: training, validation and benchmarks of one scale. Nothing is downloaded here."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
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

FLICKR2K = "Flickr2K/Flickr2K_HR"
TITLES = {
    "div2k": "DIV2K (academic use)",
    "flickr2k": "Flickr2K (academic use)",
    "df2k": "DF2K (DIV2K and Flickr2K, academic use)",
}


@dataclass(frozen=True)
class Pictures:
    """The pictures of a run; `note` is one sentence on them for its report."""

    train: PairedImages
    validation: PairedImages
    benchmarks: dict[str, PairedImages]
    note: str

    def with_teachers(self, folders: Sequence[Path]) -> "Pictures":
        """Add what teachers made of the pictures, one folder a teacher.

        A set's pictures are under its name (``train``, ``validation``, ``Set5``, ...) or, those of training and
        validation, in the folder itself. A benchmark is left without if a teacher has no pictures of it.
        """

        def of(name: str, pairs: PairedImages) -> PairedImages:
            return pairs.with_teachers([path / name if (path / name).is_dir() else path for path in folders])

        return replace(
            self,
            train=of("train", self.train),
            validation=of("validation", self.validation),
            benchmarks={
                name: of(name, pairs) if all((path / name).is_dir() for path in folders) else pairs
                for name, pairs in self.benchmarks.items()
            },
        )


def demo_photographs(scale: int, cache: str | Path) -> Pictures:
    """Seven colour photographs that scikit-image brings along: enough to see it work, never a benchmark."""
    store = picture_store(cache)
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
    root: str | Path,
    scale: int,
    cache: str | Path,
    validation_pictures: int = 8,
    strict_size: bool = False,
    exclude: Sequence[str] = (),
) -> Pictures:
    """Take pictures of folders; a set is a folder of pictures, or HR with LR_bicubic/X{scale} beside it.

    Args:
        root: holds `train`, maybe `validation`, maybe `benchmarks/<name>`.
        scale: of LR to HR; LR pictures that are not there are made, bicubic.
        cache: folder for decoded pictures.
        validation_pictures: how many, evenly spaced, are taken out of training where `validation` is absent.
        strict_size: refuse HR pictures that are not a multiple of the scale, instead of cropping them.
        exclude: names below `train`, without suffix, that are left out.
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
    store = picture_store(cache)
    train = _without(_pairs(root / "train", scale), exclude, root / "train")
    if (root / "validation").is_dir():
        validation = _pairs(root / "validation", scale)
        where = f"{len(validation)} of {root / 'validation'}"
    else:
        train, validation = _hold_out(train, validation_pictures, root / "train")
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
    return _with_div2k_valid("div2k", ["DIV2K_train_HR"], root, scale, cache, validation_pictures, strict_size)


def df2k(
    root: str | Path, scale: int, cache: str | Path, validation_pictures: int = 10, strict_size: bool = False
) -> Pictures:
    """Take DIV2K and Flickr2K out of one root: train on both; the rest is as in `div2k`."""
    hr = ["DIV2K_train_HR", FLICKR2K]
    return _with_div2k_valid("df2k", hr, root, scale, cache, validation_pictures, strict_size)


def flickr2k(
    root: str | Path, scale: int, cache: str | Path, validation_pictures: int = 10, strict_size: bool = False
) -> Pictures:
    """Take Flickr2K as its archive unpacks; validation is held out of it as in `folders`, `benchmarks` likewise."""
    root = _published("flickr2k", [FLICKR2K], root, scale)
    store = picture_store(cache)
    train, validation = _hold_out(_hr_folder(root, FLICKR2K, scale), validation_pictures, root / FLICKR2K)
    return Pictures(
        train=PairedImages(train, scale, store, strict_size=strict_size),
        validation=PairedImages(validation, scale, store, strict_size=strict_size),
        benchmarks=_benchmarks(root, scale, store, strict_size),
        note=f"{TITLES['flickr2k']}: {len(train)} training pictures; validation on {len(validation)} held out.",
    )


def _with_div2k_valid(
    name: str, hr: list[str], root: str | Path, scale: int, cache: str | Path, validation_pictures: int, strict: bool
) -> Pictures:
    root = _published(name, [*hr, "DIV2K_valid_HR"], root, scale)
    if validation_pictures < 1:
        raise MTKDError(f"got validation_pictures {validation_pictures}; at least 1 is needed")
    store = picture_store(cache)
    train = [pair for folder in hr for pair in _hr_folder(root, folder, scale)]
    validation = _hr_folder(root, "DIV2K_valid_HR", scale)[:validation_pictures]
    return Pictures(
        train=PairedImages(train, scale, store, strict_size=strict),
        validation=PairedImages(validation, scale, store, strict_size=strict),
        benchmarks=_benchmarks(root, scale, store, strict_size=strict),
        note=f"{TITLES[name]}: {len(train)} training, the first {len(validation)} validation pictures of DIV2K.",
    )


def _published(name: str, hr: list[str], root: str | Path, scale: int) -> Path:
    root = Path(root).expanduser()
    absent = [folder for folder in hr if not (root / folder).is_dir()]
    if absent:
        raise MTKDError(
            f"{TITLES[name]} is not at {root}: no folder {' and no '.join(absent)}. Get it with\n"
            f"  python -m mtkd_lightning.data name={name} root={root} scales=[{scale}]\n"
            "or give the folder that its archives were unpacked into with data.root=... (LR is made when absent)"
        )
    return root


def _hr_folder(root: Path, hr: str, scale: int) -> list[Pair]:
    """Pairs of one of the published folders, named *_HR beside *_LR_bicubic."""
    return _with_lr(root / hr, root / f"{hr.removesuffix('_HR')}_LR_bicubic", scale)


def _without(pairs: list[Pair], exclude: Sequence[str], where: Path) -> list[Pair]:
    if absent := sorted(set(exclude) - {pair.name for pair in pairs}):
        raise MTKDError(
            f"data.exclude names {absent[0]}, and there is no such picture in {where}; a name is the path below that "
            "folder, without suffix"
        )
    return [pair for pair in pairs if pair.name not in exclude]


def _hold_out(pairs: list[Pair], count: int, where: Path) -> tuple[list[Pair], list[Pair]]:
    """Split evenly spaced ones off: (rest, held out)."""
    if not 1 <= count < len(pairs):
        raise MTKDError(
            f"cannot hold {count} of the {len(pairs)} pictures of {where} out for validation: hold out at least 1 and "
            "leave at least 1 with data.validation_pictures=..., or, with data=folders, put validation pictures in "
            "<data.root>/validation"
        )
    held = {(2 * k + 1) * len(pairs) // (2 * count) for k in range(count)}
    return [pair for k, pair in enumerate(pairs) if k not in held], [pairs[k] for k in sorted(held)]


def benchmarks(root: str | Path, scale: int, cache: str | Path, only: str | Sequence[str] | None = None) -> Pictures:
    """Take every benchmark under a folder, and nothing to train on.

    Args:
        root: holds `<name>/HR` or `benchmarks/<name>`, each maybe with `LR_bicubic/X{scale}`, and `DIV2K_valid_HR`.
        scale: of LR to HR; LR pictures that are not there are made, bicubic.
        cache: folder for decoded pictures.
        only: one name or several, in the order of the table; None for all, sorted.
    """
    root = Path(root).expanduser()
    store = picture_store(cache)
    folders = sorted(root.iterdir()) if root.is_dir() else []
    found = {
        folder.name: PairedImages(_pairs(folder, scale), scale, store)
        for folder in folders
        if (folder / "HR").is_dir() and not folder.name.startswith(".")
    } | _benchmarks(root, scale, store, strict_size=False)
    for parent in (root, root / "DIV2K"):
        if (parent / "DIV2K_valid_HR").is_dir():
            pairs = _with_lr(parent / "DIV2K_valid_HR", parent / "DIV2K_valid_LR_bicubic", scale)
            found["DIV2K_valid"] = PairedImages(pairs, scale, store)
    if not found:
        raise MTKDError(
            f"no benchmark at {root}. Wanted (in brackets: optional) is\n"
            f"  {root}/\n"
            "    Set5/HR/*.png\n"
            f"   [Set5/LR_bicubic/X{scale}/*x{scale}.png]\n"
            "   [DIV2K_valid_HR/*.png]\n"
            "Give the folder with data.root=..."
        )
    only = [only] if isinstance(only, str) else only
    if absent := [name for name in only or () if name not in found]:
        raise MTKDError(f"there is no benchmark {absent[0]} at {root}; there are {', '.join(sorted(found))}")
    none = PairedImages([], scale, store)
    chosen = {name: found[name] for name in only or sorted(found)}
    return Pictures(train=none, validation=none, benchmarks=chosen, note="Benchmarks alone.")


def picture_store(cache: str | Path) -> PictureStore:
    """Give the store that all sources of a cache share."""
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
    if (folder / "LR_bicubic").is_dir():
        raise MTKDError(f"{folder / 'LR_bicubic'} has no {folder / 'HR'} beside it: move the HR pictures there")
    return find_pairs(folder, None, scale)


def _with_lr(hr: Path, lr: Path, scale: int) -> list[Pair]:
    small = lr / f"X{scale}"
    return find_pairs(hr, small if small.is_dir() else None, scale)
