"""MiPKD: what the teacher knows is mixed into the student's features, and the mixture has to serve the teacher.

Paper: Li, Zhang, Li, Chen, Wang, Jing, Lin, Hu, "Knowledge Distillation with Multi-granularity Mixture of Priors for
Image Super-Resolution", ICLR 2025, https://arxiv.org/abs/2404.02573. No code of it is known. Written from what
abstracts and summaries tell: separate convolutional encoders of the two features, a random 3-D mask that mixes their
latents, a decoder, L1 to the teacher's feature (weight 1), an auxiliary auto-encoder loss, random switching between
the blocks that follow with L1 to the teacher's picture (weight 0.1), response and ground truth.

Ours, because it was not to be read: depth and width of encoders and decoder, a mask drawn for each value with equal
odds, the auto-encoder loss as L1 of the teacher's feature encoded and decoded, the weights of the remaining terms,
the taps, the mean over them, the features' range.

Left out: the random switch behind every block. Our networks can be resumed at "deep" alone, and there both ways are
taken at every step: the mixture through the teacher's reconstruction is the term ``block``, the student's own feature
through its own reconstruction is the term ``response``.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from mtkd_lightning.backbones.base import Backbone, conv3x3
from mtkd_lightning.errors import MTKDError
from mtkd_lightning.losses.pixel import l1
from mtkd_lightning.methods.base import Method, kept_picture
from mtkd_lightning.methods.taps import Taps, describe_pairs, pair_taps, readable, value_range, with_tail
from mtkd_lightning.teachers.teacher import Teacher
from mtkd_lightning.typing import SRBatch


class MiPKD(Method):
    """Mixtures of features that must equal the teacher's, and lead the teacher's reconstruction to its picture.

    Features are divided by the range of values that their network works in, so that a weight means the same for a
    teacher of 0..255 as for one of 0..1.

    Args:
        student: network that learns; the mixers learn with it.
        teacher: one network, frozen.
        weights: of ``feature``, ``autoencoder``, ``block``, ``response`` and ``ground_truth``.
        taps: pairs of features, one of them with the teacher's "deep".
        share: of the latent values, those that come from the student, in 0..1.

    Raises:
        MTKDError: taps that do not fit, or a share outside its range.
    """

    terms = ("feature", "autoencoder", "block", "response", "ground_truth")

    def __init__(
        self, student: nn.Module, teacher: Teacher, weights: Mapping[str, float], taps: Taps, share: float = 0.5
    ) -> None:
        super().__init__(student, teacher, weights)
        self.student: Backbone
        self.teacher: Teacher
        self.pairs = pair_taps(student, teacher, taps)
        teacher_taps = [tap for _, tap in self.pairs]
        if "deep" not in teacher_taps:
            raise MTKDError(
                f"method.taps={taps}: the teacher is resumed at its deep feature; add 1.0 or {{deep: deep}}"
            )
        if not 0 < share <= 1:
            raise MTKDError(
                f"method.share={share}: it lies above 0, at which the student is left out, and is at most 1"
            )
        self.deep = teacher_taps.index("deep")
        self.share = share
        networks = readable("student", student), with_tail("teacher", teacher.net)
        own, other = (network.tap_channels for network in networks)
        self.own_range, self.other_range = map(value_range, networks)
        self.mixers = nn.ModuleList(Mixer(own[s], other[t]) for s, t in self.pairs)

    def describe(self) -> str:
        """The pairs of features."""
        return describe_pairs(self.student, self.teacher, self.pairs)

    def forward(self, batch: SRBatch) -> dict[str, Tensor]:
        """Give the five terms; those of features are means over the pairs."""
        sr, own = self.student.forward_features(batch.lr, [s for s, _ in self.pairs])
        made, other = self.teacher.features(batch.lr, [t for _, t in self.pairs])
        kept = kept_picture(batch)
        response = made if kept is None else kept
        targets = [other[t] / self.other_range for _, t in self.pairs]
        mixed = [
            mixer(own[s] / self.own_range, target, self.share)
            for (s, _), target, mixer in zip(self.pairs, targets, self.mixers, strict=True)
        ]
        mixtures, restored = zip(*mixed, strict=True)
        deep = mixtures[self.deep] * self.other_range
        served = with_tail("teacher", self.teacher.net).reconstruct(deep, batch.lr)
        return self.weighted(
            {
                "feature": _distance(mixtures, targets),
                "autoencoder": _distance(restored, targets),
                "block": l1(served, response),
                "response": l1(sr, response),
                "ground_truth": l1(sr, batch.hr),
            }
        )


class Mixer(nn.Module):
    """Encoders of a student's and of a teacher's feature into one latent space, and the way back to the teacher's.

    The latent space is as wide as the teacher's feature.
    """

    def __init__(self, student_channels: int, teacher_channels: int) -> None:
        super().__init__()
        self.encode_student = _coder(student_channels, teacher_channels)
        self.encode_teacher = _coder(teacher_channels, teacher_channels)
        self.decode = _coder(teacher_channels, teacher_channels)

    def forward(self, student: Tensor, teacher: Tensor, share: float) -> tuple[Tensor, Tensor]:
        """Decode the mixture of both features, and the teacher's alone; both (b, teacher's channels, h, w).

        The mask has an own value for each picture, channel and place.
        """
        latent = self.encode_teacher(teacher)
        takes = torch.rand(latent.shape, device=latent.device) < share
        return self.decode(torch.where(takes, self.encode_student(student), latent)), self.decode(latent)


def _distance(features: Sequence[Tensor], targets: Sequence[Tensor]) -> Tensor:
    return torch.stack([l1(feature, target) for feature, target in zip(features, targets, strict=True)]).mean()


def _coder(channels_in: int, channels_out: int) -> nn.Sequential:
    return nn.Sequential(conv3x3(channels_in, channels_out), nn.ReLU(), conv3x3(channels_out, channels_out))
