"""Where the configuration lies, and what is wrong with one, found before anything heavy is imported."""

import ast
import difflib
import logging
import os
import shutil
from collections.abc import Iterator, Set
from functools import cache, partial
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mtkd_lightning import loggers, ranks
from mtkd_lightning.errors import MTKDError
from mtkd_lightning.recipe import Recipe

log = logging.getLogger(__name__)

PACKAGE = Path(__file__).parent
# Inside an installed wheel, or beside src/ in a checkout.
CONF = next(p for p in (PACKAGE / "conf", PACKAGE.parents[1] / "conf") if p.is_dir())

STAGES = ("teachers", "cache", "aggregation", "distillation", "evaluation", "report")
SCALES = (2, 3, 4)
TEACHER = {"only", "alone", "pair", "accept_weak", "cache", "bits", "self_ensemble", "tile", "overlap"}
# What a scalar of a configuration may be for an argument's annotation, and how that is called.
TYPES: dict[str, tuple[type, ...]] = {"int": (int,), "float": (int, float), "bool": (bool,), "str": (str,)}
TITLES = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "text"}
GROUPS = {"paths", "data", "teacher", "aggregator", "method", "trainer", "student", "logger"}


def check(config: DictConfig) -> None:
    """Refuse what can be seen to be wrong without importing torch.

    Hydra refuses an unknown key unless it is added with ``+``; an added one that nothing reads is refused here.

    Raises:
        MTKDError: a missing or unknown key, or a value outside what is allowed.
    """
    check_keys(config, "config")
    _refuse_unknown("paths", config.paths, {"root", "weights", "runs", "cache"})
    _refuse_unknown("training", config.training, {"teachers", "aggregation", "distillation"})
    _refuse_unknown("teacher", config.teacher, {"name", "members"} | TEACHER)
    for name, member in config.teacher.members.items():
        if not isinstance(member, DictConfig):
            raise MTKDError(
                f"teacher.members.{name}={member}: a member is a mapping; give teacher.members.{name}.weights=..., or "
                f"leave it out with ~teacher.members.{name}"
            )
        _refuse_unknown(f"teacher.members.{name}", member, {"backbone", "weights", "seed", "folder"})
        if member.get("folder") and (member.get("backbone") or member.get("weights")):
            raise MTKDError(f"teacher.members.{name} has a folder of pictures and a network; it can be one of them")
        if not (member.get("backbone") or member.get("weights") or member.get("folder")):
            raise MTKDError(
                f"teacher.members.{name} has nothing to make pictures with: give weights=... (a file or a name of the "
                f"catalogue), folder=... (pictures), or +backbone@teacher.members.{name}.backbone=..., "
                f"one of {', '.join(sorted(path.stem for path in (CONF / 'backbone').glob('*.yaml')))}"
            )
    for key in ("teacher.only", "data.exclude"):
        if isinstance(value := OmegaConf.select(config, key), str):
            raise MTKDError(f"{key}={value}: it must be a list such as {key}=[{value}]")
    _check_only(config.teacher)
    _refuse_value("scale", config.scale, SCALES)
    _refuse_value("teacher.bits", config.teacher.bits, (8, 16))
    if config.teacher.self_ensemble and not config.teacher.cache:
        raise MTKDError(
            "teacher.self_ensemble=true is of pictures that are made once and kept, and teacher.cache=false makes them "
            "on every batch: leave one of them out"
        )
    _refuse_unknown("report", config.report, {"pictures"})
    _refuse_value("existing", config.existing, ("stop", "remake"))
    _refuse_unknown("trainer", config.trainer, set(OmegaConf.load(CONF / "trainer" / "default.yaml")))
    _refuse_value("trainer.accelerator", config.trainer.accelerator, ("auto", "cpu", "gpu"))
    _refuse_value("trainer.precision", config.trainer.precision, ("32-true", "bf16-mixed", "16-mixed"))
    if not isinstance(every := config.trainer.log_every_n_steps, int) or every < 1:
        raise MTKDError(f"trainer.log_every_n_steps={every!r}: it must be a whole number above 0")
    devices = _devices(config)
    _refuse_unknown("logger", config.logger, {"images", "images_every", "tensorboard", "wandb"})
    if "tensorboard" in config.logger:
        _refuse_unknown("logger.tensorboard", config.logger.tensorboard, set())
    if "wandb" in config.logger:
        _refuse_unknown("logger.wandb", config.logger.wandb, set(OmegaConf.load(CONF / "logger" / "wandb.yaml").wandb))
    loggers.check(config.logger)
    if config.compile and not (os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")):
        raise MTKDError("compile=true needs a C++ compiler, and neither g++ nor clang++ is here: install one")
    for key in ("seed", "num_workers", "report.pictures"):
        _refuse_negative(key, OmegaConf.select(config, key))
    for name, member in config.teacher.members.items():
        if member.get("seed") is not None:
            _refuse_negative(f"teacher.members.{name}.seed", member.seed)
    seeds = [member.get("seed") for member in config.teacher.members.values()]
    if config.training.teachers.seed and None not in seeds:
        raise MTKDError(
            f"training.teachers.seed={config.training.teachers.seed} has no effect: every teacher has a seed of its "
            "own, teacher.members.<name>.seed"
        )
    if not isinstance(config.name, str) or Path(config.name).name != config.name:
        raise MTKDError(f"name={config.name!r} cannot be that of a file; label is a part of it: neither may have a /")
    for stage, node in config.training.items():
        values = {key: value for key, value in node.items() if key not in ("_target_", "optimizer", "scheduler")}
        try:
            Recipe(optimizer=None, scheduler=build(node.scheduler), **values)  # type: ignore[arg-type]
        except MTKDError as error:
            raise MTKDError(f"training.{stage}: {error}") from error
        parts, batch_size = config.trainer.accumulate_grad_batches, node.batch_size
        if not isinstance(parts, int) or parts < 1 or batch_size % parts:
            raise MTKDError(
                f"trainer.accumulate_grad_batches={parts!r} does not cut training.{stage}.batch_size={batch_size} "
                "into equal parts: use a divisor of it"
            )
        if devices != "auto" and batch_size % (parts * devices):
            raise MTKDError(
                f"training.{stage}.batch_size={batch_size} is that of all {devices} processes together and cannot be "
                f"split among them{f' in {parts} parts each' if parts > 1 else ''}: use a multiple of {parts * devices}"
            )
    for stage in ("teachers", "aggregation"):
        if config.training[stage].init_from is not None:
            raise MTKDError(
                f"training.{stage}.init_from: only the student starts from a file; for a teacher that is "
                "finished say teacher.members.<name>.weights=..."
            )
    if not isinstance(config.stages, ListConfig) or not config.stages:
        raise MTKDError(f"stages={config.stages!r}: it must be a list such as stages=[aggregation]")
    for stage in config.stages:
        _refuse_value("stages", stage, STAGES)
    if not config.teacher.members:
        raise MTKDError("teacher.members is empty: an ensemble needs at least one member")


def _devices(config: DictConfig) -> int | str:
    devices, strategy = config.trainer.devices, config.trainer.strategy
    if isinstance(strategy, str) and strategy != "auto":
        raise MTKDError(
            f"trainer.strategy={strategy}: say trainer=ddp (conf/trainer/ddp.yaml has its options); weights are not "
            "sharded among devices, for these networks fit on each"
        )
    several = strategy != "auto"
    if devices != "auto" and (isinstance(devices, bool) or not isinstance(devices, int) or devices < 1):
        raise MTKDError(f"trainer.devices={devices!r}: it must be a number from 1 up, or auto")
    if devices != 1 and not several:
        raise MTKDError(f"trainer.devices={devices} takes trainer=ddp, which starts a process for each device")
    if ranks.count() > 1 and not several:
        raise MTKDError(
            f"torchrun or srun started {ranks.count()} processes of this command, and each would do the same: say "
            "trainer=ddp, or start one"
        )
    return ranks.count() if ranks.count() > 1 else devices


def check_keys(config: DictConfig, name: str) -> None:
    """Refuse missing values, keys that ``conf/<name>.yaml`` does not have, and arguments that a class does not take.

    Raises:
        MTKDError: as said.
    """
    if missing := OmegaConf.missing_keys(config):
        raise MTKDError(f"no value for {', '.join(sorted(missing))}: give it as {min(missing)}=...")
    _refuse_unknown("the configuration", config, set(OmegaConf.load(CONF / f"{name}.yaml")) - {"defaults"} | GROUPS)
    for key, node in _targets(config):
        if (accepted := _parameters(node["_target_"])) is not None:
            _refuse_unknown(key, node, accepted.keys() | {"_target_", "_partial_"})
            for name, annotation in accepted.items():
                _refuse_type(f"{key}.{name}", node.get(name), annotation)


def build(node: DictConfig, **extra: Any) -> Any:
    """Call a node's ``_target_`` with its values and ``extra`` (which is handed over as it is, not copied).

    Raises:
        MTKDError: the values do not fit; the reason is kept, its traceback is logged at DEBUG.
    """
    from hydra.utils import instantiate  # late: loading a network needs none of it

    try:
        made = instantiate(node, _partial_=True, _convert_="all")
        return partial(made, **extra) if node.get("_partial_") else made(**extra)
    except Exception as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, MTKDError):
            cause = cause.__cause__
        log.debug("cannot build", exc_info=True)
        raise cause or MTKDError(
            f"{node._get_full_key(None)} cannot be built: {type(error).__name__}: {error}"
        ) from error


