"""The order of an epoch, its sharing among ranks, and the loaders."""

import itertools
import pickle
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch

from mdcs.data.arrays import Digits
from mdcs.data.crops import Crop
from mdcs.data.decode import BadPicture
from mdcs.data.files import Files
from mdcs.data.module import Batches, LongTailData, PictureBatches, batches_at_once, require_even_share, resident
from mdcs.data.order import EpochOrder, Request
from mdcs.data.splits import Pictures, Splits
from mdcs.errors import UserError
from mdcs.types import Batch


@pytest.fixture(scope="module")
def splits() -> Splits:
    return Digits(val_fraction=0.1).splits()


def steps_of_all_ranks(num_pictures: int, batch_size: int, world_size: int, seed: int = 0, epoch: int = 0, shuffle: bool = True) -> Any:
    """steps[step][rank] = positions."""
    orders = [EpochOrder(num_pictures, batch_size, seed, rank, world_size, shuffle) for rank in range(world_size)]
    for order in orders:
        order.set_epoch(epoch)
    return [tuple(request.index for request in step) for step in zip(*orders, strict=True)]


@pytest.mark.parametrize("num_pictures", [60, 61, 62, 64, 71, 7])
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_every_picture_once_and_evenly_shared(num_pictures: int, world_size: int) -> None:
    order = EpochOrder(num_pictures, 12, world_size=world_size)
    steps = steps_of_all_ranks(num_pictures, 12, world_size)
    assert len(order) == len(steps)
    seen = [position for step in steps for part in step for position in part]
    assert len(seen) == len(set(seen)) == num_pictures - order.dropped and set(seen) <= set(range(num_pictures))
    for number, step in enumerate(steps):
        sizes = [len(part) for part in step]
        assert sum(sizes) == order.rows(number) and min(sizes) >= 1 and max(sizes) - min(sizes) <= 1
    assert [order.rows(number) for number in range(len(order) - 1)] == [12] * (len(order) - 1)


def test_a_step_with_fewer_pictures_than_ranks_is_dropped() -> None:
    dropped = {(rest, world): EpochOrder(60 + rest, 12, world_size=world).dropped for rest in (0, 1, 2, 3) for world in (1, 2, 3)}
    assert {case for case, number in dropped.items() if number} == {(1, 2), (1, 3), (2, 3)}
    assert dropped[2, 3] == 2 and len(EpochOrder(62, 12, world_size=3)) == 5 and len(EpochOrder(62, 12)) == 6


@pytest.mark.parametrize("world_size", [2, 3])
def test_global_batches_do_not_depend_on_the_number_of_ranks(world_size: int) -> None:
    alone, shared = (steps_of_all_ranks(66, 12, world) for world in (1, world_size))
    assert [list(itertools.chain(*step)) for step in shared] == [step[0] for step in alone]


def test_order_is_a_function_of_seed_and_epoch() -> None:
    cases = {(seed, epoch): steps_of_all_ranks(50, 10, 1, seed, epoch) for seed in (0, 1) for epoch in (0, 1)}
    torch.manual_seed(123)
    assert cases[0, 1] == steps_of_all_ranks(50, 10, 1, seed=0, epoch=1)
    assert all(first != second for first, second in itertools.combinations(cases.values(), 2))


def test_evaluation_keeps_the_order_and_drops_nothing() -> None:
    steps = steps_of_all_ranks(13, 12, 3, shuffle=False)
    assert [position for step in steps for part in step for position in part] == list(range(13))
    assert sorted(len(part) for part in steps[1]) == [0, 0, 1]


def test_training_batches(splits: Splits) -> None:
    data = LongTailData(splits, batch_size=32)
    loader = data.train_dataloader()
    assert isinstance(loader.sampler, EpochOrder)
    batches = list(loader)
    assert [len(batch.labels) for batch in batches] == [32] * 8 + [16] and len(loader) == 9
    for batch in batches:
        assert isinstance(batch, Batch) and batch.images.shape == (1, len(batch.labels), 3, 8, 8) and batch.images.dtype == torch.uint8
        assert torch.equal(batch.images[0], splits.train.images[batch.index]) and torch.equal(
            batch.labels, splits.train.labels[batch.index]
        )
        assert batch.meta is None
    assert torch.equal(torch.cat([batch.index for batch in batches]).sort().values, torch.arange(272))


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_eval_loader_gives_each_picture_once_over_ranks(splits: Splits, split: str) -> None:
    data = LongTailData(splits, batch_size=32, eval_batch_size=100)
    ranks = [list(data.eval_loader(split, rank, 3)) for rank in range(3)]
    assert len({len(batches) for batches in ranks}) == 1
    index = torch.cat([batch.index for batches in ranks for batch in batches])
    pictures = getattr(splits, split)
    assert torch.equal(index.sort().values, torch.arange(len(pictures.labels)))
    alone = list(data.eval_loader(split))
    assert torch.equal(torch.cat([batch.index for batch in alone]), torch.arange(len(pictures.labels)))
    assert torch.equal(torch.cat([batch.images[0] for batch in alone]), pictures.images)


