"""How long a run waits for its first episode: a made-up index of COCO 2014's size, opened in a new process.

python scripts/bench_start.py
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from fss_svf.data.index import Index

CLASSES = 80

CHILD = """
import sys, time
began = time.perf_counter()
from pathlib import Path
from fss_svf.data.dataset import DatasetOptions
from fss_svf.data.fold import Fold
from fss_svf.data.index import Index
imported = time.perf_counter()
path = Path(sys.argv[1])
index = Index.load(path)
loaded = time.perf_counter()
options = DatasetOptions(path.parent, path.parent, "mod4", 2048, True, "error", "mask")
sampler = Fold(options, index.class_names, 0).sampler(index, "train", 5, 321, "shuffled_epochs")
sampler[0]
first = time.perf_counter()
for number in range(1, 1001):
    sampler[number]
more = time.perf_counter()
hashed = index.hash
print(imported - began, loaded - imported, first - loaded, first - began, (more - first), time.perf_counter() - more,
      len(sampler))
"""


def made_up_index(images: int, seed: int = 0) -> Index:
    """About 2.9 classes an image, as in COCO, of very unequal frequency."""
    random = np.random.default_rng(seed)
    areas = np.zeros((images, CLASSES + 1), np.int32)
    frequency = 1 / np.arange(1, CLASSES + 1)
    for place in range(3):
        chosen = random.choice(CLASSES, images, p=frequency / frequency.sum()) + 1
        areas[np.arange(images), chosen] = random.integers(100 if place else 2048, 100_000, images)
    names = np.array([f"COCO_train2014_{i:012d}" for i in range(images)])
    return Index(names, np.full((images, 2), 480, np.int32), areas, tuple(map(str, range(1, CLASSES + 1))), "made up")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=82_000)
    parser.add_argument("--repeat", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "index.npz"
        made_up_index(arguments.images).save(path)
        rows = []
        for _ in range(arguments.repeat):
            done = subprocess.run([sys.executable, "-c", CHILD, str(path)], check=True, capture_output=True, text=True)
            rows.append([float(value) for value in done.stdout.split()])
        size = path.stat().st_size / 1e6
    imported, loaded, first, total, thousand, hashed, listed = np.median(rows, axis=0)
    print(f"{arguments.images:,} images x {CLASSES} classes, index of {size:.1f} MB, {listed:,.0f} listed in fold 0")
    print(
        f"import {imported:.2f} s, open {loaded:.2f} s, sampler and first episode {first:.2f} s: {total:.2f} s in all"
    )
    print(f"a further 1,000 5-shot episodes {thousand:.2f} s; the index's hash, for the checkpoint, {hashed:.2f} s")


if __name__ == "__main__":
    main()
