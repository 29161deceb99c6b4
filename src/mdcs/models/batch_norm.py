"""Batch normalisation on several threads of a CPU, whatever the number of channels.

Letters: N pictures, C channels, H×W pixels; here P neighbouring pixels of a row that are taken together, and n = N·H·W pixels in all.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

LINE = 16  # float32 values in a cache line
FEWEST = 2**14  # pixels whose sums take as long as the small operations that taking them together costs
WIDEST = 128  # channels from which on the backward pass would rather add more than it saves


class BatchNorm(nn.BatchNorm2d):
    """nn.BatchNorm2d, in half the time for the 24 channels of a CIFAR network in training, on a CPU with several threads.

    Where channels come last in memory, torch gives each thread a row of C float32 sums, to which it adds pixel by pixel. Rows that end
    within a cache line share that line with the next, and their threads wait for each other. Here torch is shown P neighbouring pixels as
    one of P·C channels, the fewest that fill lines, which is the same memory. From their means m_p and variances v_p, p = 1..P, those of
    the channels are

        m = 1/P Σ_p m_p,   v = 1/P Σ_p (v_p + (m_p − m)²)

    and likewise the sums of the gradient. Elsewhere, and where little would be gained, all is as in nn.BatchNorm2d.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels)

    def forward(self, x: Tensor) -> Tensor:
        together = self.pixels_together(x)
        if together == 1:
            return super().forward(x)
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        statistics = (self.running_mean, self.running_var, self.momentum, self.eps)
        y: Tensor = PixelsTogether.apply(x, self.weight, self.bias, *statistics, together)
        return y

    def pixels_together(self, x: Tensor) -> int:
        """P for pictures (N, C, H, W); 1 = as in nn.BatchNorm2d."""
        if torch.compiler.is_compiling():  # first, because the number of threads would break the compiled graph
            return 1
        channels = x.shape[1]
        together = LINE // math.gcd(LINE, channels)
        if together == 1 or not self.training or x.device.type != "cpu" or torch.get_num_threads() == 1:
            return 1
        moves = self.momentum is not None and self.track_running_stats and self.weight.dtype in (torch.float32, torch.float64)
        fits = x.shape[3] % together == 0 and x.is_contiguous(memory_format=torch.channels_last)
        return together if moves and fits and channels < WIDEST and x.numel() >= FEWEST * channels else 1


def side_by_side(x_NCHW: Tensor, together: int) -> Tensor:
    """(N, P·C, H, W/P) the same memory, with P neighbours' channels one after the other."""
    rows, channels, height, width = x_NCHW.shape
    return x_NCHW.permute(0, 2, 3, 1).view(rows, height, width // together, together * channels).permute(0, 3, 1, 2)


def of_each(value_C: Tensor, together: int) -> Tensor:
    """(P·C,) the same for each of the neighbours; `repeat`, but faster."""
    return value_C.expand(together, -1).contiguous().view(-1)


class PixelsTogether(torch.autograd.Function):
    """y = w (x − m)/σ + b with the batch's m and σ² = v + ε, which also move the running statistics; see `BatchNorm`.

        dL/dx = w/σ · (g − 1/n Σ g − x̂/n Σ g x̂),   x̂ = (x − m)/σ,   sums over the n pixels of a channel

    of whose three terms torch gives the first, and both sums, when it is told that m and σ are constants. The others are an affine function
    of x: a normalisation with the weight −w/(σn) Σ g x̂ and the bias −w/(σn) Σ g. In half precision each of the two is rounded before they
    are added, so dL/dx is less exact than torch's where the mean of g over a channel is several times its standard deviation.

    x (N, C, H, W), channels last, and of it y and dL/dx; the others (C,) in float32 or float64.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x_NCHW: Tensor,
        weight_C: Tensor,
        bias_C: Tensor,
        running_mean_C: Tensor,
        running_var_C: Tensor,
        momentum: float,
        eps: float,
        together: int,
    ) -> Tensor:
        number, wide_NPHW = x_NCHW.numel() // len(weight_C), side_by_side(x_NCHW, together)
        # It wants running statistics to move, and takes their precision.
        moved_P = (of_each(running_mean_C, together), of_each(running_var_C, together))
        found_P = torch.ops.aten.batch_norm_update_stats(wide_NPHW, *moved_P, 0.0)
        means_PC, vars_PC = (statistic_P.view(together, -1) for statistic_P in found_P)
        mean_C = means_PC.mean(0)
        var_C = (means_PC - mean_C).square_().add_(vars_PC).mean(0)
        running_mean_C.lerp_(mean_C, momentum)
        running_var_C.lerp_(var_C * (number / (number - 1)), momentum)
        y_NCHW, none = torch.empty_like(x_NCHW), weight_C.new_empty(0)
        how = (*(of_each(value_C, together) for value_C in (weight_C, bias_C, mean_C, var_C)), False, 0.0, eps)
        out = {"out": side_by_side(y_NCHW, together), "save_mean": none, "save_invstd": none}
        torch.ops.aten.native_batch_norm.out(wide_NPHW, *how, **out)
        ctx.save_for_backward(x_NCHW, weight_C, mean_C, var_C)
        ctx.eps, ctx.together = eps, together
        return y_NCHW

    @staticmethod
    def backward(ctx: Any, grad_NCHW: Tensor) -> tuple[Tensor | None, ...]:
        x_NCHW, weight_C, mean_C, var_C = ctx.saved_tensors
        together, eps, wanted, others = ctx.together, ctx.eps, [True] * 3, [None] * 5
        one_over_std_C = (var_C + eps).rsqrt()
        backward = torch.ops.aten.native_batch_norm_backward
        if torch.is_grad_enabled():  # a second derivative is asked for, which torch's own has
            return *backward(grad_NCHW, x_NCHW, weight_C, None, None, mean_C, one_over_std_C, True, eps, wanted), *others
        wide_NPHW, mean_P, var_P = side_by_side(x_NCHW, together), of_each(mean_C, together), of_each(var_C, together)
        grad_NPHW = side_by_side(grad_NCHW.contiguous(memory_format=torch.channels_last), together)
        constants = (of_each(weight_C, together), mean_P, var_P, None, None, False, eps, wanted)
        grad_NPHW, *sums = backward(grad_NPHW, wide_NPHW, *constants)
        grad_weight_C, grad_bias_C = (sum_P.view(together, -1).sum(0) for sum_P in sums)
        shrink_C = weight_C * one_over_std_C * (-len(weight_C) / x_NCHW.numel())
        affine = (of_each(shrink_C * sum_C, together) for sum_C in (grad_weight_C, grad_bias_C))
        grad_NPHW += torch.ops.aten.native_batch_norm(wide_NPHW, *affine, mean_P, var_P, False, 0.0, eps)[0]
        return grad_NPHW.as_strided_(x_NCHW.shape, x_NCHW.stride()), grad_weight_C, grad_bias_C, *others