def test_an_empty_share_is_an_empty_batch(splits: Splits) -> None:
    assert splits.test is not None
    few = splits._replace(val=splits.test._replace(images=splits.test.images[:1], labels=splits.test.labels[:1]))
    batches = list(LongTailData(few, batch_size=32).eval_loader("val", rank=0, world_size=2))
    assert [batch.images.shape for batch in batches] == [(1, 0, 3, 8, 8)] and batches[0].index.dtype == torch.int64


def test_workers_give_the_same_batches(splits: Splits) -> None:
    with_workers, without = (LongTailData(splits, batch_size=64, num_workers=number).train_dataloader() for number in (1, 0))
    for epoch in range(2):
        for loader in (with_workers, without):
            loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
        for first, second in zip(with_workers, without, strict=True):
            assert torch.equal(first.index, second.index) and torch.equal(first.images, second.images)


def test_pictures_go_to_a_device_that_has_room_for_them(splits: Splits) -> None:
    """On "meta", a device without memory: batches are gathered where the pictures are."""
    size, device = splits.train.images.nbytes, torch.device("meta")  # type: ignore[union-attr]
    assert resident(splits.train, device, 3 * size) is splits.train
    decoded = decoded_splits(splits, Picture()).train
    assert resident(decoded, device, 10**12) is decoded
    there = resident(splits.train._replace(meta=torch.zeros(len(splits.train.labels), 2)), device, 4 * size)
    batch = PictureBatches(there)[Request([3, 1], [3, 1], 0)]
    assert [value.device for value in batch if value is not None] == [device] * 5
    assert batch.images.shape == (1, 2, 3, 8, 8) and batch.meta is not None and batch.meta.shape == (2, 2)


