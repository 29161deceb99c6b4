"""Several experts, one answer."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mdcs.randomness import generator


def combine(logits_BKC: Tensor, weights_K: Tensor | None = None) -> Tensor:
    """(B, C) mean of the experts' raw logits, or Σ_k w_k z_k / Σ_k w_k.

    Published MDCS predicts with the plain mean, without a softmax before it.
    """
    if weights_K is None:
        return logits_BKC.mean(-2)
    return (logits_BKC * (weights_K / weights_K.sum())[:, None]).sum(-2)


def agreement_weights(
    views_N2KC: NDArray[Any], weights_N: Tensor | None = None, epochs: int = 5, lr: float = 0.1, batch_size: int = 128, seed: int = 0
) -> Tensor:
    """(K,) weights, of sum 1, under which the ensemble answers alike to two augmented views of unlabelled test pictures (SADE).

        w = softmax(v),  maximise mean_i cos( softmax(Σ_k w_k z_ik¹), softmax(Σ_k w_k z_ik²) )

    (arXiv:2107.09249). As in its published code for CIFAR: v starts equal, SGD with learning rate 0.1, Nesterov momentum 0.9 and weight
    decay 5e-4, 5 epochs in batches of 128, and it stops after an epoch that leaves an expert below 0.05. (That code takes two views of
    *training* pictures drawn with the test distribution; here they are of the test pictures, as the method is described.)
    `weights` (N,) say how much each picture counts: a test set with other class frequencies.
    """
    num_pictures, _, num_experts, _ = views_N2KC.shape
    weights_N = torch.ones(num_pictures) if weights_N is None else weights_N / weights_N.mean()
    free_K = torch.zeros(num_experts, requires_grad=True)
    optimiser = torch.optim.SGD([free_K], lr=lr, momentum=0.9, weight_decay=5e-4, nesterov=True)
    for epoch in range(epochs):
        order = torch.randperm(num_pictures, generator=generator(seed, "agreement", epoch))
        for batch in order.split(batch_size):
            logits_B2KC = torch.from_numpy(np.asarray(views_N2KC[np.sort(batch.numpy())], dtype=np.float32))
            probs_B2C = combine(logits_B2KC, free_K.softmax(0)).softmax(-1)
            alike_B = torch.nn.functional.cosine_similarity(probs_B2C[:, 0], probs_B2C[:, 1], dim=-1, eps=1e-6)
            loss = -(alike_B * weights_N[batch.sort().values]).mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        if free_K.detach().softmax(0).min() < 0.05:
            break
    return free_K.detach().softmax(0)
