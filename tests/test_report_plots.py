"""The drawn data are the table's: artists are read back from each figure."""

from pathlib import Path

import matplotlib
import numpy as np
import pytest
from matplotlib.colors import to_hex

from mdcs.report import plots
from mdcs.report.contents import read_contents
from mdcs.report.plots import COLOURS, save, save_figures
from run_cases import make_run

BINS = [{"count": 0, "confidence": None, "accuracy": None}, {"count": 30, "confidence": 0.4, "accuracy": 0.5}]
BINS += [{"count": 10, "confidence": 0.9, "accuracy": 0.7}]


def texts(figure) -> str:
    return " ".join(text.get_text() for text in figure.findobj(matplotlib.text.Text))


def test_accuracy_by_frequency() -> None:
    rows = [
        {"name": "a", "group": "many", "train_count": 500, "n": 10, "accuracy": 0.9},
        {"name": "b", "group": "few", "train_count": 5, "n": 10, "accuracy": 0.2},
        {"name": "c", "group": "few", "train_count": 7, "n": 10, "accuracy": 0.4},
        {"name": "d", "group": "few", "train_count": 9, "n": 0, "accuracy": None},
    ]
    figure = plots.accuracy_by_frequency(rows, n=30)
    (ax,) = figure.axes
    assert [dots.get_offsets().tolist() for dots in ax.collections] == [[[500, 90]], [[5, 20], [7, 40]]]
    assert [to_hex(dots.get_facecolor()[0]) for dots in ax.collections] == [COLOURS[1], COLOURS[3]]
    assert ax.get_xscale() == "log" and "n = 30" in texts(figure) and "few (2)" in texts(figure)
    figure.draw_without_rendering()
    lowest, highest = ax.get_xlim()
    ticks = zip(ax.get_xticks(), ax.get_xticklabels(), strict=True)
    assert [text.get_text() for x, text in ticks if lowest <= x <= highest] == ["5", "10", "20", "50", "100", "200", "500"]
    assert not len(ax.get_xticks(minor=True))


def test_group_bars_have_means_spreads_and_gaps() -> None:
    def row(*values: float | None) -> dict[str, float | None]:
        return dict(zip(("accuracy", "accuracy_many", "accuracy_medium", "accuracy_few"), values, strict=True))

    figure = plots.group_bars({"CE": [row(0.5, 0.8, None, 0.2), row(0.7, 0.8, None, 0.4)], "MDCS": [row(0.9, 0.9, 0.9, 0.9)]}, n=600)
    (ax,) = figure.axes
    heights = [bar.get_height() for bar in ax.patches]
    assert heights == pytest.approx([60, 80, 30, 90, 90, 90, 90])
    bars = [container for container in ax.containers if isinstance(container, matplotlib.container.ErrorbarContainer)]
    spans = [np.ptp(of.lines[2][0].get_segments()[0][:, 1]) for of in bars]
    assert spans == pytest.approx([2 * np.std([50, 70], ddof=1), 0, 2 * np.std([20, 40], ddof=1)])
    assert "n/a" in texts(figure) and "mean ± s.d. of 1 or 2 runs" in texts(figure)
    centres = [bar.get_x() + bar.get_width() / 2 for bar in ax.patches]
    assert [round(centre) for centre in centres] == [0, 1, 3, 0, 1, 2, 3]


def test_expert_matrix() -> None:
    figure = plots.expert_matrix([[1.0, 0.25], [0.25, 1.0]], "same answer in % of 40 pictures")
    assert figure.axes[0].images[0].get_array().tolist() == [[100, 25], [25, 100]]
    assert [text.get_text() for text in figure.axes[0].texts] == ["100", "25", "25", "100"] and "40 pictures" in texts(figure)


def test_reliability_diagram() -> None:
    figure = plots.reliability_diagram(BINS, ece=0.125)
    (ax,) = figure.axes
    assert np.allclose(ax.collections[0].get_offsets(), [[40, 50], [90, 70]])
    assert [bar.get_height() for bar in ax.patches] == pytest.approx([50, 70])
    assert [bar.get_x() + bar.get_width() / 2 for bar in ax.patches] == pytest.approx([50, 100 * 2.5 / 3])
    sizes = ax.collections[0].get_sizes()
    assert sizes[0] > sizes[1] and "n = 40" in texts(figure) and "ECE 12.5 %" in texts(figure)