def test_only_what_goes_to_a_gpu_is_pinned(splits: Splits, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pinning makes the process a user of the GPU, which a run on the CPU need not be."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    batches, order = PictureBatches(splits.train), EpochOrder(len(splits.train.labels), 64)
    assert not Batches(batches, order, 0).pin_memory
    assert Batches(batches, order, 0, device=torch.device("cuda", 0)).pin_memory
    there = splits.train._replace(labels=splits.train.labels.to("meta"))
    assert not Batches(PictureBatches(there), order, 0, device=torch.device("cuda", 0)).pin_memory
    assert not LongTailData(splits, batch_size=8).eval_loader("test").pin_memory


def test_mistakes(splits: Splits) -> None:
    with pytest.raises(UserError, match=r"^data\.batch_size=65 cannot be shared evenly by 2 devices: .* 64 or 66$"):
        require_even_share(65, 2)
    with pytest.raises(UserError, match=r"such as 4$"):
        require_even_share(3, 4)
    require_even_share(64, 2)
    with pytest.raises(UserError, match=r"^data\.batch_size=0"):
        LongTailData(splits, batch_size=0)
    with pytest.raises(UserError, match=r"^data\.num_workers=-1"):
        LongTailData(splits, batch_size=8, num_workers=-1)
    with pytest.raises(UserError, match=r"^split=valid: this dataset has train, val, test$"):
        LongTailData(splits, batch_size=8).eval_loader("valid")
    no_val = LongTailData(splits._replace(val=None), batch_size=8)
    assert no_val.val_dataloader() == []
    with pytest.raises(UserError, match=r"has train, test; data\.val_fraction=0\.1 makes one"):
        no_val.eval_loader("val")


class Recorder(pl.LightningModule):
    """Records which pictures each epoch brought."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.train_index: list[list[int]] = []
        self.val_index: list[int] = []

    def on_train_epoch_start(self) -> None:
        self.train_index.append([])

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        self.train_index[-1] += batch.index.tolist()
        return self.weight * batch.images.float().mean()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self.val_index += batch.index.tolist()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.filterwarnings("ignore:.*does not have many workers.*", "ignore:.*number of training batches.*")
@pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")  # Lightning 2.6 with torch 2.15
@pytest.mark.parametrize("has_val", [True, False])
def test_lightning_sets_the_epoch(splits: Splits, has_val: bool) -> None:
    recorder = Recorder()
    data = LongTailData(splits if has_val else splits._replace(val=None), batch_size=32, seed=5)
    quiet: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    limits: dict[str, Any] = {"max_epochs": 2, "num_sanity_val_steps": 0, "limit_val_batches": 1.0 if has_val else 0}
    trainer = pl.Trainer(accelerator="cpu", devices=1, use_distributed_sampler=False, **limits, **quiet)
    trainer.fit(recorder, datamodule=data)
    expected = [[position for part in steps_of_all_ranks(272, 32, 1, 5, epoch) for position in part[0]] for epoch in range(2)]
    assert recorder.train_index == expected
    assert recorder.val_index == (list(range(33)) * 2 if has_val else [])


class Picture:
    """Stands for decoded files; the picture at `bad` cannot be read."""

    def __init__(self, bad: int = -1) -> None:
        self.bad = bad

    def __call__(self, position: int) -> np.ndarray:
        if position == self.bad:
            raise BadPicture(f"{position}.jpg cannot be read as a picture (it is cut short): replace or remove it")
        return np.random.default_rng(position).integers(0, 256, (40, 50 + position % 7, 3), dtype=np.uint8)


def decoded_splits(splits: Splits, picture: Picture) -> Splits:
    """The same splits with pictures that are decoded when they are asked for."""

    def files(pictures: Pictures) -> Pictures:
        return pictures._replace(images=Files(picture, pictures.positions.numpy(), Crop(24, 32)))

    assert splits.test is not None
    return splits._replace(train=files(splits.train), val=None, test=files(splits.test))


def epochs(data: LongTailData, rank: int = 0, world_size: int = 1, number: int = 2) -> list[list[Batch]]:
    data._rank_and_world_size = lambda: (rank, world_size)  # type: ignore[method-assign]
    loader, batches = data.train_dataloader(), []
    for epoch in range(number):
        loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
        batches.append(list(loader))
    return batches


def assert_same(one: Batch, other: Batch) -> None:
    assert all(torch.equal(*pair) for pair in zip(one, other, strict=True) if pair[0] is not None)


def test_views_do_not_depend_on_workers(splits: Splits) -> None:
    lazy = decoded_splits(splits, Picture())
    here, there = (epochs(LongTailData(lazy, 100, workers, seed=3, num_views=2)) for workers in (0, 2))
    for batches, others in zip(here, there, strict=True):
        for one, other in zip(batches, others, strict=True):
            assert one.images.shape == (2, len(one.labels), 3, 24, 24) and one.images.dtype == torch.uint8
            assert_same(one, other)


@pytest.mark.parametrize("settings", [{}, {"sampler": "square_root", "repeats": 2}], ids=str)
@pytest.mark.parametrize("world_size", [1, 3])
def test_batches_loaded_at_once_are_those_loaded_one_by_one(
    splits: Splits, settings: dict[str, Any], world_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also the last batch, which is smaller, so that it is no part of others."""
    meta = torch.arange(2.0 * len(splits.train.labels)).view(-1, 2)
    splits = splits._replace(train=splits.train._replace(meta=meta))
    for rank in range(world_size):
        found = []
        for at_once in (1, 3):
            monkeypatch.setattr("mdcs.data.module.batches_at_once", lambda pictures, rows, device, number=at_once: number)
            found.append(epochs(LongTailData(splits, 36, seed=3, num_views=2, **settings), rank, world_size))
        for batches, others in zip(*found, strict=True):
            assert [len(batch.index) for batch in batches] == [36 // world_size] * (len(batches) - 1) + [len(batches[-1].index)]
            for number, (one, other) in enumerate(zip(batches, others, strict=True)):
                assert one.part is None and other.part is not None
                assert other.part.number == (0 if other is others[-1] else number % 3)
                assert_same(one, other._replace(part=None))
            assert others[0].part.whole is others[2].part.whole is not others[3].part.whole
            assert torch.equal(others[0].part.whole.index, torch.cat([batch.index for batch in batches[:3]]))


def test_as_many_batches_at_once_as_suit_the_device(splits: Splits) -> None:
    here, pictures = torch.device("cpu"), splits.train._replace(images=torch.empty(1, 3, 32, 32, dtype=torch.uint8))
    assert [batches_at_once(pictures, rows, here) for rows in (1, 64, 256, 257, 10_000)] == [512, 8, 2, 1, 1]
    there = torch.device("meta")
    assert batches_at_once(pictures._replace(images=pictures.images.to(there)), 64, there) == 32
    assert batches_at_once(pictures, 64, there) == 1  # they go there batch by batch
    assert batches_at_once(decoded_splits(splits, Picture()).train, 64, here) == 1
    assert LongTailData(splits, 32, num_workers=1).train_dataloader().at_once == 1  # type: ignore[attr-defined]


def test_what_workers_are_sent_survives_pickling(splits: Splits) -> None:
    """As where processes are spawned, not forked."""
    batches = PictureBatches(decoded_splits(splits, Picture()).train, seed=1, num_views=2)
    request = Request([3, 1], [7, 1], 4)
    assert_same(pickle.loads(pickle.dumps(batches))[request], batches[request])


@pytest.mark.parametrize("settings", [{}, {"sampler": "class_balanced"}, {"sampler": "square_root", "repeats": 2}])
def test_views_do_not_depend_on_the_number_of_ranks(splits: Splits, settings: dict[str, Any]) -> None:
    lazy = decoded_splits(splits, Picture())
    alone = epochs(LongTailData(lazy, 96, num_views=2, **settings))
    ranks = [epochs(LongTailData(lazy, 96, num_views=2, **settings), rank, 3) for rank in range(3)]
    for epoch, batches in enumerate(alone):
        for number, batch in enumerate(batches):
            parts = [rank[epoch][number] for rank in ranks]
            assert torch.equal(batch.images, torch.cat([part.images for part in parts], dim=1))
            for name in ("labels", "index", "draw"):
                assert torch.equal(getattr(batch, name), torch.cat([getattr(part, name) for part in parts]))
    if settings:
        draws = torch.cat([batch.draw for batch in alone[0] if batch.draw is not None])
        assert torch.equal(draws, torch.arange(len(lazy.train.labels)))


def test_copies_of_a_picture_are_cut_differently(splits: Splits) -> None:
    (batches,) = epochs(LongTailData(decoded_splits(splits, Picture()), 90, repeats=2), number=1)
    images, index = batches[0].images[0], batches[0].index
    assert torch.equal(index[::2], index[1::2]) and (images[::2] != images[1::2]).flatten(1).any(1).all()


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_bad_picture_is_one_line(splits: Splits, num_workers: int) -> None:
    bad = int(splits.train.positions[17])
    data = LongTailData(decoded_splits(splits, Picture(bad)), 50, num_workers)
    with pytest.raises(BadPicture) as raised:
        epochs(data, number=1)
    assert str(raised.value) == f"{bad}.jpg cannot be read as a picture (it is cut short): replace or remove it"


def test_crop_settings_reach_training_only(splits: Splits) -> None:
    data = LongTailData(decoded_splits(splits, Picture()), 50, crop_scale=[0.5, 0.9], crop_ratio=[1, 1])
    train, test = (part.images for part in (data.splits.train, data.splits.test) if part is not None)
    assert isinstance(train, Files) and isinstance(test, Files)
    assert train.crop == Crop(24, 32, (0.5, 0.9), (1, 1)) and test.crop == Crop(24, 32)
    for key, value in (("crop_scale", [0.5]), ("crop_ratio", 0.5), ("crop_scale", ["a", "b"])):
        with pytest.raises(UserError, match=rf"^data\.{key}=.*: expected two numbers, the smallest and the largest$"):
            LongTailData(decoded_splits(splits, Picture()), 50, **{key: value})  # type: ignore[arg-type]


def test_large_pictures_are_evaluated_in_smaller_batches(splits: Splits) -> None:
    lazy = decoded_splits(splits, Picture())
    large = lazy.train._replace(images=Files(Picture(), lazy.train.positions.numpy(), Crop()))
    assert LongTailData(splits, 32).eval_batch_size == LongTailData(lazy, 32).eval_batch_size == 512
    assert LongTailData(lazy._replace(train=large), 32).eval_batch_size == 128
