"""The table of networks from metrics made by hand."""

import csv
import math

from mtkd_lightning.network_tables import markdown, network_table, rows, write_tables

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
