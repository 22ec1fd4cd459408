"""What came out: a table (Markdown, CSV) and crops side by side (PNG)."""

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor, nn

from mtkd_lightning.data.batches import WholePictures
from mtkd_lightning.data.images import write_png
from mtkd_lightning.data.paired import PairedImages
from mtkd_lightning.files import replacing
from mtkd_lightning.metrics.functional import Protocol, psnr

COLUMNS = ("benchmark", "network", "psnr_y", "ssim_y", "parameters", "gflops", "seconds_per_megapixel")


def rows(metrics: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row per benchmark and network: means over pictures, and what the network costs."""
    table = []
    for benchmark in dict.fromkeys(image["benchmark"] for image in metrics["images"]):
        for network, cost in metrics["networks"].items():
            images = [x for x in metrics["images"] if (x["benchmark"], x["network"]) == (benchmark, network)]
            table.append(
                {
                    "benchmark": benchmark,
                    "network": network,
                    "psnr_y": round(fmean(x["psnr"] for x in images), 3),
                    "ssim_y": round(fmean(x["ssim"] for x in images), 4),
                    "parameters": cost["parameters"],
                    "gflops": None if cost["flops"] is None else round(cost["flops"] / 1e9, 2),
                    "seconds_per_megapixel": round(cost["seconds_per_megapixel"], 3),
                }
            )
    return table


def markdown(metrics: Mapping[str, Any], title: str, note: str) -> str:
    """The table with aligned columns, its protocol and its units."""
    cells = [[_cell(key, row[key]) for key in COLUMNS] for row in rows(metrics)]
    head = ["benchmark", f"network (x{metrics['scale']})", "PSNR-Y", "SSIM-Y", "parameters", "GFLOPs", "s / MP"]
    widths = [max(len(line[i]) for line in (head, *cells)) for i in range(len(head))]
    rule = "|".join("-" * (w + 1) + (":" if i > 1 else "-") for i, w in enumerate(widths))
    lines = [_line(head, widths), f"|{rule}|", *(_line(line, widths) for line in cells)]
    legend = (
        f"Protocol: {metrics['protocol']}. GFLOPs of one 1280x720 output, 2 per multiply-add; s / MP: seconds per "
        f"output megapixel on this machine. A mean or an aggregator includes its members. {note}"
    )
    return "\n".join([f"# {title}", "", *lines, "", legend, ""])


def write_tables(metrics: Mapping[str, Any], folder: Path, title: str, note: str) -> str:
    """Write ``results.md`` and ``results.csv``; give the Markdown."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows(metrics))
    with replacing(folder / "results.csv") as temporary:
        temporary.write_text(text.getvalue())
    table = markdown(metrics, title, note)
    with replacing(folder / "results.md") as temporary:
        temporary.write_text(table)
    return table


def write_crops(
    networks: Mapping[str, nn.Module],
    benchmarks: Mapping[str, PairedImages],
    scale: int,
    device: torch.device,
    path: Path,
    *,
    side: int = 64,
    zoom: int = 3,
    most: int = 6,
) -> None:
    """Draw one row per picture: every network's output and the ground truth of the same region, with its PSNR-Y.

    The region is the one with the strongest detail in the ground truth, the same rule for every picture.

    Args:
        networks: name -> network from LR to SR.
        benchmarks: name -> pictures; the first of each in turn.
        scale: of all of them.
        device: where the networks run.
        path: of the PNG.
        side: of the region, in HR pixels.
        zoom: pixels drawn per HR pixel.
        most: rows at most.
    """
    for network in networks.values():
        network.to(device).eval()
    chosen = [(pairs, i) for i in range(most) for pairs in benchmarks.values() if i < len(pairs)][:most]
    drawn = []
    for pairs, i in chosen:
        batch = WholePictures(pairs)[i]
        lr, hr = (x.to(device, torch.float32) / 255 for x in (batch.lr, batch.hr))
        region = _most_detailed(hr, side)
        truth = hr[..., *region]
        cells = []
        for name, network in networks.items():
            with torch.inference_mode():
                sr = network(lr)[..., *region]
            cells.append(_cell_picture(sr, f"{name}\n{psnr(sr, truth, Protocol(0)).item():.2f} dB", zoom))
        cells.append(_cell_picture(truth, f"HR\n{batch.name[0]}", zoom))
        drawn.append(np.concatenate(cells, axis=1))
    width = max(x.shape[1] for x in drawn)
    write_png(path, np.concatenate([np.pad(x, ((0, 0), (0, width - x.shape[1]), (0, 0))) for x in drawn]))


def _most_detailed(hr: Tensor, side: int) -> tuple[slice, slice]:
    height, width = (min(side, n) for n in hr.shape[-2:])
    gray = hr.mean(1, keepdim=True)
    detail = (gray - nn.functional.avg_pool2d(gray, 9, 1, 4, count_include_pad=False)).square()
    energy = nn.functional.avg_pool2d(detail, (height, width), 1)[0, 0]
    top, left = divmod(int(energy.argmax()), energy.shape[1])
    return slice(top, top + height), slice(left, left + width)


def _cell_picture(image: Tensor, label: str, zoom: int) -> NDArray[np.uint8]:
    picture = (image[0].clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()
    large = Image.fromarray(picture.repeat(zoom, 0).repeat(zoom, 1))
    canvas = Image.new("RGB", (large.width + 4, large.height + 36), "white")
    canvas.paste(large, (2, 34))
    ImageDraw.Draw(canvas).text((3, 2), label, fill="black", font=ImageFont.load_default(12))
    return np.asarray(canvas)


def _cell(key: str, value: Any) -> str:
    if value is None:
        return "-"
    digits = {"psnr_y": ".3f", "ssim_y": ".4f", "parameters": ",", "gflops": ".2f", "seconds_per_megapixel": ".3f"}
    return format(value, digits.get(key, ""))


def _line(cells: list[str], widths: list[int]) -> str:
    aligned = [x.rjust(w) if i > 1 else x.ljust(w) for i, (x, w) in enumerate(zip(cells, widths, strict=True))]
    return "| " + " | ".join(aligned) + " |"
