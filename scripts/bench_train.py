"""A training step (forward, losses, backward, optimizer) in each precision, in channels-last and compiled.

On a CPU the sides are float32, float32 channels-last, bf16 channels-last, and that compiled; on a GPU float32, tf32, bf16,
bf16 channels-last, and that compiled. All start from the same weights, on the same episodes with dropout asleep, and
their first losses are compared. Ratios to the first side are medians over interleaved repetitions in one process, after
two steps of each side that compile and fill caches. Optimizers are fused on a GPU. Peak memory is that of a process of its
own, on the GPU, or above its imports with freed memory kept (CPU).

--loader adds the share of its time that a training waits for data: the last side's steps on episodes of a prepared dataset,
loaded by --workers processes as fss-svf train loads them. The first steps, while loaders start, are left out.

    OMP_NUM_THREADS=2 python scripts/bench_train.py --size 145
    python scripts/bench_train.py --device cuda --batch 8
    fss-svf prepare dataset=toy && python scripts/bench_train.py --device cuda --batch 8 --loader --dataset toy
"""

from __future__ import annotations

import argparse
import copy
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from statistics import median

import torch
from bench_loader import AUGMENT
from bench_methods import choice, make_episode, peak_resident
from torch import nn

from fss_svf.config import Optimizer, Precision
from fss_svf.data.dataset import Dataset
from fss_svf.data.fold import Fold
from fss_svf.data.loading import TrainEpisodes, batches, collate_episodes
from fss_svf.episode import Episode
from fss_svf.methods.base_classes import BaseClassMethod
from fss_svf.methods.method import FewShotMethod
from fss_svf.model import build_backbone, choose_device, compile_stages, place
from fss_svf.precision import autocast, gradient_scaler, set_tf32
from fss_svf.registry import BACKBONES, DATASETS, METHODS, TUNINGS
from fss_svf.training.optim import make_optimizer

# Those of recipe=svf.
OPTIMIZER = Optimizer("sgd", lr=0.015, backbone_lr=0.0015, momentum=0.9, weight_decay=1e-4)


@dataclass(frozen=True)
class Way:
    """How a side trains."""

    precision: Precision
    channels_last: bool = False
    compiled: bool = False

    def __str__(self) -> str:
        return self.precision + ", channels-last" * self.channels_last + ", compiled" * self.compiled


WAYS = {
    "cpu": [Way("float32"), Way("float32", True), Way("bf16", True), Way("bf16", True, True)],
    "cuda": [Way("float32"), Way("tf32"), Way("bf16"), Way("bf16", True), Way("bf16", True, True)],
}


class Side:
    """A model of its own that trains in a way."""

    def __init__(self, way: Way, model: FewShotMethod, device: torch.device) -> None:
        self.way, self.model, self.device = way, model.train(), device
        for module in model.modules():
            if isinstance(module, nn.modules.dropout._DropoutNd):
                module.eval()  # the same work, and comparable
        place(model, device, way.channels_last)
        if way.compiled:
            compile_stages(model.backbone)
        self.optimizer = make_optimizer(model, model.backbone, OPTIMIZER)
        self.scaler = gradient_scaler(device, way.precision)

    def step(self, batch: Episode) -> float:
        """One training step from a batch on the CPU or the device: its loss, when the device has finished."""
        set_tf32(self.way.precision)
        episode = batch.to(self.device).normalized()
        with autocast(self.device, self.way.precision):
            loss = torch.stack(list(self.model.losses(self.model(episode), episode).values())).sum()
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return float(loss.detach())


def compare(options: argparse.Namespace) -> None:
    """Print a table for every method and tuning."""
    device = choose_device(options.device)
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} threads"
    print(
        f"{options.backbone}, {options.shot}-shot, {options.batch} episodes of {options.size} pixels, {where}, PyTorch "
        f"{torch.__version__}, medians of {options.repetitions}"
    )
    ways = [way for way in WAYS[device.type] if not (way.compiled and options.no_compile)]
    torch.manual_seed(0)
    plain, _ = build_backbone(choice(BACKBONES, options.backbone, options.shot))
    for tuning in options.tunings:
        # Decomposed once for all methods; on one thread, see svf.decompose.
        net, threads = copy.deepcopy(plain), torch.get_num_threads()
        torch.set_num_threads(1)
        TUNINGS.build(choice(TUNINGS, tuning, options.shot), net)
        torch.set_num_threads(threads)
        for method in options.methods:
            torch.manual_seed(1)
            model: FewShotMethod = METHODS.build(choice(METHODS, method, options.shot), copy.deepcopy(net))
            print(f"\n{method + ', ' + tuning:36}seconds   ratio   first step{'':6}peak MB", flush=True)
            compare_ways(model, ways, device, options)


