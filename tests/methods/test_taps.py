import pytest
import torch
from torch import nn

from mtkd_lightning.backbones.base import Backbone
from mtkd_lightning.backbones.dctlsa import DCTLSA
from mtkd_lightning.backbones.edsr import EDSR
from mtkd_lightning.backbones.lkdn import LKDN
from mtkd_lightning.backbones.rcan import RCAN
from mtkd_lightning.backbones.smfanet import SMFANetPlus
from mtkd_lightning.backbones.swinir import SwinIR
from mtkd_lightning.errors import MTKDError
from mtkd_lightning.methods.taps import describe_pairs, pair_taps, readable
from mtkd_lightning.teachers.teacher import Teacher

THIRDS = [0.33, 0.67, 1.0]


def edsr(blocks: int) -> Backbone:
    return EDSR(2, features=4, blocks=blocks)


def rcan(groups: int) -> Backbone:
    return RCAN(2, features=4, groups=groups, blocks=1, reduction=2)


def swinir(groups: int) -> Backbone:
    return SwinIR(2, 6, [1] * groups, [2] * groups, window_size=4, upsampler="pixelshuffledirect")


def dctlsa(blocks: int) -> Backbone:
    return DCTLSA(2, features=6, blocks=blocks, heads=2, window_size=4)


def smfanet(blocks: int) -> Backbone:
    return SMFANetPlus(2, features=6, blocks=blocks)


def lkdn(blocks: int) -> Backbone:
    return LKDN(2, features=6, blocks=blocks)


@pytest.mark.parametrize(
    ("network", "thirds"),
    [
        # FAKD's positions in RCAN are the groups 2 and 6, from 0.
        (rcan(10), ("group2", "group6")),
        (edsr(32), ("block10", "block20")),
        (edsr(16), ("block4", "block10")),
        (edsr(8), ("block2", "block4")),
        (edsr(1), ("block0", "block0")),
        (swinir(4), ("group0", "group2")),
        (dctlsa(6), ("block1", "block3")),
        (smfanet(12), ("block3", "block7")),
        (lkdn(8), ("block2", "block4")),
    ],
    ids=lambda x: type(x).__name__ if isinstance(x, nn.Module) else "",
)
def test_relative_depths_in_every_architecture(network, thirds):
    student = edsr(3)
    assert pair_taps(student, Teacher(network), THIRDS) == [
        ("block0", thirds[0]),
        ("block1", thirds[1]),
        ("deep", "deep"),
    ]
    assert pair_taps(network, Teacher(student), THIRDS) == [
        (thirds[0], "block0"),
        (thirds[1], "block1"),
        ("deep", "deep"),
    ]


def test_depths_at_the_ends():
    student, teacher = edsr(3), Teacher(dctlsa(6))
    assert pair_taps(student, teacher, [0, 1]) == [("shallow", "shallow"), ("deep", "deep")]
    # Never the shallow feature: it is no unit's.
    assert pair_taps(student, teacher, [0.01, 0.99]) == [("block0", "block0"), ("block2", "block5")]


def test_depths_that_are_the_same_pair_count_once():
    assert pair_taps(rcan(2), Teacher(rcan(2)), THIRDS) == [("group0", "group0"), ("deep", "deep")]
    pairs = pair_taps(rcan(2), Teacher(edsr(3)), THIRDS)
    assert pairs == [("group0", "block0"), ("group0", "block1"), ("deep", "deep")]


def test_pairs_are_features_of_one_size():
    student, teacher = edsr(3), Teacher(dctlsa(6))
    lr = torch.rand(1, 3, 9, 7)
    for own, other in pair_taps(student, teacher, THIRDS):
        assert student.forward_features(lr, [own])[1][own].shape == (1, 4, 9, 7)
        assert teacher.features(lr, [other])[1][other].shape == (1, 6, 9, 7)


def test_explicit_pairs_keep_their_order():
    taps = {"deep": "block5", "block0": "block0", "block2": "block0"}
    assert pair_taps(edsr(3), Teacher(dctlsa(6)), taps) == list(taps.items())


@pytest.mark.parametrize(
    ("taps", "message"),
    [
        ({"block7": "deep"}, r"EDSR has no tap 'block7'; it has shallow, block0, block1, block2, deep"),
        ({"deep": "group0"}, r"DCTLSA has no tap 'group0'; it has shallow, block0, "),
        ([0.5, 1.5], r"method\.taps has 1\.5: .* 0\.\.1"),
        ([-0.1], r"method\.taps has -0\.1"),
        (["deep"], r"method\.taps has 'deep'"),
        ([float("nan")], r"method\.taps has nan"),
        ([], r"method\.taps is empty"),
        ({}, r"method\.taps is empty"),
    ],
    ids=str,
)
def test_taps_that_do_not_fit(taps, message):
    with pytest.raises(MTKDError, match=message):
        pair_taps(edsr(3), Teacher(dctlsa(6)), taps)


def test_networks_without_features():
    with pytest.raises(MTKDError, match=r"features of the student, and Conv2d shows none"):
        pair_taps(nn.Conv2d(3, 3, 1), Teacher(edsr(1)), [1.0])
    with pytest.raises(MTKDError, match=r"features of the teacher, and Identity shows none"):
        pair_taps(edsr(1), Teacher(nn.Identity()), [1.0])
    network = edsr(1)
    assert readable("student", network) is network


def test_table():
    student, teacher = edsr(3), Teacher(dctlsa(6))
    head, *lines = describe_pairs(student, teacher, pair_taps(student, teacher, [0.33, 1.0])).splitlines()
    assert "student" in head
    assert "teacher" in head
    assert [" ".join(line.split()) for line in lines] == [
        "EDSR block0 (4, h, w) DCTLSA block1 (6, h, w)",
        "EDSR deep (4, h, w) DCTLSA deep (6, h, w)",
    ]
    assert lines[0].index("DCTLSA") == lines[1].index("DCTLSA")
