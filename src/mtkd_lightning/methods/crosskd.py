"""CrossKD: the student's deep feature has to serve the teacher's trained tail.

Paper: "(Dual) Cross Knowledge Distillation for Image Super-Resolution", SSRN 4305289,
https://papers.ssrn.com/sol3/papers.cfm?abstract_id=4305289; not the detector's CrossKD (arXiv 2306.11369). No code of
it is known, and of the paper the abstract alone was read: the student is cascaded into the frozen teacher, whose
trained parameters thus supervise it, without an alignment of features made by hand.

Not known of the original: where the student enters the teacher, whether there are adapters, what the cross picture is
compared with, the weights, what "dual" adds. All that is ours here: the cut is at "deep", where our networks can be
resumed, so the teacher's tail is its reconstruction; a feature changes to the other network's range of values and,
where widths differ, goes through a 1x1 convolution that learns along; the cross picture is compared with the teacher's;
the dual path sends the teacher's feature through the student's tail, to the ground truth.
"""

from collections.abc import Mapping

from torch import Tensor, nn

from mtkd_lightning.backbones.base import Backbone
from mtkd_lightning.errors import MTKDError
from mtkd_lightning.losses.pixel import l1
from mtkd_lightning.methods.base import Method, kept_picture
from mtkd_lightning.methods.taps import describe_pairs, pair_taps, readable, value_range, with_tail
from mtkd_lightning.teachers.teacher import Teacher
from mtkd_lightning.typing import SRBatch


class CrossKD(Method):
    """Response, ground truth, and response of the student's body under the teacher's tail.

    The term ``cross`` trains the student's body, and ``dual`` its tail.

    Args:
        student: network that learns; the adapters learn with it.
        teacher: one network, frozen.
        weights: of ``ground_truth``, ``response`` and ``cross``.
        dual: weight of the term ``dual``: L1 to the ground truth of the teacher's feature under the student's tail. 0
            leaves that path out.

    Raises:
        MTKDError: networks without a deep feature, or a negative weight.
    """

    terms = ("ground_truth", "response", "cross")

    def __init__(self, student: nn.Module, teacher: Teacher, weights: Mapping[str, float], dual: float = 0.0) -> None:
        super().__init__(student, teacher, weights)
        self.student: Backbone
        self.teacher: Teacher
        self.pairs = pair_taps(student, teacher, {"deep": "deep"})
        if not dual >= 0:
            raise MTKDError(f"method.dual={dual}: a weight is 0 or more")
        self.dual = dual
        networks = (with_tail if dual else readable)("student", student), with_tail("teacher", teacher.net)
        own, other = (network.tap_channels["deep"] for network in networks)
        own_range, other_range = map(value_range, networks)
        self.range_ratio = other_range / own_range
        self.adapter = make_adapter(own, other)
        self.dual_adapter = make_adapter(other, own) if dual else nn.Identity()

    def describe(self) -> str:
        """The feature that crosses over."""
        return describe_pairs(self.student, self.teacher, self.pairs)

    def forward(self, batch: SRBatch) -> dict[str, Tensor]:
        """Give the terms."""
        sr, own = self.student.forward_features(batch.lr, ["deep"])
        response = kept_picture(batch)
        if response is None or self.dual:
            made, other = self.teacher.features(batch.lr, ["deep"])
            response = made if response is None else response
        crossing = self.adapter(own["deep"] * self.range_ratio)
        cross = with_tail("teacher", self.teacher.net).reconstruct(crossing, batch.lr)
        terms = self.weighted(
            {"ground_truth": l1(sr, batch.hr), "response": l1(sr, response), "cross": l1(cross, response)}
        )
        if self.dual:
            crossing = self.dual_adapter(other["deep"] / self.range_ratio)
            terms["dual"] = self.dual * l1(self.student.reconstruct(crossing, batch.lr), batch.hr)
        return terms


def make_adapter(channels_in: int, channels_out: int) -> nn.Module:
    """Nothing for equal widths, else a 1x1 convolution.

    It begins with the channels that both sides have, as they are, and zeros in those that the source lacks: as close as
    can be to what equal widths get, of the same size, and the same for every seed.
    """
    if channels_in == channels_out:
        return nn.Identity()
    adapter = nn.Conv2d(channels_in, channels_out, 1)
    nn.init.dirac_(adapter.weight)
    nn.init.zeros_(adapter.bias)  # type: ignore[arg-type]
    return adapter
