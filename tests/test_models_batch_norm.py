"""Batch normalisation of several pixels at a time against torch's."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mdcs.models import batch_norm
from mdcs.models.batch_norm import BatchNorm


@pytest.fixture(autouse=True)
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """On every CPU, as on one with AVX-512, and for small batches."""
    monkeypatch.setattr(batch_norm, "LANES", 16)
    monkeypatch.setattr(batch_norm, "WORTHWHILE", 1)


def picture_batch(channels: int = 24, side: int = 8, dtype: torch.dtype = torch.float64) -> Tensor:
    """Channels last, of different means."""
    random = torch.Generator().manual_seed(0)
    x = 3 * torch.randn(5, channels, side, side, dtype=torch.float64, generator=random) + torch.arange(channels)[:, None, None]
    return x.to(dtype).contiguous(memory_format=torch.channels_last).requires_grad_()


def pair(channels: int = 24, dtype: torch.dtype = torch.float64) -> tuple[nn.BatchNorm2d, BatchNorm]:
    """torch's and ours, with the same weights and running statistics."""
    plain, ours = nn.BatchNorm2d(channels), BatchNorm(channels)
    with torch.no_grad():
        plain.weight.copy_(torch.linspace(-1, 2, channels))
        plain.bias.copy_(torch.linspace(3, -1, channels))
        assert plain.running_mean is not None
        plain.running_mean.fill_(0.7)
    ours.load_state_dict(plain.state_dict())
    return plain.to(dtype), ours.to(dtype)


def by_pixels(norm: BatchNorm, x: Tensor) -> bool:
    return type(norm(x).grad_fn).__name__ == "NormalisedByPixelsBackward"


@pytest.mark.parametrize(
    ("channels", "side", "pixels"), [(24, 8, 4), (20, 16, 8), (8, 8, 4), (1, 32, 32), (40, 8, 1), (48, 8, 1), (24, 6, 1)]
)
def test_as_torch(channels: int, side: int, pixels: int) -> None:
    x, (plain, ours) = picture_batch(channels, side), pair(channels)
    assert ours.pixels_at_a_time(x) == pixels
    grad = torch.randn(x.shape, dtype=x.dtype)  # channels first, as a gradient may be
    for _ in range(2):  # the running statistics move twice
        y, y_plain = F.relu(ours(x), inplace=True), F.relu(plain(x), inplace=True)
    assert y.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(y, y_plain, rtol=1e-11, atol=1e-11)
    found, expected = (torch.autograd.grad(out, (x, *norm.parameters()), grad) for out, norm in ((y, ours), (y_plain, plain)))
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(ours.state_dict(), plain.state_dict(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(ours.eval()(x), plain.eval()(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-5), (torch.bfloat16, 2e-2)])
def test_lower_precision_is_as_near_to_the_truth_as_torch(dtype: torch.dtype, tolerance: float) -> None:
    """Weights and statistics stay in float32, as autocast leaves them."""
    x, (plain, ours), (exact, _) = picture_batch(dtype=dtype), pair(dtype=torch.float32), pair()
    assert by_pixels(ours, x)
    grad = torch.randn(x.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    truth_in = x.detach().double().requires_grad_()
    (truth,) = torch.autograd.grad(exact(truth_in), truth_in, grad.double())
    errors = []
    for norm in (plain, ours):
        (found,) = torch.autograd.grad(norm(x), x, grad)
        errors.append(((found.double() - truth).norm() / truth.norm()).item())
        assert found.dtype == dtype and norm.running_mean is not None and norm.running_mean.dtype == torch.float32
    assert errors[1] < tolerance and errors[1] < 3 * errors[0]


def test_second_derivative() -> None:
    x, (plain, ours) = picture_batch(), pair()
    penalties = []
    for norm in (plain, ours):
        (grad,) = torch.autograd.grad(norm(x).square().sum(), x, create_graph=True)
        penalties.append(torch.autograd.grad(grad.square().sum(), (x, *norm.parameters())))
    torch.testing.assert_close(*penalties, rtol=1e-9, atol=1e-9)


def test_elsewhere_all_is_torchs() -> None:
    x, (_, ours) = picture_batch(), pair()
    assert by_pixels(ours, x)
    assert not by_pixels(ours, x.detach().contiguous().requires_grad_())
    assert not by_pixels(ours.eval(), x)
    half = BatchNorm(24).to(torch.bfloat16)
    assert not by_pixels(half, x.detach().to(torch.bfloat16).requires_grad_())


def test_small_batches_are_not_worth_it(monkeypatch: pytest.MonkeyPatch) -> None:
    x, (_, ours) = picture_batch(), pair()
    monkeypatch.setattr(batch_norm, "WORTHWHILE", x.numel() // 24 * 8)
    assert by_pixels(ours, x)
    monkeypatch.setattr(batch_norm, "WORTHWHILE", x.numel() // 24 * 8 + 1)
    assert not by_pixels(ours, x)
