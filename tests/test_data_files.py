"""Pictures that are decoded when they are asked for: what their crops depend on, and what not."""

import runpy
from pathlib import Path

import numpy as np
import pytest
import torch

from mdcs.data.crops import Crop
from mdcs.data.files import Files

CROP = Crop(16, 20)


class Noise:
    """Pictures of different shapes, and how often each was decoded."""

    def __init__(self) -> None:
        self.decoded: list[int] = []

    def __call__(self, position: int) -> np.ndarray:
        self.decoded.append(position)
        return np.random.default_rng(position).integers(0, 256, (30 + position, 41, 3), dtype=np.uint8)


@pytest.fixture
def files() -> Files:
    return Files(Noise(), np.array([7, 3, 3, 9, 0]), CROP)


def test_it_stands_for_a_tensor(files: Files) -> None:
    assert len(files) == 5 and files.shape == (5, 3, 16, 16)
    plain = files.plain(torch.tensor([4, 0, 1]))
    picture = Noise()
    expected = [CROP.plain(picture(position)) for position in (0, 7, 3)]
    assert plain.dtype == torch.uint8 and torch.equal(plain, torch.from_numpy(np.stack(expected)))
    assert files.plain(torch.empty(0, dtype=torch.int64)).shape == (0, 3, 16, 16)
    assert files.random(torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.int64), 0, 0, 2).shape == (2, 0, 3, 16, 16)


def test_a_picture_is_decoded_once_for_all_views(files: Files) -> None:
    index = torch.tensor([0, 3])
    views = files.random(index, index, 0, 0, 3)
    assert views.shape == (3, 2, 3, 16, 16) and views.dtype == torch.uint8
    assert files.picture.decoded == [7, 9]  # type: ignore[attr-defined]
    assert not torch.equal(views[0], views[1]) and not torch.equal(views[1], views[2])


def test_a_crop_is_a_function_of_seed_epoch_draw_and_view(files: Files) -> None:
    def crops(index: list[int], draw: list[int], epoch: int = 2, seed: int = 5, num_views: int = 2) -> torch.Tensor:
        return files.random(torch.tensor(index), torch.tensor(draw), epoch, seed, num_views)

    batch = crops([0, 1, 2, 3], [0, 1, 2, 3])
    torch.manual_seed(123)
    np.random.seed(123)
    assert torch.equal(crops([3, 1], [3, 1]), batch[:, [3, 1]])  # neither the rest of the batch nor its order matter
    assert torch.equal(crops([3, 1], [3, 1], num_views=1)[0], batch[0, [3, 1]])
    assert torch.equal(crops([1, 2], [4, 4])[:, 0], crops([1, 2], [4, 4])[:, 1])  # both are the picture at 3, with one draw
    assert not torch.equal(batch[:, 1], batch[:, 2])
    for other in (crops([0], [0], epoch=3), crops([0], [0], seed=6), crops([0], [4])):
        assert not torch.equal(other, batch[:, :1])


def test_the_benchmark_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    path = Path(__file__).parent.parent / "benchmarks" / "decode.py"
    monkeypatch.syspath_prepend(str(path.parent))
    text = runpy.run_path(str(path))["main"](["--quick"])
    rates = [float(line.split("|")[2].split("(")[0]) for line in text.splitlines() if line.startswith("| ") and "CPU second" not in line]
    assert len(rates) == 4 and min(rates) > 0
