"""How long `fss-svf prepare dataset=coco` takes and how much memory, on made-up data shaped like COCO.

    python scripts/bench_prepare.py                                                  # read and draw 3,000 images
    python scripts/bench_prepare.py --annotations 604907 --images 82081 --read-only  # COCO 2014's train JSON, read only

Each row is a process of its own. CPU seconds are those of main process and workers; beside other work on the machine
they say more than the clock. Memory is read from /proc (Linux): the main process at its highest, and main process and
workers together (shared pages counted once), sampled every 50 ms.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

COCO_2014 = {"annotations": 604_907, "images": 82_081}  # instances_train2014.json: instances, images that hold one
MIB = 1 << 20
SIZES = ((480, 640), (640, 480), (427, 640), (640, 427), (375, 500), (612, 612))  # height, width
SHARES = (0.45, 0.2, 0.15, 0.1, 0.05, 0.05)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--annotations", type=int, default=20_000)
    parser.add_argument("--images", type=int, default=3_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--read-only", action="store_true", help="make no images; measure the reading of the JSON")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, os.cpu_count() or 1], help="0: in one process")
    parser.add_argument("--job", nargs="+", help=argparse.SUPPRESS)  # what a measured process is told to do
    options = parser.parse_args()
    if options.job:
        work(*options.job)
        return
    with tempfile.TemporaryDirectory(prefix="bench_prepare_") as folder:
        root = Path(folder)
        began = time.perf_counter()
        make_dataset(root, options.annotations, options.images, options.seed, jpegs=not options.read_only)
        size = (root / "instances.json").stat().st_size
        print(
            f"made {options.annotations:,} annotations of {options.images:,} images: {size / MIB:,.0f} MiB of JSON "
            f"({size / options.annotations:,.0f} bytes each), in {time.perf_counter() - began:.0f} s"
        )
        rows = {"import": measure("import", root), "read": measure("read", root)}
        if not options.read_only:
            for workers in options.workers:
                rows[f"prepare workers={workers}"] = measure("prepare", root, workers)
                rows[f"again   workers={workers}"] = measure("again", root, workers)
    print_table(rows, options.annotations, options.images)


def print_table(rows: dict[str, dict[str, float]], annotations: int, images: int) -> None:
    """Times and peaks as measured, against the first row of a preparation, and extrapolated to COCO 2014's train split.

    Reading and memory grow with the annotations, drawing with the images, the import with nothing.
    """
    by_annotations, by_images = COCO_2014["annotations"] / annotations, COCO_2014["images"] / images
    base, read = rows["import"], rows["read"]
    first = next((row for name, row in rows.items() if name.startswith("prepare")), read)
    print(f"\n{'':20}{'measured':>38}{'':>9}{'COCO 2014 train':>32}")
    heads = f"{'seconds':>9}{'ratio':>7}{'CPU s':>8}{'main MiB':>9}{'tree MiB':>9}"
    print(f"{'':20}{heads}{'seconds':>12}{'CPU s':>9}{'tree MiB':>10}")
    for name, row in rows.items():
        grown = {
            key: base[key]
            + (name != "import") * max(0.0, read[key] - base[key]) * by_annotations
            + (name not in ("import", "read")) * max(0.0, row[key] - read[key]) * by_images
            for key in ("seconds", "cpu")
        }
        # Of a run with workers, only what the main process holds grows with the data.
        tree = row["tree"] + max(0.0, row["main"] - base["main"]) * (by_annotations - 1)
        print(
            f"{name:20}{row['seconds']:9.2f}{row['seconds'] / first['seconds']:7.2f}{row['cpu']:8.2f}"
            f"{row['main'] / MIB:9.0f}{row['tree'] / MIB:9.0f}"
            f"{grown['seconds']:12.0f}{grown['cpu']:9.0f}{tree / MIB:10.0f}"
        )


# ---------------------------------------------------------------------------------------------------------------------
# Measuring


def measure(*job: object) -> dict[str, float]:
    """Run this script as `--job ...`: seconds by the clock and of CPU, peaks of memory in bytes (0 without /proc)."""
    began, tree = time.perf_counter(), 0
    process = subprocess.Popen([sys.executable, __file__, "--job", *map(str, job)], stdout=subprocess.PIPE, text=True)
    while process.poll() is None:
        tree = max(tree, sum(map(shared_out, family(process.pid))))
        time.sleep(0.05)
    seconds = time.perf_counter() - began
    assert process.stdout is not None
    printed = process.stdout.read()
    if process.returncode != 0:
        sys.exit(f"bench_prepare: --job {' '.join(map(str, job))} failed with status {process.returncode}")
    cpu, main_peak = map(float, printed.split()[-2:])
    return {"seconds": seconds, "cpu": cpu, "main": main_peak, "tree": max(tree, main_peak)}


def family(pid: int) -> list[int]:
    """A process and its descendants, as far as they still live."""
    found = [pid]
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            found += [member for child in task.read_text().split() for member in family(int(child))]
        except OSError:
            continue  # ended meanwhile
    return found


def shared_out(pid: int) -> int:
    """Bytes of a process in memory, a page that n processes share counted as 1 / n of it."""
    return kib_of(f"/proc/{pid}/smaps_rollup", "Pss:") * 1024


def kib_of(path: str, key: str) -> int:
    try:
        lines = Path(path).read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith(key)), 0)


def work(job: str, folder: str, workers: str = "0") -> None:
    """In a measured process. Its last words are its CPU seconds and its peak of memory in bytes."""
    from fss_svf.data.coco import Coco, CocoOptions, CocoSplit
    from fss_svf.data.coco_annotations import Annotations
    from fss_svf.registry import DATASETS

    DATASETS.entry("coco")  # imports every dataset, as the command line does

    root = Path(folder)
    if job == "read":
        kept = Annotations(root / "instances.json")
        assert kept.class_names
    elif job != "import":
        split = CocoSplit(annotations="instances.json", images="images")
        data = Coco(
            CocoOptions(
                root=root,
                prepared=root / f"prepared{workers}",
                class_partition="mod4",
                min_area=2048,
                filter_novel=True,
                too_few_images="error",
                support_annotation="mask",
                train=split,
                val=split,
                mask_mode="official",
                query_order="official",
                allow_missing=False,
                check_counts=False,
            )
        )
        print(data.prepare(int(workers))["train"].hash)
    # Not ru_maxrss: that of a new process begins at its parent's.
    print(sum(os.times()[:4]), kib_of("/proc/self/status", "VmHWM:") * 1024)


# ---------------------------------------------------------------------------------------------------------------------
# Making data


def make_dataset(root: Path, annotations: int, images: int, seed: int, jpegs: bool) -> None:
    """Write instances.json, and with `jpegs` a flat grey JPEG for every image."""
    rng = np.random.default_rng(seed)
    sizes = [SIZES[i] for i in rng.choice(len(SIZES), images, p=SHARES)]
    names = [f"COCO_train2014_{7 * number + 9:012d}.jpg" for number in range(images)]
    infos = [image_info(names[i], 7 * i + 9, *sizes[i]) for i in range(images)]
    categories = [{"supercategory": "thing", "id": i, "name": f"thing{i}"} for i in range(1, 81)]
    # Every image has one at least; the others are spread, and mixed as in COCO.
    of_image = rng.permutation(np.concatenate([np.arange(images), rng.integers(0, images, annotations - images)]))
    with (root / "instances.json").open("w") as file:
        file.write('{"info": {"year": 2014}, "images": ' + json.dumps(infos) + ', "annotations": [')
        for number, image in enumerate(of_image.tolist()):
            file.write(", " if number else "")
            file.write(json.dumps(annotation(rng, number, 7 * image + 9, sizes[image])))
        file.write('], "categories": ' + json.dumps(categories) + "}")
    if jpegs:
        (root / "images").mkdir()
        content = {size: flat_jpeg(*size) for size in SIZES}
        for name, size in zip(names, sizes):
            (root / "images" / name).write_bytes(content[size])


def image_info(name: str, number: int, height: int, width: int) -> dict[str, Any]:
    """An entry of "images" with all that COCO writes."""
    return {
        "license": 3,
        "file_name": name,
        "coco_url": f"http://mscoco.org/images/{number}",
        "height": height,
        "width": width,
        "date_captured": "2013-11-14 16:28:13",
        "flickr_url": f"http://farm4.staticflickr.com/3153/{number:010d}_cbb4ad6d6c_z.jpg",
        "id": number,
    }


def annotation(rng: np.random.Generator, number: int, image_id: int, size: tuple[int, int]) -> dict[str, Any]:
    """One object: 1 % are crowds as run lengths, 10 % of the others come in several polygons."""
    height, width = size
    crowd = bool(rng.random() < 0.01)
    radius = float(np.clip(22 * np.exp(1.05 * rng.standard_normal()), 2, 250))
    if crowd:
        ends = np.unique(rng.integers(1, height * width, 2 * int(rng.integers(100, 500))))
        segmentation: Any = {
            "counts": np.diff(ends, prepend=0, append=height * width).tolist(),
            "size": [height, width],
        }
    else:
        points = int(np.clip(25 * np.exp(0.65 * rng.standard_normal()), 4, 600))
        parts = int(rng.integers(2, 5)) if rng.random() < 0.1 else 1
        segmentation = [outline(rng, max(3, points // parts), radius, size) for _ in range(parts)]
    return {
        "segmentation": segmentation,
        "area": round(3 * radius**2, 4),
        "iscrowd": int(crowd),
        "image_id": image_id,
        "bbox": [round(float(v), 2) for v in rng.uniform(0, min(size), 4)],
        "category_id": int(rng.integers(1, 81)),
        "id": number + 1,
    }


def outline(rng: np.random.Generator, points: int, radius: float, size: tuple[int, int]) -> list[float]:
    """A rough star around a spot of the image, x, y, x, y, ... in hundredths of a pixel, cut off at the frame."""
    angles = np.sort(rng.uniform(0, 2 * np.pi, points))
    reach = radius * rng.uniform(0.7, 1.3, points)
    xy = np.stack([reach * np.cos(angles), reach * np.sin(angles)], axis=1) + rng.uniform(0, 1, 2) * size[::-1]
    return np.round(np.clip(xy, 0, size[::-1]), 2).reshape(-1).tolist()


def flat_jpeg(height: int, width: int) -> bytes:
    """One colour: a small file with the header of an image of this size."""
    file = BytesIO()
    Image.new("RGB", (width, height), (90, 90, 90)).save(file, format="JPEG")
    return file.getvalue()


if __name__ == "__main__":
    main()
