"""mdcs: long-tailed image recognition with several experts.

>>> run = mdcs.run(["loss=mdcs", "trainer.max_epochs=60"])  # doctest: +SKIP
>>> mdcs.load(run.folder).predict(images)  # doctest: +SKIP
"""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mdcs.build import Run

__version__ = "0.1.0"


def run(overrides: Sequence[str] = ()) -> "Run":
    """Train as `mdcs train` with the same words does, and return the run. Raises `mdcs.errors.UserError` where the command would exit 2."""
    from mdcs.cli import train_words, without_advice

    with warnings.catch_warnings():
        without_advice()
        return train_words(list(overrides))


def load(folder: str | Path) -> "Run":
    """The run in `folder` with the weights it predicts with."""
    from mdcs.build import load

    return load(folder)
