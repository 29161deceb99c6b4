"""MDCS and the prior-adjusted losses: golden values with gradients, invariances, edges."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from conftest import golden
from loss_cases import COUNTS, call, classes_of, example
from mdcs.errors import UserError
from mdcs.losses.mdcs import MDCS
from mdcs.losses.prior import PriorAdjusted
from mdcs.types import Classes, Output, Views

VECTORS = golden("mdcs_loss.npz")
CASES = [case["name"] for case in golden("mdcs_loss_index.json")]


def golden_case(name: str, dtype: torch.dtype) -> tuple[Tensor, Tensor, Classes]:
    """Published logits (K, 2B, C), first B rows weak, as (V, B, K, C)."""
    logits_KNC = torch.from_numpy(VECTORS[f"{name}/logits"]).to(dtype)
    num_experts, rows, num_classes = logits_KNC.shape
    logits_VBKC = logits_KNC.view(num_experts, 2, rows // 2, num_classes).permute(1, 2, 0, 3).contiguous().requires_grad_()
    return logits_VBKC, torch.from_numpy(VECTORS[f"{name}/target"])[: rows // 2], classes_of(VECTORS[f"{name}/counts"])


@pytest.mark.parametrize("name", CASES)
def test_golden_float64(name: str) -> None:
    logits_VBKC, labels_B, classes = golden_case(name, torch.float64)
    for e, epoch in enumerate(VECTORS[f"{name}/epochs"]):
        parts = call(MDCS(classes), logits_VBKC, labels_B, float(epoch))
        (grad_VBKC,) = torch.autograd.grad(parts["loss"], logits_VBKC)
        grad_KNC = grad_VBKC.permute(2, 0, 1, 3).flatten(1, 2)
        torch.testing.assert_close(parts["loss"].item(), float(VECTORS[f"{name}/loss"][e]), rtol=0, atol=1e-6)
        torch.testing.assert_close(grad_KNC, torch.from_numpy(VECTORS[f"{name}/grad"][e]), rtol=0, atol=1e-7)
        torch.testing.assert_close(parts["diversity"].item(), float(VECTORS[f"{name}/ce"].sum()), rtol=0, atol=1e-6)
        torch.testing.assert_close(parts["consistency"].item(), float(VECTORS[f"{name}/kl"].sum()), rtol=0, atol=1e-6)
        assert torch.equal(parts["confident_KB"], torch.from_numpy(VECTORS[f"{name}/mask"]))


@pytest.mark.parametrize("name", CASES)
def test_golden_float32(name: str) -> None:
    logits_VBKC, labels_B, classes = golden_case(name, torch.float32)
    for e, epoch in enumerate(VECTORS[f"{name}/epochs"]):
        parts = call(MDCS(classes), logits_VBKC, labels_B, float(epoch))
        torch.testing.assert_close(parts["loss"].item(), float(VECTORS[f"{name}/loss_float32"][e]), rtol=1e-5, atol=0)
        (grad_VBKC,) = torch.autograd.grad(parts["loss"], logits_VBKC)
        grad_KNC = grad_VBKC.permute(2, 0, 1, 3).flatten(1, 2).double()
        torch.testing.assert_close(grad_KNC, torch.from_numpy(VECTORS[f"{name}/grad"][e]), rtol=1e-4, atol=1e-6)


def test_golden_cross_entropy() -> None:
    peers = golden("peers.npz")
    logits = torch.from_numpy(peers["logits"])[None, :, None].requires_grad_()
    loss = call(PriorAdjusted(classes_of(peers["counts"]), 1, lambdas=0.0), logits, torch.from_numpy(peers["target"]))["loss"]
    loss.backward()
    torch.testing.assert_close(loss.item(), float(peers["ce/loss"]), rtol=1e-12, atol=0)
    torch.testing.assert_close(logits.grad[0, :, 0], torch.from_numpy(peers["ce/grad"]), rtol=1e-10, atol=1e-14)


# ---------------------------------------------------------------------------------------------------------------- invariances


def test_expert_order_does_not_matter() -> None:
    logits, labels = example()
    lambdas = [-0.5, 1.0, 2.5]
    one = call(MDCS(classes_of(COUNTS), lambdas=lambdas), logits, labels)["loss"]
    other = call(MDCS(classes_of(COUNTS), lambdas=lambdas[::-1]), logits.flip(2), labels)["loss"]
    torch.testing.assert_close(one, other)


def test_a_constant_added_to_the_logits_does_not_matter() -> None:
    logits, labels = example()
    shift = torch.linspace(-3, 3, 2 * 16 * 3, dtype=torch.float64).view(2, 16, 3, 1)
    torch.testing.assert_close(
        call(MDCS(classes_of(COUNTS)), logits, labels)["loss"], call(MDCS(classes_of(COUNTS)), logits + shift, labels)["loss"]
    )


def test_relabelling_the_classes_does_not_matter() -> None:
    logits, labels = example()
    order = torch.tensor([3, 0, 4, 1, 2])  # new class c is old class order[c]
    one = call(MDCS(classes_of(COUNTS)), logits, labels)["loss"]
    other = call(MDCS(classes_of(COUNTS[order])), logits[..., order], order.argsort()[labels])["loss"]
    torch.testing.assert_close(one, other)


def test_doubling_all_counts_does_not_matter() -> None:
    logits, labels = example()
    torch.testing.assert_close(
        call(MDCS(classes_of(COUNTS)), logits, labels)["loss"], call(MDCS(classes_of(2 * COUNTS)), logits, labels)["loss"]
    )


def test_one_expert_without_prior_and_consistency_is_cross_entropy_over_both_views() -> None:
    logits, labels = example(num_experts=1)
    loss = call(MDCS(classes_of(COUNTS), 1, lambdas=[0.0], alpha=0.0), logits, labels)["loss"]
    torch.testing.assert_close(loss, F.cross_entropy(logits[:, :, 0].flatten(0, 1), labels.repeat(2)))


def test_balanced_softmax_weighs_each_class_by_its_count() -> None:
    logits, labels = example()
    loss = call(PriorAdjusted(classes_of(COUNTS), lambdas=1.0), logits, labels)["loss"]
    weighted = COUNTS * logits.exp()
    probs = weighted / weighted.sum(-1, keepdim=True)
    picked = probs.gather(-1, labels[None, :, None, None].expand(2, -1, 3, 1))
    torch.testing.assert_close(loss, -picked.log().mean((0, 1)).sum())


def test_mean_over_experts_is_the_sum_divided_by_their_number() -> None:
    logits, labels = example()
    summed = call(PriorAdjusted(classes_of(COUNTS)), logits, labels)["loss"]
    torch.testing.assert_close(call(PriorAdjusted(classes_of(COUNTS), reduction="mean"), logits, labels)["loss"], summed / 3)


def test_unmasked_batch_is_the_mean_of_its_halves() -> None:
    logits, labels = example()
    loss = MDCS(classes_of(COUNTS), confident_only=False)
    halves = [call(loss, logits[:, half], labels[half])["loss"] for half in (slice(0, 8), slice(8, 16))]
    torch.testing.assert_close(call(loss, logits, labels)["loss"], (halves[0] + halves[1]) / 2)


# ---------------------------------------------------------------------------------------------------------------- gradient


def test_only_strong_views_of_confident_pictures_receive_consistency_gradient() -> None:
    logits, labels = example()
    logits.requires_grad_()
    confident_KB = call(MDCS(classes_of(COUNTS)), logits, labels)["confident_KB"]
    assert 0 < confident_KB.sum() < confident_KB.numel()
    losses = [call(MDCS(classes_of(COUNTS), alpha=alpha, warmup_epochs=0), logits, labels)["loss"] for alpha in (1.0, 0.0)]
    (grad_VBKC,) = torch.autograd.grad(losses[0] - losses[1], logits)
    assert grad_VBKC[0].abs().max() < 1e-15
    assert (grad_VBKC[1].abs().sum(-1) > 1e-12).T.equal(confident_KB)


def test_temperature_softens_both_views() -> None:
    logits, labels = example()
    loss = MDCS(classes_of(COUNTS), temperature=3.0, confident_only=False)
    adjusted = loss.adjusted(logits) / 3
    expected = 9 * F.kl_div(adjusted[1].log_softmax(-1), adjusted[0].softmax(-1), reduction="none").sum(-1).mean(0).sum()
    torch.testing.assert_close(call(loss, logits, labels)["consistency"], expected)


# ---------------------------------------------------------------------------------------------------------------- ablations


def divergence(p: Tensor, q: Tensor, mask_BK: Tensor) -> Tensor:
    """Σ_k of the mean over S_k of KL(softmax p ‖ softmax q)."""
    rows_BK = F.kl_div(q.log_softmax(-1), p.softmax(-1), reduction="none").sum(-1)
    return (rows_BK * mask_BK).sum(0).div(mask_BK.sum(0)).sum()


def test_directions_of_the_divergence() -> None:
    logits, labels = example()
    weak, strong = MDCS(classes_of(COUNTS)).adjusted(logits)
    mask = weak.argmax(-1) == labels[:, None]
    forward, reverse = divergence(weak, strong, mask), divergence(strong, weak, mask)
    assert forward != reverse
    for direction, expected in (("forward", forward), ("reverse", reverse), ("symmetric", (forward + reverse) / 2)):
        torch.testing.assert_close(call(MDCS(classes_of(COUNTS), direction=direction), logits, labels)["consistency"], expected)


def test_the_mask_on_raw_logits() -> None:
    logits, labels = example()
    raw, adjusted = (call(MDCS(classes_of(COUNTS), mask_on=mask_on), logits, labels)["confident_KB"] for mask_on in ("raw", "adjusted"))
    assert torch.equal(raw, (logits[0].argmax(-1) == labels[:, None]).T) and not torch.equal(raw, adjusted)
    parts = call(
        MDCS(classes_of([3, 0, 2, 5, 4]), mask_on="raw", mask_empty=True),
        logits.clone().fill_(0).index_fill(-1, torch.tensor([1]), 9),
        labels,
    )
    assert torch.equal(parts["confident_KB"], (labels != 1).expand(3, -1))  # an empty class is never right; the others tie


@pytest.mark.parametrize("closed_form", [True, False])
def test_a_tie_counts_as_right(closed_form: bool) -> None:
    logits, labels = example()
    loss = MDCS(classes_of([7] * len(COUNTS)))
    loss.closed_form = closed_form
    assert (call(loss, torch.zeros_like(logits), labels)["confident"] == 1).all()
    below = -torch.nn.functional.one_hot(labels, len(COUNTS))[:, None].to(logits) * torch.ones_like(logits)
    assert (call(loss, below, labels)["confident"] == 0).all()


def test_teachers() -> None:
    logits, labels = example()
    loss = MDCS(classes_of(COUNTS), teacher="ensemble")
    weak = loss.adjusted(logits[0].mean(1, keepdim=True).expand(-1, 3, -1))
    mask = weak.argmax(-1) == labels[:, None]
    parts = call(loss, logits, labels)
    assert torch.equal(parts["confident_KB"], mask.T)
    torch.testing.assert_close(parts["consistency"], divergence(weak, loss.adjusted(logits[1]), mask))
    one = logits[:, :, :1]
    alone = [call(MDCS(classes_of(COUNTS), 1, teacher=teacher), one, labels)["loss"] for teacher in ("self", "ensemble")]
    torch.testing.assert_close(*alone)

    targets = F.one_hot(labels, 5).float()
    ema = MDCS(classes_of(COUNTS), teacher="ema")
    given = [ema(Output(logits, logits), Views(logits, targets, labels), 10, teacher) for teacher in (logits[0], logits[1].flip(0))]
    torch.testing.assert_close(given[0]["loss"], call(MDCS(classes_of(COUNTS)), logits, labels)["loss"])
    other = ema.adjusted(logits[1].flip(0))
    assert torch.equal(given[1]["confident_KB"], (other.argmax(-1) == labels[:, None]).T)


@pytest.mark.parametrize(
    "arguments", [{"direction": "symmetric"}, {"direction": "reverse"}, {"teacher": "ensemble"}, {"mask_on": "raw"}], ids=str
)
def test_the_teacher_never_learns(arguments: dict) -> None:
    logits, labels = example()
    logits.requires_grad_()
    losses = [call(MDCS(classes_of(COUNTS), alpha=alpha, **arguments), logits, labels)["loss"] for alpha in (1.0, 0.0)]
    (grad_VBKC,) = torch.autograd.grad(losses[0] - losses[1], logits)
    assert grad_VBKC[0].abs().max() < 1e-15 and grad_VBKC[1].abs().max() > 1e-3


# ---------------------------------------------------------------------------------------------------------------- edges


@pytest.mark.parametrize("num_experts", [1, 2, 3, 5])
def test_any_number_of_experts(num_experts: int) -> None:
    logits, labels = example(num_experts)
    logits.requires_grad_()
    loss = MDCS(classes_of(COUNTS), num_experts)
    assert sum(loss.lambdas_K) / num_experts == pytest.approx(1.0)
    parts = call(loss, logits, labels)
    parts["loss"].backward()
    assert parts["confident"].shape == (num_experts,)
    assert all(logits.grad[:, :, k].abs().sum() > 0 for k in range(num_experts))


def test_one_picture_and_one_picture_per_class() -> None:
    logits, labels = example(batch=1)
    assert call(MDCS(classes_of([1] * 5)), logits, labels)["loss"].isfinite()


def test_bfloat16_logits_are_widened() -> None:
    logits, labels = example()
    exact = call(MDCS(classes_of(COUNTS)), logits.bfloat16().double(), labels)["loss"]
    with torch.autocast("cpu", torch.bfloat16):
        half = call(MDCS(classes_of(COUNTS)), logits.bfloat16(), labels)["loss"]
    assert half.dtype == torch.float32
    torch.testing.assert_close(half.double(), exact, rtol=1e-5, atol=0)


def test_the_bias_that_is_kept_follows_dtype_and_a_validation_does_not_spoil_it_for_training() -> None:
    logits, labels = example()
    loss = MDCS(classes_of(COUNTS))
    with torch.inference_mode():
        call(loss, logits, labels)
    assert not loss.bias(torch.float64).is_inference()
    leaf = logits.clone().requires_grad_()
    call(loss, leaf, labels)["loss"].backward()
    assert loss.bias(torch.float32).dtype == torch.float32
    assert torch.equal(loss.bias(torch.float64), MDCS(classes_of(COUNTS)).bias(torch.float64))


def test_an_empty_class_is_named_or_masked() -> None:
    counts = torch.tensor([50, 0, 7])
    with pytest.raises(UserError, match=r"class '1' has no training picture.*mask_empty"):
        MDCS(classes_of(counts))
    loss = MDCS(classes_of(counts), mask_empty=True)
    logits = torch.randn(2, 4, 3, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    parts = call(loss, logits, torch.tensor([0, 2, 0, 2]))
    parts["loss"].backward()
    assert parts["loss"].isfinite()
    assert logits.grad[..., 1].abs().max() == 0
    without = MDCS(classes_of(counts[[0, 2]]))
    torch.testing.assert_close(parts["loss"], call(without, logits[..., [0, 2]], torch.tensor([0, 1, 0, 1]))["loss"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"lambdas": [0.0, 1.0]}, r"2 values for model.num_experts=3"),
        ({"temperature": 0.0}, r"temperature=0.0 must be > 0"),
        ({"alpha": -1.0}, r"alpha=-1.0 .*must be >= 0"),
        ({"views": ["weak"]}, r"distils one view into another"),
    ],
)
def test_wrong_arguments_are_refused_when_built(arguments: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        MDCS(classes_of(COUNTS), **arguments)


def test_the_distillation_weight_ramps_over_the_epochs() -> None:
    loss = MDCS(classes_of(COUNTS))
    for schedule in golden("lr_schedules.json").values():
        if isinstance(schedule, dict):
            ours = [loss.distill_weight(epoch) for epoch in range(1, schedule["epochs"] + 1)]
            assert all(math.isclose(a, b, rel_tol=1e-12) for a, b in zip(ours, schedule["distill_weight"], strict=True))
