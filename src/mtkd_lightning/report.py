"""What came out: a table (Markdown, CSV) and crops side by side (PNG)."""

from collections.abc import Mapping, Sequence
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
from mtkd_lightning.evaluation import enlarge, on_device
from mtkd_lightning.metrics.functional import Protocol, psnr
from mtkd_lightning.tables import aligned, protocols, write_csv, write_text

COSTS = (
    "GFLOPs of one 1280x720 output, 2 per multiply-add; s / MP: seconds per output megapixel on this machine. "
    "A mean or an aggregator includes its members."
)


def rows(metrics: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row per benchmark and network: means over pictures, and what the network costs."""
    table = []
    for benchmark in dict.fromkeys(image["benchmark"] for image in metrics["images"]):
        for network, cost in metrics["networks"].items():
            images = [x for x in metrics["images"] if (x["benchmark"], x["network"]) == (benchmark, network)]
            if not images:  # made of teachers' pictures, of which there are none for this benchmark
                continue
            table.append(
                {
                    "benchmark": benchmark,
                    "network": network,
                    "scale": metrics["scale"],
                    "psnr": round(fmean(x["psnr"] for x in images), 3),
                    "ssim": round(fmean(x["ssim"] for x in images), 4),
                    "protocol": metrics["protocols"][benchmark],
                    "parameters": cost["parameters"],
                    "gflops": None if cost["flops"] is None else round(cost["flops"] / 1e9, 2),
                    "seconds_per_megapixel": cost["seconds_per_megapixel"] and round(cost["seconds_per_megapixel"], 3),
                }
            )
    return table


def markdown(metrics: Mapping[str, Any], title: str, note: str) -> str:
    """The table with aligned columns, its protocol and its units."""
    shown = ("benchmark", "network", "psnr", "ssim", "parameters", "gflops", "seconds_per_megapixel")
    cells = [[_cell(key, row[key]) for key in shown] for row in rows(metrics)]
    of = "-Y" if all(protocol.startswith("Y") for protocol in metrics["protocols"].values()) else ""
    head = ["benchmark", f"network (x{metrics['scale']})", f"PSNR{of}", f"SSIM{of}", "parameters", "GFLOPs", "s / MP"]
    legend = f"{protocols(metrics)} {COSTS} {note}"
    return "\n".join([f"# {title}", "", *aligned(head, cells, left=2), "", legend, ""])


def write_tables(metrics: Mapping[str, Any], folder: Path, title: str, note: str) -> str:
    """Write ``results.md`` and ``results.csv``; give the Markdown."""
    write_csv(folder / "results.csv", rows(metrics))
    table = markdown(metrics, title, note)
    write_text(folder / "results.md", table)
    return table


def network_table(evaluated: Sequence[Mapping[str, Any]]) -> str:
    """One Markdown table a scale, as papers print them: a network a row, best first, PSNR / SSIM by benchmark."""
    parts = []
    for metrics in evaluated:
        table = rows(metrics)
        by_network = {name: [row for row in table if row["network"] == name] for name in metrics["networks"]}
        ranked = sorted(by_network, key=lambda name: -fmean(row["psnr"] for row in by_network[name]))
        head = [f"x{metrics['scale']}", "parameters", "GFLOPs", "s / MP", *metrics["protocols"]]
        costs = ("parameters", "gflops", "seconds_per_megapixel")
        cells = [
            [name, *(_cell(key, by_network[name][0][key]) for key in costs)]
            + [f"{row['psnr']:.3f} / {row['ssim']:.4f}" for row in by_network[name]]
            for name in ranked
        ]
        parts += [*aligned(head, cells, left=1), "", protocols(metrics), ""]
    return "\n".join([*parts, f"PSNR in dB / SSIM. {COSTS}", ""])


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
        batch = on_device(WholePictures(pairs)[i], device)
        region = _most_detailed(batch.hr, side)
        truth = batch.hr[..., *region]
        cells = []
        for name, network in networks.items():
            if (whole := enlarge(network, batch)) is None:
                continue
            sr = whole[..., *region]
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
    digits = {"psnr": ".3f", "ssim": ".4f", "parameters": ",", "gflops": ".2f", "seconds_per_megapixel": ".3f"}
    return format(value, digits.get(key, ""))
