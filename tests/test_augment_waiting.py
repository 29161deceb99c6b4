"""Views are made without the host waiting for the device: what an accelerator runs gives the same pictures, and reads nothing back."""

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from mdcs.augment import ops
from mdcs.augment.policies import CifarStrong, CifarWeak, DigitsStrong, DigitsWeak, ImageNetStrong, ImageNetWeak
from mdcs.augment.views import Augment
from mdcs.types import Batch, Policy

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
PAIRS = {
    "cifar": (CifarWeak, CifarStrong, (3, 32, 32)),
    "imagenet": (ImageNetWeak, ImageNetStrong, (3, 20, 31)),
    "digits": (DigitsWeak, DigitsStrong, (3, 8, 8)),
}
VIEWS = ("weak", "strong")
# Their results, or the shapes of their results, depend on the values of a tensor.
WAITING = {"_local_scalar_dense", "nonzero", "bincount", "masked_select", "unique_dim", "_unique2", "is_nonzero", "equal"}


def batch_of(shape: tuple[int, ...], rows: int, device: str = "cpu") -> Batch:
    images = torch.randint(0, 256, (1, rows, *shape), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    index = torch.arange(rows)
    return Batch(images.to(device), (index % 10).to(device), index.to(device))


def augment_of(pair: str, rows: int) -> Augment:
    weak, strong, _ = PAIRS[pair]
    return Augment(weak(), strong(), MEAN, STD, num_pictures=rows)


class Waits(TorchDispatchMode):
    """Counts operations, and those that make the host wait for a device; `aten::index` does where its index is a mask."""

    def __init__(self) -> None:
        super().__init__()
        self.operations, self.waits = 0, []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        self.operations += not func.is_view
        indices = args[1] if name in ("index", "index_put", "index_put_", "_index_put_impl_") else ()
        if name in WAITING or any(i is not None and i.dtype in (torch.bool, torch.uint8) for i in indices):
            self.waits.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.fixture
def as_on_an_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ops, "sorts", lambda images: False)


@pytest.mark.parametrize("pair", ["cifar", "imagenet"])
def test_every_operation_at_once_gives_the_pictures_that_sorting_gives(pair: str, monkeypatch: pytest.MonkeyPatch) -> None:
    augment, batch = augment_of(pair, 300), batch_of(PAIRS[pair][2], 300)
    sorted_images = augment(batch, VIEWS, 10, 1).images
    monkeypatch.setattr(ops, "sorts", lambda images: False)
    assert torch.equal(augment(batch, VIEWS, 10, 1).images, sorted_images)
    monkeypatch.setattr(ops, "rows_at_a_time", lambda images: 70)
    assert torch.equal(augment(batch, VIEWS, 10, 1).images, sorted_images)


@pytest.mark.parametrize("policy", [CifarStrong(), ImageNetStrong()], ids=["cifar", "imagenet"])
def test_at_once_leaves_its_input_alone(policy: Policy, as_on_an_accelerator: None) -> None:
    images = batch_of((3, 16, 16), 30).images[0]
    before = images.clone()
    policy(images, torch.rand(30, policy.draws, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(images, before)
    assert policy(images[:0], torch.zeros(0, policy.draws)).shape == (0, 3, 16, 16)


@pytest.mark.parametrize("pair", PAIRS)
def test_nothing_is_read_back(pair: str, as_on_an_accelerator: None) -> None:
    """The same number of operations whatever was drawn, none of them a wait; one-hot targets read their labels on a CPU alone."""
    augment, counts = augment_of(pair, 40), set()
    augment(batch_of(PAIRS[pair][2], 40), VIEWS, 10, 1)  # makes what is made once
    for rows in (40, 5):
        batch = batch_of(PAIRS[pair][2], rows)
        with Waits() as waits:
            for name in VIEWS:
                uniform_BR = augment._table(name, VIEWS.index(name), 1, torch.device("cpu"))[batch.index]
                augment._normalise(augment.policies[name](batch.images[0], uniform_BR))
        assert waits.waits == []
        counts.add(waits.operations)
    assert len(counts) == 1


def test_the_count_notices_a_wait() -> None:
    """Sorting, which is for a CPU only, asks for the sizes of the groups."""
    policy = CifarStrong()
    with Waits() as waits:
        policy(batch_of((3, 32, 32), 10).images[0], torch.rand(10, policy.draws, generator=torch.Generator().manual_seed(0)))
        torch.arange(3)[torch.tensor([True, False, True])]
    assert any("bincount" in name for name in waits.waits) and any("index" in name for name in waits.waits)


@pytest.mark.parametrize("pair", PAIRS)
def test_shapes_do_not_depend_on_values(pair: str) -> None:
    """On the meta device no tensor has values, so anything that asks for one fails there: so would a graph."""
    augment = augment_of(pair, 12).to("meta")
    views = augment(batch_of(PAIRS[pair][2], 12, "meta"), VIEWS, 10, 1)
    assert views.images.shape == (2, 12, *PAIRS[pair][2]) and views.targets.shape == (12, 10)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("pair", PAIRS)
def test_a_gpu_never_waits_and_gives_the_same_pictures(pair: str) -> None:
    augment, on_gpu = augment_of(pair, 100), augment_of(pair, 100).cuda()
    batch = batch_of(PAIRS[pair][2], 100, "cuda")
    on_gpu(batch, VIEWS, 10, 1)  # the epoch's table is copied, and what is made once is made
    try:
        torch.cuda.set_sync_debug_mode("error")
        got: Tensor = on_gpu(batch, VIEWS, 10, 1).images
    finally:
        torch.cuda.set_sync_debug_mode("default")
    expected = augment(batch_of(PAIRS[pair][2], 100), VIEWS, 10, 1).images
    # Sines, cosines and divisions of a GPU may differ in the last bit, and a pixel exactly between two goes to the other.
    assert ((got.cpu() - expected).abs() > 1e-4).float().mean() < 1e-3
