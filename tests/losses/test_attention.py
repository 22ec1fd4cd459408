import json

import pytest
import torch
from safetensors.torch import load_file

from mtkd_lightning.errors import MTKDError
from mtkd_lightning.losses.attention import attention_distance, attention_map


def test_equal_to_the_reference(shared):
    features = load_file(shared / "golden" / "feature_losses.safetensors")
    expected = json.loads((shared / "golden" / "index.json").read_text())["feature_losses"]
    distance = attention_distance(features["student"], features["teacher"])
    assert distance.item() == pytest.approx(expected["at_sum_of_squares_l1_mean"], rel=1e-6)


def test_map_by_hand():
    feature = torch.tensor([[[3.0, 0.0]], [[0.0, 2.0]]]).view(1, 2, 1, 2)
    assert attention_map(feature)[0, 0].tolist() == pytest.approx([9 / 97**0.5, 4 / 97**0.5])


def test_map_knows_neither_scale_nor_channels():
    feature = torch.randn(2, 3, 5, 7)
    assert torch.allclose(attention_map(-40 * feature), attention_map(feature), atol=1e-6)
    assert torch.allclose(attention_map(feature[:, [2, 0, 1]]), attention_map(feature))
    assert torch.linalg.vector_norm(attention_map(feature), dim=(1, 2)).tolist() == pytest.approx([1, 1])


def test_gradient():
    student, teacher = torch.randn(2, 3, 4, 5, requires_grad=True), torch.randn(2, 6, 4, 5, requires_grad=True)
    attention_distance(student, teacher).backward()
    assert teacher.grad is None
    step = 1e-3 * student.grad / student.grad.norm()
    after, before = (attention_distance(student.detach() + sign * step, teacher).item() for sign in (1, -1))
    assert (after - before) / 2e-3 == pytest.approx(student.grad.norm().item(), rel=0.05)


def test_a_feature_of_zeros_is_harmless():
    student = torch.zeros(1, 3, 4, 4, requires_grad=True)
    attention_distance(student, torch.randn(1, 3, 4, 4)).backward()
    assert student.grad.abs().max() == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_float32_under_autocast(dtype):
    student, teacher = torch.randn(2, 2, 8, 6, 6).to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        distance = attention_distance(student, teacher)
    assert distance.dtype == torch.float32
    assert distance == attention_distance(student.float(), teacher.float())


@pytest.mark.parametrize("shape", [(2, 3, 4, 4), (1, 3, 8, 8), (2, 3, 64)])
def test_other_sizes(shape):
    with pytest.raises(MTKDError) as error:
        attention_distance(torch.zeros(2, 3, 8, 8), torch.zeros(shape))
    assert all(str(named) in str(error.value) for named in ((2, 3, 8, 8), shape))
