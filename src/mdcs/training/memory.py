"""Memory of the process: how the C library keeps what a step on the CPU gives back, and how much it was at most."""

import ctypes
import gc
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

TRIM_THRESHOLD, MMAP_THRESHOLD, MMAP_MAX = -1, -3, -4  # the names of the settings in glibc's malloc.h
# mallopt(3). By default glibc raises both thresholds up to these values by itself, which any call of mallopt ends: so they are set then.
USUALLY = {MMAP_MAX: 65536, MMAP_THRESHOLD: 32 * 2**20, TRIM_THRESHOLD: 64 * 2**20}


@contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Within it, freed memory stays with the process until it is asked for again; afterwards what is free goes back to the system.

    Activations are large, and every step frees and wants the same ones. By default glibc returns such blocks to the system each time, and
    the system zeroes every page anew when it hands them out: of a ResNet-32's training step about a sixth in float32 and a tenth in
    bfloat16 (benchmarks/step.py). With an accelerator, whose memory torch keeps itself, and without glibc, nothing is done.
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
        for option, value in USUALLY.items():
            set_option(option, value)
        give_back(0)


def begin_on(device: torch.device) -> None:
    """Free what earlier runs of this process have left on a GPU, and count its peak memory from now on."""
    if device.type == "cuda" and torch.cuda.is_initialized():  # else nothing has run there
        gc.collect()  # a Trainer and its module refer to each other
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def peak_mib() -> float:
    """The most memory that this process has had. (Linux begins the counter of `getrusage` with what the starting process had.)"""
    status = Path("/proc/self/status")
    if status.exists():
        return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM")) / 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
