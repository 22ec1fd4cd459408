"""The table from metrics made by hand, and the crops from pictures whose detail is known."""

import csv
import math

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from mtkd_lightning.data.images import write_png
from mtkd_lightning.data.paired import Pair, PairedImages
from mtkd_lightning.data.store import PictureStore
from mtkd_lightning.evaluation import Bicubic
from mtkd_lightning.report import _most_detailed, markdown, network_table, rows, write_crops, write_tables

METRICS = {
    "protocols": dict.fromkeys(("Set5", "Set14"), "Y, crop 2, uint8, mean of images"),
    "scale": 2,
    "networks": {
        "bicubic": {"parameters": 0, "flops": None, "seconds_per_megapixel": 0.01},
        "student": {"parameters": 1369859, "flops": 316.25e9, "seconds_per_megapixel": 1.23456},
    },
    "images": [
        {"benchmark": benchmark, "network": network, "image": image, "psnr": psnr, "ssim": ssim}
        for benchmark, network, image, psnr, ssim in [
            ("Set5", "bicubic", "baby", 30.0, 0.90),
            ("Set5", "bicubic", "bird", 33.0, 0.80),
            ("Set14", "bicubic", "lenna", 28.12345, 0.5),
            ("Set5", "student", "baby", 31.0, 0.91),
            ("Set5", "student", "bird", 34.0, 0.81),
            ("Set14", "student", "lenna", math.inf, 1.0),
        ]
    ],
}
CPU = torch.device("cpu")


def test_rows_are_means_over_pictures():
    table = rows(METRICS)
    assert [(row["benchmark"], row["network"]) for row in table] == [
        ("Set5", "bicubic"),
        ("Set5", "student"),
        ("Set14", "bicubic"),
        ("Set14", "student"),
    ]
    assert table[1] == {
        "benchmark": "Set5",
        "network": "student",
        "scale": 2,
        "psnr": 32.5,
        "ssim": 0.86,
        "protocol": "Y, crop 2, uint8, mean of images",
        "parameters": 1369859,
        "gflops": 316.25,
        "seconds_per_megapixel": 1.235,
    }
    assert table[0]["gflops"] is None
    assert table[2]["psnr"] == 28.123
    assert table[3]["psnr"] == math.inf


def test_markdown():
    lines = markdown(METRICS, "A title", "A note.").splitlines()
    assert lines[0] == "# A title"
    table = [line for line in lines if line.startswith("|")]
    assert len(table) == 6
    assert len({len(line) for line in table}) == 1
    assert [cell.strip() for cell in table[0].strip("|").split("|")][1] == "network (x2)"
    assert [cell.strip() for cell in table[3].strip("|").split("|")] == [
        "Set5", "student", "32.500", "0.8600", "1,369,859", "316.25", "1.235",
    ]  # fmt: skip
    assert [cell.strip() for cell in table[2].strip("|").split("|")][5] == "-"
    assert "Protocol: Y, crop 2, uint8, mean of images (Set5, Set14)." in lines[-1]
    assert "2 per multiply-add" in lines[-1]
    assert lines[-1].endswith("A note.")


def test_the_table_of_networks_has_a_network_a_row_the_best_first():
    lines = network_table([METRICS, {**METRICS, "scale": 4}]).splitlines()
    table = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")]
    assert [row[0] for row in table] == ["x2", "student", "bicubic", "x4", "student", "bicubic"]
    assert table[0][-2:] == ["Set5", "Set14"]
    assert table[2][-2:] == ["31.500 / 0.8500", "28.123 / 0.5000"]


def test_tables_on_disk(tmp_path):
    text = write_tables(METRICS, tmp_path / "run", "A title", "A note.")
    assert (tmp_path / "run/results.md").read_text() == text
    with (tmp_path / "run/results.csv").open(newline="") as file:
        content = list(csv.DictReader(file))
    assert list(content[0]) == list(rows(METRICS)[0])
    assert content == [{key: "" if x is None else str(x) for key, x in row.items()} for row in rows(METRICS)]


