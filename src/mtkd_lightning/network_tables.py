"""What networks score and cost, a row each: as Markdown and as CSV."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from mtkd_lightning.files import write_text
from mtkd_lightning.tables import aligned, protocols, write_csv

COSTS = (
    "GFLOPs of one 1280x720 output, 2 per multiply-add; s / MP: seconds per output megapixel on this machine. "
    "A mean or an aggregator includes its members."
)


def means(metrics: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row per benchmark and network: PSNR and SSIM, means over pictures."""
    table = []
    for benchmark in dict.fromkeys(image["benchmark"] for image in metrics["images"]):
        for network in metrics["networks"]:
            images = [x for x in metrics["images"] if (x["benchmark"], x["network"]) == (benchmark, network)]
            if images:  # else it merges teachers' pictures, of which there are none for this benchmark
                scores = {measure: fmean(image[measure] for image in images) for measure in ("psnr", "ssim")}
                table.append({"benchmark": benchmark, "network": network, **scores})
    return table


def rows(metrics: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The means, rounded, and what each network costs."""
    table = []
    for row in means(metrics):
        cost = metrics["networks"][row["network"]]
        table.append(
            {
                "benchmark": row["benchmark"],
                "network": row["network"],
                "scale": metrics["scale"],
                "psnr": round(row["psnr"], 3),
                "ssim": round(row["ssim"], 4),
                "protocol": metrics["protocols"][row["benchmark"]],
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


def _cell(key: str, value: Any) -> str:
    if value is None:
        return "-"
    digits = {"psnr": ".3f", "ssim": ".4f", "parameters": ",", "gflops": ".2f", "seconds_per_megapixel": ".3f"}
    return format(value, digits.get(key, ""))
