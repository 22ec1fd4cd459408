"""The one exception that a user can mend, and how a command ends with it."""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager

log = logging.getLogger(__name__)


class MTKDError(Exception):
    """Bad input: the message says what was got, what is allowed and what to do; commands print it alone."""


class Interrupted(MTKDError):
    """Ctrl-C or the system ended a training; its checkpoint is there."""


class Pruned(Exception):
    """A search gives up on a job that does worse than others did; that is no error.

    Args:
        message: what was compared.
        value: the student's validation PSNR-Y so far.
    """

    def __init__(self, message: str, value: float) -> None:
        super().__init__(message)
        self.value = value


def out_of_memory(error: BaseException) -> bool:
    """Whether an error, of Python's or torch's, says that there is no memory left on the GPU or beside the CPU."""
    words = ("out of memory", "not enough memory", "can't allocate memory")
    return isinstance(error, MemoryError) or any(x in str(error) for x in words)


@contextmanager
def enough_memory(remedy: str) -> Iterator[None]:
    """Say what needs less memory where there is not enough.

    Raises:
        MTKDError: in place of the error that said so.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        raise MTKDError(f"there is not enough memory: {remedy} ({str(error).splitlines()[0]})") from error


@contextmanager
def reported() -> Iterator[None]:
    """End the command with the message and status 1 at what its user can mend."""
    try:
        yield
    except MTKDError as error:
        log.error("Error: %s", error)
        sys.exit(1)
