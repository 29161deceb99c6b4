"""LDAM and deferred re-weighting against two published codes."""

import pytest
import torch

from conftest import golden
from loss_cases import COUNTS, assert_golden, call, classes_of, example, soft
from mdcs.errors import UserError
from mdcs.losses.ldam import LDAM
from mdcs.losses.prior import PriorAdjusted
from mdcs.losses.reweighted import Reweighted

PEERS = golden("peers.npz")
TEACHER = golden("teacher_losses.npz")
CLASSES = classes_of(PEERS["counts"])


@pytest.mark.parametrize(
    ("name", "reweight_epoch", "epoch"), [("ldam", None, 1000), ("ldam_drw_before", 160, 160), ("ldam_drw_after", 160, 161)]
)
def test_golden(name: str, reweight_epoch: int | None, epoch: int) -> None:
    assert_golden(LDAM(CLASSES, 1, reweight_epoch=reweight_epoch), PEERS["logits"], PEERS["target"], epoch, PEERS, name)


def test_golden_margins() -> None:
    for vectors, name in ((PEERS, "ldam_margins"), (TEACHER, "ldam.margins")):
        published = torch.from_numpy(vectors[name])
        for dtype in (torch.float32, torch.float64):
            torch.testing.assert_close(LDAM(CLASSES).margins(dtype).float(), published, rtol=1e-6, atol=0)


@pytest.mark.parametrize(("name", "reweight_epoch"), [("ldam_plain", None), ("ldam_drw", 0)])
def test_golden_of_the_sam_authors(name: str, reweight_epoch: int | None) -> None:
    """Their network gives cosines, which their loss scales; ours are scaled by the heads."""
    cosine_BC = torch.from_numpy(TEACHER["ldam.cosine_logits"]).requires_grad_()
    loss = call(LDAM(CLASSES, 1, reweight_epoch=reweight_epoch), 30 * cosine_BC[None, :, None], torch.from_numpy(TEACHER["ldam.y"]))["loss"]
    loss.backward()
    torch.testing.assert_close(loss.item(), float(TEACHER[f"{name}.loss"]), rtol=1e-5, atol=0)
    torch.testing.assert_close(cosine_BC.grad, torch.from_numpy(TEACHER[f"{name}.grad"]), rtol=1e-5, atol=1e-5)


def test_without_a_margin_it_is_cross_entropy_and_later_class_balanced() -> None:
    logits, labels = example()
    loss = LDAM(classes_of(COUNTS), max_margin=0.0, reweight_epoch=5)
    for targets in (labels, soft(labels)):
        plain = call(PriorAdjusted(classes_of(COUNTS), lambdas=0.0), logits, targets)["loss"]
        torch.testing.assert_close(call(loss, logits, targets, 5)["loss"], plain)
        balanced = call(Reweighted(classes_of(COUNTS), beta=0.9999), logits, targets)["loss"]
        torch.testing.assert_close(call(loss, logits, targets, 6)["loss"], balanced)


def test_experts_and_views_are_summed_and_averaged() -> None:
    logits, labels = example()
    each = [call(LDAM(classes_of(COUNTS), 1), logits[v : v + 1, :, k : k + 1], labels)["loss"] for v in range(2) for k in range(3)]
    torch.testing.assert_close(call(LDAM(classes_of(COUNTS)), logits, labels)["loss"], sum(each) / 2)


def test_a_mixed_target_has_a_share_of_each_margin() -> None:
    logits, labels = example()
    targets = soft(labels)
    narrowed = logits - 30 * (0.5 * (2 / COUNTS.double()) ** 0.25 * targets)[:, None]
    expected = -(targets[:, None] * narrowed.log_softmax(-1)).sum(-1).mean((0, 1)).sum()
    torch.testing.assert_close(call(LDAM(classes_of(COUNTS)), logits, targets)["loss"], expected)


@pytest.mark.parametrize(
    "arguments", [{"max_margin": -0.1}, {"scale": 0.0}, {"beta": 1.0}, {"reweight_epoch": -1}], ids=lambda given: next(iter(given))
)
def test_wrong_arguments_are_refused(arguments: dict[str, float]) -> None:
    with pytest.raises(UserError, match=f"loss.{next(iter(arguments))}={next(iter(arguments.values()))}"):
        LDAM(classes_of(COUNTS), **arguments)
    with pytest.raises(UserError, match="names no view"):
        LDAM(classes_of(COUNTS), views=[])
