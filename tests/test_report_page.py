"""The page: self-contained, escaped, honest about what is missing; its thumbnails; the verb."""

import base64
import io
import itertools
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mdcs.data.splits import Pictures
from mdcs.errors import UserError
from mdcs.evaluate import evaluate
from mdcs.report import sections
from mdcs.report.contents import read_contents
from mdcs.report.page import page
from mdcs.report.plots import figures_of
from mdcs.report.results import results
from mdcs.report.svg import Axis, log_ticks, scatter, ticks, trend
from mdcs.reporting import report, write_report
from run_cases import CONFIG, make_run

NASTY = ["<script>alert(1)</script>", 'a "quoted" & b', "</script><img src=x onerror=alert(1)>", "it's", "图片", "\u2028line", *"defg"]


class Reader(HTMLParser):
    """Elements with their attributes, text by element, and what was not closed."""

    VOID = ("meta", "link", "img", "input", "br")

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, Any]]] = []
        self.text: dict[str, list[str]] = {}
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes another element"

    def handle_data(self, data: str) -> None:
        if self.open:
            self.text.setdefault(self.open[-1], []).append(data)

    def all(self, tag: str) -> list[dict[str, Any]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "mine", names=NASTY)


def test_the_page_is_whole_and_asks_for_nothing(folder: Path) -> None:
    text = page([folder])
    reader = Reader(text)
    assert reader.open == []
    asking = ("src", "href", "srcset", "action")
    addresses = [value for _, attributes in reader.elements for key, value in attributes.items() if key in asking]
    assert addresses and all(address.startswith(("#", "data:")) for address in addresses)
    assert not re.search(r"https?://|@import|url\(", text.replace("http-equiv", ""))
    assert len(text.encode()) < 1_000_000
    ids = [attributes["id"] for _, attributes in reader.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    referred = [word for _, attributes in reader.elements for word in attributes.get("aria-labelledby", "").split()]
    assert referred and set(referred) <= set(ids)


def test_landmarks_headings_and_captions(folder: Path) -> None:
    reader = Reader(page([folder]))
    for tag in ("header", "nav", "main", "footer", "h1"):
        assert len(reader.all(tag)) == 1, tag
    headings = [int(name[1]) for name, _ in reader.elements if re.fullmatch("h[1-6]", name)]
    assert headings[0] == 1 and all(after - before <= 1 for before, after in itertools.pairwise(headings))
    assert len(reader.all("caption")) == len(reader.all("table"))
    charts = [attributes for attributes in reader.all("svg") if "aria-hidden" not in attributes]
    assert len(charts) >= 6 and all("aria-labelledby" in chart for chart in charts)
    assert {attributes.get("aria-sort") for attributes in reader.all("th") if "aria-sort" in attributes} == {"none"}
    assert all(attributes.get("alt") for attributes in reader.all("img"))


def test_names_stay_text(folder: Path) -> None:
    text = page([folder])
    reader = Reader(text)
    assert len(reader.all("script")) == 2 and not [a for a in reader.all("img") if a.get("src") == "x"]
    assert not [key for _, attributes in reader.elements for key in attributes if key.startswith("on")]
    data = json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL).group(1))
    assert data["columns"][0]["values"] == NASTY
    row_names = {cell for cell in reader.text["th"]}
    assert set(NASTY) <= row_names


def test_the_data_are_the_scores(folder: Path) -> None:
    scores = json.loads((folder / "scores.json").read_text())
    text = page([folder])
    data = json.loads(re.search(r'id="data">(.*?)</script>', text, re.DOTALL).group(1))
    columns = {column["title"]: column["values"] for column in data["columns"]}
    assert columns["training pictures"] == [row["train_count"] for row in scores["per_class"]]
    assert [hits / 12 for hits in columns["ensemble, %"]] == pytest.approx([row["accuracy"] for row in scores["per_class"]])
    reader = Reader(text)
    cells = [cell.strip() for cell in reader.text["td"]]
    for key in ("accuracy_many", "accuracy_few", "ece"):
        assert f"{100 * scores[key]:.1f}" in cells
    assert cells.count("n/a") == 0
    assert f"{100 * scores['experts'][2]['accuracy_few']:.1f}" in cells and "seed 0, last epoch (4)" in text


