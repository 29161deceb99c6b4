"""The records of an offline W&B run, read back from its file: W&B has no reader of it in Python."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from wandb.proto.wandb_internal_pb2 import Record

HEADER, BLOCK, CHUNK_HEADER = 7, 32 * 1024, 7
LAST_PARTS = (1, 4)  # a record in one piece, or its last piece; 2 is a first and 3 a middle one


class OfflineRun(NamedTuple):
    """What one file says."""

    run: Any  # RunRecord: run_id, project, run_group, display_name, tags
    config: dict[str, Any]
    history: list[dict[str, Any]]
    summary: dict[str, Any]
    artifacts: list[Any]
    exit_code: int | None
    output: list[Any]  # captured lines of the screen
    folder: Path


def records(path: Path) -> Iterator[Record]:
    """LevelDB's log format: blocks of 32 KiB hold chunks of checksum (4 bytes), length (2), kind (1) and data."""
    content, place, whole = path.read_bytes(), HEADER, b""
    while place + CHUNK_HEADER <= len(content):
        left = BLOCK - place % BLOCK
        if left < CHUNK_HEADER:  # the rest of a block is filled with zeros
            place += left
            continue
        length, kind = int.from_bytes(content[place + 4 : place + 6], "little"), content[place + 6]
        whole += content[place + CHUNK_HEADER : place + CHUNK_HEADER + length]
        place += CHUNK_HEADER + length
        if kind in LAST_PARTS:
            record = Record()
            record.ParseFromString(whole)
            yield record
            whole = b""


def items(entries: Any) -> dict[str, Any]:
    """Key-value pairs, nested keys joined by dots."""
    return {entry.key or ".".join(entry.nested_key): json.loads(entry.value_json) for entry in entries}


def read(path: Path) -> OfflineRun:
    """All of one run's file."""
    run, config, history, summary, artifacts, code, output = None, {}, [], {}, [], None, []
    for record in records(path):
        kind = record.WhichOneof("record_type")
        if kind == "run":
            run = record.run
            config |= items(record.run.config.update)
        elif kind == "config":
            config |= items(record.config.update)
        elif kind == "history":
            history.append(items(record.history.item))
        elif kind == "summary":
            summary |= items(record.summary.update)
        elif kind == "artifact":
            artifacts.append(record.artifact)
        elif kind == "exit":
            code = record.exit.exit_code
        elif kind in ("output", "output_raw"):
            output.append(record)
    return OfflineRun(run, config, history, summary, artifacts, code, output, path.parent)


def offline_runs(folder: Path) -> list[OfflineRun]:
    """Those that lie in a run folder, oldest first; W&B's process writes the end of a file a moment after the run is finished."""
    paths, last = sorted(folder.glob("wandb/offline-run-*/*.wandb")), time.monotonic() + 20
    runs = [read(path) for path in paths]
    while any(run.exit_code is None for run in runs) and time.monotonic() < last:
        time.sleep(0.05)
        runs = [read(path) for path in paths]
    return runs