def compare_ways(model: FewShotMethod, ways: list[Way], device: torch.device, options: argparse.Namespace) -> None:
    """Print the rows of one method and tuning."""
    base_classes = model.base.classes if isinstance(model, BaseClassMethod) else 0
    episode = make_episode(options.batch, options.shot, options.size, base_classes)
    peaks = [peak_memory(way, model, episode, device, options.no_memory) for way in ways]
    sides = [Side(way, copy.deepcopy(model), device) for way in ways]
    episode = episode.to(device)
    firsts, losses = zip(*(timed(side, episode) for side in sides))
    for side, loss in zip(sides, losses):
        assert abs(loss / losses[0] - 1) < 0.03, (str(side.way), loss, losses[0])
    for side in sides:
        side.step(episode)
    taken = [[timed(side, episode)[0] for side in sides] for _ in range(options.repetitions)]
    for i, (way, first, peak) in enumerate(zip(ways, firsts, peaks)):
        seconds, ratio = median(t[i] for t in taken), median(t[0] / t[i] for t in taken)
        print(f"{way!s:36}{seconds:7.3f}{ratio:8.2f}{first:11.1f} s{peak:12.0f}", flush=True)
    if options.loader:
        # A wait does not depend on what the head makes of the episodes, whose base labels are loaded where it needs them.
        print_waits(sides[-1], options)


def timed(side: Side, episode: Episode) -> tuple[float, float]:
    """Seconds of a step, and its loss."""
    began = time.perf_counter()
    loss = side.step(episode)
    return time.perf_counter() - began, loss


def print_waits(side: Side, options: argparse.Namespace) -> None:
    """Print the share of time without a batch, while loader processes run."""
    dataset: Dataset = DATASETS.build(choice(DATASETS, options.dataset, options.shot))
    split = dataset.split("train")
    fold = Fold(dataset.options, split.index.class_names, 0)
    sampler = fold.sampler(split.index, "train", options.shot, 0, "shuffled_epochs")
    base = fold.base if isinstance(side.model, BaseClassMethod) else None
    make = TrainEpisodes(split, sampler, options.size, AUGMENT, dataset.options.support_annotation, base)
    start, steps = max(5, options.workers), max(20, 4 * options.workers)
    numbers = range((start + steps) * options.batch)
    cuda = side.device.type == "cuda"
    stream = batches(make, collate_episodes, numbers, options.batch, options.workers, cuda)
    try:
        for batch in islice(stream, start):
            side.step(batch)
        waited, total = waits(side, stream)
    finally:
        stream.close()
    print(
        f"{side.way!s:36}{total / steps:7.3f} s a step on {options.dataset}, {options.workers} loader processes: "
        f"{waited / total:.1%} of it waiting for data",
        flush=True,
    )


def waits(side: Side, stream: Iterable[Episode]) -> tuple[float, float]:
    """Seconds spent waiting for batches, and in all."""
    waited, began = 0.0, time.perf_counter()
    ready = began
    for batch in stream:
        waited += time.perf_counter() - ready
        side.step(batch)
        ready = time.perf_counter()
    return waited, ready - began


def peak_memory(way: Way, model: FewShotMethod, episode: Episode, device: torch.device, skip: bool) -> float:
    """Megabytes of three steps, in a process of its own; nan where it is not asked for."""
    if skip:
        return float("nan")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "side.pt"
        torch.save((way, model, episode, device), file)
        command = [sys.executable, __file__, "--measure", str(file)]
        return float(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def measure(file: str) -> None:
    """In that process: print the peak."""
    before = peak_resident()
    way, model, episode, device = torch.load(file, weights_only=False)
    side = Side(way, model, device)
    for _ in range(3):
        side.step(episode)
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else peak_resident() - before
    print(peak / 1e6)


def main() -> None:
    parser = argparse.ArgumentParser(description="Training steps in each precision, memory format, and compiled.")
    parser.add_argument("--methods", nargs="+", choices=METHODS.names(), default=["baseline", "pfenet", "bam"])
    parser.add_argument("--tunings", nargs="+", choices=TUNINGS.names(), default=["frozen", "svf"])
    parser.add_argument("--backbone", choices=BACKBONES.names(), default="resnet50", help="with random weights")
    parser.add_argument("--shot", type=int, default=1)
    parser.add_argument("--size", type=int, default=473)
    parser.add_argument("--batch", type=int, default=2, help="episodes")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--no-compile", action="store_true", help="leave compiled sides out")
    parser.add_argument("--no-memory", action="store_true")
    parser.add_argument("--loader", action="store_true", help="measure waits for data, too")
    parser.add_argument("--dataset", default="toy", help="of --loader; prepared")
    parser.add_argument("--workers", type=int, default=8, help="of --loader")
    parser.add_argument("--measure", help=argparse.SUPPRESS)  # what peak_memory starts
    options = parser.parse_args()
    if options.measure:
        measure(options.measure)
    else:
        compare(options)


if __name__ == "__main__":
    main()
