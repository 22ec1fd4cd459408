import socket

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from mtkd_lightning.errors import MTKDError
from mtkd_lightning.metrics.functional import Protocol, psnr, ssim
from mtkd_lightning.metrics.image import ImagePSNR, ImageSSIM

PROTOCOL = Protocol(2)
CLASSES = [(ImagePSNR, psnr), (ImageSSIM, ssim)]


def images(count=5):
    sr, hr = torch.rand(2, count, 3, 20, 24, generator=torch.Generator().manual_seed(0))
    return hr + (sr - hr) * torch.linspace(0.05, 0.9, count).view(-1, 1, 1, 1), hr


@pytest.mark.parametrize(("metric_class", "function"), CLASSES)
def test_mean_over_images_whatever_the_batches(metric_class, function):
    sr, hr = images()
    expected = function(sr, hr, PROTOCOL)
    metric = metric_class(PROTOCOL)
    metric.update(sr[3:], hr[3:], torch.tensor([3, 4]))
    metric.update(sr[:3], hr[:3], [0, 1, 2])
    assert metric.compute().item() == pytest.approx(expected.mean().item(), abs=1e-12)
    assert metric.values() == dict(enumerate(expected.tolist()))
    assert list(metric.values()) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(("metric_class", "function"), CLASSES)
def test_a_repeated_image_counts_once(metric_class, function):
    sr, hr = images()
    metric = metric_class(PROTOCOL)
    for order in ([0, 2, 4], [1, 3, 0]):
        metric.update(sr[order], hr[order], order)
    assert metric.compute().item() == pytest.approx(function(sr, hr, PROTOCOL).mean().item(), abs=1e-12)


def test_forward_returns_the_batch_and_accumulates():
    sr, hr = images()
    expected = psnr(sr, hr, PROTOCOL)
    metric = ImagePSNR(PROTOCOL)
    assert metric(sr[:2], hr[:2], [0, 1]).item() == pytest.approx(expected[:2].mean().item())
    assert metric(sr[2:], hr[2:], [2, 3, 4]).item() == pytest.approx(expected[2:].mean().item())
    assert metric.compute().item() == pytest.approx(expected.mean().item())


def test_half_precision_of_the_module_does_not_touch_the_scores():
    sr, hr = images()
    metric = ImagePSNR(PROTOCOL).to(torch.bfloat16)
    metric.update(sr, hr, range(5))
    assert metric.compute().dtype == torch.float64
    assert metric.compute().item() == pytest.approx(psnr(sr, hr, PROTOCOL).mean().item(), abs=1e-12)


@pytest.mark.parametrize("metric_class", [ImagePSNR, ImageSSIM])
# torchmetrics warns of an early compute before the error says so.
@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_no_image_is_an_error_also_after_reset(metric_class):
    metric = metric_class(PROTOCOL)
    assert metric.values() == {}
    with pytest.raises(MTKDError, match=f"{metric_class.__name__} has seen no image"):
        metric.compute()
    sr, hr = images()
    metric.update(sr, hr, range(5))
    metric.reset()
    with pytest.raises(MTKDError, match="no image"):
        metric.compute()


def test_one_id_for_each_picture():
    sr, hr = images()
    with pytest.raises(MTKDError, match="4 ids for 5 pictures"):
        ImagePSNR(PROTOCOL).update(sr, hr, range(4))


def worker(rank, port, shares, path):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=len(shares))
    sr, hr = images()
    metric = ImagePSNR(PROTOCOL)
    results = []
    for share in shares[rank]:
        metric.reset()
        if share:
            metric.update(sr[share], hr[share], share)
        # Twice: reading the values must leave the state of each process as it was.
        values = [metric.values(), metric.values()]
        results.append((values, metric.compute().item()))
    torch.save(results, path / f"{rank}.pt")
    dist.destroy_process_group()


# torchmetrics warns where a process without images asks for the mean.
@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_two_processes_agree_with_one(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # Uneven shares; a repeated image; a process without images.
    shares = [([0, 2, 4], [0, 2, 4], [0, 1, 2, 3, 4]), ([1, 3], [1, 3, 0], [])]
    mp.spawn(worker, args=(port, shares, tmp_path), nprocs=2)
    sr, hr = images()
    expected = psnr(sr, hr, PROTOCOL)
    for rank in range(2):
        for values, mean in torch.load(tmp_path / f"{rank}.pt"):
            assert values == [dict(enumerate(expected.tolist()))] * 2
            assert mean == pytest.approx(expected.mean().item(), abs=1e-12)
