"""Small files of ours, so written that a reader or a kill never sees a part of one."""

import os
from pathlib import Path


def write_durably(path: Path, text: str) -> None:
    """Write beside the place, sync, rename: a reader sees the old file or the new one, never a part."""
    part = path.with_name(path.name + ".part")
    with open(part, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)
