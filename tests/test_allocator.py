"""Freed memory stays in the process."""

import subprocess
import sys

import pytest

from fss_svf.allocator import keep_freed_memory

SCRIPT = """
import resource, torch
from fss_svf.allocator import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.zeros(50_000_000, dtype=torch.uint8).add_(1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults()
installed = faults()
assert keep_freed_memory()
faults()
kept = faults()
assert keep_freed_memory(False)
faults()
again = faults()
print(installed, kept, again)
"""


@pytest.mark.skipif(not keep_freed_memory(False), reason="glibc's malloc alone can be told")
def test_kept_memory_is_not_mapped_anew():
    out = subprocess.run([sys.executable, "-c", SCRIPT], check=True, stdout=subprocess.PIPE, text=True).stdout
    installed, kept, again = map(int, out.split())
    # Pages may be large ones: a ratio, not a number.
    assert kept < installed / 5
    assert kept < again / 5