def test_agnostic_curves_leave_out_what_is_not_known() -> None:
    sets = [{"name": "forward-50", "average": 0.9, "em": None}, {"name": "uniform", "average": 0.8, "em": None}]
    sets += [{"name": "dirichlet", "average": 0.5, "em": None}]
    figure = plots.agnostic_curves(sets, {"average": "mean", "em": "by EM"}, n=7)
    (line,) = figure.axes[0].lines
    assert line.get_xydata().tolist() == [[0, 90], [1, 80]] and line.get_label() == "mean"
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == ["forward-50", "uniform"]


def test_training_curves() -> None:
    panels = {"loss": {"total": [(1, 3.0), (2, 2.0)]}, "accuracy in %, by expert": {"expert 1": [(1, 40.0)], "expert 2": [(2, 50.0)]}}
    figure = plots.training_curves(panels, seed=5)
    drawn = [[(line.get_label(), line.get_xydata().tolist()) for line in ax.lines] for ax in figure.axes]
    assert drawn == [[("total", [[1, 3], [2, 2]])], [("expert 1", [[1, 40]]), ("expert 2", [[2, 50]])]]
    assert [ax.get_ylabel() for ax in figure.axes] == ["loss, nats", "accuracy in %"] and "seed 5" in texts(figure)
    assert [ax.get_title() for ax in figure.axes] == ["", "by expert"]
    figure.draw_without_rendering()
    assert all(place == int(place) for place in figure.axes[0].get_xticks()), "epochs are counted"
    many = plots.training_curves({f"{i} in %": {"a": [(1, 1.0)]} for i in range(7)}, seed=0)
    rows = {round(ax.get_subplotspec().get_position(many).y0, 3) for ax in many.axes}
    assert len(many.axes) == 7 and len(rows) == 3 and tuple(many.get_size_inches()) == pytest.approx((12.6, 10.2))


def test_bias_variance_bars() -> None:
    def row(method: str, group: str, variance: list[float] | None, of: str = "ensemble") -> dict:
        return {"method": method, "runs": 20, "of": of, "group": group, "n": 60, "variance": variance, "kl_variance": variance}

    rows = [
        row("CE", "all", [0.2, 0.1, 0.25]),
        row("CE", "few", None),
        row("MDCS", "all", [0.1, 0.05, 0.2]),
        row("MDCS", "few", [0.4, 0.3, 0.5]),
    ]
    figure = plots.bias_variance_bars([*rows, row("CE", "all", [9, 9, 9], of="expert 1")], statistics=("variance", "kl_variance"))
    percent, nats = figure.axes
    assert [bar.get_height() for bar in percent.patches] == pytest.approx([20, 10, 40])
    assert [bar.get_height() for bar in nats.patches] == pytest.approx([0.2, 0.1, 0.4])
    bars = [container for container in percent.containers if isinstance(container, matplotlib.container.ErrorbarContainer)]
    assert bars[0].lines[2][0].get_segments()[0][:, 1] == pytest.approx([10, 25])
    assert "variance in %" in texts(figure) and "nats" in texts(figure) and "n/a" in texts(figure) and "20 runs" in texts(figure)


def test_saved_files_are_the_same_in_every_call(tmp_path: Path) -> None:
    for suffix in plots.SUFFIXES:
        files = [save(plots.reliability_diagram(BINS, 0.1), tmp_path / f"{name}{suffix}").read_bytes() for name in "ab"]
        assert files[0] == files[1] and len(files[0]) > 1000
    assert ">confidence in %" in (tmp_path / "a.svg").read_text() and matplotlib.rcParams["svg.fonttype"] == "path"


def test_every_figure_of_a_run_is_saved(tmp_path: Path) -> None:
    run = make_run(tmp_path / "mine")
    written = save_figures([run], tmp_path / "figures")
    names = ("frequency", "experts", "reliability", "agreement", "training")
    assert sorted(path.name for path in written) == sorted(f"{name}{suffix}" for name in names for suffix in plots.SUFFIXES)
    heights = [bar.get_height() for bar in plots.figures_of(read_contents(run), {})["experts"].axes[0].patches]
    assert heights[0] == pytest.approx(100 * read_contents(run).scores["accuracy"])
    alone = plots.figures_of(read_contents(make_run(tmp_path / "one", num_experts=1)), {})
    assert "agreement" not in alone


def test_colours_are_told_apart_by_colour_blind_readers() -> None:
    """Okabe and Ito's palette, and a second round of colours without black."""
    assert len(set(COLOURS)) == 8 and plots.colour(8) == COLOURS[1] and plots.colour(14) == COLOURS[7]
