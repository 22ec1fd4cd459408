import pytest
import torch

from mtkd_lightning.backbones.edsr import EDSR
from mtkd_lightning.methods.scratch import Scratch
from mtkd_lightning.teachers.dctswin import DCTSwin
from mtkd_lightning.teachers.teacher import Ensemble, Teacher
from mtkd_lightning.typing import SRBatch

SMALL = {"scale": 2, "features": 4, "blocks": 1}


@pytest.fixture
def batch() -> SRBatch:
    return SRBatch(torch.rand(2, 3, 8, 8), torch.rand(2, 3, 16, 16), ["a", "b"])


def aggregation() -> Scratch:
    """Stage 1 of MTKD."""
    aggregator = DCTSwin(2, 2, embed_dim=4, depths=[2], num_heads=[2], drop_path_rate=0.0, features=4)
    return Scratch(Ensemble({"a": Teacher(EDSR(**SMALL)), "b": Teacher(EDSR(**SMALL))}, aggregator))


def test_value(batch):
    student = EDSR(**SMALL)
    terms = Scratch(student)(batch)
    assert terms.keys() == {"ground_truth"}
    expected = sum(
        abs(a - b) for a, b in zip(student(batch.lr).flatten().tolist(), batch.hr.flatten().tolist(), strict=True)
    )
    assert terms["ground_truth"].item() == pytest.approx(expected / batch.hr.numel())


def test_it_needs_no_teacher():
    method = Scratch(EDSR(**SMALL))
    assert not method.needs_teacher
    assert method.teacher is None
    method.double()
    assert all(name.startswith("student.") for name in method.state_dict())


def test_of_an_ensemble_the_aggregator_alone_learns(batch):
    method = aggregation().train()
    method(batch)["ground_truth"].backward()
    aggregator = method.student.aggregator
    assert set(method.parameters()) == set(aggregator.parameters())
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in aggregator.parameters())
    for member in method.student.members.values():
        assert not any(module.training for module in member.net.modules())
        assert all(p.grad is None and not p.requires_grad for p in member.net.parameters())


def test_of_an_ensemble_the_state_is_the_aggregator():
    assert all(name.startswith("student.aggregator.") for name in aggregation().state_dict())


def test_members_of_an_ensemble_move_along():
    method = aggregation().double()
    assert {p.dtype for member in method.student.members.values() for p in member.net.parameters()} == {torch.float64}
    assert method.student(torch.rand(1, 3, 8, 8, dtype=torch.float64)).dtype == torch.float64
