"""The processes of one job, ranks 0 to n - 1: which one this is, and how they agree."""

import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from mtkd_lightning.errors import MTKDError

if TYPE_CHECKING:
    from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment

P = ParamSpec("P")
T = TypeVar("T")

# A rank waits for the first one while that scores, or waits for another run; one that died is noticed by its starter.
PATIENCE = timedelta(days=7)


def rank() -> int:
    """Of this process among those of its job; 0 if it is alone."""
    return int(os.environ["SLURM_PROCID" if _srun() else "RANK"]) if count() > 1 else 0


def count() -> int:
    """Number of processes of the job: those that torchrun, srun or `launch` started."""
    return int(os.environ.get("SLURM_STEP_NUM_TASKS" if _srun() else "WORLD_SIZE", "1"))


def per_node() -> int:
    """Number of processes of the job on this machine."""
    if _srun():
        return count() // int(os.environ["SLURM_STEP_NUM_NODES"])
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def environment() -> "ClusterEnvironment | None":
    """What tells Lightning the same; None for a single process.

    Raises:
        MTKDError: srun was not told how many processes a node gets, without which they may be spread unevenly.
    """
    from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
    from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment

    if count() == 1:
        return None
    if not _srun():
        return TorchElasticEnvironment()
    if "SLURM_NTASKS_PER_NODE" not in os.environ:
        raise MTKDError(
            f"srun started {count()} processes without --ntasks-per-node; say --nodes=<nodes> --ntasks-per-node=<GPUs "
            "of a node> in place of --ntasks"
        )
    return SLURMEnvironment(auto_requeue=False)


@contextmanager
def joined(gpu: bool) -> Iterator[None]:
    """Connect the processes of the job; only the first one goes on saying what it does.

    Args:
        gpu: whether each has a GPU of its own.

    Raises:
        MTKDError: there are fewer GPUs than processes, or another process of the job is lost.
    """
    import torch
    from torch import distributed

    if (cluster := environment()) is None:
        yield
        return
    if rank() > 0:
        logging.getLogger().setLevel(logging.WARNING)
    if gpu:
        if (local := cluster.local_rank()) >= (there := torch.cuda.device_count()):
            raise MTKDError(
                f"process {local + 1} on this machine has no GPU of its own: it sees {there}. Start no more than there "
                "are (trainer.devices=...), or say trainer.accelerator=cpu; under srun let every process see all GPUs, "
                "with --gpus-per-node in place of --gpus-per-task"
            )
        torch.cuda.set_device(local)
    distributed.init_process_group(
        "cpu:gloo,cuda:nccl" if gpu else "gloo",
        init_method=f"tcp://{cluster.main_address}:{cluster.main_port}",
        rank=rank(),
        world_size=count(),
        timeout=PATIENCE,
    )
    try:
        yield
    except RuntimeError as error:  # of no type of its own where it is gloo's
        if not isinstance(error, distributed.DistError) and "gloo" not in str(error):
            raise
        raise MTKDError(
            f"rank {rank()} lost another process of the job, which ended or was killed before; the same command goes "
            f"on from the last checkpoint ({error})"
        ) from error
    # Not after an error, at which the others would stumble before it is told.
    distributed.destroy_process_group()


def first(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call a function on the first rank alone: all have its result, or end at its error, which that rank raises.

    Raises:
        MTKDError: from the function.
    """
    if count() == 1:
        return function(*args, **kwargs)
    import torch
    from torch import distributed

    outcome: list[Any] = [None, None]
    if rank() == 0:
        try:
            outcome[0] = function(*args, **kwargs)
        except MTKDError as refusal:
            outcome[1] = refusal
    distributed.broadcast_object_list(outcome, device=torch.device("cpu"))
    result, error = outcome
    if error is not None and rank() > 0:
        sys.exit(1)  # the first one says why
    if error is not None:
        raise error
    return result


def _srun() -> bool:
    """Whether SLURM's srun started this process as one of several; torchrun under it has the last word.

    A batch script has a SLURM_PROCID and a SLURM_NTASKS, too, but is no step of several tasks.
    """
    return "RANK" not in os.environ and int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1
