"""Freed memory stays in the process."""

import platform
import subprocess
import sys

import pytest

SCRIPT = """
import resource, torch
from fss_svf.allocator import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.zeros(100_000_000, dtype=torch.uint8).add_(1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults()
installed = faults()
assert keep_freed_memory()
faults()
print(installed, faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's malloc alone can be told")
def test_kept_memory_is_not_mapped_anew():
    out = subprocess.run([sys.executable, "-c", SCRIPT], check=True, stdout=subprocess.PIPE, text=True).stdout
    installed, kept = map(int, out.split())
    assert kept < installed / 5  # pages may be large ones: a ratio, not a number
