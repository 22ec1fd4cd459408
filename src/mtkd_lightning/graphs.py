"""Networks as graphs that run without their code: ONNX and torch.export, for pictures of every size."""

import copy
import io
import json
import logging
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from mtkd_lightning.errors import MTKDError

OPSET = 18
TRACED = (2, 3, 21, 45)
"""Shape of the picture that is followed through the network: no side of which is special to any window."""

CHECKED = ((1, 48, 64), (2, 37, 53), (1, 64, 7), (1, 16, 9), (1, 1, 1))
"""Pictures, height and width at which an exported network is compared with its original."""

TOLERANCE = {False: 1e-4, True: 0.1}
"""Largest difference in 0..1 that is let pass, by whether the graph computes in float16."""

TIMED = 96
"""Side of the LR picture that both are timed on."""


@dataclass(frozen=True)
class Exported:
    """A graph as a file's content, beside its original.

    Attributes:
        content: of the file.
        what: the format.
        difference: largest difference to PyTorch's float32 picture, in 0..1.
        seconds: of a picture of TIMED squared pixels, by PyTorch in float32 and by the graph.
        threads: of both.
    """

    content: bytes
    what: str
    difference: float
    seconds: tuple[float, float]
    threads: int

    def __str__(self) -> str:
        sizes = ", ".join(f"{height}x{width}" for _, height, width in CHECKED)
        ours, theirs = (1000 * seconds for seconds in self.seconds)
        return (
            f"{self.what}; pictures of every size; largest difference to PyTorch in float32 {self.difference:.1e} of "
            f"1.0 ({255 * self.difference:.1g} of 255 levels) at {sizes}; {TIMED}x{TIMED} takes {theirs:.0f} ms, "
            f"PyTorch {ours:.0f} ms ({self.threads} threads)"
        )


class InHalf(nn.Module):
    """A copy of a network that computes in float16, between pictures in float32."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = copy.deepcopy(network).half()

    def forward(self, lr: Tensor) -> Tensor:
        """Enlarge a picture."""
        sr: Tensor = self.network(lr.half())
        return sr.float()


def to_onnx(network: nn.Module, half: bool, told: dict[str, Any]) -> Exported:
    """Export to ONNX: input ``lr`` (b, 3, h, w), output ``sr``, both float32.

    Args:
        network: in eval mode, on the CPU, in float32; it is not changed.
        half: compute in float16.
        told: what the file says of itself, in its metadata.

    Raises:
        MTKDError: PyTorch cannot export it, or what it exports makes another picture.
    """
    import onnxruntime

    from mtkd_lightning.artifacts import EMBEDDED

    with _quiet():
        made = torch.onnx.export(
            _traced(network, half),
            dynamo=True,
            input_names=["lr"],
            output_names=["sr"],
            opset_version=OPSET,
            verbose=False,
        )
    assert made is not None
    model = made.model_proto
    entry = model.metadata_props.add()
    entry.key, entry.value = EMBEDDED, json.dumps(told)
    content = model.SerializeToString()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    what = f"ONNX, opset {OPSET}, {'float16 inside' if half else 'float32'}"
    return _checked(network, lambda lr: torch.from_numpy(session.run(None, {"lr": lr.numpy()})[0]), content, what, half)


def to_torch_export(network: nn.Module, half: bool, told: dict[str, Any]) -> Exported:
    """Export by torch.export, as the content of a .pt2 file; for the arguments and errors see `to_onnx`."""
    from mtkd_lightning.artifacts import EMBEDDED

    file = io.BytesIO()
    with _quiet():
        torch.export.save(_traced(network, half), file, extra_files={f"{EMBEDDED}.json": json.dumps(told)})
        content = file.getvalue()
        module = torch.export.load(io.BytesIO(content)).module(check_guards=False)
    what = f"torch.export by torch {torch.__version__}, {'float16 inside' if half else 'float32'}"
    return _checked(network, module, content, what, half)


def _traced(network: nn.Module, half: bool) -> torch.export.ExportedProgram:
    from torch.export import Dim
    from torch.fx.experimental import _config

    every = {0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC}
    try:
        # As in PyTorch's own exporter to ONNX: else sides of one window or pixel would be other graphs.
        with torch.no_grad(), _config.patch(backed_size_oblivious=True):  # type: ignore[attr-defined]
            return torch.export.export(
                InHalf(network) if half else network, (torch.rand(TRACED),), dynamic_shapes=(every,), strict=False
            )
    except Exception as error:
        raise MTKDError(
            f"torch {torch.__version__} cannot export this {type(network).__name__} for pictures of every size "
            f"({type(error).__name__}: {str(error).splitlines()[0]}); format=safetensors takes any network"
        ) from error


@torch.inference_mode()
def _checked(network: nn.Module, graph: Callable[[Tensor], Tensor], content: bytes, what: str, half: bool) -> Exported:
    largest = 0.0
    for count, height, width in CHECKED:
        lr = _picture(count, height, width)
        difference = (graph(lr) - network(lr)).abs().max().item()
        if not difference <= TOLERANCE[half]:  # nor if it is no number
            raise MTKDError(
                f"{what} makes another picture than PyTorch in float32: at {height}x{width} pixels values differ by "
                f"{difference:.3g}, and {TOLERANCE[half]} of 1.0 is allowed; nothing was written"
                + ("; leave half=true out, for these weights need more than float16 can hold" if half else "")
            )
        largest = max(largest, difference)
    lr = _picture(1, TIMED, TIMED)
    took = [(_seconds(network, lr), _seconds(graph, lr)) for _ in range(4)][1:]
    seconds = median(x for x, _ in took), median(x for _, x in took)
    return Exported(content, what, largest, seconds, torch.get_num_threads())


def _picture(count: int, height: int, width: int) -> Tensor:
    """Something smooth with edges and a little noise, always the same."""
    noise = torch.Generator().manual_seed(0)
    down, right = torch.arange(height)[:, None], torch.arange(width)
    waves = torch.stack([torch.sin(down / 5 + right / (3 + k)) + (right > width // 2) for k in range(3)])
    waves = waves + 0.1 * torch.randn(count, 3, height, width, generator=noise)
    return (0.4 + 0.25 * waves).clamp(0, 1)


def _seconds(run: Callable[[Tensor], Tensor], lr: Tensor) -> float:
    start = time.perf_counter()
    run(lr)
    return time.perf_counter() - start


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what the exporters say of their own insides."""
    names = ("torch.onnx", "onnxscript", "onnx_ir")
    before = {name: logging.getLogger(name).level for name in names}
    try:
        for name in names:
            logging.getLogger(name).setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except MTKDError:
        raise
    except Exception as error:
        raise MTKDError(
            f"torch {torch.__version__} cannot write this network ({type(error).__name__}: "
            f"{str(error).splitlines()[0] if str(error) else ''}); format=safetensors takes any network"
        ) from error
    finally:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)
