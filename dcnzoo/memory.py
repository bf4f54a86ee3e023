"""When memory runs out, and how less of it is taken."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import torch

OUT_OF_MEMORY_WORDS = (
    "can't allocate memory",  # PyTorch's allocator for the CPU
    "not enough memory",  # the same on Windows
    "std::bad_alloc",
    "could not create a primitive",  # oneDNN, when it gets no memory for its code or buffers
    "out of memory",  # CUDA
    "_ALLOC_FAILED",  # cuBLAS, cuDNN
)
"""How the libraries say that memory ran out, where they have no exception for it."""


def is_out_of_memory(error: BaseException | None) -> bool:
    """Tells whether an error, or what caused it, says that memory ran out.

    PyTorch has an exception of its own for a full GPU. For the CPU's memory, and within the libraries that it
    calls, there is only a RuntimeError and its text.
    """
    if error is None:
        return False
    known = isinstance(error, (MemoryError, torch.OutOfMemoryError))
    told = isinstance(error, RuntimeError) and any(words in str(error) for words in OUT_OF_MEMORY_WORDS)
    return known or told or is_out_of_memory(error.__cause__)


def return_freed_memory() -> None:
    """Gives memory that was freed, but which the C library keeps, back to the system (glibc only)."""
    if sys.platform == "linux":
        with suppress(AttributeError):  # another C library
            ctypes.CDLL(None).malloc_trim(0)


@contextmanager
def raised_as_memory_error() -> Iterator[None]:
    """Gives all ways in which memory runs out one exception.

    Raises:
        MemoryError: with the first line of what was said.
    """
    try:
        yield
    except Exception as error:
        if is_out_of_memory(error):
            raise MemoryError(str(error).partition("\n")[0]) from error
        raise
