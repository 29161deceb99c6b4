"""How the C library keeps the memory that a step on the CPU gives back."""

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch

TRIM_THRESHOLD, MMAP_MAX = -1, -4  # the names of the settings in glibc's malloc.h
USUAL_TRIM_THRESHOLD, USUAL_MMAP_MAX = 128 * 1024, 65536  # mallopt(3)


@contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Within it, freed memory stays with the process until it is asked for again; afterwards what is free goes back to the system.

    Activations are large, and every step frees and wants the same ones. By default glibc returns such blocks to the system each time, and
    the system zeroes every page anew when it hands them out: about a tenth of a ResNet-32's training step, a quarter of its evaluation
    (benchmarks/step.py). The price is up to a sixth more memory at the peak. With an accelerator, whose memory torch keeps itself, and
    without glibc, nothing is done.
    """
    if not sys.platform.startswith("linux") or torch.accelerator.is_available():
        yield
        return
    c_library = ctypes.CDLL(None)
    set_option, give_back = getattr(c_library, "mallopt", None), getattr(c_library, "malloc_trim", None)
    if set_option is None or give_back is None:  # another C library, such as musl
        yield
        return
    set_option(TRIM_THRESHOLD, -1)  # never trim
    set_option(MMAP_MAX, 0)  # large blocks come from the heap, too
    try:
        yield
    finally:
        set_option(TRIM_THRESHOLD, USUAL_TRIM_THRESHOLD)
        set_option(MMAP_MAX, USUAL_MMAP_MAX)
        give_back(0)
