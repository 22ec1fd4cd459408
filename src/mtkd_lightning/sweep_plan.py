"""What a sweep will do, looked over before its first job starts."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from mtkd_lightning.config import check_keys
from mtkd_lightning.errors import MTKDError
from mtkd_lightning.naming import label


def chooses(hydra: Any) -> bool:
    """Say whether the sweeper chooses values by what jobs gave, so that the jobs are not known beforehand."""
    return not str(hydra.sweeper._target_).endswith(f".{BasicSweeper.__name__}")


def is_search(hydra: Any) -> bool:
    """Say whether this is a search of ``conf/hparams_search``, with trials that are kept."""
    return chooses(hydra) and OmegaConf.is_dict(hydra.sweeper.get("storage"))


def planned(config: DictConfig) -> list[list[str]]:
    """Give the overrides of every job; of a search, those of one that it might start with.

    Raises:
        MTKDError: they cannot be read, or there is none.
    """
    given = [f"{key}={value}" for key, value in (config.hydra.sweeper.get("params") or {}).items()]
    loader = GlobalHydra.instance().config_loader()
    try:
        parsed = OverridesParser.create(loader).parse_overrides([*given, *overrides_of(config.hydra)])
        if chooses(config.hydra):
            return [list({override.get_key_element(): _first(override) for override in parsed}.values())]
        (jobs,) = BasicSweeper.split_arguments(parsed, None)
    except HydraException as error:
        raise MTKDError(f"the sweep cannot be read: {error}") from error
    if not jobs:
        empty = [override.input_line for override in parsed if override.is_sweep_override()]
        raise MTKDError(f"the sweep has no job: one of {', '.join(map(str, empty))} has no value")
    return jobs


def refuse_collisions(config: DictConfig, jobs: Sequence[list[str]]) -> None:
    """Compose every job: refuse unknown keys, and two jobs that write the same student.

    Raises:
        MTKDError: naming the job, or both.
    """
    taken: dict[Path, int] = {}
    for number, overrides in enumerate(jobs):
        try:
            with _composed(config, overrides) as composed:
                check_keys(composed, "config")
                path = Path(composed.paths.weights, f"{composed.name}.safetensors")
        except (HydraException, MTKDError) as error:
            raise MTKDError(f"job {number} ({' '.join(overrides)}): {error} No job was started.") from error
        if (other := taken.setdefault(path, number)) != number:
            one, two = (" ".join(x for x in jobs[a] if x not in jobs[b]) for a, b in ((other, number), (number, other)))
            raise MTKDError(
                f"jobs {other} ({one or 'all'}) and {number} ({two or 'the same'}) would both write {path}. Name what "
                "is varied, for instance name='mine_${seed}', leave name=... and label=... out, or leave out one of "
                "two jobs that train the same student. No job was started."
            )


def pin(config: DictConfig, key: str, value: str) -> None:
    """Set a key of Hydra's here and, as on the command line, in every job."""
    OmegaConf.update(config, key, value)
    quoted = value.replace("\\", "\\\\").replace("'", "\\'")
    config.hydra.overrides.hydra.append(f"{key}='{quoted}'")


def study_name(config: DictConfig) -> str:
    """One study for each thing that is searched: of other fixed overrides, or of another space, it is another."""
    parsed = OverridesParser.create().parse_overrides(overrides_of(config.hydra))
    fixed = [str(override.input_line) for override in parsed if not override.is_sweep_override()]
    with _composed(config, fixed) as composed:
        return f"{config.hydra.runtime.choices.hparams_search}-{composed.name}"


def overrides_of(hydra: Any) -> list[str]:
    """Give the overrides of a job or, with their sweeps, of a command, as they were typed."""
    return list(OmegaConf.to_container(hydra.overrides.task, resolve=False))  # type: ignore[arg-type]


def _first(override: Override) -> str:
    value = override.value()
    if isinstance(value, IntervalSweep):
        text = str(value.start)
    elif override.is_sweep_override():
        text = next(override.sweep_string_iterator())
    else:
        text = override.get_value_element_as_str()
    return f"{override.get_key_element()}={text}"


@contextmanager
def _composed(config: DictConfig, overrides: list[str]) -> Iterator[DictConfig]:
    """Give the configuration of a job, with its name, as the job itself will see it."""
    before = HydraConfig.instance().cfg
    composed = GlobalHydra.instance().config_loader().load_sweep_config(config, overrides)
    HydraConfig.instance().set_config(composed)
    try:
        with read_write(composed), open_dict(composed):
            del composed["hydra"]
        composed.label = label(composed.label, overrides)
        yield composed
    finally:
        HydraConfig.instance().cfg = before
