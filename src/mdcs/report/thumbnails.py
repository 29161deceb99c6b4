"""A few pictures of a run's dataset, small, as data URIs."""

import base64
import inspect
import io
import re
from collections.abc import Sequence
from html import unescape
from pathlib import Path

import torch
from torch import Tensor

from mdcs.data.splits import DataSource, Pictures
from mdcs.errors import UserError
from mdcs.instantiate import instantiate, resolve
from mdcs.report.contents import Contents

SIDE = 96  # pixels, at most
# As page.py writes them.
SHOWN = re.compile(r'src="(data:image/(?:png|jpeg);base64,[A-Za-z0-9+/=]+)" alt="picture (\d+), [^"]*" title="([^"]*)"')


def thumbnails(contents: Contents, wanted: Sequence[int], pictures: Pictures | None = None) -> dict[int, str] | str:
    """A data URI for each wanted position in the split, or one sentence that says why there are none.

    `pictures` is the run's split, if it is at hand. Else those that the run's report.html holds are taken from there, without the dataset.
    Only if others are wanted, because the predictions are of another epoch, say, the dataset is read as config.yaml describes it: its
    lists, and small pictures whole.
    """
    kept = shown_before(contents) if pictures is None else {}
    if all(n in kept for n in wanted):
        return {n: kept[n] for n in wanted}
    try:
        if pictures is None:
            pictures = split_of(contents)
        if len(pictures.labels) != len(contents.predictions.labels):
            raise UserError("the dataset has another number of pictures than were predicted")
        if any(stored_path(pictures.paths[n]) != contents.predictions.paths[n] for n in wanted):
            raise UserError("the dataset holds other pictures than were predicted")
        return {n: data_uri(pictures.plain(torch.tensor([n]))[0]) for n in wanted}
    except (UserError, OSError, ImportError) as reason:
        return f"The pictures are not shown: {' '.join(str(reason).split()) or type(reason).__name__}"


def shown_before(contents: Contents) -> dict[int, str]:
    """The data URIs in the run's own report.html, of pictures that have the same position and path in the predictions."""
    place: Path = contents.folder / "report.html"
    found = SHOWN.findall(place.read_text(encoding="utf-8", errors="replace")) if place.exists() else []
    paths = contents.predictions.paths
    return {int(n): uri for uri, n, path in found if int(n) < len(paths) and unescape(path) == paths[int(n)]}


def split_of(contents: Contents) -> Pictures:
    """The pictures that the run was scored on. They must be here: a report fetches none."""
    node = {key: value for key, value in contents.config["data"].items() if key != "download"}
    known = inspect.signature(resolve(node.get("_target_"), DataSource, "data")).parameters
    # The other settings under `data` are the loader's.
    source: DataSource = instantiate({k: v for k, v in node.items() if k in known or k == "_target_"}, DataSource, "data")
    pictures = source.splits().named().get(contents.scores["split"])
    if pictures is None:
        raise UserError(f"the dataset has no {contents.scores['split']} split any more")
    return pictures


def stored_path(path: str) -> str:
    """As it stands in paths.txt, where a name with line breaks is written with escapes."""
    return path.replace("\\", "\\\\").replace("\n", "\\n").replace("\r", "\\r") if "\n" in path or "\r" in path else path


def data_uri(image_3HW: Tensor) -> str:
    """PNG of a tiny picture as it is; JPEG of a larger one, reduced to SIDE."""
    from PIL import Image

    image, file = Image.fromarray(image_3HW.permute(1, 2, 0).contiguous().numpy()), io.BytesIO()
    tiny = max(image.size) <= 32
    if tiny:
        image.save(file, "PNG", optimize=True)
    else:
        image.thumbnail((SIDE, SIDE))
        image.save(file, "JPEG", quality=80)
    return f"data:image/{'png' if tiny else 'jpeg'};base64,{base64.b64encode(file.getvalue()).decode()}"
