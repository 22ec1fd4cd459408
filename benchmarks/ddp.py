"""A step of two processes over one of a single process, the same batch: what data-parallel training gains and costs.

The main job trains an EDSR-baseline alone, batch 16, LR patch 32, x4, with ``trainer=ddp``. On CPUs both ways have all
cores: one process with as many threads, or processes that share them; where there are GPUs enough each process has one
of its own, and steps should be thousands, for the start counts. Seconds of a step are those of the student's record.
The variants take turns; medians of the seconds and of the ratios are printed and written to ``ddp.json``.

    python benchmarks/ddp.py [processes] [repeats] [steps]
"""

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from common import arguments, in_turns, publish, ratio


def main() -> None:
    """Measure, print and write."""
    (processes, repeats, steps), _ = arguments(2, 5, 30)
    device = "cuda" if torch.cuda.device_count() >= processes else "cpu"
    found = in_turns({n: lambda n=n: _step(n, steps, device) for n in (1, processes)}, repeats)
    publish(
        __file__,
        {
            "device": device,
            "cores": os.cpu_count(),
            "repeats": repeats,
            "steps": steps,
            "seconds_per_step": {str(number): round(statistics.median(x), 4) for number, x in found.items()},
            "over_one": round(ratio(found[processes], found[1]), 3),
            "ratios": [round(a / b, 3) for a, b in zip(found[processes], found[1], strict=True)],
        },
        device,
    )


def _step(processes: int, steps: int, device: str) -> float:
    intervals = (f"{key}={steps}" for key in ("steps", "validate_every", "checkpoint_every"))
    command = [
        *(sys.executable, "-m", "mtkd_lightning", "method=scratch", "student=paper/edsr", "stages=[distillation]"),
        f"trainer.accelerator={'cpu' if device == 'cpu' else 'gpu'}",
        *(f"training.distillation.{setting}" for setting in ("batch_size=16", "lr_patch=32", *intervals)),
        *((f"trainer.devices={processes}", "trainer=ddp") if processes > 1 else ()),
    ]
    # Given nothing, several processes share the cores by themselves.
    threads = {} if processes > 1 else {"OMP_NUM_THREADS": str(os.cpu_count())}
    environment = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"} | threads
    with TemporaryDirectory() as folder:
        subprocess.run(command, cwd=folder, env=environment, check=True, stdout=subprocess.DEVNULL)
        (record,) = Path(folder, "weights").glob("*.json")
        return json.loads(record.read_text())["seconds"] / steps


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
