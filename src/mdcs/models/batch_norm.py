"""Batch normalisation on a CPU for numbers of channels that its vectors do not divide: several pixels at a time."""

import math
from typing import Any

import torch
from torch import Tensor, nn

LANES = 16 if torch.backends.cpu.get_cpu_capability() == "AVX512" else 8  # float32 values in a vector of the CPU
WORTHWHILE = 2**17  # so many values that would be added one by one take as long as the small operations that avoid it


class BatchNorm(nn.BatchNorm2d):
    """nn.BatchNorm2d, whose training pass takes half the time on a CPU with AVX-512 for 24 channels that come last in memory.

    There torch adds up pixel by pixel, a vector of channels at a time and those that are left one by one: 24 channels, a vector and a half,
    take five times as long a value as 32. Here it is shown P neighbouring pixels of a row as one of P·C channels, which is the same memory.
    From their means m_p and variances v_p, p = 1..P, those of the channels are

        m = 1/P Σ_p m_p,   v = 1/P Σ_p (v_p + (m_p − m)²)

    and likewise the sums of the gradient. Elsewhere, and where little would be gained, all is as in nn.BatchNorm2d.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels)

    def forward(self, x: Tensor) -> Tensor:
        pixels = self.pixels_at_a_time(x)
        if pixels == 1:
            return super().forward(x)
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        statistics = (self.running_mean, self.running_var, self.momentum, self.eps)
        normalised: Tensor = NormalisedByPixels.apply(x, self.weight, self.bias, *statistics, pixels)
        return normalised

    def pixels_at_a_time(self, x: Tensor) -> int:
        """P, the fewest that fill vectors, of half precision too; 1 = as usual."""
        channels = x.shape[1]
        usual = not self.training or x.device.type != "cpu" or self.weight.dtype not in (torch.float32, torch.float64)
        if usual or torch.compiler.is_compiling() or not x.is_contiguous(memory_format=torch.channels_last):
            return 1
        pixels = 2 * LANES // math.gcd(2 * LANES, channels)
        one_by_one = channels % LANES * (x.numel() // channels) if channels < 2 * LANES else 0
        return pixels if one_by_one >= WORTHWHILE and x.shape[3] % pixels == 0 else 1


def beside(x_NCHW: Tensor, pixels: int) -> Tensor:
    """(N, P·C, H, W/P) the same memory, with P neighbours' channels one after the other."""
    rows, channels, height, width = x_NCHW.shape
    return x_NCHW.permute(0, 2, 3, 1).view(rows, height, width // pixels, pixels * channels).permute(0, 3, 1, 2)


def of_each(value_C: Tensor, pixels: int) -> Tensor:
    """(P·C,) the same for each of the neighbours: `repeat`, in a fifth of its time."""
    return value_C.expand(pixels, -1).contiguous().view(-1)


class NormalisedByPixels(torch.autograd.Function):
    """y = w (x − m)/σ + b with the batch's m and σ² = v + ε, which also move the running statistics; see `BatchNorm`.

        dL/dx = w/σ · (g − 1/n Σ g − x̂/n Σ g x̂),   x̂ = (x − m)/σ,   sums over the n pixels of a channel

    of whose three terms torch's kernel gives the first, and both sums, when it is told that m and σ are constants. The others are an affine
    function of x: a normalisation with the weight −w/(σn) Σ g x̂ and the bias −w/(σn) Σ g.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight_C: Tensor, bias_C: Tensor, mean_C: Tensor, var_C: Tensor, momentum: float, eps: float, pixels: int
    ) -> Tensor:
        wide, number = beside(x, pixels), x.numel() // len(weight_C)
        # It wants running statistics to move, and takes their precision.
        found = torch.batch_norm_update_stats(wide, of_each(mean_C, pixels), of_each(var_C, pixels), 0.0)
        means_PC, vars_PC = (found_PC.view(pixels, -1) for found_PC in found)
        batch_mean_C = means_PC.mean(0)
        batch_var_C = (means_PC - batch_mean_C).square_().add_(vars_PC).mean(0)
        mean_C.lerp_(batch_mean_C, momentum)
        var_C.lerp_(batch_var_C * (number / (number - 1)), momentum)
        y, none = torch.empty_like(x), weight_C.new_empty(0)
        constants = (of_each(constant_C, pixels) for constant_C in (weight_C, bias_C, batch_mean_C, batch_var_C))
        torch.ops.aten.native_batch_norm.out(wide, *constants, False, 0.0, eps, out=beside(y, pixels), save_mean=none, save_invstd=none)
        ctx.save_for_backward(x, weight_C, batch_mean_C, batch_var_C)
        ctx.eps, ctx.pixels = eps, pixels
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight_C, mean_C, var_C = ctx.saved_tensors
        pixels, eps, wanted, others = ctx.pixels, ctx.eps, [True] * 3, [None] * 5
        one_over_std_C = (var_C + eps).rsqrt()
        backward = torch.ops.aten.native_batch_norm_backward
        if torch.is_grad_enabled():  # a second derivative is asked for, which torch's own has
            return *backward(grad, x, weight_C, None, None, mean_C, one_over_std_C, True, eps, wanted), *others
        wide, mean_PC, var_PC = beside(x, pixels), of_each(mean_C, pixels), of_each(var_C, pixels)
        wide_grad = beside(grad.contiguous(memory_format=torch.channels_last), pixels)
        wide_grad, *sums = backward(wide_grad, wide, of_each(weight_C, pixels), mean_PC, var_PC, None, None, False, eps, wanted)
        grad_weight_C, grad_bias_C = (sum_PC.view(pixels, -1).sum(0) for sum_PC in sums)
        shrink_C = weight_C * one_over_std_C * (-len(weight_C) / x.numel())
        affine = (of_each(shrink_C * sum_C, pixels) for sum_C in (grad_weight_C, grad_bias_C))
        wide_grad += torch.ops.aten.native_batch_norm(wide, *affine, mean_PC, var_PC, False, 0.0, eps)[0]
        return wide_grad.as_strided_(x.shape, x.stride()), grad_weight_C, grad_bias_C, *others
