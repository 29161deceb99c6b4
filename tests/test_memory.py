"""Freed memory is kept while a run trains, and given back after; the peak of a process."""

import json
import subprocess
import sys

import pytest
import torch

from mdcs.training import memory
from mdcs.training.memory import begin_on, freed_memory_kept, peak_mib

# In a process of its own: what other tests have left free in the heap would serve these blocks without a page from the system.
MEASURE = """
import json, resource, torch
from mdcs.training.memory import freed_memory_kept

def faults():  # pages that the system hands out while the same 64 MiB are wanted four times, after once
    torch.ones(2**24)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        torch.ones(2**24)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize() // 2**20

before = faults()
with freed_memory_kept():
    within = [faults() for _ in range(6)][-1]  # the first few find places for the blocks
    kept = resident()
print(json.dumps([before, within, faults(), kept - resident()]))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux") or torch.accelerator.is_available(), reason="for glibc, without an accelerator")
def test_freed_memory_is_kept_and_then_given_back() -> None:
    done = subprocess.run([sys.executable, "-c", MEASURE], capture_output=True, text=True, check=True)
    before, within, after, mib_given_back = json.loads(done.stdout)
    assert within < 0.1 * min(before, after), done.stdout  # with huge pages in use, the others are fewer than one for 4 KiB
    assert mib_given_back > 48


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_the_peak_is_that_of_the_process_alone() -> None:
    """The counter of getrusage would begin with the parent's."""
    block = torch.ones(2**27)  # 512 MiB
    assert peak_mib() > 512
    program = "import runpy, sys, types; sys.modules['torch'] = types.SimpleNamespace(device=None)\n"  # torch itself would take as much
    program += "print(runpy.run_path(sys.argv[1])['peak_mib']())"
    done = subprocess.run([sys.executable, "-c", program, memory.__file__], capture_output=True, text=True, check=True)
    assert 1 < float(done.stdout) < 256 and len(block)


def test_each_run_of_a_process_begins_on_a_free_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[object] = []
    monkeypatch.setattr(memory.gc, "collect", lambda: done.append("collect"))
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: done.append("empty"))
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", done.append)
    begin_on(torch.device("cpu"))
    begin_on(torch.device("cuda", 1))  # as a process begins; torch would refuse to reset what is not initialised
    assert not done
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    begin_on(torch.device("cuda", 1))
    assert done == ["collect", "empty", torch.device("cuda", 1)]


def test_an_error_passes_through() -> None:
    with pytest.raises(KeyError), freed_memory_kept():
        raise KeyError
