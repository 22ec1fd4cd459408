"""ONNX against PyTorch, in time and in difference, and what importing the package takes.

    python benchmarks/export.py [side of the LR picture] [repeats]

Untrained networks of the sizes that are in use: their speed is that of trained ones. Both run on the same picture, with
the same number of threads, in turns; differences are those at the sizes that the export checks.
"""

import statistics
import subprocess
import sys

import onnxruntime
import torch

from common import arguments, in_turns, publish, ratio, seconds
from mtkd_lightning import graphs
from mtkd_lightning.backbones.dctlsa import DCTLSA
from mtkd_lightning.backbones.edsr import EDSR
from mtkd_lightning.backbones.lkdn import LKDN
from mtkd_lightning.backbones.rcan import RCAN
from mtkd_lightning.backbones.smfanet import SMFANetPlus
from mtkd_lightning.backbones.swinir import SwinIR

SWINIR_LIGHT = {
    "embed_dim": 60,
    "depths": (6, 6, 6, 6),
    "num_heads": (6, 6, 6, 6),
    "upsampler": "pixelshuffledirect",
}
NETWORKS = {
    "demo student": lambda: RCAN(4, features=32, groups=2, blocks=2, reduction=8),
    "EDSR-baseline": lambda: EDSR(4),
    "LKDN": lambda: LKDN(4),
    "SMFANet+": lambda: SMFANetPlus(4),
    "DCTLSA": lambda: DCTLSA(4),
    "SwinIR-light": lambda: SwinIR(4, **SWINIR_LIGHT),
}
IMPORT = "import sys, time; t = time.perf_counter(); import mtkd_lightning; print(time.perf_counter() - t)"


def main() -> None:
    """Measure every network, or those whose names begin as the words of the command line."""
    (side, repeats), words = arguments(96, 7)
    lr = torch.rand(1, 3, side, side)
    rows = {}
    for name, make in NETWORKS.items():
        if words and not any(name.startswith(word) for word in words):
            continue
        torch.manual_seed(0)
        network = make().eval().requires_grad_(False)
        exported: list[graphs.Exported] = []
        took = seconds(lambda network=network, exported=exported: exported.append(graphs.to_onnx(network, False, {})))
        rows[name] = {"export_seconds": round(took, 1), **compared(network, exported[0], lr, repeats)}
    imports = [float(subprocess.check_output([sys.executable, "-c", IMPORT], text=True)) for _ in range(repeats)]
    result = {"side": side, "import_seconds": round(statistics.median(imports), 4), "networks": rows}
    publish(__file__, result, device="cpu")


@torch.inference_mode()
def compared(network: torch.nn.Module, exported: graphs.Exported, lr: torch.Tensor, repeats: int) -> dict[str, float]:
    """Medians of both on a picture, and of the ratios of each repeat."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(exported.content, options, providers=["CPUExecutionProvider"])
    runs = {
        "pytorch": lambda: seconds(lambda: network(lr)),
        "onnx": lambda: seconds(lambda: session.run(None, {"lr": lr.numpy()})),
    }
    in_turns(runs, 1)
    found = in_turns(runs, repeats)
    return {
        **{f"{name}_ms": round(1000 * statistics.median(times), 1) for name, times in found.items()},
        "onnx_to_pytorch": round(ratio(found["onnx"], found["pytorch"]), 3),
        "difference": exported.difference,
    }


if __name__ == "__main__":
    main()
