"""AT and FAKD; what holds for every method is tested elsewhere."""

import pytest
import torch
from omegaconf import OmegaConf

from mtkd_lightning.backbones.dctlsa import DCTLSA
from mtkd_lightning.backbones.edsr import EDSR
from mtkd_lightning.config import CONF, build
from mtkd_lightning.errors import MTKDError
from mtkd_lightning.losses.affinity import affinity_distance
from mtkd_lightning.losses.attention import attention_distance
from mtkd_lightning.losses.pixel import l1
from mtkd_lightning.methods.at import AT
from mtkd_lightning.methods.fakd import FAKD
from mtkd_lightning.methods.feature import FeatureMethod
from mtkd_lightning.methods.taps import describe_pairs
from mtkd_lightning.teachers.aggregators import Mean
from mtkd_lightning.teachers.teacher import Ensemble, Teacher
from mtkd_lightning.typing import SRBatch

DISTANCES = {AT: attention_distance, FAKD: affinity_distance}
NAMES = {"at": AT, "fakd": FAKD}
WEIGHTS = {"response": 0.5, "ground_truth": 0.25, "feature": 2.0}


def make(kind: type[FeatureMethod], taps, teacher: Teacher | None = None) -> FeatureMethod:
    torch.manual_seed(0)
    student = EDSR(2, features=4, blocks=3)
    return kind(student, teacher or Teacher(DCTLSA(2, features=6, blocks=6, heads=2, window_size=4)), WEIGHTS, taps)


@pytest.fixture
def batch() -> SRBatch:
    torch.manual_seed(1)
    return SRBatch(torch.rand(2, 3, 9, 7), torch.rand(2, 3, 18, 14), ["a", "b"])


@pytest.mark.parametrize("kind", DISTANCES)
def test_value(kind, batch):
    """A pair is added to a pair; sides are no multiples of the teacher's window, so that its features are cropped."""
    method = make(kind, [0.33, 1.0])
    sr, own = method.student.forward_features(batch.lr, ["block0", "deep"])
    teacher_sr, taught = method.teacher.net.forward_features(batch.lr, ["block1", "deep"])
    distance = DISTANCES[kind]
    expected = {
        "response": 0.5 * l1(sr, teacher_sr),
        "ground_truth": 0.25 * l1(sr, batch.hr),
        "feature": 2 * (distance(own["block0"], taught["block1"]) + distance(own["deep"], taught["deep"])),
    }
    assert {name: term.item() for name, term in method(batch).items()} == pytest.approx(
        {name: term.item() for name, term in expected.items()}, rel=1e-5
    )


@pytest.mark.parametrize("kind", DISTANCES)
def test_the_feature_term_reaches_what_lies_before_its_taps(kind, batch):
    method = make(kind, {"block1": "block3"})
    method(batch)["feature"].backward()
    touched = {name for name, p in method.student.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    before = ("conv_first.", "body.0.", "body.1.")
    assert touched == {name for name, _ in method.student.named_parameters() if name.startswith(before)}
    assert all(p.grad is None for p in method.teacher.net.parameters())


@pytest.mark.parametrize("kind", DISTANCES)
def test_a_student_like_its_teacher_has_no_distance(kind, batch):
    method = make(kind, [0.33, 0.67, 1.0], Teacher(EDSR(2, features=4, blocks=3)))
    method.teacher.net.load_state_dict(method.student.state_dict())
    terms = method(batch)
    assert terms["feature"].item() == pytest.approx(0, abs=1e-5)
    assert terms["response"] == 0
    assert terms["ground_truth"] > 0


@pytest.mark.parametrize("kind", DISTANCES)
def test_descent_brings_the_features_together(kind, batch):
    method = make(kind, [0.33, 0.67, 1.0])
    optimizer = torch.optim.Adam(method.parameters(), 1e-3)
    values = []
    for _ in range(20):
        optimizer.zero_grad()
        feature = method(batch)["feature"]
        feature.backward()
        optimizer.step()
        values.append(feature.item())
    assert values[-1] < 0.9 * values[0]


@pytest.mark.parametrize("name", NAMES)
def test_configurations(name):
    node = OmegaConf.load(CONF / "method" / f"{name}.yaml")
    method = build(node, student=EDSR(2, features=4, blocks=8), teacher=Teacher(EDSR(2, features=6, blocks=16)))
    assert type(method) is NAMES[name]
    assert method.weights == {"response": 0.5, "ground_truth": 0.5, "feature": {"at": 0.01, "fakd": 0.04}[name]}
    assert method.pairs == [("block2", "block4"), ("block4", "block10"), ("deep", "deep")]


def test_description_lists_the_pairs():
    method = make(FAKD, [0.33, 1.0])
    pairs = [("block0", "block1"), ("deep", "deep")]
    assert method.describe() == describe_pairs(method.student, method.teacher, pairs)


def test_an_ensemble_shows_no_features():
    members = {name: Teacher(EDSR(2, features=4, blocks=1)) for name in "ab"}
    with pytest.raises(MTKDError, match=r"the teacher, and Ensemble shows none.*teacher\.only"):
        make(AT, [1.0], Teacher(Ensemble(members, Mean(2, 2))))
