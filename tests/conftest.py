"""What several test files share: the golden vectors and the threads the tests run on."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

ROOT = Path(__file__).parent.parent
GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """The same bits everywhere; and two threads on a busy machine spend their time waiting for each other."""
    torch.set_num_threads(1)


def golden(name: str) -> Any:
    """Arrays of `name`.npz or the content of `name`.json, computed by running the published code."""
    if name.endswith(".json"):
        return json.loads((GOLDEN / name).read_text())
    return np.load(GOLDEN / name)
