"""Random numbers as functions of what they are for, never of what was drawn before.

Every draw has a key: the run's `seed`, the name of a stream, and the numbers that identify the draw (an epoch, a step, a view ...).
The same key gives the same numbers on any device, rank or worker, so a resumed run needs no random state in its checkpoint.
"""

import zlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def key(seed: int, stream: str, *numbers: int) -> int:
    """A 63-bit seed for the draw `numbers` of `stream`: a hash, so that neighbouring keys give unrelated sequences."""
    entropy = [seed, zlib.crc32(stream.encode()), *numbers]
    return int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0] >> 1)


def generator(seed: int, stream: str, *numbers: int) -> torch.Generator:
    """A CPU generator for one draw; draw on the CPU and move the result, so that every device sees the same numbers."""
    return torch.Generator().manual_seed(key(seed, stream, *numbers))


@contextmanager
def keyed_globals(seed: int, stream: str, *numbers: int) -> Iterator[None]:
    """Within it the global CPU generator, which initialisers draw from, is that of one draw; the caller's is put back after."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(key(seed, stream, *numbers))
        yield
