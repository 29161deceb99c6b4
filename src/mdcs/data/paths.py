"""Many paths in little memory."""

from collections.abc import Iterable, Iterator, Sequence
from typing import overload

import numpy as np


class Paths(Sequence[str]):
    """A sequence of texts in one UTF-8 buffer: a million paths are a few dozen MiB rather than a million objects, shared by forked workers.

    Surrogates, which stand for the undecodable bytes of a file's name, survive.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        encoded = [text.encode("utf-8", "surrogateescape") for text in texts]
        ends = np.cumsum([0, *map(len, encoded)], dtype=np.int64)
        self._starts, self._ends = ends[:-1], ends[1:]
        self._buffer = b"".join(encoded)

    def __len__(self) -> int:
        return len(self._starts)

    @overload
    def __getitem__(self, place: int) -> str: ...
    @overload
    def __getitem__(self, place: slice) -> "Paths": ...
    def __getitem__(self, place: int | slice) -> "str | Paths":
        if isinstance(place, slice):
            return self.take(np.arange(len(self))[place])
        return self._buffer[self._starts[place] : self._ends[place]].decode("utf-8", "surrogateescape")

    def __iter__(self) -> Iterator[str]:
        for start, end in zip(self._starts.tolist(), self._ends.tolist(), strict=True):
            yield self._buffer[start:end].decode("utf-8", "surrogateescape")

    def take(self, places: np.ndarray) -> "Paths":
        """The texts at `places` (n,), in that order; the buffer is shared, not copied."""
        taken = Paths(())
        taken._buffer, taken._starts, taken._ends = self._buffer, self._starts[places], self._ends[places]
        return taken
