"""What is known of a network's making, and the model card that says it. Nothing is said that no record holds."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from mtkd_lightning import catalogue
from mtkd_lightning.catalogue import Entry
from mtkd_lightning.files import file_sha256, read_json
from mtkd_lightning.networks import Weights
from mtkd_lightning.tables import aligned, escaped

DATA = {
    "demo_photographs": "photographs of scikit-image's package (CC0, public domain or without known restrictions)",
    "div2k": "DIV2K (academic use)",
    "flickr2k": "Flickr2K (no licence is stated; take it as academic use)",
    "df2k": "DF2K: DIV2K (academic use) and Flickr2K (no licence is stated; take it as academic use)",
}
"""Training pictures by the function of data.sources that names them; those of folders say neither name nor licence."""

UNKNOWN = "not recorded"


def about(weights: Weights, record: Mapping[str, Any]) -> dict[str, Any]:
    """Gather what the record, the run beside it and the catalogue say; plain JSON.

    Args:
        weights: the file.
        record: what `networks.read` gives beside the network.
    """
    if isinstance(known := record.get("about"), dict):  # exported before
        return known
    sha256 = str(record.get("sha256") or file_sha256(weights.path))
    entries = list(catalogue.entries().values())
    if (entry := _published(weights.path, sha256, entries)) is not None:
        return {
            "source": entry.url,
            "licence": entry.licence,
            "data": entry.training_data,
            "scores": [{"benchmark": name, "psnr": psnr} for name, psnr in entry.expected.items()],
            "protocol": f"PSNR on Y in dB; {entry.source}",
        }
    config = record["config"]
    run = weights.path.parents[1] / "runs" / weights.path.stem if len(weights.path.parents) > 1 else weights.path.parent
    found: dict[str, Any] = {key: record[key] for key in ("steps", "seconds", "seed", "device") if key in record}
    if "method" in config:
        found["method"] = str(config["method"].get("_target_", UNKNOWN)).rpartition(".")[2]
    if "recipe" in config:
        found["data"] = _training_data(run)
        found["data_sha256"] = config.get("data")
    if teacher := config.get("teacher"):
        found["teachers"] = [_member(name, str(sha), entries) for name, sha in teacher["members"]]
        merger = teacher.get("aggregator") or {}
        found["aggregator"] = str(merger.get("_target_", UNKNOWN)).rpartition(".")[2]
    metrics = read_json(run / "metrics.json") or {}
    if metrics.get("of", {}).get("student") == sha256:
        from mtkd_lightning.network_tables import rows

        shown = [row for row in rows(metrics) if row["network"] in ("student", "bicubic")]
        found["scores"] = [{key: row[key] for key in ("benchmark", "network", "psnr", "ssim")} for row in shown]
        found["protocol"] = "; ".join(sorted({row["protocol"] for row in shown}))
        found["seconds_per_megapixel"] = next(
            row["seconds_per_megapixel"] for row in shown if row["network"] == "student"
        )
    elif "metrics" in record:
        found["validation"] = {name.removeprefix("val/"): value for name, value in record["metrics"].items()}
        found["protocol"] = record.get("protocol", UNKNOWN)
    return found


def markdown(name: str, network: Mapping[str, Any], known: Mapping[str, Any], files: Sequence[str], use: str) -> str:
    """The card.

    Args:
        name: of the network.
        network: what it is: kind, arguments, scale, parameters, gflops.
        known: from `about`.
        files: a line about each file.
        use: how the first of them is used, in Python.
    """
    arguments = ", ".join(f"{key}={_text(value)}" for key, value in network["arguments"].items())
    parts = [
        f"# {_text(name)}",
        f"{_text(network['kind'])} for single-image super-resolution x{network['scale']}: RGB in 0..1 to RGB of "
        f"{network['scale']} times the sides.",
        "\n".join(
            [
                f"* Network: {_text(network['kind'])} ({arguments})",
                f"* Parameters: {network['parameters']:,}",
                f"* Arithmetic: {network['gflops']:.2f} GFLOPs for one 1280x720 output (2 per multiply-add)",
                *_cost(known),
                f"* Licence of the weights: {_text(known.get('licence') or 'none is stated')}",
                *([f"* Source: <{known['source']}>"] if "source" in known else []),
            ]
        ),
        "## Files",
        "\n".join(f"* {line}" for line in files),
        "## Use",
        f"```python\n{use}\n```",
        "## Made of",
        "\n".join(_making(known)),
        "## Numbers",
        "\n".join(_numbers(known)),
        "## Limits",
        "\n".join(_limits(network, known)),
    ]
    return "\n\n".join(parts) + "\n"


def _cost(known: Mapping[str, Any]) -> Iterator[str]:
    if (seconds := known.get("seconds_per_megapixel")) is not None:
        yield f"* Time: {seconds} s per output megapixel where it was scored ({_text(known.get('device', UNKNOWN))})"


def _making(known: Mapping[str, Any]) -> Iterator[str]:
    if "method" in known:
        yield f"* Method: {_text(known['method'])}"
        cost = ", ".join(f"{key} {_text(known[key])}" for key in ("steps", "seed", "seconds", "device") if key in known)
        yield f"* Training: {cost or UNKNOWN}"
    for teacher in known.get("teachers", ()):
        yield (
            f"* Teacher {_text(teacher['name'])} (sha256 {_text(teacher['sha256'][:12])}): licence "
            f"{_text(teacher.get('licence', UNKNOWN))}; trained on {_text(teacher.get('data', UNKNOWN))}"
        )
    if known.get("teachers"):
        yield f"* Their pictures were merged by: {_text(known['aggregator'])}"
    yield f"* Training pictures: {_text(known.get('data') or UNKNOWN)}"
    if known.get("data_sha256"):
        yield f"* Hash of the training set: {_text(known['data_sha256'])}"


def _numbers(known: Mapping[str, Any]) -> Iterator[str]:
    if scores := known.get("scores"):
        columns = [key for key in ("benchmark", "network", "psnr", "ssim") if key in scores[0]]
        cells = [[_text(score[key]) for key in columns] for score in scores]
        yield from aligned(columns, cells, left=2 if "network" in columns else 1)
        yield ""
    elif validation := known.get("validation"):
        values = ", ".join(f"{_text(name)} {_text(value)}" for name, value in validation.items())
        yield f"On the pictures that its training was validated on, no benchmark: {values}."
        yield ""
    else:
        yield "None is recorded."
        return
    yield f"Protocol: {_text(known.get('protocol', UNKNOWN))}."


def _limits(network: Mapping[str, Any], known: Mapping[str, Any]) -> Iterator[str]:
    yield f"* It enlarges {network['scale']} times and by nothing else; its output is not clamped to 0..1."
    if "method" in known or "source" in known:
        yield (
            "* It learned to undo bicubic shrinking. Noise, blur and the blocks of JPEG are outside what it was made "
            "for: it takes them for detail."
        )
    else:
        yield "* What it was trained to undo is not recorded."
    yield "* Fine detail is a guess, however sharp: it is no evidence of what was there."


def _published(path: Path, sha256: str, entries: Sequence[Entry]) -> Entry | None:
    """By its hash, and where none is published, by its place among the downloads."""
    for entry in entries:
        if sha256.startswith(entry.sha256) if entry.sha256 else path == catalogue.downloaded(entry):
            return entry
    return None


def _member(name: str, sha256: str, entries: Sequence[Entry]) -> dict[str, str]:
    entry = next((x for x in entries if x.sha256 and sha256.startswith(x.sha256)), None)
    told = {} if entry is None else {"licence": entry.licence, "data": entry.training_data}
    return {"name": str(name), "sha256": sha256, **told}


def _training_data(run: Path) -> str:
    try:
        target = OmegaConf.load(run / "config.yaml").data._target_
    except Exception:  # whatever is wrong with a file that a run may have or not
        return UNKNOWN
    return DATA.get(str(target).rpartition(".")[2], "folders of pictures, whose names and licences are not recorded")


def _text(value: object) -> str:
    return escaped(str(value))