def plain(node: Any) -> Any:
    """Resolve a node to dicts, lists and scalars."""
    try:
        return OmegaConf.to_container(node, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise MTKDError(f"the configuration cannot be resolved: {error}") from error


def _refuse_negative(key: str, value: Any) -> None:
    most = 2**32 - 1  # of a seed
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= most:
        raise MTKDError(f"{key}={value!r}: it must be a whole number from 0 to {most}")


def _check_only(teacher: DictConfig) -> None:
    only, members = teacher.only, tuple(teacher.members)
    # Experiments of two teachers (conf/variant/two) and of one name them by what conf/teacher says.
    if OmegaConf.is_interpolation(teacher, "only") and (only is None or len(set(only)) != 2):
        raise MTKDError(
            f"teacher.pair={only}: two teachers teach here; name them, teacher.pair=[{', '.join(members[:2])}] say"
        )
    if only is None:
        return
    if not only:
        raise MTKDError("teacher.only=[] leaves no teacher: name some, or say teacher.only=null for all")
    if len(set(only)) < len(only):
        raise MTKDError(f"teacher.only={only}: a member is there once")
    if list(only) == [None]:
        raise MTKDError(f"teacher.alone=null: one teacher teaches here; name it, teacher.alone={members[0]} say")
    for name in only:
        _refuse_value("teacher.only", name, members)


def _refuse_unknown(where: str, node: Any, known: Set[str]) -> None:
    for key in node:
        if key not in known:
            close = difflib.get_close_matches(str(key), known, n=1)
            hint = f"did you mean {close[0]}? " if close else ""
            allowed = ", ".join(sorted(known - {"_target_", "_partial_"}))
            raise MTKDError(f"{where} has no key {key!r}: {hint}It has {allowed}.")


def _refuse_type(key: str, value: Any, annotation: str) -> None:
    """Refuse a scalar of another type than the argument's, as far as its annotation is simple enough to tell."""
    allowed = {part.strip() for part in annotation.split("|")}
    if value is None or not allowed <= TYPES.keys() | {"None"}:
        return
    kinds = tuple(kind for part in allowed for kind in TYPES.get(part, ()))
    if not isinstance(value, kinds) or (isinstance(value, bool) and "bool" not in allowed):
        wanted = " or ".join(TITLES[part] for part in sorted(allowed - {"None"}))
        raise MTKDError(f"{key}={value!r}: it must be {wanted}")


def _refuse_value(key: str, value: Any, allowed: tuple[Any, ...]) -> None:
    if value not in allowed:
        raise MTKDError(f"{key}={value!r}: allowed are {', '.join(map(str, allowed))}")


def _targets(node: Any, key: str = "") -> Iterator[tuple[str, DictConfig]]:
    if isinstance(node, DictConfig):
        if "_target_" in node:
            yield key, node
        for name in map(str, node):
            yield from _targets(node[name], f"{key}.{name}".lstrip("."))


@cache
def _parameters(target: str) -> dict[str, str] | None:
    """Arguments of a class or function of ours with their annotations, from its source; None where that is silent."""
    module, _, name = target.rpartition(".")
    path = PACKAGE.parent.joinpath(*module.split(".")).with_suffix(".py")
    if not target.startswith(f"{PACKAGE.name}.") or not path.is_file():
        return None
    body = ast.parse(path.read_text()).body
    found = next((node for node in body if getattr(node, "name", None) == name), None)
    if isinstance(found, ast.ClassDef):
        fields = [node for node in found.body if isinstance(node, ast.AnnAssign)]
        init = next((node for node in found.body if getattr(node, "name", None) == "__init__"), None)
        if init is None:  # a dataclass, or inherited from elsewhere
            return {ast.unparse(node.target): ast.unparse(node.annotation) for node in fields} or None
        found = init
    if not isinstance(found, ast.FunctionDef) or found.args.kwarg:
        return None
    arguments = [argument for argument in (*found.args.args, *found.args.kwonlyargs) if argument.arg != "self"]
    return {argument.arg: ast.unparse(argument.annotation) if argument.annotation else "" for argument in arguments}
