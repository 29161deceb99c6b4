"""Many paths in little memory."""

from collections.abc import Iterable, Iterator, Sequence
from typing import overload

import numpy as np


class Paths(Sequence[str]):
    """A sequence of texts in one UTF-8 buffer: a million paths are a few dozen MiB rather than a million objects, shared by forked workers.

    Surrogates, which stand for the undecodable bytes of a file's name, survive.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        texts = list(texts)
        joined = "".join(texts)
        lengths = map(len, texts if joined.isascii() else (_encoded(text) for text in texts))
        ends = np.cumsum([0, *lengths], dtype=np.int64)
        self._starts, self._ends = ends[:-1], ends[1:]
        self._buffer = _encoded(joined)

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
        starts, ends, buffer = self._starts.tolist(), self._ends.tolist(), self._buffer
        if buffer.isascii():  # characters are bytes: decoded once for all
            text = buffer.decode("ascii")
            yield from map(text.__getitem__, map(slice, starts, ends))
        else:
            for start, end in zip(starts, ends, strict=True):
                yield buffer[start:end].decode("utf-8", "surrogateescape")

    def take(self, places: np.ndarray) -> "Paths":
        """The texts at `places` (n,), in that order; the buffer is shared, not copied."""
        taken = Paths(())
        taken._buffer, taken._starts, taken._ends = self._buffer, self._starts[places], self._ends[places]
        return taken


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")
