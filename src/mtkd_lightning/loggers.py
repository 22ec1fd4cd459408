"""Where trainings and their scores are logged beside their own folders, and under which names.

One run of a logger is one network. Its names follow one scheme:

    name        the artefact's stem: rcan_mtkd_demo_x4_seed0, demo_edsr_x4
    group       study_name of the configuration: what is compared
    job type    the stage: teachers, aggregation, distillation
    tags        x<scale>, seed<seed>; of a student also its network, method and variant, of others the teacher's name
    config      the job's whole configuration, with stage, artifact and the network's own seed added
    train/...   every loss term, learning_rate, gradient_norm (before clipping), samples_per_second
    val/...     psnr, ssim, psnr_to_teacher: of the student's picture to the teacher's, where such pictures are kept
    crops       LR, teacher, student, HR and errors of the same regions of validation pictures
    test/...    of the finished student: <benchmark>/psnr, <benchmark>/ssim; psnr and ssim are the means over benchmarks
    cost/...    seconds, steps, teacher_passes of the training; parameters, gflops, seconds_per_megapixel of a student

Nothing here imports torch or a logger before one is asked for.
"""

import importlib.util
import logging
import os
import ssl
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from configparser import ConfigParser
from configparser import Error as ConfigError
from dataclasses import dataclass
from netrc import NetrcParseError, netrc
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import urlparse

from omegaconf import DictConfig, OmegaConf

from mtkd_lightning import ranks
from mtkd_lightning.errors import MTKDError
from mtkd_lightning.network_tables import means

if TYPE_CHECKING:
    from lightning.pytorch.callbacks import Callback
    from lightning.pytorch.loggers import Logger

    from mtkd_lightning.artifacts import Artifact

log = logging.getLogger(__name__)

PATIENCE = 15.0  # seconds for an answer of W&B
MODES = ("online", "offline", "disabled")
# What the artefact of a stage is called where artefacts have types.
TYPES = {"teachers": "teacher", "aggregation": "aggregator", "distillation": "student"}


def check(node: DictConfig) -> None:
    """Refuse a logger that cannot work.

    Raises:
        MTKDError: a package is missing, or a value is not allowed, or W&B is to be online without a key.
    """
    for key, lowest in (("images", 0), ("images_every", 1)):
        value = node[key]
        if not (value is None and key == "images_every") and (type(value) is not int or value < lowest):
            raise MTKDError(f"logger.{key}={value!r}: it must be a whole number from {lowest} up")
    for package in ("tensorboard", "wandb"):
        if package in node and importlib.util.find_spec(package) is None:
            wanted = "'mtkd_lightning[tensorboard]'" if package == "tensorboard" else "wandb"
            raise MTKDError(f"logger={package} needs the package {package}, which is not here: pip install {wanted}")
    if "wandb" in node:
        settings = node.wandb
        if settings.mode not in (None, *MODES):
            raise MTKDError(f"logger.wandb.mode={settings.mode!r}: allowed are {', '.join(MODES)}")
        if not isinstance(settings.artifacts, bool):
            raise MTKDError(f"logger.wandb.artifacts={settings.artifacts!r}: allowed are true, false")
        if (
            not isinstance(settings.project, str)
            or not 0 < len(settings.project) <= 128
            or set(settings.project) & set("/\\#?%:")
        ):
            raise MTKDError(f"logger.wandb.project={settings.project!r}: a name without / \\ # ? % : is wanted")
        if wandb_mode(settings.mode) == "online" and not has_key():
            raise MTKDError(
                "W&B is to be online, and there is no key: `wandb login`, or set WANDB_API_KEY, or choose "
                "logger.wandb.mode=offline and upload later with `wandb sync`"
            )


def wandb_mode(asked: str | None) -> str:
    """What was asked for, or what WANDB_MODE says, or online where there is a key, else offline."""
    said = asked or os.environ.get("WANDB_MODE", "")
    found = {"run": "online", "dryrun": "offline"}.get(said, said)
    return found if found in MODES else "online" if has_key() else "offline"


def wandb_server() -> str:
    """Address of the W&B server, as its own settings have it."""
    folder = Path(os.environ.get("WANDB_CONFIG_DIR", "~/.config/wandb")).expanduser()
    settings = ConfigParser()
    try:
        settings.read(folder / "settings")
    except (ConfigError, UnicodeDecodeError) as error:
        log.debug("%s cannot be read: %s", folder / "settings", error)
    fallback = settings.get("default", "base_url", fallback="https://api.wandb.ai")
    return os.environ.get("WANDB_BASE_URL", fallback)


def keep_to(folder: Path) -> None:
    """Have W&B keep its files in a folder instead of the user's home, and tell its makers nothing of its own."""
    os.environ.setdefault("WANDB_DATA_DIR", str(folder / "data"))
    os.environ.setdefault("WANDB_CACHE_DIR", str(folder / "cache"))
    # With it a run that is offline, too, would ask for the network.
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)  # shouts if a server does not take its reports


def unreachable() -> str | None:
    """Why no W&B server answers, or None if one does, whatever it says."""
    try:
        with urllib.request.urlopen(wandb_server(), timeout=PATIENCE):
            return None
    except urllib.error.HTTPError:
        return None
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        return None if isinstance(reason, ssl.SSLError) else str(reason)


