"""What holds for every supervised loss, whatever its formula."""

from collections.abc import Callable
from functools import partial

import pytest
import torch

from loss_cases import COUNTS, call, classes_of, example, soft
from mdcs.errors import UserError
from mdcs.losses.balpoe import BalPoE
from mdcs.losses.ldam import LDAM
from mdcs.losses.mdcs import MDCS
from mdcs.losses.prior import PriorAdjusted
from mdcs.losses.reweighted import Reweighted
from mdcs.losses.ride import RIDE
from mdcs.losses.sade import SADE
from mdcs.types import Loss

LOSSES: dict[str, Callable[..., Loss]] = {
    "ce": partial(PriorAdjusted, lambdas=0.0),
    "logit_adjustment": partial(PriorAdjusted, lambdas=1.5),
    "focal": partial(Reweighted, gamma=2.0),
    "cb_focal": partial(Reweighted, gamma=0.5, beta=0.999),
    "ldam": LDAM,
    "ldam_drw": partial(LDAM, reweight_epoch=5),
    "ride": partial(RIDE, reweight_epoch=5),
    "sade": SADE,
    "balpoe": BalPoE,
    "mdcs": MDCS,
    "mdcs_symmetric": partial(MDCS, direction="symmetric", teacher="ensemble", mask_on="raw", temperature=2.0),
}
# Experts of one skill may change places; where counts act through ratios only, all may be doubled.
ALIKE = ("ce", "logit_adjustment", "focal", "cb_focal", "ldam", "ldam_drw", "ride")
RATIOS = ("ce", "logit_adjustment", "focal", "ldam", "sade", "balpoe", "mdcs", "mdcs_symmetric")


@pytest.mark.parametrize("name", ALIKE)
def test_expert_order_does_not_matter(name: str) -> None:
    logits, labels = example()
    loss = LOSSES[name](classes_of(COUNTS))
    torch.testing.assert_close(call(loss, logits, labels)["loss"], call(loss, logits[:, :, [2, 0, 1]], labels)["loss"])


@pytest.mark.parametrize("name", RATIOS)
def test_doubling_all_counts_does_not_matter(name: str) -> None:
    logits, labels = example()
    one, other = (call(LOSSES[name](classes_of(counts)), logits, labels)["loss"] for counts in (COUNTS, 2 * COUNTS))
    torch.testing.assert_close(one, other)


@pytest.mark.parametrize("name", [name for name in LOSSES if name != "ride"])  # which divides each class by its own temperature
def test_a_constant_added_to_the_logits_does_not_matter(name: str) -> None:
    logits, labels = example()
    shift = torch.linspace(-3, 3, 2 * 16 * 3, dtype=torch.float64).view(2, 16, 3, 1)
    loss = LOSSES[name](classes_of(COUNTS))
    torch.testing.assert_close(call(loss, logits, labels)["loss"], call(loss, logits + shift, labels)["loss"])


@pytest.mark.parametrize("name", LOSSES)
def test_relabelling_the_classes_does_not_matter(name: str) -> None:
    logits, labels = example()
    order = torch.tensor([3, 0, 4, 1, 2])  # new class c is old class order[c]
    for targets, other in ((labels, order.argsort()[labels]), (soft(labels), soft(labels)[:, order])):
        one = call(LOSSES[name](classes_of(COUNTS)), logits, targets)["loss"]
        torch.testing.assert_close(one, call(LOSSES[name](classes_of(COUNTS[order])), logits[..., order], other)["loss"])


@pytest.mark.parametrize("name", LOSSES)
def test_an_empty_class_is_refused_or_left_out(name: str) -> None:
    counts = torch.tensor([50, 0, 7, 3, 0])
    with pytest.raises(UserError, match=r"class '1' has no training picture \(2 such classes\).*mask_empty"):
        LOSSES[name](classes_of(counts))
    logits, _ = example()
    logits = logits.requires_grad_()
    labels = torch.tensor([0, 2, 3, 0] * 4)
    value = call(LOSSES[name](classes_of(counts), mask_empty=True), logits, labels)["loss"]
    value.backward()
    assert logits.grad is not None and logits.grad[..., [1, 4]].abs().max() == 0
    without = call(LOSSES[name](classes_of(counts[[0, 2, 3]])), logits[..., [0, 2, 3]], torch.tensor([0, 1, 2, 0] * 4))["loss"]
    torch.testing.assert_close(value, without)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("num_experts", [1, 2, 4])
def test_any_number_of_experts_and_every_logit_has_a_finite_gradient(name: str, num_experts: int) -> None:
    logits, labels = example(num_experts)
    logits.requires_grad_()
    parts = call(LOSSES[name](classes_of(COUNTS), num_experts), logits, labels)
    parts["loss"].backward()
    assert parts["loss"].ndim == 0 and logits.grad is not None and logits.grad.isfinite().all()
    assert (logits.grad.abs().sum((0, 1, 3)) > 0).all()
    assert not any(value.requires_grad for key, value in parts.items() if key != "loss")


@pytest.mark.parametrize("name", LOSSES)
def test_half_precision_is_widened_and_does_not_round_the_counts(name: str) -> None:
    logits, labels = example()
    exact = call(LOSSES[name](classes_of(COUNTS)), logits.bfloat16().double(), labels)["loss"]
    half = call(LOSSES[name](classes_of(COUNTS)).bfloat16(), logits.bfloat16(), labels)["loss"]
    assert half.dtype == torch.float32
    torch.testing.assert_close(half.double(), exact, rtol=1e-5, atol=0)


@pytest.mark.parametrize("name", LOSSES)
def test_nothing_is_stored_and_counts_follow_the_device(name: str) -> None:
    loss = LOSSES[name](classes_of(COUNTS))
    assert loss.state_dict() == {}
    assert all(buffer.device.type == "meta" for buffer in loss.to("meta").buffers()) and len(list(loss.buffers()))
    assert loss.extra_repr()
