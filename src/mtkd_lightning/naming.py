"""What a job of a sweep is called: its label and the overrides that decide its weights and no name tells yet."""

import hashlib
import re
from collections.abc import Sequence
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override

# Overrides (all below a key, too) that a name tells without this, or that leave the student's weights as they are.
UNTOLD = {
    *("experiment", "study", "study_name", "report", "preset", "scale", "seed", "name", "label"),
    *("experiment_name", "method_name", "student_name", "aggregator_name", "teacher.name", "teacher.accept_weak"),
    *("stages", "existing", "paths", "data.root", "num_workers", "compile", "launcher", "hparams_search", "logger"),
    *("trainer.accelerator", "trainer.devices", "trainer.num_nodes", "trainer.strategy", "trainer.log_every_n_steps"),
}
UNTOLD_CHOICES = ("trainer=default", "trainer=ddp")
UNTOLD_ENDS = (".validate_every", ".checkpoint_every")  # of a recipe
LONGEST_VALUE = 32
LONGEST = 96


def label(given: str, overrides: Sequence[str]) -> str:
    """Give a job's label: ``given``, and ``-key=value`` of each override that tells it from other jobs.

    It follows from the job's own overrides alone, not from what else is in the sweep or from their order, so that
    another sweep finds the same students. A label on the command line is left as it is. Keys are cut to their last
    part where that is unique, values to what a file may be called, with a hash of what was cut.
    """
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    if any(override.key_or_group == "label" for override in parsed):
        return given
    told = {_key(override): override for override in parsed if not _untold(override)}
    parts = [
        f"without_{_short(key, told)}" if override.is_delete() else f"{_short(key, told)}={_text(override.value())}"
        for key, override in sorted(told.items())
    ]
    return "-".join([given, *([_fit("-".join(parts), LONGEST)] if parts else [])])


def _key(override: Override) -> str:
    return str(override.package or override.key_or_group.replace("/", "."))


def _untold(override: Override) -> bool:
    key = _key(override)
    below = any(key == known or key.startswith(f"{known}.") for known in UNTOLD)
    return below or key.endswith(UNTOLD_ENDS) or override.input_line in UNTOLD_CHOICES


def _short(key: str, others: Sequence[str] | dict[str, Any]) -> str:
    """The shortest end of a dotted key that no other key ends with, and that is no key of its own."""
    parts = key.split(".")
    ends = (".".join(parts[-count:]) for count in range(1, len(parts)))
    unique = (end for end in ends if end not in UNTOLD and sum(f".{x}".endswith(f".{end}") for x in others) == 1)
    return next(unique, key)


def _text(value: Any) -> str:
    if isinstance(value, list):
        return _fit("+".join(map(_text, value)), LONGEST_VALUE)
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    return _fit(format(value, ".6g") if isinstance(value, float) else str(value), LONGEST_VALUE)


def _fit(text: str, longest: int) -> str:
    """Make text fit for a file's name; where that loses something, a hash of the whole stands for it."""
    safe = re.sub(r"[^\w.+=-]+", "_", text, flags=re.ASCII)
    if safe == text and len(text) <= longest:
        return text
    return f"{safe[: longest - 7]}_{hashlib.sha256(text.encode()).hexdigest()[:6]}"
