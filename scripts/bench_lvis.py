"""Seconds and memory of `fss-svf prepare dataset=lvis`, and of the start of a run, on made-up data of LVIS' size.

    python scripts/bench_lvis.py                                              # val: 244,707 annotations of 19,809 images
    python scripts/bench_lvis.py --annotations 1270141 --images 100170        # as large as train

The measuring is that of bench_prepare.py; its outlines are COCO's, here in 1,203 classes of unequal frequency.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from bench_prepare import MIB, SHARES, SIZES, annotation, family, flat_jpeg, kib_of, shared_out

CLASSES = 1203


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--annotations", type=int, default=244_707)
    parser.add_argument("--images", type=int, default=19_809)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--job", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.job:
        work(*options.job)
        return
    with tempfile.TemporaryDirectory(prefix="bench_lvis_") as folder:
        root = Path(folder)
        make_dataset(root, options.annotations, options.images)
        print(
            f"{options.annotations:,} annotations, {(root / 'lvis_v1_val.json').stat().st_size / MIB:,.0f} MiB of JSON"
        )
        for job in ("read", "prepare", "start"):
            began, tree = time.perf_counter(), 0
            process = subprocess.Popen([sys.executable, __file__, "--job", job, folder, str(options.workers)])
            while process.poll() is None:
                tree = max(tree, sum(map(shared_out, family(process.pid))))
                time.sleep(0.1)
            print(
                f"{job}: {time.perf_counter() - began:.1f} s in all, {tree / MIB:,.0f} MiB of all processes", flush=True
            )


def work(job: str, folder: str, workers: str) -> None:
    from fss_svf.data.coco_annotations import Annotations
    from fss_svf.data.fold import Fold
    from fss_svf.registry import DATASETS

    entry, root = DATASETS.entry("lvis"), Path(folder)
    options = entry.options(
        root=root, prepared=root / "prepared", train="none.json", val="lvis_v1_val.json", allow_missing=False, min_area=1,
        filter_novel=False, too_few_images="skip", support_annotation="mask",
    )  # fmt: skip
    began = time.perf_counter()
    if job == "read":
        kept = Annotations(root / "lvis_v1_val.json")
        assert kept.class_names
    elif job == "prepare":
        entry.build(options).prepare(int(workers))
    else:
        split = entry.build(options).split("val")
        Fold(options, split.index.class_names, 0).sampler(split.index, "val", 1, 0, "random")[0]
        assert split.index.hash
    used, peak = sum(os.times()[:4]), kib_of("/proc/self/status", "VmHWM:")
    print(
        f"{job}: {time.perf_counter() - began:.1f} s, {used:.0f} CPU s with imports, {peak / 1024:,.0f} MiB of the main one"
    )


def make_dataset(root: Path, annotations: int, images: int) -> None:
    """Images in train2017, and one JSON. Each image has an annotation or more."""
    rng = np.random.default_rng(0)
    sizes = [SIZES[i] for i in rng.choice(len(SIZES), images, p=SHARES)]
    frequency = 1 / np.arange(1, CLASSES + 1)
    classes = rng.choice(CLASSES, annotations, p=frequency / frequency.sum()) + 1
    of_image = rng.permutation(np.concatenate([np.arange(images), rng.integers(0, images, annotations - images)]))
    (root / "train2017").mkdir()
    content = {size: flat_jpeg(*size) for size in SIZES}
    infos = []
    for number, (height, width) in enumerate(sizes):
        url = f"http://images.cocodataset.org/train2017/{number:012d}.jpg"
        infos.append({"id": number, "coco_url": url, "height": height, "width": width})
        (root / "train2017" / f"{number:012d}.jpg").write_bytes(content[height, width])
    categories = [{"id": c, "name": f"thing {c}", "frequency": "r"} for c in range(1, CLASSES + 1)]
    with (root / "lvis_v1_val.json").open("w") as file:
        file.write(f'{{"images": {json.dumps(infos)}, "categories": {json.dumps(categories)}, "annotations": [')
        for number, image in enumerate(of_image.tolist()):
            entry = annotation(rng, number, image, sizes[image]) | {"category_id": int(classes[number])}
            file.write((", " if number else "") + json.dumps(entry))
        file.write("]}")


if __name__ == "__main__":
    main()
