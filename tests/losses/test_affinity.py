import json

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mtkd_lightning.errors import MTKDError
from mtkd_lightning.losses.affinity import ROWS, _total_and_gradient, affinity_distance


def literal(student: Tensor, teacher: Tensor) -> Tensor:
    """The definition: both matrices, and all of them at once."""
    s, t = (F.normalize(x.flatten(2), dim=1) for x in (student, teacher))
    return (s.transpose(1, 2) @ s - t.transpose(1, 2) @ t).abs().mean()


def gradient(distance, student: Tensor, teacher: Tensor) -> Tensor:
    student = student.clone().requires_grad_()
    (3 * distance(student, teacher)).backward()
    return student.grad


class Largest(TorchDispatchMode):
    """Elements of the largest tensor that was made."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.elements = max(self.elements, *(x.numel() for x in tree_leaves(result) if isinstance(x, Tensor)), 0)
        return result


def test_equal_to_the_reference(shared):
    features = load_file(shared / "golden" / "feature_losses.safetensors")
    expected = json.loads((shared / "golden" / "index.json").read_text())["feature_losses"]
    distance = affinity_distance(features["student"], features["teacher"])
    assert distance.item() == pytest.approx(expected["fakd_spatial_affinity_l1_mean"], rel=1e-6)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("size", [(1, 1), (3, 5), (16, 16), (19, 28)], ids=str)
def test_value_and_gradient_of_the_definition(size, layout):
    """Less than, exactly, and more than one block of rows, the last one smaller."""
    torch.manual_seed(0)
    student, teacher = (torch.randn(3, c, *size).to(memory_format=layout) for c in (4, 7))
    doubles = student.double(), teacher.double()
    assert affinity_distance(student, teacher).item() == pytest.approx(literal(*doubles).item(), rel=1e-5, abs=1e-7)
    expected = gradient(literal, *doubles)
    # A difference of two cosines that is lost in rounding may have the other sign.
    error = (gradient(affinity_distance, student, teacher) - expected).norm()
    assert error <= 2e-3 * expected.norm() + 1e-6


def test_a_gpu_takes_all_pictures_at_once():
    """That path alone, as no GPU is needed for it; then its shapes, from the outside."""
    student, teacher = (F.normalize(torch.randn(3, c, 300), dim=1) for c in (4, 7))
    whole, gradients = _total_and_gradient(student, teacher)
    pictures = zip(student.split(1), teacher.split(1), strict=True)
    totals, pieces = zip(*(_total_and_gradient(*picture) for picture in pictures), strict=True)
    assert whole.item() == pytest.approx(sum(totals).item(), rel=1e-6)
    assert (gradients - torch.cat(pieces)).norm() <= 2e-3 * gradients.norm()
    student, teacher = (
        torch.zeros(3, 4, 19, 28, device="meta").requires_grad_(),
        torch.zeros(3, 7, 19, 28, device="meta"),
    )
    affinity_distance(student, teacher).backward()
    assert student.grad.shape == student.shape


def test_directions_alone_count():
    student, teacher = torch.randn(2, 4, 6, 6), torch.randn(2, 5, 6, 6)
    lengths = torch.rand(2, 1, 6, 6) + 0.1
    expected = affinity_distance(student, teacher).item()
    assert affinity_distance(lengths * student, 255 * teacher).item() == pytest.approx(expected, rel=1e-5)
    assert affinity_distance(student, -student.flip(1)).item() == pytest.approx(0, abs=1e-6)


def test_the_teacher_has_no_gradient():
    student, teacher = torch.randn(1, 4, 6, 6, requires_grad=True), torch.randn(1, 5, 6, 6, requires_grad=True)
    affinity_distance(student, teacher).backward()
    assert teacher.grad is None
    assert student.grad.abs().sum() > 0


def test_a_dead_pixel_is_harmless():
    student = torch.randn(1, 4, 6, 6)
    student[..., 2, 3] = 0
    found = gradient(affinity_distance, student, torch.randn(1, 4, 6, 6))
    assert found[..., 2, 3].abs().max() == 0
    assert 0 < found.abs().max() < 10


def test_no_matrix_of_all_pairs_is_made():
    student, teacher = torch.randn(2, 4, 40, 40, requires_grad=True), torch.randn(2, 4, 40, 40)
    with Largest() as largest:
        affinity_distance(student, teacher).backward()
    assert largest.elements == ROWS * 1600 < 1600**2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_float32_under_autocast(dtype):
    student, teacher = torch.randn(2, 2, 8, 6, 6).to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        distance = affinity_distance(student, teacher)
    assert distance.dtype == torch.float32
    assert distance == affinity_distance(student.float(), teacher.float())


@pytest.mark.parametrize("shape", [(2, 3, 4, 16), (1, 3, 8, 8), (2, 3, 64)])
def test_other_sizes(shape):
    with pytest.raises(MTKDError) as error:
        affinity_distance(torch.zeros(2, 3, 8, 8), torch.zeros(shape))
    assert all(str(named) in str(error.value) for named in ((2, 3, 8, 8), shape))
