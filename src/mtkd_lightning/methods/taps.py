"""Which feature of the student is compared with which of the teacher."""

from collections.abc import Mapping, Sequence

from torch import nn

from mtkd_lightning.backbones.base import Backbone, MeanShift
from mtkd_lightning.backbones.foreign import Foreign
from mtkd_lightning.errors import MTKDError
from mtkd_lightning.teachers.teacher import Teacher

Taps = Sequence[float] | Mapping[str, str]
"""Relative depths, from 0 (shallow) to 1 (deep), or explicit pairs {student tap: teacher tap}."""


def with_tail(role: str, network: nn.Module) -> Backbone:
    """Give a network whose tail can be run on a deep feature.

    Raises:
        MTKDError: it is an ensemble, or a network that is not one of conf/backbone.
    """
    if isinstance(network, Foreign):
        raise MTKDError(
            f"the method lets the {role} begin from a feature, which a foreign network cannot: choose a network of "
            "conf/backbone, or a method that reads pictures (kd, mtkd) or features (at, fakd) alone"
        )
    return readable(role, network)


def readable(role: str, network: nn.Module) -> Backbone:
    """Give a network whose features can be read.

    Raises:
        MTKDError: it is an ensemble, or a network that is not a `Backbone`.
    """
    if isinstance(network, Backbone):
        return network
    raise MTKDError(
        f"the method reads features of the {role}, and {type(network).__name__} shows none. It needs one network of "
        "conf/backbone: choose one teacher with teacher.only=[<name>], merged by aggregator=mean"
    )


def pair_taps(student: nn.Module, teacher: Teacher, taps: Taps) -> list[tuple[str, str]]:
    """Pair taps, (student tap, teacher tap).

    A relative depth d stands for "shallow" at 0, "deep" at 1, and else the unit (block, group) whose end lies nearest
    to that share of all units, in each of the two networks.

    Raises:
        MTKDError: an unknown tap, a depth outside 0..1, a network without features, or nothing to pair.
    """
    networks = readable("student", student), readable("teacher", teacher.net)
    if isinstance(taps, Mapping):
        pairs = list(taps.items())
    else:
        # In short networks two depths may be the same pair, which counts once.
        pairs = list(dict.fromkeys((_at_depth(networks[0], depth), _at_depth(networks[1], depth)) for depth in taps))
    if not pairs:
        raise MTKDError(
            "method.taps is empty: give relative depths such as [0.33, 0.67, 1.0], or pairs as "
            "'~method.taps' '+method.taps={deep: deep}'"
        )
    for net, names in zip(networks, zip(*pairs, strict=True), strict=True):
        net.check_taps(names)
    return pairs


def describe_pairs(student: nn.Module, teacher: Teacher, pairs: Sequence[tuple[str, str]]) -> str:
    """A line a pair: names and channels; features have the size of the LR picture."""
    own, other = (readable("", net).tap_channels for net in (student, teacher.net))
    kinds = type(student).__name__, type(teacher.net).__name__
    lines = [f"  {f'{kinds[0]} {s} ({own[s]}, h, w)':<36} {kinds[1]} {t} ({other[t]}, h, w)" for s, t in pairs]
    return "\n".join(["pairs of features, student and teacher:", *lines])


def value_range(network: Backbone) -> float:
    """Of the values that a network works in: features of one of 0..255 are as much larger."""
    if isinstance(network, Foreign):
        return network.image_range
    shift = getattr(network, "mean_shift", None)
    return shift.image_range if isinstance(shift, MeanShift) else 1.0


def _at_depth(network: Backbone, depth: float) -> str:
    if not (isinstance(depth, int | float) and 0 <= depth <= 1):
        raise MTKDError(f"method.taps has {depth!r}: a relative depth lies in 0..1, such as 0.33")
    shallow, *units, deep = network.tap_channels
    if depth in (0, 1):
        return deep if depth else shallow
    return units[min(max(round(depth * len(units)), 1), len(units)) - 1]
