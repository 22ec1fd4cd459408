"""Start the processes of a job that trains on several devices of this machine, each a process of its own.

Lightning would start the command line again, which in a sweep is that of the whole sweep. Here every process gets the
configuration of the job itself; what is torchrun's or srun's on several machines is done for one.
"""

import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from omegaconf import DictConfig, OmegaConf

from mtkd_lightning import ranks
from mtkd_lightning.errors import MTKDError

log = logging.getLogger(__name__)


def on_gpu(config: DictConfig) -> bool:
    """Whether a job's networks run on a GPU."""
    import torch

    # Lightning's own "auto" would take an Apple GPU, which has no float64 for the metrics.
    accelerator = config.trainer.accelerator
    return accelerator == "gpu" or (accelerator == "auto" and torch.cuda.is_available())


def processes(config: DictConfig) -> int:
    """How many a job asks for on this machine.

    Raises:
        MTKDError: one for each GPU, and there is none.
    """
    if config.trainer.devices != "auto":
        return int(config.trainer.devices)
    import torch

    if not on_gpu(config):
        raise MTKDError("trainer.devices=auto is one process for each GPU, and there is none: say trainer.devices=2")
    return torch.cuda.device_count()


def launch(config: DictConfig, processes: int) -> float | None:
    """Do a job on ``processes`` processes; give what its first one gives.

    Args:
        config: of the job.
        processes: at least 2; also the number of GPUs, if it runs on GPUs.

    Raises:
        MTKDError: what any of them says, or that one was killed; the others are ended.
    """
    with TemporaryDirectory(prefix="mtkd_lightning-") as name:
        folder = Path(name)
        (folder / "config.yaml").write_text(OmegaConf.to_yaml(config, resolve=True))
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        shared = {
            "OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // processes)),
            **os.environ,
            "WORLD_SIZE": str(processes),
            "LOCAL_WORLD_SIZE": str(processes),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
        command = [sys.executable, "-m", "mtkd_lightning.launch", name]
        # A pipe to each that nobody writes to: its end tells a process that this one is gone, whatever killed it.
        started = [
            subprocess.Popen(command, env={**shared, "RANK": str(k), "LOCAL_RANK": str(k)}, stdin=subprocess.PIPE)
            for k in range(processes)
        ]
        try:
            failed = _wait(started)
        finally:
            # Asked gently, ranks wait for each other in vain; what they write is whole at any time.
            for process in started:
                process.kill()
                process.wait()
                process.stdin.close()  # type: ignore[union-attr]
        if failed:
            raise MTKDError(_reason(folder, started, failed))
        result: float | None = json.loads((folder / "result.json").read_text())
        return result


def main() -> None:
    """Be one of the processes."""
    logging.basicConfig(format="%(message)s", level=logging.INFO, stream=sys.stdout)
    folder = Path(sys.argv[1])
    threading.Thread(target=_end_with_starter, daemon=True).start()
    from mtkd_lightning.__main__ import work

    try:
        result = work(OmegaConf.create((folder / "config.yaml").read_text()))  # type: ignore[arg-type]
    except MTKDError as error:
        (folder / f"{ranks.rank()}.error").write_text(str(error))
        sys.exit(1)
    except Exception:
        (folder / f"{ranks.rank()}.traceback").write_text(traceback.format_exc())
        sys.exit(1)
    if ranks.rank() == 0:
        (folder / "result.json").write_text(json.dumps(result))


def _wait(processes: Sequence["subprocess.Popen[bytes]"]) -> list[int]:
    """Wait for all to end, or a moment longer than the first that fails; give the ranks that failed by themselves."""
    while any(process.poll() is None for process in processes):
        if any(process.returncode for process in processes):
            time.sleep(1)  # others may have something to say, too
            break
        time.sleep(0.1)
    return [k for k, process in enumerate(processes) if process.poll()]


def _reason(folder: Path, processes: Sequence["subprocess.Popen[bytes]"], failed: Sequence[int]) -> str:
    """What ended the job: one that was killed, else what a user can mend, else an error of ours."""
    for k in failed:
        if (code := processes[k].returncode) < 0:
            return (
                f"rank {k} of {len(processes)} was ended by {signal.Signals(-code).name}, and the others with it; the "
                "same command goes on from the last checkpoint"
            )
    for kind in ("error", "traceback"):
        # The first to speak: what others say after it is that a rank is gone.
        for said in sorted(folder.glob(f"*.{kind}"), key=lambda file: file.stat().st_mtime_ns):
            return said.read_text() if kind == "error" else f"rank {said.stem} of {len(processes)}: {said.read_text()}"
    return f"rank {failed[0]} of {len(processes)} ended with status {processes[failed[0]].returncode}"


def _end_with_starter() -> None:
    os.read(sys.stdin.fileno(), 1)  # past Python's own lock on it, which would be in the way of an exit
    os.kill(os.getpid(), signal.SIGKILL)  # as its starter would


if __name__ == "__main__":
    main()
