"""The training step: what it seeds, how weights are updated, and the compiled network against the plain one."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import mdcs
from mdcs.build import Run, build
from mdcs.config import compose, plain
from mdcs.errors import UserError
from mdcs.training.checkpoint import RunFolder
from mdcs.training.module import seed_generators, use_fused_step
from mdcs.training.trainer import make_trainer
from mdcs.types import Batch


def built(*words: str) -> Run:
    return build(plain(compose("train", list(words))))


def test_seeding_is_that_of_torch_and_stores_nothing() -> None:
    """torch.manual_seed stores the call for accelerators that are not there, in a list that grows with every step."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        expected = torch.rand(3)
        waiting = len(torch.cuda._queued_calls)
        seed_generators(7, torch.device("cpu"))
        assert torch.equal(torch.rand(3), expected)
        assert len(torch.cuda._queued_calls) == waiting


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW])
def test_the_fused_update_is_the_plain_one(kind: type[torch.optim.Optimizer]) -> None:
    generator = torch.Generator().manual_seed(0)
    start = [torch.randn(shape, generator=generator) for shape in ((5,), (4, 3), (2, 3, 3, 3))]
    arguments = {"lr": 0.1, "weight_decay": 0.01} | ({"momentum": 0.9, "nesterov": True} if kind is torch.optim.SGD else {})
    ways = [[torch.nn.Parameter(value.clone()) for value in start] for _ in range(2)]
    optimisers = [kind(weights, **arguments) for weights in ways]
    use_fused_step(optimisers[1])
    assert optimisers[1].param_groups[0]["fused"] is True
    for _ in range(5):
        gradients = [torch.randn(value.shape, generator=generator) for value in start]
        for weights, optimiser in zip(ways, optimisers, strict=True):
            for weight, gradient in zip(weights, gradients, strict=True):
                weight.grad = gradient.clone()
            optimiser.step()
    for one, other in zip(*ways, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_another_way_that_was_chosen_is_kept() -> None:
    optimiser = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], 0.1, foreach=True)
    use_fused_step(optimiser)
    assert optimiser.param_groups[0]["fused"] is None


def test_half_precision_on_a_cpu_keeps_the_usual_update() -> None:
    optimiser = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1, dtype=torch.bfloat16))], 0.1)
    use_fused_step(optimiser)
    assert optimiser.param_groups[0]["fused"] is None


def test_a_fused_update_from_the_checkpoint_of_a_gpu_ends_where_it_would_be_wrong() -> None:
    """Half precision on a CPU; loading an optimiser's state takes over the setting."""
    module = built("trainer.precision=bf16-true").module
    for dtype, fused in ((torch.float32, True), (torch.bfloat16, None)):
        optimiser = module.optimiser(module.net.to(dtype))
        groups = [group | {"fused": True} for group in optimiser.state_dict()["param_groups"]]
        optimiser.load_state_dict({"state": {}, "param_groups": groups})
        module._trainer = SimpleNamespace(optimizers=[optimiser])  # type: ignore[assignment]
        module.on_train_start()
        assert [group["fused"] for group in optimiser.param_groups] == [fused]


def test_a_trained_module_lets_go_of_the_pictures(tmp_path: Path) -> None:
    """They may lie on a GPU, and a notebook keeps its runs."""
    run = mdcs.run(["trainer.max_epochs=1", "trainer.limit_train_batches=2", f"hydra.run.dir={tmp_path / 'run'}"])
    augment = run.module.augment
    assert run.module._trainer is None and augment._ahead is None and not augment._tables
    again = augment(Batch(run.splits.train.images[None, :2], torch.zeros(2, dtype=torch.int64), torch.arange(2)), ("weak",), 10, 0)
    assert again.images.shape[:2] == (1, 2) and augment._tables


def test_an_unknown_compile_mode_is_refused() -> None:
    with pytest.raises(UserError, match=r"^model\.compile=fast: expected null, default, reduce-overhead or max-autotune$"):
        built("model.compile=fast")


def trained(folder: Path, words: list[str]) -> dict[str, torch.Tensor]:
    run = built("trainer.max_epochs=2", "trainer.enable_progress_bar=false", "model.num_experts=2", "model.width=[2,2,2]", *words)
    trainer = make_trainer(run.config, RunFolder(folder, 2, {}), False)
    trainer.fit(run.module, datamodule=run.data())
    assert trainer.global_step > 3
    return run.net.state_dict()


@pytest.mark.parametrize(
    "words",
    [
        ["data.repeats=3"],
        ["data.batch_size=60", "trainer.accumulate_grad_batches=2"],
        ["trainer.limit_train_batches=4", "trainer.precision=bf16-true"],
        ["augment.mixup=0.4", "augment.cutmix=1", "augment.label_smoothing=0.1", "loss.confident_only=false", "optim=sgd_sam"],
    ],
    ids=str,
)
def test_views_made_for_several_steps_at_once_give_the_same_weights(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """305 pictures: the last batch is smaller. By default all of an epoch's other steps are made at once."""
    expected = trained(tmp_path / "all", words)
    for at_once in (1, 3):
        monkeypatch.setattr("mdcs.data.module.batches_at_once", lambda pictures, rows, device, number=at_once: number)
        got = trained(tmp_path / str(at_once), words)
        assert all(torch.equal(got[name], value) for name, value in expected.items())


def test_the_network_is_one_graph_for_the_compiler() -> None:
    net = built("model=resnet8").net.train()
    images = torch.randn(2, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    torch.compile(net, backend="eager", fullgraph=True)(images)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on CPUs")
def test_the_compiled_network_trains_as_the_plain_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two epochs: the same file of weights by name and shape, and nearly the same numbers."""
    words = ["trainer.max_epochs=2", "model.num_experts=2", "model.width=[4,8,12]", "optim.lr=0.02"]
    resets: list[int] = []
    monkeypatch.setattr(torch.compiler, "reset", lambda: resets.append(1))
    runs = [
        mdcs.run([*words, f"model.compile={mode}", f"hydra.run.dir={tmp_path / mode}"]).net.state_dict() for mode in ("null", "default")
    ]
    assert resets == [1]
    assert list(runs[0]) == list(runs[1])
    for name, value in runs[0].items():
        torch.testing.assert_close(runs[1][name], value, rtol=0.02, atol=0.02, msg=name)
