"""SADE's three skills against their formula."""

import torch
from torch.nn import functional as F

from loss_cases import COUNTS, call, classes_of, example
from mdcs.losses.prior import PriorAdjusted
from mdcs.losses.sade import SADE


def test_three_experts_are_the_published_skills() -> None:
    logits, labels = example()
    prior = COUNTS.double() / COUNTS.sum()
    expected = sum(
        F.cross_entropy((logits[:, :, k] + bias).flatten(0, 1), labels.repeat(2))
        for k, bias in enumerate((0, prior.log(), prior.log() - 2 * prior.flip(0).log()))
    )
    torch.testing.assert_close(call(SADE(classes_of(COUNTS)), logits, labels)["loss"], expected)


def test_the_reversed_counts_follow_the_rank_and_not_the_position() -> None:
    assert SADE(classes_of([9, 500, 2, 120, 40])).reversed_C.tolist() == [120, 2, 500, 9, 40]
    assert SADE(classes_of([7, 0, 3, 5]), mask_empty=True).reversed_C.tolist() == [3, 0, 7, 5]
    assert SADE(classes_of([4, 4, 9, 4])).reversed_C.tolist() == [9, 4, 4, 4]  # ties in the order of the classes


def test_other_numbers_of_experts() -> None:
    dtype, log_n = torch.float64, COUNTS.double().log()
    torch.testing.assert_close(SADE(classes_of(COUNTS), 1).bias(dtype), log_n[None])
    three, two, five = (SADE(classes_of(COUNTS), k, tau=1.5).bias(dtype) for k in (3, 2, 5))
    torch.testing.assert_close(two, three[[0, 2]])
    torch.testing.assert_close(five[::2], three)
    torch.testing.assert_close(five[3], (three[1] + three[2]) / 2)


def test_without_tau_the_last_expert_is_balanced_softmax() -> None:
    logits, labels = example()
    balanced = call(PriorAdjusted(classes_of(COUNTS), lambdas=[0.0, 1.0, 1.0]), logits, labels)["loss"]
    torch.testing.assert_close(call(SADE(classes_of(COUNTS), tau=0.0), logits, labels)["loss"], balanced)
