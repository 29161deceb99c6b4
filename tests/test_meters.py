"""What is summed up over an epoch, against plain NumPy, and the rows of metrics.csv."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

from mdcs.analysis.diversity import diversity_of
from mdcs.evaluation.predictions import Predictions, merge_shards, stored, write_shard
from mdcs.training.checkpoint import RunFolder, read_rows
from mdcs.training.meters import DIVERSITY, EpochMeans, GroupAccuracy, columns, in_words, reset_and_read
from mdcs.types import Classes

CLASSES = Classes(tuple("abcdef"), torch.tensor([300, 150, 90, 40, 12, 3]))  # two of each group
GROUPS = {"many": (0, 1), "medium": (2, 3), "few": (4, 5)}


def batches(labels_of: tuple[int, ...] = (0, 1, 2, 3, 4, 5), num_experts: int = 3) -> list[tuple[dict[str, Tensor], Tensor, Tensor]]:
    """(parts, logits (V, B, K, C), labels (B,)) of four steps of different size."""
    generator = torch.Generator().manual_seed(0)
    made = []
    for rows in (16, 16, 16, 5):
        labels_B = torch.tensor(labels_of)[torch.randint(0, len(labels_of), (rows,), generator=generator)]
        confident_KB = torch.rand(num_experts, rows, generator=generator) < 0.4
        parts = {
            "loss": torch.rand((), generator=generator, requires_grad=True) * 1,
            "diversity": torch.rand((), generator=generator, dtype=torch.float64),
            "confident": confident_KB.sum(1),
            "confident_KB": confident_KB,
        }
        made.append((parts, torch.randn(2, rows, num_experts, 6, generator=generator), labels_B))
    return made


def expected_means(steps: list[tuple[dict[str, Tensor], Tensor, Tensor]]) -> dict[str, float]:
    rows = [len(labels) for *_, labels in steps]
    labels = np.concatenate([labels for *_, labels in steps])
    confident = np.concatenate([parts["confident_KB"] for parts, *_ in steps], axis=1)
    hits = np.concatenate([(logits.numpy().mean(2).argmax(-1) == labels.numpy()).mean(0) for _, logits, labels in steps])
    means = {f"train/{name}": np.average([parts[name].item() for parts, *_ in steps], weights=rows) for name in ("loss", "diversity")}
    means |= {f"train/confident_{k + 1}": confident[k].mean() for k in range(len(confident))}
    of_group = {name: np.isin(labels, group) for name, group in GROUPS.items()}
    means |= {f"train/confident_{name}": confident[:, chosen].mean() for name, chosen in of_group.items() if chosen.any()}
    return means | {"train/acc": hits.mean(), "pictures": sum(rows)}


@pytest.mark.parametrize("labels_of", [(0, 1, 2, 3, 4, 5), (0, 1, 4)])
def test_epoch_means(labels_of: tuple[int, ...]) -> None:
    meter, steps = EpochMeans(CLASSES, 3), batches(labels_of)
    assert meter.local() == {}
    for step in steps:
        meter.update(*step)
    assert meter.local() == pytest.approx(expected_means(steps), rel=1e-5)  # the keys, too: a group without pictures is left out
    assert reset_and_read(meter) == pytest.approx(expected_means(steps), rel=1e-5)
    for step in steps[2:]:
        meter.update(*step)
    assert meter.compute() == pytest.approx(expected_means(steps[2:]), rel=1e-5)


def test_epoch_means_of_a_loss_without_parts() -> None:
    meter = EpochMeans(CLASSES, 3)
    for parts, logits, labels in batches():
        meter.update({"loss": parts["loss"]}, logits, labels)
    assert set(meter.compute()) == {"train/loss", "train/acc", "pictures"}
    assert not meter.sums.requires_grad


def test_no_value_is_read_back_during_the_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*arguments: object) -> None:
        raise AssertionError("a step waits for the device")

    steps, means, accuracy = batches(), EpochMeans(CLASSES, 3), GroupAccuracy(CLASSES, 3)
    with monkeypatch.context() as patched:
        for name in ("item", "tolist", "__float__", "__bool__", "numpy"):
            patched.setattr(Tensor, name, refused)
        for parts, logits, labels in steps:
            means.update(parts, logits, labels)
            accuracy.update(logits[0], labels)


@pytest.mark.parametrize(("labels_of", "num_experts"), [((0, 1, 2, 3, 4, 5), 3), ((0, 2, 3), 1)])
def test_group_accuracy(labels_of: tuple[int, ...], num_experts: int) -> None:
    meter, steps = GroupAccuracy(CLASSES, num_experts), batches(labels_of, num_experts)
    for _, logits, labels in steps:
        meter.update(logits[0], labels)
    logits, labels = (np.concatenate(of) for of in zip(*((logits[0], labels) for _, logits, labels in steps), strict=True))
    hits = logits.mean(1).argmax(-1) == labels
    expected = {"val/acc": hits.mean()}
    for name, group in GROUPS.items():
        recalls = [hits[labels == c].mean() for c in group if (labels == c).any()]
        if recalls:
            expected[f"val/acc_{name}"] = np.mean(recalls)
    expected |= {f"val/acc_expert_{k + 1}": (logits[:, k].argmax(-1) == labels).mean() for k in range(num_experts)}
    values = meter.compute()
    assert {name: value for name, value in values.items() if name.startswith("val/acc")} == pytest.approx(expected, rel=1e-6)
    assert ("val/acc_few" in expected) == (5 in labels_of)
    assert (len(values) > len(expected)) == (num_experts > 1), "a single expert has no diversity"
    meter.reset()
    assert meter.support.sum() == 0


@pytest.mark.parametrize("labels_of", [(0, 1, 2, 3, 4, 5), (0, 2, 3)])
@pytest.mark.parametrize("counts", [(300, 150, 90, 40, 12, 3), (300, 150, 90, 40, 12, 0)])  # also a class that cannot be the answer
def test_diversity_is_that_of_the_stored_predictions(labels_of: tuple[int, ...], counts: tuple[int, ...], tmp_path: Path) -> None:
    classes = Classes(CLASSES.names, torch.tensor(counts))
    steps = batches(labels_of)
    logits_NKC = torch.cat([logits[0] for _, logits, _ in steps])
    logits_NKC[:9, 2] = logits_NKC[:9, 1]  # some agreement
    labels_N = torch.cat([labels for *_, labels in steps])
    write_shard(tmp_path, 0, stored(logits_NKC), np.arange(len(labels_N)))
    merge_shards(tmp_path, 1, labels_N.numpy(), [str(n) for n in range(len(labels_N))])
    table = diversity_of(Predictions.read(tmp_path), classes).table()
    expected = {}
    for suffix, of in {"": table, **{f"_{name}": of for name, of in table["groups"].items()}}.items():
        expected |= {f"val/{name}{suffix}": of[name] for name in DIVERSITY if of is not None}

    meters = [GroupAccuracy(classes, 3) for _ in range(2)]  # as two ranks would have them: every other batch
    for i, part in enumerate(torch.arange(len(labels_N)).split(7)):
        meters[i % 2].update(logits_NKC[part], labels_N[part])
    for name in ("hits", "apart", "support"):
        setattr(meters[0], name, getattr(meters[0], name) + getattr(meters[1], name))
    values = meters[0].compute()
    assert {name: value for name, value in values.items() if not name.startswith("val/acc")} == pytest.approx(expected, rel=1e-12)
    assert values["val/disagreement"] > 0.5 and values["val/oracle_gap"] > 0 and values["val/recall_sd"] > 0
    assert ("val/recall_sd_few" in values) == (5 in labels_of)


# ---------------------------------------------------------------------------------------------------------------- metrics.csv


def test_columns() -> None:
    assert columns(2) == [
        *("epoch", "lr", "train/loss", "train/diversity", "train/consistency", "train/distill_weight"),
        *("train/confident_1", "train/confident_2", "train/confident_many", "train/confident_medium", "train/confident_few"),
        *("train/acc", "val/acc", "val/acc_many", "val/acc_medium", "val/acc_few", "val/acc_expert_1", "val/acc_expert_2"),
        *("val/disagreement", "val/disagreement_many", "val/disagreement_medium", "val/disagreement_few"),
        *("val/recall_sd", "val/recall_sd_many", "val/recall_sd_medium", "val/recall_sd_few"),
        *("val/oracle_gap", "val/oracle_gap_many", "val/oracle_gap_medium", "val/oracle_gap_few"),
        "images_per_second",
    ]
    assert columns(1)[-2:] == ["val/acc_expert_1", "images_per_second"]


def test_every_figure_of_the_meters_has_a_column() -> None:
    means, accuracy = EpochMeans(CLASSES, 3), GroupAccuracy(CLASSES, 3)
    for parts, logits, labels in batches():
        means.update(parts, logits, labels)
        accuracy.update(logits[0], labels)
    assert set(means.compute() | accuracy.compute()) - {"pictures"} <= set(columns(3))


def started(folder: Path, epochs_done: int = 0) -> RunFolder:
    run_folder = RunFolder(folder, 2, {})
    run_folder.on_train_start(SimpleNamespace(is_global_zero=True, current_epoch=epochs_done), None)  # type: ignore[arg-type]
    return run_folder


def test_rows_have_eight_digits_and_empty_cells(tmp_path: Path) -> None:
    run_folder = started(tmp_path)
    run_folder.append({"epoch": 1, "lr": 0.1 / 3, "train/loss": 123456.789012, "images_per_second": 1e-7 / 3, "not/a/column": 1.0})
    header, row = (tmp_path / "metrics.csv").read_text().splitlines()
    assert header == ",".join(columns(2))
    assert row == "1,0.033333333,123456.79" + "," * 28 + "3.3333333e-08"
    assert read_rows(tmp_path)[0]["lr"] == "0.033333333" and read_rows(tmp_path)[0]["val/acc"] == ""


@pytest.mark.parametrize("kept", [0, 1, 4, 20, -5, -2, -1])
def test_a_line_cut_short_is_no_row(tmp_path: Path, kept: int) -> None:
    assert read_rows(tmp_path) == []
    run_folder = started(tmp_path)
    for epoch in (1, 2):
        run_folder.append({"epoch": epoch, "lr": 0.1, "images_per_second": 12345.0})
    path = tmp_path / "metrics.csv"
    *whole, last = path.read_text().splitlines(keepends=True)
    path.write_text("".join(whole) + last[:kept])
    assert [row["epoch"] for row in read_rows(tmp_path)] == ["1"]


def test_a_resumed_run_cuts_the_rows_after_its_checkpoint(tmp_path: Path) -> None:
    run_folder = started(tmp_path)
    for epoch in (1, 2, 3):
        run_folder.append({"epoch": epoch, "lr": epoch / 10, "images_per_second": 12345.0})
    started(tmp_path, epochs_done=2).append({"epoch": 3, "lr": 0.7})
    assert [(row["epoch"], row["lr"]) for row in read_rows(tmp_path)] == [("1", "0.1"), ("2", "0.2"), ("3", "0.7")]


def test_a_run_of_before_a_column_was_there_can_be_resumed(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text("epoch,lr,val/acc\n1,0.1,0.5\n2,0.1,0.6\n")
    started(tmp_path, epochs_done=2).append({"epoch": 3, "val/acc": 0.7, "val/disagreement": 0.25})
    rows = read_rows(tmp_path)
    assert [(row["epoch"], row["val/acc"], row["val/disagreement"]) for row in rows] == [
        ("1", "0.5", ""),
        ("2", "0.6", ""),
        ("3", "0.7", "0.25"),
    ]


def test_an_epoch_in_words() -> None:
    row = {"train/loss": 3.2101, "train/diversity": 2.9, "train/consistency": 0.512, "train/acc": 0.912}
    assert in_words(row) == "loss 3.210 (diversity 2.9, consistency 0.512), train accuracy 91.2 %"
    assert in_words({"train/loss": 1.0, "train/diversity": 1.0, "val/acc": 0.5}) == "loss 1.000, validation accuracy 50.0 %"
