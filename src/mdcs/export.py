"""A run to one file that is used without its folder: preprocessing and class names inside, any number of pictures at once."""

import importlib.util
import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.nn import functional as F

import mdcs
from mdcs.build import OTHER_MODEL_KEYS, Run
from mdcs.data.squares import evaluation_crop
from mdcs.errors import UserError
from mdcs.evaluation.combine import combine
from mdcs.instantiate import instantiate
from mdcs.models.expert_net import ExpertNet
from mdcs.output import check_output, complete_or_absent
from mdcs.predict import trained_run
from mdcs.randomness import generator, keyed_globals
from mdcs.types import Backbone

SUFFIXES = {"torch": ".pt2", "onnx": ".onnx", "safetensors": ".safetensors"}
PACKAGES = {"torch": (), "onnx": ("onnx", "onnxscript"), "safetensors": ("safetensors",)}
DESCRIPTION = "mdcs.json"  # names the description in every format
TOLERANCE = 1e-4  # of the written file's probabilities, whose last digits depend on the order in which a runtime sums

USE = {
    "torch": """import json, torch
files = {{"mdcs.json": ""}}; model = torch.export.load({file!r}, extra_files=files).module()
probabilities, expert_logits = model(images)
names = json.loads(files["mdcs.json"])["classes"]""",
    "onnx": """import json, onnxruntime
session = onnxruntime.InferenceSession({file!r})
probabilities, expert_logits = session.run(None, {{"images": images}})
names = json.loads(session.get_modelmeta().custom_metadata_map["mdcs.json"])["classes"]""",
    "safetensors": """from mdcs.export import read_safetensors; model = read_safetensors({file!r})
probabilities, expert_logits = model(images)
names = model.description["classes"]""",
}


class Classifier(nn.Module):
    """What every exported file computes: images (B, 3, S, S) uint8 RGB -> probabilities (B, C), expert_logits (B, K, C), float32.

    x = (mean over squares of `downscale` pixels / 255 − mean) / std, the expert's logits are those of `Run.predict`, and the probabilities
    the softmax of their mean over the experts. `description` is what a user of the file needs to know, in plain values.
    """

    def __init__(self, net: ExpertNet, description: Mapping[str, Any]) -> None:
        super().__init__()
        self.net = net.to(memory_format=torch.contiguous_format).eval().requires_grad_(False)  # answers then need no torch.no_grad()
        self.description = dict(description)
        statistics = torch.tensor([description["mean"], description["std"]]).view(2, 3, 1, 1)
        self.statistics: Tensor
        self.register_buffer("statistics", statistics, persistent=False)
        self.downscale: int = description["downscale"]

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        pixels_B3HW = images.float()
        if self.downscale > 1:
            pixels_B3HW = F.avg_pool2d(pixels_B3HW, self.downscale)
        mean_311, std_311 = self.statistics
        logits_BKC = self.net((pixels_B3HW / 255 - mean_311) / std_311).logits
        return combine(logits_BKC).softmax(-1), logits_BKC

    @property
    def example(self) -> Tensor:
        """Three pictures of noise, always the same."""
        size = self.description["image_size"]
        return torch.randint(0, 256, (3, 3, size, size), dtype=torch.uint8, generator=generator(0, "export"))


def export(run: str, format: str | None = None, output: str | None = None, checkpoint: str | None = None, overwrite: bool = False) -> Path:
    """Write the run in the folder `run` to the file `output` and return its path.

    `format`: torch (a program of torch.export), onnx, or safetensors (weights, for `read_safetensors`); None = what the suffix of `output`
    says. `output` None = model.<suffix> in the run folder. `checkpoint`: last or best, None = the run's own choice. The written file is
    read again and must answer as the run does.
    """
    if format is None and output is not None:
        format = {suffix: name for name, suffix in SUFFIXES.items()}.get(Path(output).suffix.lower())
    if format not in SUFFIXES:
        given = f"format={format}" if format else f"output={output}" if output else "format"
        raise UserError(f"{given}: expected one of {', '.join(SUFFIXES)}, or an output that ends in {', '.join(SUFFIXES.values())}")
    if missing := [package for package in PACKAGES[format] if importlib.util.find_spec(package) is None]:
        raise UserError(f"format={format} needs what is not installed: `pip install {' '.join(missing)}`, or choose another format")
    trained = trained_run(run, checkpoint)
    place = Path(run) / f"model{SUFFIXES[format]}" if output is None else Path(output)
    check_output(place, [SUFFIXES[format]], overwrite)
    classifier = Classifier(trained.net, describe(trained))
    with complete_or_absent(place) as part, without_advice():
        WRITERS[format](classifier, part)
        difference = largest_difference(classifier, format, part)
    if difference is not None and difference > TOLERANCE:
        raise UserError(f"the exported probabilities differ from the run's by up to {difference:.1g}: choose another format")
    show(classifier, format, place, difference)
    return place


def describe(run: Run) -> dict[str, Any]:
    """What goes into the file beside weights and computation."""
    augment, crop = run.module.augment, evaluation_crop(run.source)
    model = {key: value for key, value in run.config["model"].items() if key not in ("pretrained", "compile")}  # the weights are here
    if model.get("image_size", 0) is None:
        model["image_size"] = crop.size  # as of the run, for networks made for one size
    return {
        "classes": list(run.classes.names),
        "image_size": crop.size,  # S
        "resize": crop.short_side,  # of a picture's short side, before the central square of S pixels is cut out
        "mean": list(augment.mean),
        "std": list(augment.std),
        "downscale": augment.downscale,
        "num_experts": run.net.num_experts,
        "model": model,
        "mdcs_version": mdcs.__version__,
    }


