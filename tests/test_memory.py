"""Freed memory is kept while a run trains, and given back after."""

import resource
import sys

import pytest
import torch

from mdcs.training.memory import freed_memory_kept

MIB_64 = 2**24  # float32 numbers


def faults_of_allocating_again() -> int:
    """Pages that the system hands out while the same 64 MiB are wanted four times, after once."""
    torch.ones(MIB_64)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        torch.ones(MIB_64)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def resident_mib() -> int:
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * resource.getpagesize() // 2**20


@pytest.mark.skipif(not sys.platform.startswith("linux") or torch.accelerator.is_available(), reason="for glibc, without an accelerator")
def test_freed_memory_is_kept_and_then_given_back() -> None:
    pages = 4 * MIB_64 * 4 // resource.getpagesize()
    assert faults_of_allocating_again() > 0.9 * pages
    with freed_memory_kept():
        faults = [faults_of_allocating_again() for _ in range(6)]  # the first few find places for the blocks
        assert faults[-1] < 0.1 * pages, faults
        kept = resident_mib()
    assert kept - resident_mib() > 48
    assert faults_of_allocating_again() > 0.9 * pages


def test_an_error_passes_through() -> None:
    with pytest.raises(KeyError), freed_memory_kept():
        raise KeyError
