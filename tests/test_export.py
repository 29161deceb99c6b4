"""Exported files answer as the run does, in the runtimes they are for; what they say of themselves; mistakes."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import mdcs
from conftest import ROOT, full_disk
from mdcs.build import Run
from mdcs.errors import UserError
from mdcs.evaluation.combine import combine
from mdcs.export import export, read_safetensors

FORMATS = {"torch": "pt2", "onnx": "onnx", "safetensors": "safetensors"}
NAMES = ["0", 'a "b"', "c, d", "e\nf", "käfer", "图片", "6", "7", "8", "9"]
SETTINGS = {
    "default": [],
    "pooled": ["augment.downscale=2", "model.num_experts=1", "model.head=linear"],
    "photo": ["model=resnet10", "model.width=[8,8,16,16]", "model.num_experts=2"],
    "timm": ["model=timm", "model.name=resnet18", "model.num_experts=2"],
}


def trained(folder: Path, words: list[str]) -> Path:
    """A run of one epoch whose class names would break a careless writer."""
    mdcs.run([*words, "trainer.max_epochs=1", f"hydra.run.dir={folder}"])
    content = json.loads((folder / "classes.json").read_text())
    (folder / "classes.json").write_text(json.dumps(content | {"names": NAMES}))
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("runs") / "run", [])


def runtime(format: str, file: Path) -> tuple[Callable[[Tensor], list[Tensor]], dict[str, object]]:
    """What runs the file, and what it says of itself."""
    if format == "torch":
        extra = {"mdcs.json": ""}
        program = torch.export.load(file, extra_files=extra).module()
        return lambda images: list(program(images)), json.loads(extra["mdcs.json"])
    if format == "safetensors":
        classifier = read_safetensors(file)
        return lambda images: list(classifier(images)), classifier.description
    import onnxruntime

    session = onnxruntime.InferenceSession(file)
    assert [(given.name, given.shape, given.type) for given in session.get_inputs()] == [("images", ["B", 3, 8, 8], "tensor(uint8)")]
    assert [(result.name, result.shape[0]) for result in session.get_outputs()] == [("probabilities", "B"), ("expert_logits", "B")]
    description = json.loads(session.get_modelmeta().custom_metadata_map["mdcs.json"])
    return lambda images: [torch.from_numpy(array) for array in session.run(None, {"images": images.numpy()})], description


def check_answers(run: Run, format: str, file: Path) -> None:
    """On real pictures, one to seven at once."""
    assert run.splits.test is not None
    answer, description = runtime(format, file)
    for start, batch_size in ((0, 1), (1, 3), (100, 7), (200, 7)):
        images = run.splits.test.plain(torch.arange(start, start + batch_size))
        logits = run.predict(images)
        probabilities, expert_logits = answer(images)
        assert not probabilities.requires_grad and not expert_logits.requires_grad
        torch.testing.assert_close(expert_logits, logits, rtol=0, atol=1e-4)
        torch.testing.assert_close(probabilities, combine(logits).softmax(-1), rtol=0, atol=1e-5)
        assert probabilities.argmax(-1).equal(combine(logits).argmax(-1))
    assert description["classes"] == NAMES
    assert (description["image_size"], description["resize"], description["num_experts"]) == (8, 8, run.net.num_experts)


@pytest.mark.parametrize("format", FORMATS)
def test_the_file_answers_as_the_run(format: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / f"digits.{FORMATS[format]}"
    assert export(str(folder), format, str(file)) == file
    check_answers(mdcs.load(folder), format, file)
    assert [path.name for path in tmp_path.iterdir()] == [file.name]
    (tmp_path / "other").touch()
    assert file.stat().st_mode == (tmp_path / "other").stat().st_mode
    out, error = capsys.readouterr()
    assert error == ""
    assert f"{file}: {format}" in out and "images (B, 3, 8, 8) uint8 RGB" in out and "expert_logits (B, 3, 10)" in out
    content = file.read_bytes()
    for place in (ROOT, Path(torch.__file__).parent, folder):
        assert str(place).encode() not in content, "says where it was made"


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("setting", ["pooled", pytest.param("photo", marks=pytest.mark.slow), pytest.param("timm", marks=pytest.mark.slow)])
def test_other_networks(setting: str, format: str, tmp_path: Path) -> None:
    folder = trained(tmp_path / "run", SETTINGS[setting])
    check_answers(mdcs.load(folder), format, export(str(folder), format))


def test_a_network_made_for_the_size_of_its_pictures(tmp_path: Path) -> None:
    for number in range(8):
        place = tmp_path / "photos" / "ab"[number % 2] / f"{number}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32, 32), (number * 30, 0, 0)).save(place)
    words = ["data=folder", f"data.root={tmp_path / 'photos'}", "model=timm", "model.name=test_vit2", "trainer.max_epochs=1"]
    run = mdcs.run([*words, f"hydra.run.dir={tmp_path / 'run'}"])
    images = run.splits.train.plain(torch.arange(4))
    with torch.no_grad():
        logits = read_safetensors(export(str(tmp_path / "run"), "safetensors"))(images)[1]
    torch.testing.assert_close(logits, run.predict(images), rtol=0, atol=1e-4)


def test_the_torch_file_needs_no_mdcs(folder: Path, tmp_path: Path) -> None:
    """The lines that are printed, where mdcs is not installed."""
    export(str(folder), output=str(tmp_path / "model.pt2"))
    program = (
        "import sys, json, torch; sys.modules['mdcs'] = None\n"
        "files = {'mdcs.json': ''}; model = torch.export.load('model.pt2', extra_files=files).module()\n"
        "probabilities, expert_logits = model(torch.zeros(2, 3, 8, 8, dtype=torch.uint8))\n"
        "print(json.dumps([probabilities.tolist(), json.loads(files['mdcs.json'])['classes']]))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True)
    probabilities, names = json.loads(done.stdout)
    expected = combine(mdcs.load(folder).predict(np.zeros((2, 3, 8, 8), np.uint8))).softmax(-1)
    assert np.allclose(probabilities, expected.numpy(), atol=1e-6) and names == NAMES


def test_the_checkpoint_and_the_place_can_be_chosen(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    mdcs.run(["trainer.max_epochs=1", "data.val_fraction=0.3", "model.num_experts=1", f"hydra.run.dir={folder}"])
    state = torch.load(folder / "checkpoints" / "best.ckpt", weights_only=True)
    state["state_dict"]["net.heads.weight"].neg_()
    torch.save(state, folder / "checkpoints" / "best.ckpt")
    images = torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    last = read_safetensors(export(str(folder), "safetensors"))(images)[1]
    assert (folder / "model.safetensors").exists()
    best = read_safetensors(export(str(folder), "safetensors", checkpoint="best", overwrite=True))(images)[1]
    torch.testing.assert_close(best, -last)


def test_grouped_experts_share_no_memory_in_a_file(tmp_path: Path) -> None:
    folder = trained(tmp_path / "run", ["model.grouped=true"])
    check_answers(mdcs.load(folder), "safetensors", export(str(folder), "safetensors"))


@pytest.mark.parametrize("format", FORMATS)
def test_the_printed_lines_run(
    format: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    export(str(folder), output=f"model.{FORMATS[format]}")
    lines = [line[2:] for line in capsys.readouterr().out.splitlines() if line.startswith("  ")]
    images = np.zeros((2, 3, 8, 8), np.uint8)
    given = {"images": images if format == "onnx" else torch.from_numpy(images)}
    exec("\n".join(lines), given)
    expected = combine(mdcs.load(folder).predict(images)).softmax(-1)
    assert np.allclose(given["probabilities"], expected, atol=1e-5) and given["names"] == NAMES


@pytest.mark.parametrize("format", FORMATS)
def test_a_full_disk_leaves_nothing(format: str, folder: Path, tmp_path: Path) -> None:
    file = tmp_path / f"model.{FORMATS[format]}"
    with full_disk(), pytest.raises(UserError, match=f"{file} cannot be written: File too large"):
        export(str(folder), output=str(file))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"format": "tflite"}, "format=tflite: expected one of torch, onnx, safetensors"),
        ({}, "^format: expected one of torch, onnx, safetensors, or an output that ends in .pt2"),
        ({"output": "model.bin"}, "^output=model.bin: expected one of"),
        ({"format": "torch", "output": "model.onnx"}, "expected a file that ends in .pt2"),
        ({"format": "torch", "output": "nowhere/model.pt2"}, "there is no folder"),
        ({"format": "torch", "output": "there.pt2"}, "exists already: choose another name, or set overwrite=true"),
        ({"format": "torch", "checkpoint": "first"}, "checkpoint=first: expected last or best"),
        ({"format": "torch", "checkpoint": "best"}, "needs a validation split"),
        ({"format": "torch", "run": "nowhere"}, "nowhere: not a run folder"),
    ],
    ids=lambda value: " ".join(f"{key}={word}" for key, word in value.items()) if isinstance(value, dict) else "",
)
def test_mistakes(settings: dict[str, str], message: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("there.pt2").write_text("mine")
    with pytest.raises(UserError, match=message):
        export(**{"run": str(folder), **settings})
    assert [path.name for path in tmp_path.iterdir()] == ["there.pt2"] and Path("there.pt2").read_text() == "mine"


def test_a_format_whose_packages_are_missing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = mdcs.export.importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *rest: None if name == "onnxscript" else find(name, *rest))
    with pytest.raises(UserError, match="format=onnx needs what is not installed: `pip install onnxscript`"):
        export(str(folder), "onnx")


def test_files_of_others_are_refused_and_nothing_in_them_runs(folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    file = tmp_path / "other.safetensors"
    with pytest.raises(UserError, match="cannot be read as safetensors"):
        read_safetensors(file)
    file.write_bytes(b"something else")
    with pytest.raises(UserError, match="cannot be read as safetensors"):
        read_safetensors(file)
    save_file({"weight": torch.zeros(1)}, file)
    with pytest.raises(UserError, match="does not say what its weights belong to"):
        read_safetensors(file)
    description = read_safetensors(export(str(folder), output=str(tmp_path / "good.safetensors"))).description
    description["model"] = {"_target_": "torch.os.system", "command": f"touch {tmp_path}/ran", "head": "cosine"}
    save_file({"weight": torch.zeros(1)}, file, {"mdcs.json": json.dumps(description)})
    with pytest.raises(UserError, match=r"_target_=torch.os.system is not allowed here"):
        read_safetensors(file)
    assert not (tmp_path / "ran").exists()
