"""BalPoE as the mean of prior-adjusted cross-entropies."""

import pytest
import torch
from torch.nn import functional as F

from loss_cases import COUNTS, call, classes_of, example, soft
from mdcs.losses.balpoe import BalPoE
from mdcs.losses.mdcs import MDCS


def test_three_experts_are_the_published_ones() -> None:
    logits, labels = example()
    log_prior = (COUNTS.double() / COUNTS.sum()).log()
    for targets in (labels, soft(labels)):
        rows = targets.repeat(2) if targets.ndim == 1 else targets.repeat(2, 1)
        each = [F.cross_entropy((logits[:, :, k] + k * log_prior).flatten(0, 1), rows) for k in range(3)]
        torch.testing.assert_close(call(BalPoE(classes_of(COUNTS)), logits, targets)["loss"], sum(each) / 3)


@pytest.mark.parametrize("num_experts", [1, 2, 3, 7])
def test_the_product_of_the_experts_is_balanced(num_experts: int) -> None:
    lambdas = BalPoE(classes_of(COUNTS), num_experts).lambdas_K
    assert sum(lambdas) / num_experts == pytest.approx(1.0)
    assert (lambdas[0], lambdas[-1]) == ((1.0, 1.0) if num_experts == 1 else (0.0, 2.0))


def test_summed_with_the_same_skills_it_is_the_diversity_loss_of_mdcs() -> None:
    logits, labels = example()
    lambdas = [-0.5, 1.0, 2.5]
    diversity = call(MDCS(classes_of(COUNTS), lambdas=lambdas), logits, labels)["diversity"]
    torch.testing.assert_close(3 * call(BalPoE(classes_of(COUNTS), lambdas=lambdas), logits, labels)["loss"], diversity)
