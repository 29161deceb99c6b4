"""Focal and class-balanced cross-entropy against the published code and their formulas."""

import pytest
import torch
from torch.nn import functional as F

from conftest import golden
from loss_cases import COUNTS, assert_golden, call, classes_of, example, soft
from mdcs.errors import UserError
from mdcs.losses.algebra import class_balanced_weights
from mdcs.losses.prior import PriorAdjusted
from mdcs.losses.reweighted import Reweighted

PEERS = golden("peers.npz")
CLASSES = classes_of(PEERS["counts"])


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("focal_gamma0", {"gamma": 0.0}),
        ("focal_gamma1", {"gamma": 1.0}),
        ("focal_gamma2", {"gamma": 2.0}),
        ("cb_ce", {"beta": 0.9999}),
        ("ce", {}),
    ],
)
def test_golden(name: str, arguments: dict[str, float]) -> None:
    assert_golden(Reweighted(CLASSES, 1, **arguments), PEERS["logits"], PEERS["target"], 1, PEERS, name)


def test_golden_class_weights() -> None:
    published = torch.from_numpy(PEERS["cb_weights"])
    counts = torch.from_numpy(PEERS["counts"])
    for dtype in (torch.float32, torch.float64):
        torch.testing.assert_close(class_balanced_weights(counts, 0.9999, dtype).float(), published, rtol=1e-6, atol=0)
    few = class_balanced_weights(torch.tensor([2, 1]), 0.9999, torch.float32)  # 1 − β^n by itself would be wrong in the fourth digit
    torch.testing.assert_close(few[1] / few[0], torch.tensor(1.9999), rtol=1e-6, atol=0)


def test_limits_of_the_class_weights() -> None:
    torch.testing.assert_close(class_balanced_weights(COUNTS, 0.0, torch.float64), torch.ones(5, dtype=torch.float64))
    inverse = 1 / COUNTS.double()
    torch.testing.assert_close(class_balanced_weights(COUNTS, 1 - 1e-12, torch.float64), inverse * 5 / inverse.sum(), rtol=1e-3, atol=0)
    holed = class_balanced_weights(torch.tensor([500, 0, 2]), 0.99, torch.float64)
    torch.testing.assert_close(holed[[0, 2]], class_balanced_weights(torch.tensor([500, 2]), 0.99, torch.float64))
    assert holed[1] == 0


def test_it_is_the_formula_also_for_mixed_targets() -> None:
    logits, labels = example()
    targets = soft(labels)
    weights = class_balanced_weights(COUNTS, 0.999, torch.float64)
    p = logits.softmax(-1)
    terms = weights * targets[:, None] * (1 - p) ** 1.5 * -p.log()
    expected = sum(terms[:, :, k].sum() / (2 * (weights * targets).sum()) for k in range(3))
    got = call(Reweighted(classes_of(COUNTS), gamma=1.5, beta=0.999), logits, targets)
    torch.testing.assert_close(got["loss"], expected)
    assert torch.equal(got["reweighted"], got["loss"])


def test_without_weights_it_is_cross_entropy() -> None:
    logits, labels = example()
    plain = call(PriorAdjusted(classes_of(COUNTS), lambdas=0.0), logits, labels)["loss"]
    torch.testing.assert_close(call(Reweighted(classes_of(COUNTS)), logits, labels)["loss"], plain)
    balanced = classes_of([7] * 5)
    torch.testing.assert_close(call(Reweighted(balanced, beta=0.99), logits, labels)["loss"], plain)


def test_weights_begin_after_the_reweight_epoch() -> None:
    logits, labels = example()
    loss, plain = (Reweighted(classes_of(COUNTS), beta=0.999, reweight_epoch=3), Reweighted(classes_of(COUNTS)))
    assert torch.equal(call(loss, logits, labels, 3)["loss"], call(plain, logits, labels, 3)["loss"])
    weighted = F.cross_entropy(logits[0, :, 0], labels, class_balanced_weights(COUNTS, 0.999, torch.float64))
    torch.testing.assert_close(call(loss, logits[:1, :, :1], labels, 4)["loss"], weighted)


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0])
def test_certain_pictures_give_no_nan(gamma: float) -> None:
    logits = torch.tensor([[[[200.0, 0, 0, 0, 0]]]]).requires_grad_()
    value = call(Reweighted(classes_of(COUNTS), 1, gamma=gamma), logits, torch.tensor([0]))["loss"]
    value.backward()
    assert value == 0 and logits.grad is not None and torch.equal(logits.grad, torch.zeros_like(logits))


@pytest.mark.parametrize("arguments", [{"gamma": -1.0}, {"beta": 1.0}, {"beta": -0.1}, {"reweight_epoch": -1}])
def test_wrong_arguments_are_refused(arguments: dict[str, float]) -> None:
    with pytest.raises(UserError, match=f"loss.{next(iter(arguments))}={next(iter(arguments.values()))}"):
        Reweighted(classes_of(COUNTS), **arguments)
    with pytest.raises(UserError, match="names no view"):
        Reweighted(classes_of(COUNTS), views=[])
