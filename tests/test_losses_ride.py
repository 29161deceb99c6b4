"""RIDE's first stage against the published code."""

import pytest
import torch

from conftest import golden
from loss_cases import COUNTS, assert_golden, call, classes_of, example
from mdcs.losses.ldam import LDAM
from mdcs.losses.ride import RIDE

PEERS = golden("peers.npz")
CLASSES = classes_of(PEERS["counts"])


@pytest.mark.parametrize(
    ("name", "factor", "epoch"), [("ride_before", -0.2, 160), ("ride_after", -0.2, 161), ("ride_after_div045", -0.45, 161)]
)
def test_golden(name: str, factor: float, epoch: int) -> None:
    loss = RIDE(CLASSES, 3, reweight_epoch=160, diversity_factor=factor)
    assert_golden(loss, PEERS["expert_logits"], PEERS["target"], epoch, PEERS, name, axes=(1, 0, 2))


def test_golden_temperatures() -> None:
    published = torch.from_numpy(PEERS["ride_diversity_temperature"])
    torch.testing.assert_close(RIDE(CLASSES, reweight_epoch=0).temperatures(1, torch.float32), published, rtol=1e-6, atol=0)
    assert torch.equal(RIDE(CLASSES).temperatures(1000, torch.float32), torch.ones(10))


def test_without_diversity_it_is_ldam_and_the_parts_add_up() -> None:
    logits, labels = example()
    ldam = call(LDAM(classes_of(COUNTS), reweight_epoch=2), logits, labels)["loss"]
    for factor in (0.0, -0.3):
        parts = call(RIDE(classes_of(COUNTS), reweight_epoch=2, diversity_factor=factor), logits, labels)
        torch.testing.assert_close(parts["margin"], ldam)
        torch.testing.assert_close(parts["loss"], ldam + factor * parts["diversity"])


def test_equal_experts_have_no_diversity() -> None:
    logits, labels = example()
    assert call(RIDE(classes_of(COUNTS), reweight_epoch=2), logits, labels)["diversity"] > 0.1
    same = logits[:, :, :1].expand(-1, -1, 3, -1)
    torch.testing.assert_close(call(RIDE(classes_of(COUNTS), reweight_epoch=2), same, labels)["diversity"], torch.zeros(()).double())
