from itertools import permutations

import pytest
import torch
from torch import nn

from mtkd_lightning.backbones.base import Keep
from mtkd_lightning.backbones.edsr import EDSR
from mtkd_lightning.teachers.aggregators import Mean
from mtkd_lightning.teachers.dctswin import DCTSwin
from mtkd_lightning.teachers.teacher import Ensemble, Teacher


def member(seed: int = 0) -> Teacher:
    torch.manual_seed(seed)
    return Teacher(EDSR(scale=2, features=4, blocks=1))


def members(names: str) -> dict[str, Teacher]:
    return {name: member(ord(name)) for name in names}


def aggregator(count: int) -> DCTSwin:
    torch.manual_seed(0)
    return DCTSwin(2, count, embed_dim=4, depths=[2], num_heads=[2], drop_path_rate=0.0, features=4)


@pytest.fixture
def lr() -> torch.Tensor:
    return torch.rand(1, 3, 8, 12)


def test_a_teacher_is_frozen(lr):
    teacher = Teacher(EDSR(scale=2, features=4, blocks=1).train())
    assert not teacher.net.training
    assert not any(p.requires_grad for p in teacher.net.parameters())
    assert not teacher(lr.requires_grad_()).requires_grad
    assert not isinstance(teacher, nn.Module)


def test_reconstruct_is_differentiable_through_a_teacher(lr):
    net = member().net
    deep = net.extract(lr, Keep()).requires_grad_()
    net.reconstruct(deep, lr).sum().backward()
    assert deep.grad.abs().sum() > 0
    assert all(p.grad is None for p in net.parameters())


@pytest.mark.parametrize("names", ["a", "ab", "abc", "abcd"])
def test_one_to_four_members(names, lr):
    ensemble = Ensemble(members(names), aggregator(len(names)))
    assert ensemble(lr).shape == (1, 3, 16, 24)
    mean = Ensemble(ensemble.members, Mean(2, len(names)))(lr)
    assert torch.allclose(mean, sum(x(lr) for x in ensemble.members.values()) / len(names), atol=1e-6)


def test_members_are_seen_in_their_order(lr):
    seen = []

    class Eye(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            seen.append(images)
            return images[:, 0]

    teachers = members("cab")
    ensemble = Ensemble(teachers, Eye())
    assert list(ensemble.members) == ["c", "a", "b"]
    ensemble(lr)
    assert torch.equal(seen[0], torch.stack([teachers[name](lr) for name in "cab"], dim=1))


def test_the_order_of_members_is_part_of_the_result(lr):
    teachers, net = members("abc"), aggregator(3).eval()
    with torch.no_grad():
        results = [Ensemble({name: teachers[name] for name in order}, net)(lr) for order in permutations("abc")]
    for i, one in enumerate(results):
        assert all((one - other).abs().max() > 1e-6 for other in results[:i])


def test_the_aggregator_alone_is_in_the_state(lr):
    ensemble = Ensemble(members("ab"), aggregator(2))
    assert set(ensemble.parameters()) == set(ensemble.aggregator.parameters())
    assert ensemble.state_dict().keys() == {f"aggregator.{name}" for name in ensemble.aggregator.state_dict()}
    ensemble.train()
    assert ensemble.aggregator.training
    assert not any(x.net.training for x in ensemble.members.values())
    assert ensemble(lr).requires_grad


def test_a_change_to_the_given_members_does_not_reach_the_ensemble():
    teachers = members("ab")
    ensemble = Ensemble(teachers, Mean(2, 2))
    teachers.clear()
    assert list(ensemble.members) == ["a", "b"]


def test_members_move_with_a_teacher_of_an_ensemble():
    teacher = Teacher(Ensemble(members("ab"), aggregator(2)))
    teacher.apply_to_tensors(lambda x: x.double() if x.is_floating_point() else x)
    assert teacher(torch.rand(1, 3, 8, 8, dtype=torch.float64)).dtype == torch.float64
