"""Every speed benchmark runs, and what it calls plain computes what mdcs computes."""

import importlib
import math
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch.nn import functional as F

from mdcs.losses.mdcs import MDCS
from mdcs.models.expert_net import ExpertNet
from mdcs.models.resnet_cifar import ResNetCifar
from mdcs.types import Classes, Output, Views

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch):
    """Import a benchmark by name."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))

    def load(name: str) -> ModuleType:
        return importlib.import_module(name)

    yield load
    for name in [name for name, module in sys.modules.items() if str(BENCHMARKS) in str(getattr(module, "__file__", ""))]:
        del sys.modules[name]


@pytest.mark.parametrize(
    "name",
    [
        "step",
        "batch_norm",
        "loss",
        "growth",
        "launches",
        "loop",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("startup", "gpu")),
    ],
)
def test_it_runs(benchmark, name: str, capsys: pytest.CaptureFixture) -> None:
    text = benchmark(name).main(["--quick"])
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert len(rows) >= 3
    assert "nan" not in text and "inf" not in text


def test_the_plain_network_is_ours(benchmark) -> None:
    """Same weights by the same names, same logits, in float64."""
    torch.manual_seed(0)
    plain = benchmark("plain").ExpertResNet(3, 7, 14, (4, 8, 12)).double()
    net = ExpertNet(ResNetCifar(3, 14, (4, 8, 12)), 7).double()
    state = {f"backbone.{name}": value for name, value in plain.state_dict().items() if not name.startswith("linears")}
    state["heads.weight"] = torch.stack(list(plain.linears)).detach()
    net.load_state_dict(state)
    images = torch.randn(4, 3, 16, 16, dtype=torch.float64)
    torch.testing.assert_close(torch.stack(plain(images), dim=1), net(images).logits, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("epoch", [1, 30])
@pytest.mark.parametrize("right", [0, 3])
def test_the_plain_loss_is_ours(benchmark, epoch: int, right: int) -> None:
    """Value and gradient, in float64, with and without confident pictures. The plain one adds 1e-9 to the counts, as published."""
    torch.manual_seed(0)
    counts_C, labels_B = torch.tensor([100, 40, 9, 3, 1]), torch.tensor([0, 1, 2, 3, 4, 0])
    logits_VBKC = torch.randn(2, 6, 3, 5, dtype=torch.float64)
    logits_VBKC.scatter_(3, labels_B[None, :, None, None].expand(2, -1, 3, 1), -30.0)
    logits_VBKC[:, :right].mul_(-1)
    logits_VBKC.requires_grad_()
    classes = Classes(tuple("abcde"), counts_C)
    views = Views(torch.empty(0), F.one_hot(labels_B, 5).double(), labels_B)
    ours = MDCS(classes)(Output(logits_VBKC, logits_VBKC), views, epoch)["loss"]
    experts = [logits_VBKC[:, :, k].flatten(0, 1) for k in range(3)]
    (gradient,) = torch.autograd.grad(ours, logits_VBKC)
    for name in ("mdcs_loss", "lean_mdcs_loss"):
        plain = getattr(benchmark("plain"), name)(experts, labels_B, counts_C, [-0.5, 1.0, 2.5], epoch)
        torch.testing.assert_close(plain.double(), ours, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(torch.autograd.grad(plain, logits_VBKC, retain_graph=True)[0], gradient, rtol=1e-5, atol=1e-6)


def test_all_ways_of_the_loss_have_one_gradient(benchmark) -> None:
    plain, *others = (way() for way in benchmark("loss").ways_of(20, 6).values())
    assert len(others) == 2 and plain.abs().max() > 0
    for other in others:
        torch.testing.assert_close(other, plain, rtol=1e-4, atol=1e-6)


def test_the_plain_loader_and_the_plain_matrix(benchmark) -> None:
    plain = benchmark("plain")
    images = torch.randint(0, 256, (6, 32, 32, 3), dtype=torch.uint8)
    batches = list(plain.loader(images, [0, 1, 2, 0, 1, 2], 4))
    assert [tuple(weak.shape) for weak, _, _ in batches] == [(4, 3, 32, 32), (2, 3, 32, 32)]
    assert all(weak.shape == strong.shape and weak.dtype == torch.float32 for weak, strong, _ in batches)
    assert plain.confusion_matrix([0, 1, 1], [0, 1, 0], 2) == [[1, 1], [0, 1]]


def test_ratios_are_medians_over_rounds(benchmark) -> None:
    timing = benchmark("side_by_side").Timing({"plain": [(4.0, 2.0), (9.0, 2.0), (8.0, 2.0)], "fast": [(2.0, 1.0), (3.0, 2.0), (2.0, 0.5)]})
    assert timing.ratio("plain", "fast") == 3.0
    assert timing.ratio("plain", "fast", 1) == 2.0
    assert timing.median("plain") == 8.0
    assert "| fast | 2e+03 | 3.00 | 1e+03 | 2.00 |" in timing.table("plain")


def test_the_plain_layout_of_a_gpu_way_is_plain(benchmark) -> None:
    """Weights, and what the first convolution reads; with the switch both are channels_last, as `mdcs train` has them."""
    gpu, ways = benchmark("gpu"), benchmark("gpu_ways")
    case = gpu.QUICK["cifar"]
    splits = ways.random_splits(case)
    assert splits.train.images.shape == (100, 3, 8, 8) and splits.classes.counts.tolist() == [1] * 100
    for way in (ways.Way(), ways.Way(channels_last=True)):
        net = ways.prepared(case, way, splits, 4).net
        seen: list[torch.Tensor] = [net.backbone.layer1[0].conv1.weight]
        net.backbone.conv1.register_forward_hook(lambda module, given, out, seen=seen: seen.append(given[0]))
        net(torch.zeros(2, 3, 8, 8).contiguous(memory_format=torch.channels_last))
        layout = torch.channels_last if way.channels_last else torch.contiguous_format
        assert len(seen) == 2 and all(tensor.is_contiguous(memory_format=layout) for tensor in seen)


def test_gpu_ways_that_fail_leave_the_others_alone(benchmark, capsys: pytest.CaptureFixture) -> None:
    gpu, turns = benchmark("gpu"), []

    def full() -> float:
        turns.append("full")
        raise torch.OutOfMemoryError("no memory left")

    ways, told = {"good": lambda: lambda: 0.5, "full": lambda: full, "wrong": lambda: 1 / 0}, []
    found = gpu.take_turns(ways, 2, True, math.inf, lambda found: told.append(len(found.seconds["good"])))
    assert found.seconds["good"] == [0.5, 0.5] and turns == ["full"] and told == [1, 2]
    assert found.failed == {"full": "does not fit", "wrong": "failed: ZeroDivisionError"}
    assert "division by zero" in capsys.readouterr().err


def test_gpu_turns_end_at_the_deadline_and_searches_for_algorithms_with_theirs(benchmark) -> None:
    gpu, searched = benchmark("gpu"), []
    assert gpu.take_turns({"late": lambda: lambda: 0.5}, 2, True, 0.0, print).seconds == {"late": []}

    def search() -> float:
        searched.append(torch.backends.cudnn.benchmark)
        torch.backends.cudnn.benchmark = True  # as trainer.benchmark=true leaves it
        return 0.5

    gpu.take_turns({"one": lambda: search, "other": lambda: search}, 1, False, math.inf, print)
    torch.backends.cudnn.benchmark = False
    assert searched == [False, False]


def test_sections_of_an_earlier_call_stay_when_the_time_is_over(benchmark, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = benchmark("gpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    (tmp_path / "gpu.md").write_text("# Title\n\n## ResNet-32, K = 3, 64 pictures of 32 px\n\nmeasured\n")
    assert "measured" in gpu.main(["--minutes", "-1", "--output", str(tmp_path / "gpu.md")])
    assert "not yet" not in (tmp_path / "gpu.md").read_text()


def test_compiled_gpu_ways_are_as_many_as_torch_compiles(benchmark) -> None:
    gpu = benchmark("gpu")
    for case in gpu.CASES.values():
        assert sum("compile" in name for name in gpu.compiled_ways(case)) <= torch._dynamo.config.recompile_limit


def test_gpu_results_are_kept_section_by_section(benchmark) -> None:
    gpu = benchmark("gpu")
    text = gpu.with_section(gpu.with_section(gpu.FIRST, "## a\n\n1\n"), "## b\n\n2\n")
    again = gpu.with_section(text, "## a\n\n3\n")
    assert again == f"{gpu.FIRST}\n## a\n\n3\n\n## b\n\n2\n"