def write_torch(classifier: Classifier, file: Path) -> None:
    """A program of torch.export, the description among its extra files."""
    content = io.BytesIO()  # as torch's own writer of files aborts the process where the disk is full
    torch.export.save(traced(classifier), content, extra_files={DESCRIPTION: json.dumps(classifier.description, ensure_ascii=False)})
    file.write_bytes(content.getvalue())


def write_onnx(classifier: Classifier, file: Path) -> None:
    """An ONNX model, the description in its metadata_props."""
    program = torch.onnx.export(
        traced(classifier), input_names=["images"], output_names=["probabilities", "expert_logits"], dynamo=True, verbose=False
    )
    assert program is not None
    program.model.metadata_props[DESCRIPTION] = json.dumps(classifier.description, ensure_ascii=False)
    graph = program.model.graph
    for node in graph:
        node.metadata_props.clear()  # names of the source files they come from
    (pictures,) = graph.inputs
    assert pictures.shape is not None
    batch = str(pictures.shape[0])  # a number that torch chose
    for value in (pictures, *(out for node in graph for out in node.outputs)):
        for axis, size in enumerate(value.shape or ()):
            if str(size) == batch and value.shape is not None:
                value.shape[axis] = "B"
    program.save(file, external_data=False)


def write_safetensors(classifier: Classifier, file: Path) -> None:
    """The network's weights, the description in the header."""
    from safetensors.torch import save

    # copies, as safetensors refuses tensors that share memory, which grouped experts do
    weights = {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in classifier.net.state_dict().items()}
    content = save(weights, {"format": "pt", DESCRIPTION: json.dumps(classifier.description, ensure_ascii=False)})
    file.write_bytes(content)  # save_file would let nobody but the user read it


WRITERS: dict[str, Callable[[Classifier, Path], None]] = {"torch": write_torch, "onnx": write_onnx, "safetensors": write_safetensors}


def read_safetensors(file: str | Path) -> Classifier:
    """The classifier in a file that `mdcs export format=safetensors` has written; nothing of the file is executed.

    >>> probabilities, expert_logits = read_safetensors("model.safetensors")(images)  # doctest: +SKIP
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "pt") as content:
            header = content.metadata() or {}
            weights = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise UserError(f"{file} cannot be read as safetensors ({error}): give what `mdcs export format=safetensors` wrote") from error
    if DESCRIPTION not in header:
        raise UserError(f"{file} does not say what its weights belong to: give what `mdcs export format=safetensors` wrote")
    description = json.loads(header[DESCRIPTION])
    node = description["model"]
    with keyed_globals(0, "export"):
        backbone = instantiate({key: value for key, value in node.items() if key not in OTHER_MODEL_KEYS}, Backbone, "model")
        net = ExpertNet(backbone, len(description["classes"]), node["head"])
    net.load_state_dict(weights)
    return Classifier(net, description)


@torch.no_grad()
def traced(classifier: Classifier) -> ExportedProgram:
    """The computation for any number of pictures, without names of files of this machine."""
    try:
        program = torch.export.export(classifier, (classifier.example,), dynamic_shapes={"images": {0: torch.export.Dim("B", min=1)}})
    except Exception as error:  # a foreign backbone can fail in any way
        name = type(classifier.net.backbone).__name__
        raise UserError(f"torch.export cannot follow {name} ({first_line(error)}): choose format=safetensors") from error
    for module in program.graph_module.modules():
        for node in module.graph.nodes if isinstance(module, torch.fx.GraphModule) else ():
            node.meta.pop("stack_trace", None)
    return program


@torch.no_grad()
def largest_difference(classifier: Classifier, format: str, file: Path) -> float | None:
    """Between the probabilities of the file and of the run, on pictures of noise; None where nothing is installed that runs the file."""
    images = classifier.example
    if format == "torch":
        probabilities = torch.export.load(file).module()(images)[0]
    elif format == "safetensors":
        probabilities = read_safetensors(file)(images)[0]
    elif importlib.util.find_spec("onnxruntime") is None:
        return None
    else:
        import onnxruntime

        session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
        probabilities = torch.from_numpy(session.run(["probabilities"], {"images": images.numpy()})[0])
    return float((probabilities - classifier(images)[0]).abs().max())


@contextmanager
def without_advice() -> Iterator[None]:
    """What exporters tell those who write exporters is left out."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def show(classifier: Classifier, format: str, file: Path, difference: float | None) -> None:
    """Print what the file is and how it is used."""
    description = classifier.description
    size, resize, num_experts = (description[key] for key in ("image_size", "resize", "num_experts"))
    num_classes = len(description["classes"])
    checked = f"probabilities within {difference:.0e} of the run's" if difference else "probabilities equal to the run's"
    if difference is None:
        checked = "not checked: onnxruntime is not installed"
    lines = [
        f"{file}: {format}, {file.stat().st_size / 2**20:.1f} MiB; {checked}",
        f"in:  images (B, 3, {size}, {size}) uint8 RGB, short side resized to {resize} (bilinear), centre cut out; normalised inside",
        f"out: probabilities (B, {num_classes}), expert_logits (B, {num_experts}, {num_classes}) float32",
        *(f"  {line}" for line in USE[format].format(file=file.name).splitlines()),
    ]
    Console().print("\n".join(lines), highlight=False, soft_wrap=True, markup=False)


def first_line(error: Exception) -> str:
    """The first line of a message, or what kind of error has none."""
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