def test_an_empty_group_and_a_single_expert_are_not_applicable(tmp_path: Path) -> None:
    from mdcs.evaluation import predictions

    folder = make_run(tmp_path / "one", names=["a", "b"], num_experts=1)
    known = json.loads((folder / "classes.json").read_text())
    (folder / "classes.json").write_text(json.dumps(known | {"counts": [500, 400]}))
    scores = json.loads((folder / "scores.json").read_text())
    scores |= {"accuracy_few": None, "accuracy_medium": None}
    scores["experts"][0] |= {"accuracy_few": None, "accuracy_medium": None}
    (folder / "scores.json").write_text(json.dumps(scores))
    text = page([folder])
    assert (
        "<td>n/a</td>" in text
        and ">n/a</text>" in text
        and "n/a: a single expert" in text
        and "nan" not in text.lower().replace("nana", "")
    )
    assert predictions.classes_from_json(folder / "classes.json").few.sum() == 0


def test_classes_without_pictures_are_counted(folder: Path) -> None:
    run = read_contents(folder)
    assert "mean over its classes with test pictures. ECE" in sections.summary({"run": run})
    labels = np.minimum(run.predictions.labels, len(run.classes) - 2)
    assert "with test pictures; 1 class has none. ECE" in sections.summary(
        {"run": replace(run, predictions=run.predictions._replace(labels=labels))}
    )


def test_several_runs_side_by_side(tmp_path: Path, folder: Path) -> None:
    other = make_run(tmp_path / "other", names=NASTY, seed=1, loss=CONFIG["loss"] | {"alpha": 0.0})
    renamed = make_run(tmp_path / "renamed", names=[f"{name}!" for name in NASTY])
    text = page([folder, other])
    reader = Reader(text)
    data = json.loads(re.search(r'id="data">(.*?)</script>', text, re.DOTALL).group(1))
    assert [column["title"] for column in data["columns"]][4:] == ["mine, %", "other, %"]
    assert "loss.alpha" in reader.text["th"] and "seed" in reader.text["th"] and "loss._target_" not in reader.text["th"]
    assert "do not compare their numbers" not in text and len([1 for a in reader.all("g") if a.get("class") == "dots sparse"]) == 2
    assert "The runs have different classes" in page([folder, renamed])
    fewer = make_run(tmp_path / "fewer", names=NASTY, per_class=5)
    assert "do not compare their numbers" in page([folder, fewer])


