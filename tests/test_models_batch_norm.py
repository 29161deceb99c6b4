"""Batch normalisation of neighbouring pixels together against torch's."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mdcs.models import batch_norm
from mdcs.models.batch_norm import BatchNorm
from mdcs.models.resnet_cifar import ResNetCifar


@pytest.fixture(autouse=True)
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with several threads, and for small batches."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(batch_norm, "FEWEST", 1)


def picture_batch(channels: int = 24, side: int = 8, dtype: torch.dtype = torch.float64) -> Tensor:
    """Channels last, of different means."""
    random = torch.Generator().manual_seed(0)
    x = 3 * torch.randn(5, channels, side, side, dtype=torch.float64, generator=random) + torch.arange(channels)[:, None, None]
    return x.to(dtype).contiguous(memory_format=torch.channels_last).requires_grad_()


def pair(channels: int = 24, dtype: torch.dtype = torch.float64) -> tuple[nn.BatchNorm2d, BatchNorm]:
    """torch's and ours, with the same weights, running statistics and settings."""
    plain, ours = nn.BatchNorm2d(channels), BatchNorm(channels)
    with torch.no_grad():
        plain.weight.copy_(torch.linspace(-1, 2, channels))
        plain.bias.copy_(torch.linspace(3, -1, channels))
        assert plain.running_mean is not None
        plain.running_mean.fill_(0.7)
    ours.load_state_dict(plain.state_dict())
    for norm in (plain, ours):
        norm.eps, norm.momentum = 0.02, 0.3
    return plain.to(dtype), ours.to(dtype)


def together(norm: BatchNorm, x: Tensor) -> bool:
    return type(norm(x).grad_fn).__name__ == "PixelsTogetherBackward"


@pytest.mark.parametrize(
    ("channels", "side", "pixels"),
    [(24, 8, 2), (72, 4, 2), (40, 8, 2), (20, 16, 4), (8, 8, 2), (1, 32, 16), (48, 8, 1), (24, 5, 1), (136, 4, 1)],
)
def test_as_torch(channels: int, side: int, pixels: int) -> None:
    x, (plain, ours) = picture_batch(channels, side), pair(channels)
    assert ours.pixels_together(x) == pixels
    grad = torch.randn(x.shape, dtype=x.dtype) + 2  # channels first, as a gradient may be
    for _ in range(2):  # the running statistics move twice
        y, y_plain = F.relu(ours(x), inplace=True), F.relu(plain(x), inplace=True)
    assert y.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(y, y_plain, rtol=1e-11, atol=1e-11)
    found, expected = (torch.autograd.grad(out, (x, *norm.parameters()), grad) for out, norm in ((y, ours), (y_plain, plain)))
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(ours.state_dict(), plain.state_dict(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(ours.eval()(x), plain.eval()(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("mean", [0.0, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lower_precision_is_as_near_to_the_truth_as_torch(dtype: torch.dtype, mean: float) -> None:
    """Weights and statistics stay in float32, as autocast leaves them."""
    x, (plain, ours), (exact, _) = picture_batch(dtype=dtype), pair(dtype=torch.float32), pair()
    assert together(ours, x)
    grad = (torch.randn(x.shape, generator=torch.Generator().manual_seed(1)) + mean).to(dtype)
    truth_in = x.detach().double().requires_grad_()
    (truth,) = torch.autograd.grad(exact(truth_in), truth_in, grad.double())
    errors = []
    for norm in (plain, ours):
        (found,) = torch.autograd.grad(norm(x), x, grad)
        errors.append(((found.double() - truth).norm() / truth.norm()).item())
        assert found.dtype == dtype and norm.running_mean is not None and norm.running_mean.dtype == torch.float32
    assert errors[1] < (2e-5 if dtype == torch.float32 else 2e-2) and errors[1] < 2 * errors[0]


def test_second_derivative() -> None:
    x, (plain, ours) = picture_batch(), pair()
    penalties = []
    for norm in (plain, ours):
        (grad,) = torch.autograd.grad(norm(x).square().sum(), x, create_graph=True)
        penalties.append(torch.autograd.grad(grad.square().sum(), (x, *norm.parameters())))
    torch.testing.assert_close(*penalties, rtol=1e-9, atol=1e-9)


def test_elsewhere_all_is_torchs(monkeypatch: pytest.MonkeyPatch) -> None:
    x, (_, ours) = picture_batch(), pair()
    assert together(ours, x)
    assert not together(ours, x.detach().contiguous().requires_grad_())
    assert not together(BatchNorm(24).to(torch.bfloat16), x.detach().to(torch.bfloat16).requires_grad_())
    assert not together(BatchNorm(24).to("meta", torch.float64), x.detach().to("meta").requires_grad_())
    with monkeypatch.context() as patch:
        patch.setattr(torch.compiler, "is_compiling", lambda: True)
        assert not together(ours, x)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    assert not together(ours, x)


@pytest.mark.parametrize("setting", [{"momentum": None}, {"track_running_stats": False}], ids=str)
def test_statistics_that_move_otherwise_are_torchs(setting: dict) -> None:
    """The first is what torch.optim.swa_utils.update_bn sets."""
    x, (plain, ours) = picture_batch(), pair()
    for norm in (plain, ours):
        for name, value in setting.items():
            setattr(norm, name, value)
        norm(x)
    assert not together(ours, x)
    plain(x)
    torch.testing.assert_close(ours.state_dict(), plain.state_dict())


def test_small_batches_are_not_worth_it(monkeypatch: pytest.MonkeyPatch) -> None:
    x, (_, ours) = picture_batch(), pair()
    monkeypatch.setattr(batch_norm, "FEWEST", x.numel() // 24)
    assert together(ours, x)
    monkeypatch.setattr(batch_norm, "FEWEST", x.numel() // 24 + 1)
    assert not together(ours, x)


def test_cifar_networks_have_it_and_their_shortcuts_keep_channels_last(monkeypatch: pytest.MonkeyPatch) -> None:
    net = ResNetCifar(2, depth=8, width=(16, 24, 24)).to(memory_format=torch.channels_last)
    taken = []
    monkeypatch.setattr(batch_norm, "side_by_side", lambda x, pixels, plain=batch_norm.side_by_side: taken.append(1) or plain(x, pixels))
    features = net(torch.randn(2, 3, 16, 16).contiguous(memory_format=torch.channels_last))
    assert len(taken) == 2 * 8  # input and output of two norms in each of two stages of two experts
    assert features.shape == (2, 2, 24)
    block = net.layer2s[0][0]  # type: ignore[index]
    x = torch.randn(2, 16, 16, 16).contiguous(memory_format=torch.channels_last).requires_grad_()
    monkeypatch.setattr(block.conv1, "forward", lambda x, plain=block.conv1.forward: plain(x.detach()))  # leaves the shortcut's gradient
    (grad,) = torch.autograd.grad(block(x).sum(), x)
    assert grad.is_contiguous(memory_format=torch.channels_last) and not grad.is_contiguous()
