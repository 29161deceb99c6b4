"""What several test files share: the golden vectors, the threads the tests run on, a disk that is full."""

import json
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

ROOT = Path(__file__).parent.parent
GOLDEN = Path(__file__).parent / "golden"


def pytest_configure(config: pytest.Config) -> None:
    """What is compared bit by bit is computed on the CPU, also where there is a GPU."""
    if "gpu" not in config.option.markexpr.replace("not gpu", ""):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """The same bits everywhere; and two threads on a busy machine spend their time waiting for each other."""
    torch.set_num_threads(1)


def convolution_macs(net: nn.Module, images: Tensor) -> int:
    """Multiply-accumulates of the convolutions in one forward pass of the network's backbone."""
    macs = 0

    def count(module: nn.Module, _: Any, output: Tensor) -> None:
        nonlocal macs
        assert isinstance(module, nn.Conv2d)
        macs += output.numel() * module.weight[0].numel()

    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(count)
    net.backbone(images)
    return macs


def golden(name: str) -> Any:
    """Arrays of `name`.npz or the content of `name`.json, computed by running the published code."""
    if name.endswith(".json"):
        return json.loads((GOLDEN / name).read_text())
    return np.load(GOLDEN / name)


@contextmanager
def full_disk(most: int = 1000) -> Iterator[None]:
    """No file grows beyond `most` bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
