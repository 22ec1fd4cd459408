"""What is wanted of which published data set, checked before anything heavy is imported."""

from dataclasses import dataclass, field
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mtkd_lightning.config import SCALES
from mtkd_lightning.errors import MTKDError

LR = ("make", "download")


@dataclass
class Archive:
    """A zip or tar file; `inside` is the folder of it that holds the pictures, where it is not the one they go to."""

    url: str
    sha256: str | None = None
    bytes: int | None = None
    inside: str | None = None


@dataclass
class PictureSet:
    """HR pictures in `folder`, their LR in `lr_folder`/X{scale}; both below the root, as the archives unpack.

    The keys of `lr_archives` are x2, x3 and x4: Hydra cannot override what is below a number.
    """

    folder: str
    pictures: int
    archive: Archive
    lr_folder: str
    lr_archives: dict[str, Archive] = field(default_factory=dict)


@dataclass
class Dataset:
    """A file of conf/dataset; `folder` is where it goes if no root is given."""

    folder: str
    licence: str
    sets: dict[str, PictureSet]


@dataclass
class Request:
    """conf/prepare.yaml."""

    name: str
    root: Path
    cache: Path
    scales: list[int]
    lr: str
    map: bool
    keep_archives: bool
    datasets: dict[str, Dataset]
    paths: dict[str, str]

    @property
    def dataset(self) -> Dataset:
        """The one that was asked for."""
        return self.datasets[self.name]


def read_request(config: DictConfig) -> Request:
    """Check types, keys and values.

    Raises:
        MTKDError: a key is missing or unknown, or a value is not allowed.
    """
    if OmegaConf.is_missing(config, "name") or config.name not in config.datasets:
        given = "no data set is named" if OmegaConf.is_missing(config, "name") else f"name={config.name}"
        raise MTKDError(f"{given}: allowed are {', '.join(f'name={name}' for name in config.datasets)}")
    try:
        request: Request = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Request), config))  # type: ignore[assignment]
    except OmegaConfBaseException as error:
        raise MTKDError(f"{error.full_key}: {str(error).splitlines()[0]}") from error
    if not request.scales or not set(request.scales) <= set(SCALES):
        raise MTKDError(f"scales={request.scales}: allowed are lists of {', '.join(map(str, SCALES))}, such as [2,4]")
    if request.lr not in LR:
        raise MTKDError(f"lr={request.lr}: allowed are {', '.join(LR)}")
    if request.lr == "download":
        for name, pictures in request.dataset.sets.items():
            if absent := {f"x{scale}" for scale in request.scales} - pictures.lr_archives.keys():
                raise MTKDError(f"{name} has no LR archive for {min(absent)}: leave that scale out, or say lr=make")
    request.root, request.cache = request.root.expanduser(), request.cache.expanduser()
    return request