def pictures_of(folder: Path, side: int) -> Pictures:
    paths = (folder / "predictions" / "test" / "paths.txt").read_text().split("\n")[:-1]
    images = torch.randint(0, 256, (len(paths), 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return Pictures(images, torch.zeros(len(paths), dtype=torch.int64), torch.arange(len(paths)), paths)


@pytest.mark.parametrize(("side", "shown", "kind"), [(8, 8, "PNG"), (200, 96, "JPEG")])
def test_thumbnails(folder: Path, side: int, shown: int, kind: str) -> None:
    pictures = pictures_of(folder, side)
    text = page([folder], pictures)
    images = Reader(text).all("img")
    assert 12 < len(images) <= 24 and len(text) < 1_000_000
    number = int(re.search(r"picture (\d+)", images[0]["alt"]).group(1))
    image = Image.open(io.BytesIO(base64.b64decode(images[0]["src"].split(",")[1])))
    assert image.size == (shown, shown) and image.format == kind
    if kind == "PNG":
        assert np.array_equal(np.asarray(image), pictures.images[number].permute(1, 2, 0).numpy())


def test_pictures_that_cannot_be_had_are_a_sentence(folder: Path) -> None:
    text = page([folder])  # digits, but the run was predicted on other paths
    assert "The pictures are not shown: the dataset has another number of pictures than were predicted" in text
    moved = pictures_of(folder, 8)._replace(paths=[f"x{i}" for i in range(120)])
    assert "the dataset holds other pictures than were predicted" in page([folder], moved)


def test_thumbnails_of_an_earlier_report_are_kept(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "mine", names=NASTY)
    write_report(folder, pictures_of(folder, 200))
    before = (folder / "report.html").read_bytes()
    assert write_report(folder).read_bytes() == before  # the dataset that config.yaml names has other pictures
    images = Reader(before.decode()).all("img")
    other = make_run(tmp_path / "other", names=NASTY, seed=1)
    both = Reader(page([folder, other])).all("img")
    assert both and {image["src"] for image in both} < {image["src"] for image in images}
    # what is not this run's picture, or no picture, is not taken
    for old, new in [("pictures/", "elsewhere/"), ("base64,", "base64,!"), ("data:image/jpeg", "data:text/html")]:
        (folder / "report.html").write_text(before.decode().replace(old, new), encoding="utf-8")
        assert "The pictures are not shown" in page([folder]), old


def test_a_report_does_not_download(tmp_path: Path) -> None:
    data = {"_target_": "mdcs.data.arrays.Cifar", "root": str(tmp_path / "nothing"), "num_classes": 10, "download": True}
    text = page([make_run(tmp_path / "mine", data=CONFIG["data"] | data)])
    assert "The pictures are not shown: CIFAR-10 is not in" in text and not (tmp_path / "nothing").exists()


def test_what_was_judged_on_validation_is_not_called_test(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "mine")
    (folder / "predictions" / "test").rename(folder / "predictions" / "val")
    scores = json.loads((folder / "scores.json").read_text())
    (folder / "scores.json").write_text(json.dumps(scores | {"split": "val"}))
    text = page([folder])
    shown = [word for tag in ("th", "td", "button", "span", "p", "figcaption", "text", "desc") for word in Reader(text).text.get(tag, [])]
    assert any("n = 120 validation pictures" in words for words in shown) and "validation pictures" in shown
    assert not [words for words in shown if "test" in words]
    figures = figures_of(read_contents(folder), {})
    labels = [figures[name].axes[0].get_ylabel() for name in ("frequency", "experts")]
    assert all(label.startswith("validation accuracy in %") for label in labels)


def test_the_other_frequencies_are_explained_as_they_are_drawn(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "mine")
    scores = json.loads((folder / "scores.json").read_text())
    sets = [{"name": name, "average": value} for name, value in (("forward-3", 0.93), ("uniform", 0.91), ("backward-3", 0.88))]
    (folder / "scores.json").write_text(json.dumps(scores | {"agnostic": {"sets": sets}}))
    reader = Reader(page([folder]))
    (caption,) = [text for text in reader.text["figcaption"] if "equally frequent" in text]
    assert caption.startswith("F3: the class most frequent in training is 3 times as frequent as the rarest; U: ") and "B3: F3" in caption
    assert {"F3", "U", "B3", "80", "100"} <= set(reader.text["text"])


def test_costs_that_are_known_are_shown(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "mine")
    scores = json.loads((folder / "scores.json").read_text())
    assert not {"cost/gpu_hours", "cost/cpu_hours", "cost/peak_device_memory_mib"} & set(results(folder).scalars)
    costs = {"cpu_hours": 1.25, "gpu_hours": 0.75, "peak_device_memory_mib": 4321}
    (folder / "scores.json").write_text(json.dumps(scores | costs))
    assert {name: results(folder).scalars[f"cost/{name}"] for name in costs} == costs
    told = Reader(page([folder])).text["td"]
    assert {"1.25", "0.75", "4,321"} <= set(told)


def test_the_verb(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_run(tmp_path / "mine")
    assert write_report(folder) == folder / "report.html"
    first = (folder / "report.html").read_bytes()
    assert report(run=str(folder)) == folder / "report.html" and (folder / "report.html").read_bytes() == first
    assert f"report: {folder / 'report.html'}" in capsys.readouterr().out
    (tmp_path / "index.html").write_text("mine, by hand")
    for words, expected in [
        ({}, "give run=DIR"),
        ({"run": str(folder), "output": str(tmp_path / "a.pdf")}, r"ends in \.html"),
        ({"run": str(folder), "output": str(tmp_path / "none" / "a.html")}, "there is no folder"),
        ({"run": str(folder), "output": str(tmp_path / "index.html")}, "is no report"),
        ({"run": str(tmp_path / "none")}, "not a run folder"),
        ({"run": str(tmp_path / "index.html")}, "a file, not a run folder"),
        ({"run": str(folder), "runs": [str(folder)]}, "give one of them"),
        ({"run": str(folder), "figures": str(tmp_path / "index.html" / "plots")}, "index.html is no folder; choose another place"),
    ]:
        with pytest.raises(UserError, match=expected):
            report(**words)
    assert (tmp_path / "index.html").read_text() == "mine, by hand" and not list(tmp_path.glob("*.part"))
    report(run=str(folder), output=str(tmp_path / "index.html"), overwrite=True)
    assert "mdcs report" in (tmp_path / "index.html").read_text()


@pytest.mark.parametrize("name", ["scores.json", *(f"predictions/test/{name}" for name in ("logits.npy", "labels.npy", "paths.txt"))])
def test_a_damaged_run_is_one_line_and_evaluate_mends_its_scores(name: str, tmp_path: Path) -> None:
    folder = make_run(tmp_path / "mine")
    (folder / name).write_bytes((folder / name).read_bytes()[:20])
    with pytest.raises(UserError, match=r"cannot be read|is damaged") as mistake:
        report(run=str(folder))
    assert "\n" not in str(mistake.value) and "mdcs evaluate run=" in str(mistake.value) and not (folder / "report.html").exists()
    if name == "scores.json":
        evaluate(str(folder))
        report(run=str(folder))


def test_a_sweep_side_by_side_is_called_by_its_losses(tmp_path: Path) -> None:
    ce = {"_target_": "mdcs.losses.prior.PriorAdjusted", "lambdas": 0.0, "views": ["weak", "strong"]}
    make_run(tmp_path / "sweep" / "0")
    make_run(tmp_path / "sweep" / "1", loss=ce)
    text = report(runs=[str(tmp_path / "sweep")], output=str(tmp_path / "both.html")).read_text(encoding="utf-8")
    assert "<title>mdcs report: 2 runs side by side</title>" in text
    assert "mdcs, sweep/0 · ce, sweep/1</p>" in text
    assert '<p class="dim">ce with K = 3, ' in page([tmp_path / "sweep" / "1"])


def test_axes_and_ticks() -> None:
    assert [Axis(1, 100, 0, 10, log=True)(value) for value in (1, 10, 100)] == pytest.approx([0, 5, 10])
    assert list(ticks(0, 100)) == [0, 20, 40, 60, 80, 100] and list(ticks(1, 60)) == [20, 40, 60] and list(ticks(3, 3)) == [3]
    assert list(ticks(1, 2).values()) == ["1", "1.2", "1.4", "1.6", "1.8", "2"] and list(ticks(1, 2, least=1).values()) == ["1", "2"]
    assert list(log_ticks(1.8, 120).values()) == ["2", "5", "10", "20", "50", "100"] and list(log_ticks(1, 1000)) == [1, 10, 100, 1000]
    drawn = scatter("k", "title <b>", "said", [(10, 0), (1000, 100)], ("x", "y"))
    circles = re.findall(r'<circle cx="([\d.]+)" cy="([\d.]+)"', drawn)
    assert float(circles[0][0]) < float(circles[1][0]) and (float(circles[0][1]), float(circles[1][1])) == (254, 14)
    assert "&lt;b&gt;" in drawn and "<b>" not in drawn and "polyline" not in drawn
    means = trend([(10.0, 20.0), (1000.0, 40.0), (1.0, 0.0), (100.0, 30.0)], parts=2)
    assert np.allclose(means, [(10**0.5, 10), (10**2.5, 35)])
    assert "polyline" in scatter("k", "t", "d", [(i + 1, i) for i in range(50)], ("x", "y"))