def has_key() -> bool:
    """Whether there is a key for the server: in the environment, or where ``wandb login`` left it."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    host = urlparse(wandb_server()).hostname or ""
    for path in map(Path, filter(None, (os.environ.get("NETRC"), "~/.netrc", "~/_netrc"))):
        try:
            # Not authenticators(), which also gives a machine called default.
            if host in netrc(path.expanduser()).hosts:
                return True
        except (OSError, NetrcParseError):
            continue
    return False


@dataclass(frozen=True)
class Names:
    """Of one network's run, see the top of this file."""

    name: str
    group: str
    job_type: str
    tags: tuple[str, ...]
    config: dict[str, Any]

    @classmethod
    def of(cls, config: DictConfig, stage: str, stem: str, seed: int) -> Self:
        """Names of the network that a stage of a job makes."""
        whose = [config.teacher.name]
        if stage == "distillation":
            whose = [config.student_name, config.method_name, config.label]
        plain: dict[str, Any] = OmegaConf.to_container(config, resolve=True)  # type: ignore[assignment]
        return cls(
            name=str(stem),
            group=str(config.study_name),
            job_type=stage,
            tags=tuple(dict.fromkeys(map(str, (*whose, f"x{config.scale}", f"seed{seed}")))),
            config={**plain, "stage": stage, "artifact": str(stem), "network_seed": seed},
        )


class Tracker:
    """The run of one network in the loggers that were asked for, if this is the first rank; a context that closes it.

    Args:
        config: of the job.
        stage: that makes the network.
        stem: the network's name.
        seed: of its training.
        folder: its own, where a training that goes on finds its run again.
        checkpoint: what the training goes on from; None begins a new run.
        training: whether it is trained now, or a finished one is scored.
    """

    def __init__(
        self,
        config: DictConfig,
        stage: str,
        stem: str,
        seed: int,
        folder: Path,
        *,
        checkpoint: Path | None = None,
        training: bool = True,
    ) -> None:
        self.settings = config.logger
        self.names = Names.of(config, stage, stem, seed)
        self.loggers: list[Logger] = []
        if ranks.rank() > 0:
            return
        if "tensorboard" in self.settings:
            self.loggers.append(_tensorboard(folder, checkpoint, training))
        if "wandb" in self.settings and (mode := wandb_mode(self.settings.wandb.mode)) != "disabled":
            from mtkd_lightning.wandb_logger import Wandb

            anew = training and checkpoint is None
            settings: Any = OmegaConf.to_container(self.settings.wandb, resolve=True)
            self.loggers.append(Wandb(self.names, folder, settings, mode, anew=anew))

    def callbacks(self) -> "list[Callback]":
        """What draws pictures for them."""
        from mtkd_lightning.callbacks.crops import Crops

        drawn = self.settings.images if self.loggers else 0
        return [Crops(drawn, self.settings.images_every)] if drawn else []

    def made(self, artifact: "Artifact", parts: "Callable[[], Sequence[tuple[str, Artifact]]]" = tuple) -> None:
        """Log a finished training's result, and of which (type, artefact) it was made."""
        record = artifact.record
        costs = {f"cost/{key}": record[key] for key in ("seconds", "steps", "teacher_passes")}
        self._result({**record["metrics"], **costs}, record["steps"])
        for logger in self.loggers:
            if hasattr(logger, "log_lineage"):
                logger.log_lineage(TYPES[self.names.job_type], artifact, parts())

    def scored(self, metrics: Mapping[str, Any]) -> None:
        """Log what an evaluation found: a student's scores and costs, and the table of all networks."""
        result, table = results(metrics)
        self._result(result, metrics["run"]["steps"])
        for logger in self.loggers:
            if hasattr(logger, "log_rows"):
                logger.log_rows("results", table, metrics["run"]["steps"])

    def _result(self, values: Mapping[str, Any], step: int) -> None:
        for logger in self.loggers:
            if hasattr(logger, "log_summary"):
                logger.log_summary(values)
            elif scores := {key: value for key, value in values.items() if key.startswith("test/")}:
                logger.log_metrics(scores, step)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        for logger in self.loggers:
            if hasattr(logger, "finish"):
                logger.finish(failed=kind is not None)
            else:
                logger.finalize("success" if kind is None else "failed")


def results(metrics: Mapping[str, Any]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Of an evaluation's metrics: names and values of the student, and a row per benchmark and network."""
    rows = means(metrics)
    student = [row for row in rows if row["network"] == "student"]
    run, cost = metrics["run"], metrics["networks"]["student"]
    found: dict[str, Any] = {f"cost/{key}": run[key] for key in ("seconds", "steps", "teacher_passes")}
    found |= {f"cost/{key}": cost[key] for key in ("parameters", "seconds_per_megapixel")}
    found["cost/gflops"] = cost["flops"] and cost["flops"] / 1e9
    for measure in ("psnr", "ssim"):
        found |= {f"test/{row['benchmark']}/{measure}": row[measure] for row in student}
        found[f"test/{measure}"] = fmean(row[measure] for row in student)
    # The same for students that may be compared.
    return {**{key: value for key, value in found.items() if value is not None}, "fairness": run["fingerprint"]}, rows


def log_pictures(logger: "Logger", key: str, pictures: Mapping[str, Any], caption: str, step: int) -> None:
    """Hand over named pictures, uint8 (h, w, 3), to a logger that takes such."""
    if hasattr(logger, "log_image"):
        captions = [f"{name}: {caption}" for name in pictures]
        logger.log_image(key, list(pictures.values()), step, caption=captions)
    elif hasattr(experiment := getattr(logger, "experiment", None), "add_image"):
        for name, picture in pictures.items():
            experiment.add_image(f"{key}/{name}", picture, step, dataformats="HWC")  # type: ignore[union-attr]


def _tensorboard(folder: Path, checkpoint: Path | None, training: bool) -> "Logger":
    import torch
    from lightning.pytorch.loggers import TensorBoardLogger

    # What was written behind the checkpoint, or by an earlier training, is to be forgotten.
    purged = None
    if training:
        purged = 0
        if checkpoint is not None:
            purged = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)["global_step"]
    return TensorBoardLogger(folder, name="tensorboard", version="", default_hp_metric=False, purge_step=purged)