@pytest.fixture
def benchmarks(tmp_path, picture) -> dict[str, PairedImages]:
    """Two of two pictures and one, of different sizes."""
    store = PictureStore(tmp_path / "store")

    def pairs(**pictures: np.ndarray) -> PairedImages:
        for name, image in pictures.items():
            write_png(tmp_path / f"{name}.png", image)
        return PairedImages([Pair(name, tmp_path / f"{name}.png") for name in pictures], 2, store)

    return {"first": pairs(a=picture, b=picture[:40, :50]), "second": pairs(c=picture[20:, 30:])}


def drawn(path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def test_crops_have_a_row_per_picture_and_a_column_per_network(benchmarks, tmp_path):
    path = tmp_path / "crops.png"
    networks = {"bicubic": Bicubic(2), "again": Bicubic(2)}
    write_crops(networks, benchmarks, 2, CPU, path, side=16, zoom=2)
    image = drawn(path)
    height, width = 16 * 2 + 36, 16 * 2 + 4
    assert image.shape == (3 * height, 3 * width, 3)
    cells = image.reshape(3, height, 3, width, 3).swapaxes(1, 2)[:, :, 34:-2, 2:-2]
    assert (cells[:, 0] == cells[:, 1]).all()
    _, hr, _ = benchmarks["first"][0]
    region = _most_detailed(torch.tensor(hr).permute(2, 0, 1)[None] / 255, 16)
    assert (cells[0, 2, ::2, ::2] == hr[region]).all()
    assert (cells[0, 2, 1::2, 1::2] == hr[region]).all()
    assert (cells[:, 0] != cells[:, 2]).any()


def test_crops_take_each_benchmark_in_turn(benchmarks, tmp_path):
    write_crops({}, benchmarks, 2, CPU, tmp_path / "two.png", side=16, zoom=1, most=2)
    write_crops({}, {"second": benchmarks["second"]}, 2, CPU, tmp_path / "one.png", side=16, zoom=1)
    two, one = drawn(tmp_path / "two.png"), drawn(tmp_path / "one.png")
    assert (two[len(one) :] == one).all()


def test_a_picture_smaller_than_the_region_is_shown_whole(benchmarks, tmp_path):
    write_crops({}, benchmarks, 2, CPU, tmp_path / "crops.png", side=64, zoom=1)
    image = drawn(tmp_path / "crops.png")
    assert image.shape == (60 + 40 + 40 + 3 * 36, 64 + 4, 3)
    assert not image[-76:, 54:].any()  # beside the last row, which is narrower


def test_crops_show_networks_as_they_are_evaluated(benchmarks, tmp_path):
    """Not in training mode, in which layers are dropped at random."""

    class Net(nn.Module):
        def forward(self, lr: Tensor) -> Tensor:
            return torch.full((1, 3, 2 * lr.shape[-2], 2 * lr.shape[-1]), 0.0 if self.training else 1.0)

    write_crops({"net": Net()}, benchmarks, 2, CPU, tmp_path / "crops.png", side=16, zoom=1)
    assert (drawn(tmp_path / "crops.png")[34:50, 2:18] == 255).all()


@pytest.mark.gpu
def test_crops_of_networks_on_a_gpu(benchmarks, tmp_path):
    net = nn.Sequential(nn.Conv2d(3, 12, 1), nn.PixelShuffle(2))
    write_crops({"net": net}, benchmarks, 2, torch.device("cuda"), tmp_path / "crops.png")


@pytest.mark.parametrize("ground", [0.0, 0.2, 0.9])
@pytest.mark.parametrize(("top", "left"), [(40, 70), (0, 0), (64, 96)])
def test_the_region_is_where_the_detail_is(ground, top, left):
    torch.manual_seed(0)
    hr = torch.full((1, 3, 96, 128), ground)
    hr[..., top : top + 32, left : left + 32] += 0.1 * torch.rand(32, 32)
    rows, columns = _most_detailed(hr, 32)
    assert (rows.stop - rows.start, columns.stop - columns.start) == (32, 32)
    assert abs(rows.start - top) <= 4
    assert abs(columns.start - left) <= 4
