"""The closed form of the MDCS loss against automatic differentiation."""

import pytest
import torch
from torch import Tensor

from loss_cases import COUNTS, call, classes_of, example, soft
from mdcs.losses import fused
from mdcs.losses.mdcs import MDCS


def both(targets: Tensor, logits: Tensor, **arguments: object) -> list[tuple[dict[str, Tensor], Tensor]]:
    """Parts and gradient in closed form and by automatic differentiation."""
    found = []
    for closed_form in (True, False):
        loss = MDCS(classes_of(COUNTS), logits.shape[2], warmup_epochs=0, **arguments)  # type: ignore[arg-type]
        assert loss.closed_form
        loss.closed_form = closed_form
        leaf = logits.clone().requires_grad_()
        parts = call(loss, leaf, targets)
        found.append((parts, torch.autograd.grad(3 * parts["loss"], leaf)[0]))
    return found


@pytest.mark.parametrize("num_experts", [1, 3])
@pytest.mark.parametrize("kind", ["hard", "soft", "all pictures", "nobody right", "mixed, all pictures"])
@pytest.mark.parametrize("at_a_time", [1, 5, 16])
def test_it_is_what_automatic_differentiation_gives(num_experts: int, kind: str, at_a_time: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "CACHED", at_a_time * 2 * num_experts * 5)
    logits, labels = example(num_experts)
    if kind == "nobody right":
        logits[0] -= 90 * torch.nn.functional.one_hot(labels, 5)[:, None]
    targets = soft(labels) if kind in ("soft", "mixed, all pictures") else labels
    (ours, gradient), (other, expected) = both(targets, logits, confident_only="all" not in kind)
    torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=1e-12)
    assert (ours["confident"].sum() == 0) == (kind == "nobody right")
    for name in other:
        torch.testing.assert_close(ours[name], other[name], rtol=1e-12, atol=1e-12)


def test_float32_is_as_exact_as_automatic_differentiation() -> None:
    """Also for logits near 50 and a certain answer, where a difference of large numbers would show."""
    logits, labels = example()
    logits = logits.float() + 50
    exact, _ = both(labels, logits.double())[1]
    for parts, _ in both(labels, logits):
        for name in ("diversity", "consistency"):
            torch.testing.assert_close(parts[name].double(), exact[name], rtol=2e-6, atol=0)


def test_a_second_backward_pass_gives_the_same_and_a_second_derivative_is_refused() -> None:
    logits, labels = example()
    logits.requires_grad_()
    loss = call(MDCS(classes_of(COUNTS)), logits, labels)["loss"]
    one, two = (torch.autograd.grad(loss, logits, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(one, two)
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(loss, logits, create_graph=True)


@pytest.mark.parametrize(
    "arguments", [{"temperature": 2.0}, {"mask_on": "raw"}, {"direction": "reverse"}, {"teacher": "ema"}, {"teacher": "ensemble"}], ids=str
)
def test_ablations_are_left_to_automatic_differentiation(arguments: dict) -> None:
    assert not MDCS(classes_of(COUNTS), **arguments).closed_form
