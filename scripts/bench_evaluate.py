"""The evaluation engine against a plain loop, on the same episodes and weights, with SVF merged.

engine    evaluate_lists over all shots and seeds at once, as `fss-svf evaluate` runs it
plain     one episode at a time: the whole network for the query and for each support, the method's own forward, in
          contiguous memory. ResNets run convolution, BatchNorm and ReLU one after the other, unless the method reads sums
          of their joined blocks (SSP, HSNet, DCAMA). Of the baseline, PFENet and BAM as the
          official code does it: in a loop over shots; BAM's base learner from the image up, on a backbone of its own; the
          prior over all pairs of positions; PFENet's auxiliary heads, whose outputs nothing reads
factored  (--factored) the same, every convolution of a ResNet as conv_V, a product with S, conv_U

All load in the process that computes, keep freed memory, and count the same outputs: of BAM the final one, the meta
learner's and the base learner's. A plain loop runs a sample, evenly spaced over the episodes of each number of shots, half
of it before the engine and half after; its mean time an episode stands for all. Heads and base learner are random, with a
bias for which about half of all pixels are object; S is moved, so that BAM's two backbones differ. At most 1 pixel in
100,000 of plain's sample may turn.

The peak is the fastest of some large float32 matrix products and 3x3 convolutions in this process; FLOPs are those of
convolutions and matrix products that the engine's calls need.

    OMP_NUM_THREADS=2 python scripts/bench_evaluate.py --images VOC2012 --weights resnet50.pth
    OMP_NUM_THREADS=2 python scripts/bench_evaluate.py --images VOC2012 --settings 1+5:5 --part 4 --factored
    OMP_NUM_THREADS=2 python scripts/bench_evaluate.py --images VOC2012 --backbone efficientnet_lite0 --size 193 \
        --methods ssp hsnet dcama matcher --settings 1+5:5 --part 8
    OMP_NUM_THREADS=2 python scripts/bench_evaluate.py --images VOC2012 --backbone timm --model vit_tiny_patch16_224 \
        --size 192 --methods matcher
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import mean
from unittest import mock

import numpy as np
import torch
from bench_methods import choice
from evaluate_sides import (
    READ_SUMS,
    RESNETS,
    Plain,
    Watch,
    WatchedEngine,
    balance,
    make_backbones,
    make_model,
    make_plain,
    plain_forward,
    plain_loop,
    read_episode,
)
from evaluate_work import Work, flops, flops_needed, peak
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from fss_svf.conf_files import conf_dir
from fss_svf.config import EpisodeFiles, Protocol, from_mapping
from fss_svf.data.augment import EvalTransform
from fss_svf.data.dataset import Dataset, Split
from fss_svf.data.fold import Fold
from fss_svf.data.manifest import EpisodeList
from fss_svf.episode import IGNORE
from fss_svf.errors import FssError
from fss_svf.evaluation import runs
from fss_svf.evaluation.episode_table import EpisodeTable
from fss_svf.evaluation.groups import EpisodeId, group_episodes, share
from fss_svf.evaluation.plan import make_plan
from fss_svf.evaluation.task import EngineOptions, EvaluationTask
from fss_svf.evaluation.timer import Timer
from fss_svf.methods.base_classes import BaseClassMethod
from fss_svf.methods.method import FewShotMethod
from fss_svf.model import place
from fss_svf.registry import DATASETS

NAMES = ("baseline", "pfenet", "bam", "panet", "ssp", "hsnet", "dcama", "matcher")
Lists = dict[int, list[EpisodeList]]  # of each shot, one a seed


# ---------------------------------------------------------------------------------------------------------------------
# Episodes


def open_data(options: argparse.Namespace) -> Dataset:
    chosen = choice(DATASETS, "pascal", 1)
    changes = {
        "root": options.images,
        "prepared": options.prepared or options.images / "prepared",
        "min_area": options.min_area,
        "allow_missing": True,
        "too_few_images": "skip",
    }
    dataset: Dataset = DATASETS.build(replace(chosen, options=replace(chosen.options, **changes)))
    return dataset


def make_protocol(options: argparse.Namespace, seeds: int) -> Protocol:
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        values = OmegaConf.to_container(compose(overrides=["+protocol=svf"]).protocol)
    changes = {"episodes": options.episodes, "runs": seeds, "size": options.size, "never_drawn": "leave_out"}
    return from_mapping(Protocol, {**values, **changes})


def part_of(lists: Lists, parts: int) -> Lists:
    """The episodes in the middle one of so many parts of the engine's work."""
    groups = group_episodes(lists)
    chosen = {
        (groups[p].class_ids, groups[p].query.image) for p in share(groups, range(len(groups)), parts // 2, parts)
    }
    return {
        shot: [replace(e, specs=tuple(s for s in e.specs if (s.class_ids, s.query) in chosen)) for e in of_shot]
        for shot, of_shot in lists.items()
    }


def sample_of(lists: Lists, number: int) -> list[EpisodeId]:
    """So many places of each shot, evenly spaced over all its runs."""
    found = []
    for shot, of_shot in lists.items():
        places = [EpisodeId(shot, run, n) for run, episodes in enumerate(of_shot) for n in range(len(episodes))]
        chosen = min(number, len(places))
        found += [places[i * len(places) // chosen] for i in range(chosen)]
    return found


# ---------------------------------------------------------------------------------------------------------------------
# The comparison


def compare(task: EvaluationTask, sides: dict[str, FewShotMethod], lists: Lists, options: argparse.Namespace) -> bool:
    """Print what one setting took, and whether its masks are the plain loop's but for 1 pixel in 100,000.

    The model of `task` is the engine's, those of `sides` the plain loops'.
    """
    sample = sample_of(lists, options.plain_episodes)
    done: dict[str, dict[EpisodeId, Plain]] = {name: {} for name in sides}

    def run_plain(places: Sequence[EpisodeId]) -> None:
        for where in places:
            for name, model in sides.items():
                done[name][where] = plain_loop(task, model, lists[where.lists][where.run], where.number)

    run_plain(sample[:1])  # warms up, and is measured again
    run_plain(sample[::2])
    peaks = [peak()]
    watch = Watch(set(sample))
    with tempfile.TemporaryDirectory() as folder, mock.patch.object(runs, "Engine", partial(WatchedEngine, watch)):
        how = EngineOptions(torch.device("cpu"), options.batch, 0, options.cache_gb, Path(folder) / "features")
        began = time.perf_counter()
        timer = Timer(how.device)
        tables = runs.evaluate_lists(task, how, lists, timer=timer)
        wall = time.perf_counter() - began
    peaks.append(peak())
    run_plain(sample[1::2])

    work = Work.of(group_episodes(lists))
    print(
        f"  {work.episodes} episodes, {work.all_different} different; {work.pairs} pairs; {work.images} images encoded, "
        f"{work.queries} as queries and {work.supports} times as supports"
    )
    print(f"  engine    {work.episodes / wall:8.3f} episodes/s, {wall:.0f} s")
    equal = True
    for name, plain in done.items():
        each = {shot: mean(p.seconds for where, p in plain.items() if where.lists == shot) for shot in lists}
        total = sum(each[shot] * sum(map(len, of_shot)) for shot, of_shot in lists.items())
        shown = ", ".join(f"{s:.2f} s at {shot}-shot" for shot, s in each.items())
        print(
            f"  {name:10}{work.episodes / total:8.3f} episodes/s, {shown}; the engine is {total / wall:.1f} times as fast"
        )
        turned, counted = difference(plain, watch, tables)
        print(f"{'':12}{turned} of {counted:,} pixels turned ({turned / counted:.1e}) in {len(plain)} episodes")
        equal &= name != "plain" or turned <= 1e-5 * counted  # factors round S anew in every layer
    print_time(timer.seconds(), wall, work)
    samples = {shot: read_episode(task, of_shot[0], 0)[0] for shot, of_shot in lists.items() if len(of_shot[0])}
    needed = flops_needed(task.model, samples, work, options.batch)
    print_limit(needed, timer.seconds(), wall, peaks)
    loop = {shot: flops(plain_forward, sides["plain"], e)[1] for shot, e in samples.items()}
    theirs = sum(loop[shot] * sum(map(len, of_shot)) for shot, of_shot in lists.items())
    each_one = ", ".join(f"{f / 1e9:.0f} GFLOP at {shot}-shot" for shot, f in loop.items())
    print(f"  plain needs {each_one}: {theirs / sum(needed.values()):.1f} times the engine's FLOPs", flush=True)
    return equal


def print_time(spent: Mapping[str, float], wall: float, work: Work) -> None:
    """Print what the engine's time went for."""
    units = {"loading": "image", "encoding": "image", "comparing": "pair"}
    numbers = {"image": work.images, "pair": work.pairs, "different episode": work.all_different}
    for what, seconds in spent.items():
        unit = units.get(what, "different episode")
        print(f"  {what:12}{100 * seconds / wall:5.1f}%{1000 * seconds / numbers[unit]:10.1f} ms per {unit}")
    print(f"  {'the rest':12}{100 * (1 - sum(spent.values()) / wall):5.1f}%")


def print_limit(
    needed: Mapping[str, float], spent: Mapping[str, float], wall: float, peaks: Sequence[tuple[float, float]]
) -> None:
    """Print how near to the fastest arithmetic the engine came."""
    products, convolutions = (max(values) for values in zip(*peaks))
    limit = max(products, convolutions)
    each = ", ".join(f"{what} {f / 1e12:.2f} ({100 * f / limit / spent[what]:.0f}%)" for what, f in needed.items())
    print(f"  TFLOP, and the share of the peak at which they ran: {each}")
    print(
        f"  of the engine's whole time {100 * sum(needed.values()) / limit / wall:.0f}% of the peak, {limit / 1e9:.0f} "
        f"GFLOP/s (products {products / 1e9:.0f}, convolutions {convolutions / 1e9:.0f})"
    )


def difference(plain: dict[EpisodeId, Plain], watch: Watch, tables: dict[int, list[EpisodeTable]]) -> tuple[int, int]:
    """Pixels that turned in the masks, and at least so many in the counts of further outputs; and all counted ones."""
    turned = counted = 0
    for where, one in plain.items():
        table = tables[where.lists][where.run]
        in_mask = int(((one.mask != watch.masks[where]) & (one.truth != IGNORE)).sum())
        for name, counts in {"": table.counts, **table.further}.items():
            (background, ours), (of_background, theirs) = counts[where.number, :2], one.counts[name][:2].numpy()
            apart = int(np.abs(ours - theirs).max())
            assert background[0] + ours[1] == of_background[0] + theirs[1]
            assert name or apart <= in_mask
            turned += apart if name else in_mask
            counted += int(of_background[0] + theirs[1])
    return turned, counted


def compare_all(options: argparse.Namespace) -> bool:
    """Every method and setting; whether all gave the plain loop's masks."""
    dataset = open_data(options)
    split: Split = dataset.split("val")
    print(
        f"pascal fold {options.fold}, {len(split.index)} test images; {options.model or options.backbone}, SVF merged; "
        f"{options.size} pixels; {torch.get_num_threads()} threads, PyTorch {torch.__version__}"
    )
    fold = Fold(dataset.options, split.index.class_names, options.fold)
    equal = True
    for name in options.methods:
        net, backbones, pretrained = make_backbones(options, name)
        for setting in options.settings:
            shots, seeds = [int(shot) for shot in setting.split(":")[0].split("+")], int(setting.split(":")[1])
            protocol = make_protocol(options, seeds)
            plan = make_plan(split.index, fold, shots, protocol, EpisodeFiles(None, None))
            lists = part_of(plan.episodes, options.part)
            model = make_model(name, net, max(shots))
            task = EvaluationTask(
                model,
                split,
                "mask",
                EvalTransform(options.size, protocol.resize, protocol.pad),
                protocol,
                fold.novel,
                fold.base if isinstance(model, BaseClassMethod) else None,
            )
            balance(task, lists[shots[0]][0])
            sides = {side: make_plain(model, backbone, pretrained) for side, backbone in backbones.items()}
            place(model, torch.device("cpu"))
            part = f", the middle one of {options.part} parts" if options.part > 1 else ""
            print(
                f"\n{name}, shots {'+'.join(map(str, shots))}, seeds {seeds} of {options.episodes} episodes{part}; load "
                f"{os.getloadavg()[0]:.1f}",
                flush=True,
            )
            equal &= compare(task, sides, lists, options)
    return equal


def main() -> None:
    parser = argparse.ArgumentParser(description="The evaluation engine against a plain loop.")
    parser.add_argument("--images", type=Path, required=True, help="a prepared VOC folder, as dataset=pascal reads it")
    parser.add_argument("--prepared", type=Path, help="where its index is (IMAGES/prepared)")
    parser.add_argument("--min-area", type=int, default=2048, help="pixels; less where the images were made smaller")
    parser.add_argument("--weights", help="of the backbone; none: those of its YAML (packaged, or random)")
    parser.add_argument("--stride-in-1x1", action="store_true", help="the weights are of a Caffe ResNet")
    parser.add_argument("--backbone", choices=(*RESNETS, "efficientnet_lite0", "timm"), default="resnet50")
    parser.add_argument("--model", help="of --backbone timm, such as vit_tiny_patch16_224")
    parser.add_argument("--methods", nargs="+", choices=NAMES, default=["pfenet", "bam"])
    parser.add_argument("--fold", type=int, default=1)
    parser.add_argument("--size", type=int, default=473)
    parser.add_argument("--settings", nargs="+", default=["1:1", "1+5:5"], help="SHOTS:SEEDS, such as 1+5:5")
    parser.add_argument("--episodes", type=int, default=1000, help="of each seed and number of shots")
    parser.add_argument("--part", type=int, default=1, help="run the middle one of so many parts")
    parser.add_argument("--plain-episodes", type=int, default=12, help="of each number of shots")
    parser.add_argument("--factored", action="store_true", help="also the plain loop with factored convolutions")
    parser.add_argument("--batch", type=int, default=8, help="images or episodes, of the engine")
    parser.add_argument("--cache-gb", type=float, default=4.0)
    parser.add_argument("--threads", type=int)
    options = parser.parse_args()
    if (options.backbone == "timm") != (options.model is not None):
        parser.error("--backbone timm and --model NAME belong together")
    if options.factored and options.backbone not in RESNETS:
        parser.error(f"--factored: {options.backbone} has no factored form; use {' or '.join(RESNETS)}")
    if options.factored and set(options.methods) & set(READ_SUMS):
        parser.error(f"--factored: not with {', '.join(READ_SUMS)}, which read sums that factored blocks do not give")
    logging.getLogger("fss_svf").setLevel(logging.ERROR)
    if options.threads:
        torch.set_num_threads(options.threads)
    try:
        # Told at the end: a measurement takes long.
        assert compare_all(options), "more than 1 pixel in 100,000 turned, see above"
    except FssError as error:
        sys.exit(f"bench_evaluate: {error}")


if __name__ == "__main__":
    main()
