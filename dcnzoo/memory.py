"""How the process gets its memory.

The maps between the layers of a detector are tens of megabytes. By default the C library takes each of them
from the system anew and returns it when it is freed, so that every layer pays for its pages again: about a
quarter of the time of a whole detector on a CPU.
"""

from __future__ import annotations

import ctypes
import os
import sys

# Parameters of mallopt(3) in glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4


def keep_freed_memory() -> bool:
    """Lets the C library keep what is freed for the next allocation instead of returning it to the system.

    This holds for the whole process. `DCNZOO_KEEP_MEMORY=0` in the environment leaves everything as it is, and so
    do systems without glibc.

    Returns:
        Whether the setting was made.
    """
    if os.environ.get("DCNZOO_KEEP_MEMORY", "1") == "0" or not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # another C library
        return False
    return bool(mallopt(_M_MMAP_MAX, 0)) and bool(mallopt(_M_TRIM_THRESHOLD, 2**31 - 1))
