"""A training step on a GPU that is not there: torch's fake tensors have a device and no values.

So an operation that mixes devices, or needs a value on the host, fails here as nowhere else without a GPU. What is computed is tested on
the CPU. What automatic differentiation, autocast and the optimiser do on a GPU is not seen.
"""

from collections.abc import Callable
from itertools import islice
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode
from torchmetrics import Metric

from mdcs.build import Run, build
from mdcs.config import compose, plain
from mdcs.data.module import Batches, PictureBatches
from mdcs.data.order import EpochOrder
from mdcs.losses.fused import Distilled
from mdcs.training.module import LongTailModule, use_fused_step
from mdcs.types import Batch

GPU = torch.device("cuda", 0)
STEPS = 5  # the last of them is a smaller batch, and the others are gathered and augmented at once
WORDS = [
    *([f"loss={name}"] for name in ("mdcs", "ce", "ldam_drw", "focal", "cb_ce", "ride", "sade", "balpoe", "logit_adjustment")),
    *(["loss.temperature=2"], ["loss.teacher=ensemble"], ["loss.teacher=ema", "optim.ema_decay=0.9"]),
    ["loss.confident_only=false", "augment.mixup=1", "augment.cutmix=1"],
    *([f"augment={name}"] for name in ("cifar", "imagenet", "none")),
    *(["optim=sgd_sam"], ["model.grouped=true"]),
]


@pytest.fixture
def mode() -> FakeTensorMode:
    return FakeTensorMode()


def fake(tensor: Tensor, mode: FakeTensorMode) -> Tensor:
    """What `tensor.to(GPU)` would be."""
    faked = mode.from_tensor(tensor.detach())
    with mode:
        return faked.to(GPU)


def move(module: LongTailModule, mode: FakeTensorMode) -> None:
    """What `module.to(GPU)` moves: parameters, buffers and the sums of metrics. Other tensors stay on the CPU, as they would."""
    for part in module.modules():
        for name, weight in part._parameters.items():
            if weight is not None:
                moved = fake(weight, mode)
                with mode:
                    part._parameters[name] = nn.Parameter(moved, weight.requires_grad)
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = fake(buffer, mode)
        if isinstance(part, Metric):
            for name in part._defaults:
                setattr(part, name, fake(getattr(part, name), mode))
    module._device = GPU


def prepared(words: list[str], mode: FakeTensorMode, dtype: torch.dtype = torch.float32) -> tuple[Run, Batches]:
    """Everything of the run on the GPU, its weights in `dtype`, and the batches of its training pictures."""
    run = build(plain(compose("train", ["trainer.max_epochs=1", "data.batch_size=64", *words])))
    module, train = run.module.train(), run.splits.train
    run.net.to(dtype)
    move(module, mode)
    assert isinstance(train.images, Tensor)
    meta = None if train.meta is None else fake(train.meta, mode)
    train = train._replace(images=fake(train.images, mode), labels=fake(train.labels, mode), meta=meta)
    order = list(EpochOrder(len(train.labels), run.config["data"]["batch_size"], 0))  # now, for the host reads its values
    assert len(order) == STEPS
    with mode:
        optimiser = module.optimiser(run.net)
    use_fused_step(optimiser)
    assert all(group["fused"] for group in optimiser.param_groups)  # not stepped: fake tensors lack that operation
    for group in optimiser.param_groups:
        group["initial_lr"] = group["lr"]
    of_trainer: dict[str, Any] = {"world_size": 1, "global_rank": 0, "accumulate_grad_batches": 1, "current_epoch": 0, "global_step": 0}
    module._trainer = SimpleNamespace(optimizers=[optimiser], **of_trainer)  # type: ignore[assignment]
    return run, Batches(PictureBatches(train, 0, 2), order, num_workers=0, at_once=3)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("words", "dtype"),
    [(words, torch.float32) for words in WORDS] + [(words, torch.bfloat16) for words in WORDS if "loss.teacher=ema" not in words],
    ids=lambda value: " ".join(value) if isinstance(value, list) else str(value),
)
def test_a_step_stays_on_the_gpu_and_waits_for_nothing(words: list[str], dtype: torch.dtype, mode: FakeTensorMode) -> None:
    run, batches = prepared(words, mode, dtype)
    with mode:
        for number, batch in enumerate(batches):
            loss = run.module.training_step(batch, number)
            assert loss.device == GPU and loss.dtype == torch.float32 and loss.requires_grad
        run.module.eval()
        run.module.validation_step(Batch(batch.images[:1], batch.labels, batch.index, batch.meta), 0)
    states = [getattr(metric, name) for metric in (run.module.means, run.module.accuracy) for name in metric._defaults]
    assert all(state.device == GPU for state in states)


def test_the_gradient_of_the_loss_waits_for_nothing(mode: FakeTensorMode) -> None:
    """Its own part of the backward pass."""
    with mode:
        logits_VBKC, bias_KC = torch.zeros(2, 8, 3, 10, device=GPU), torch.zeros(3, 10, device=GPU)
        targets_BC, labels_B = torch.zeros(8, 10, device=GPU), torch.zeros(8, dtype=torch.int64, device=GPU)
        context = SimpleNamespace(
            save_for_backward=lambda *saved: setattr(context, "saved_tensors", saved),
            mark_non_differentiable=lambda *_: None,
            set_materialize_grads=lambda *_: None,
        )
        Distilled.forward(context, logits_VBKC, bias_KC, targets_BC, labels_B, 0.5)
        with torch.no_grad():
            gradient, *_ = Distilled.backward(context, torch.ones((), device=GPU))
    assert gradient.shape == logits_VBKC.shape and gradient.device == GPU


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        (lambda labels: labels + torch.zeros(len(labels), dtype=torch.int64), RuntimeError),
        (lambda labels: labels.max().item(), DataDependentOutputException),
        (lambda labels: labels[labels > 0], DynamicOutputShapeException),
    ],
    ids=["another device", "a value on the host", "a size that depends on values"],
)
def test_what_would_fail_or_wait_on_a_gpu_is_seen(wrong: Callable[[Tensor], Any], error: type[Exception], mode: FakeTensorMode) -> None:
    """Otherwise the tests here could not fail."""
    run, batches = prepared([], mode)
    forward = run.module.loss.forward
    run.module.loss.forward = lambda out, views, epoch: (wrong(views.index), forward(out, views, epoch))[1]  # type: ignore[method-assign]
    with mode, pytest.raises(error):
        for number, batch in enumerate(islice(batches, 1)):
            run.module.training_step(batch, number)
