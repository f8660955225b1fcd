"""The evaluation engine against a plain loop, on the same episodes and weights, with SVF merged.

engine    evaluate_lists over all shots and seeds at once, as `fss-svf evaluate` runs it
plain     as the official code does it: one episode at a time, the whole backbone for the query and, in a loop over shots,
          for each support; BAM's base learner from the image up, on a backbone of its own; the prior over all pairs of
          positions; PFENet's auxiliary heads, whose outputs nothing reads. Convolution, BatchNorm and ReLU one after the
          other, in contiguous memory
factored  (--factored) the same, every convolution of the backbone as conv_V, a product with S, conv_U

All load in the process that computes, keep freed memory, and count the same outputs: of BAM the final one, the meta
learner's and the base learner's. A plain loop runs a sample, evenly spaced over the episodes of each number of shots, half
of it before the engine and half after; its mean time an episode stands for all. Heads and base learner are random, with a
bias for which about half of all pixels are object; S is moved, so that BAM's two backbones differ. At most 1 pixel in
100,000 of plain's sample may turn.

The peak is the fastest of some large float32 matrix products and 3x3 convolutions in this process; FLOPs are those of
convolutions and matrix products that the engine's calls need.

    OMP_NUM_THREADS=2 python scripts/bench_evaluate.py --images VOC2012 --weights resnet50.pth
    OMP_NUM_THREADS=2 python scripts/bench_evaluate.py --images VOC2012 --settings 1+5:5 --part 4 --factored
"""

from __future__ import annotations

import argparse
import copy
import logging
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any
from unittest import mock

import numpy as np
import torch
from bench_methods import choice
from bench_svf import official, official_backbone, unjoined
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from fss_svf import svf
from fss_svf.backbones.backbone import Backbone
from fss_svf.backbones.stages import STAGES
from fss_svf.conf_files import conf_dir
from fss_svf.config import EpisodeFiles, Protocol, from_mapping
from fss_svf.data.augment import EvalTransform, query_mask
from fss_svf.data.dataset import Dataset, Split
from fss_svf.data.fold import Fold
from fss_svf.data.loading import Episodes, base_label_lookup
from fss_svf.data.manifest import EpisodeList
from fss_svf.episode import IGNORE, Episode, Features
from fss_svf.errors import FssError
from fss_svf.evaluation import runs
from fss_svf.evaluation.at_label import at_label
from fss_svf.evaluation.engine import Engine, GroupCounts, Masks
from fss_svf.evaluation.episode_table import EpisodeTable
from fss_svf.evaluation.groups import EpisodeId, Query, QueryGroup, Support, group_episodes, roles_of_images, share
from fss_svf.evaluation.metric import count_labels, count_masks
from fss_svf.evaluation.plan import make_plan
from fss_svf.evaluation.task import EngineOptions, EvaluationTask
from fss_svf.evaluation.timer import Timer
from fss_svf.methods.base_classes import BaseClassMethod, further_predictions
from fss_svf.methods.method import FewShotMethod, regroup
from fss_svf.model import build_backbone, place
from fss_svf.registry import BACKBONES, DATASETS, METHODS, TUNINGS
from fss_svf.tuned import plain_copy

Lists = dict[int, list[EpisodeList]]  # of each shot, one a seed


# ---------------------------------------------------------------------------------------------------------------------
# The plain loop


@dataclass(frozen=True)
class Plain:
    """What a plain loop gave for an episode: (H, W) masks, counts (3, 2) by output, seconds."""

    said: Tensor
    truth: Tensor
    counts: dict[str, Tensor]
    seconds: float


def make_plain(model: FewShotMethod, backbone: nn.Module, pretrained: nn.ModuleDict) -> FewShotMethod:
    """`model` on another backbone, with all that the official code runs besides."""
    plain = copy.deepcopy(model)
    plain.backbone = backbone
    if isinstance(plain, BaseClassMethod):
        plain.base.stages = pretrained  # a base branch that holds every stage begins at the image
    for head, within in zip(getattr(plain, "auxiliary", ()), getattr(plain, "within", ())):
        within.register_forward_hook(partial(_run_auxiliary, head))
    return plain.eval()


def _run_auxiliary(head: nn.Module, _: nn.Module, __: tuple, output: Tensor) -> None:
    head(output)


def read_episode(task: EvaluationTask, episodes: EpisodeList, number: int) -> tuple[Episode, np.ndarray]:
    """The normalised episode, and the query's label at its original size."""
    spec, make = episodes[number], Episodes(task.split, task.annotation)
    image, label = task.split.pair(spec.query)
    pairs = [task.transform(*pair) for pair in ((image, query_mask(label, spec.class_ids)), *make.supports(spec))]
    images = torch.stack([torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))) for image, _ in pairs])
    masks = torch.stack([torch.from_numpy(mask) for _, mask in pairs])
    return Episode(images[:1], images[None, 1:], masks[None, 1:], masks[:1]).normalized(), label


@torch.inference_mode()
def plain_loop(task: EvaluationTask, model: FewShotMethod, episodes: EpisodeList, number: int) -> Plain:
    """One episode from its files to its counts."""
    began = time.perf_counter()
    episode, label = read_episode(task, episodes, number)
    prediction = official(model, episode)
    size = (label.shape[0], label.shape[1])
    truth = torch.from_numpy(query_mask(label, episodes[number].class_ids))
    outputs = {"": prediction.logits, **{name: prediction.aux[name] for name in further_predictions(model)}}
    masks = {name: mask_of(logits, size, task.protocol) for name, logits in outputs.items()}
    counts = {name: count_masks(mask[None], truth)[0] for name, mask in masks.items()}
    if task.base is not None:
        base = mask_of(prediction.aux["base"], size, task.protocol)
        lookup = base_label_lookup(task.split.index, task.base)
        count_labels(base[None], torch.from_numpy(lookup[label]), len(task.base) + 1)
    return Plain(masks[""], truth, counts, time.perf_counter() - began)


def mask_of(logits: Tensor, size: tuple[int, int], protocol: Protocol) -> Tensor:
    return at_label(logits, size, protocol)[0].argmax(0).to(torch.uint8)


# ---------------------------------------------------------------------------------------------------------------------
# The engine


@dataclass
class Watch:
    """What is kept of an engine's run: the masks of the episodes `wanted`, and the supports' positions compared in all."""

    wanted: set[EpisodeId]
    masks: dict[EpisodeId, Tensor] = field(default_factory=dict)
    positions: int = 0


class WatchedEngine(Engine):
    """The engine, watched."""

    def __init__(self, watch: Watch, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.watch = watch
        compare = self.inference.compare

        def watched(query: Features, supports: Sequence[Features]) -> list[Features]:
            watch.positions += sum(support["deep"].shape[-1] for support in supports)
            return compare(query, supports)

        self.inference.compare = watched  # type: ignore[method-assign]

    def __iter__(self) -> Iterator[tuple[int, GroupCounts[np.ndarray], Masks]]:
        for position, counts, masks in super().__iter__():
            for images, ids in self.groups[position].episodes.items():
                for where in self.watch.wanted.intersection(ids):
                    self.watch.masks[where] = masks[images][0]
            yield position, counts, masks


# ---------------------------------------------------------------------------------------------------------------------
# The arithmetic limit


@dataclass(frozen=True)
class Work:
    """What a setting asks of the engine, in numbers of its calls."""

    episodes: int
    different: dict[int, int]  # episodes by shots
    pairs: int
    images: int
    queries: int
    supports: int

    @property
    def all_different(self) -> int:
        return sum(self.different.values())

    @classmethod
    def of(cls, groups: Sequence[QueryGroup]) -> Work:
        different: dict[int, int] = defaultdict(int)
        for group in groups:
            for images in group.episodes:
                different[len(images)] += 1
        roles = roles_of_images(groups)
        return cls(
            episodes=sum(map(len, groups)),
            different=dict(different),
            pairs=sum(len(group.all_supports()) for group in groups),
            images=len(roles),
            queries=sum(isinstance(key, Query) for keys in roles.values() for key in keys),
            supports=sum(isinstance(key, Support) for keys in roles.values() for key in keys),
        )


def flops_needed(model: FewShotMethod, episode: Episode, work: Work, positions: int) -> dict[str, float]:
    """FLOPs of all calls by what they are for, from one call of each. `positions` of supports are compared in all."""
    svf.merge(model)
    image, mask = episode.support_images[0, :1], episode.support_masks[0, :1]
    first = torch.zeros(1, dtype=torch.int64)
    query, as_query = flops(lambda: model.encode_query(image))
    support, as_support = flops(lambda: model.encode_support(image, mask))
    _, as_both = flops(lambda: model.encode_both(image, first, first, mask))
    shared = as_query + as_support - as_both
    kept = regroup(model.kept(support)[0], 1)
    found, to_compare = flops(lambda: model.compare(query, kept))
    compared = {**kept, **found}
    to_segment = {
        shot: flops(lambda shot=shot: model.segment(query, {n: v.expand(-1, shot, *v.shape[2:])
                                                            for n, v in compared.items()}, episode.size))[1]
        for shot in work.different
    }  # fmt: skip
    svf.unmerge(model)
    encoding = (as_query - shared) * work.queries + (as_support - shared) * work.supports + shared * work.images
    return {
        "encoding": encoding,
        "comparing": to_compare / kept["deep"].shape[-1] * positions,
        "segmenting": sum(to_segment[shot] * number for shot, number in work.different.items()),
    }


@torch.no_grad()
def flops(call: Callable) -> tuple:
    """What `call` returns, and its FLOPs."""
    with FlopCounterMode(display=False) as counter:
        result = call()
    return result, counter.get_total_flops()


@torch.inference_mode()
def peak() -> tuple[float, float]:
    """FLOPs a second of a large matrix product and of a 3x3 convolution, the best of some."""
    a, b = torch.rand(2048, 2048), torch.rand(2048, 2048)
    x = torch.rand(8, 256, 60, 60).to(memory_format=torch.channels_last)
    weight = torch.rand(256, 256, 3, 3).to(memory_format=torch.channels_last)
    products = 2 * 2048**3 / best(lambda: a @ b)
    return products, 2 * x.numel() * weight[:, 0].numel() / best(lambda: F.conv2d(x, weight, padding=1))


def best(call: Callable, repetitions: int = 5) -> float:
    taken = []
    for _ in range(repetitions):
        began = time.perf_counter()
        call()
        taken.append(time.perf_counter() - began)
    return min(taken)


# ---------------------------------------------------------------------------------------------------------------------
# Models and episodes


def make_backbones(options: argparse.Namespace) -> tuple[Backbone, dict[str, nn.Module], nn.ModuleDict]:
    """The SVF backbone, those of the plain loops by name, and plain stages with the weights from before SVF."""
    torch.manual_seed(0)
    chosen = choice(BACKBONES, options.backbone, 1)
    changes = {"weights": options.weights, "stride_in_1x1": options.stride_in_1x1, "dilation": "pfenet"}
    net, report = build_backbone(replace(chosen, options=replace(chosen.options, **changes)))
    print(report)
    TUNINGS.build(choice(TUNINGS, "svf", 1), net)
    with torch.no_grad():
        for _, s in svf.singular_values(net):
            s.mul_(1 + 0.05 * torch.cos(torch.arange(s.shape[-1])))
    merged = svf.to_plain(net)
    plain = {"plain": unjoined(copy.deepcopy(merged))}
    if options.factored:
        plain["factored"] = official_backbone(merged)
    return net, plain, nn.ModuleDict({name: unjoined(plain_copy(getattr(net, name))) for name in STAGES})


def make_model(name: str, net: Backbone, shot: int) -> FewShotMethod:
    torch.manual_seed(1)
    model: FewShotMethod = METHODS.build(choice(METHODS, name, shot), copy.deepcopy(net))
    return model.eval()


@torch.no_grad()
def balance(task: EvaluationTask, episodes: EpisodeList) -> None:
    """Half of the pixels of some episodes become object: a head of random weights would say the same of all."""
    differences = []
    for number in range(0, len(episodes), -(-len(episodes) // 4)):
        prediction = official(task.model, read_episode(task, episodes, number)[0])
        logits = prediction.aux.get("meta", prediction.logits)
        differences.append((logits[:, 1] - logits[:, 0]).flatten())
    task.model.classifier[-1].bias[0] += torch.cat(differences).median()


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
    """The episodes in the first of so many parts of the engine's work."""
    groups = group_episodes(lists)
    chosen = {(groups[p].class_ids, groups[p].query.image) for p in share(groups, range(len(groups)), 0, parts)}
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
                done[name][where] = plain_loop(task, model, lists[where.shot][where.run], where.number)

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
        each = {shot: mean(p.seconds for where, p in plain.items() if where.shot == shot) for shot in lists}
        total = sum(each[shot] * sum(map(len, of_shot)) for shot, of_shot in lists.items())
        shown = ", ".join(f"{s:.2f} s at {shot}-shot" for shot, s in each.items())
        print(
            f"  {name:10}{work.episodes / total:8.3f} episodes/s, {shown}; the engine is {total / wall:.1f} times as fast"
        )
        turned, counted = difference(plain, watch, tables)
        print(f"{'':12}{turned} of {counted:,} pixels turned ({turned / counted:.1e}) in {len(plain)} episodes")
        equal &= name != "plain" or turned <= 1e-5 * counted  # factors round S anew in every layer
    tell_time(timer.seconds(), wall, work)
    samples = {shot: read_episode(task, of_shot[0], 0)[0] for shot, of_shot in lists.items() if len(of_shot[0])}
    needed = flops_needed(task.model, next(iter(samples.values())), work, watch.positions)
    tell_limit(needed, timer.seconds(), wall, peaks)
    loop = {shot: flops(lambda e=e: official(sides["plain"], e))[1] for shot, e in samples.items()}
    theirs = sum(loop[shot] * sum(map(len, of_shot)) for shot, of_shot in lists.items())
    each_one = ", ".join(f"{f / 1e9:.0f} GFLOP at {shot}-shot" for shot, f in loop.items())
    print(f"  plain needs {each_one}: {theirs / sum(needed.values()):.1f} times the engine's FLOPs", flush=True)
    return equal


def tell_time(spent: Mapping[str, float], wall: float, work: Work) -> None:
    """Print what the engine's time went for."""
    units = {"loading": "image", "encoding": "image", "comparing": "pair"}
    numbers = {"image": work.images, "pair": work.pairs, "different episode": work.all_different}
    for what, seconds in spent.items():
        unit = units.get(what, "different episode")
        print(f"  {what:12}{100 * seconds / wall:5.1f}%{1000 * seconds / numbers[unit]:10.1f} ms per {unit}")
    print(f"  {'the rest':12}{100 * (1 - sum(spent.values()) / wall):5.1f}%")


def tell_limit(
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
        table = tables[where.shot][where.run]
        in_mask = int(((one.said != watch.masks[where]) & (one.truth != IGNORE)).sum())
        for name, counts in {"": table.counts, **table.further}.items():
            (background, ours), (of_background, theirs) = counts[where.number, :2], one.counts[name][:2].numpy()
            apart = int(np.abs(ours - theirs).max())
            assert background[0] + ours[1] == of_background[0] + theirs[1]
            assert name or apart <= in_mask
            turned += apart if name else in_mask
            counted += int(of_background[0] + theirs[1])
    return turned, counted


def compare_all(options: argparse.Namespace) -> bool:
    """Every setting and method; whether all gave the plain loop's masks."""
    dataset = open_data(options)
    split: Split = dataset.split("val")
    net, backbones, pretrained = make_backbones(options)
    print(
        f"pascal fold {options.fold}, {len(split.index)} test images; {options.backbone}, SVF merged, random heads; "
        f"{options.size} pixels; {torch.get_num_threads()} threads, PyTorch {torch.__version__}"
    )
    fold = Fold(dataset.options, split.index.class_names, options.fold)
    equal = True
    for setting in options.settings:
        shots, seeds = [int(shot) for shot in setting.split(":")[0].split("+")], int(setting.split(":")[1])
        protocol = make_protocol(options, seeds)
        plan = make_plan(split.index, fold, shots, protocol, EpisodeFiles(None, None))
        lists = part_of(plan.episodes, options.part)
        for name in options.methods:
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
            part = f", the first of {options.part} parts" if options.part > 1 else ""
            print(f"\n{name}, shots {'+'.join(map(str, shots))}, seeds {seeds} of {options.episodes} episodes{part}")
            equal &= compare(task, sides, lists, options)
    return equal


def main() -> None:
    parser = argparse.ArgumentParser(description="The evaluation engine against a plain loop.")
    parser.add_argument("--images", type=Path, required=True, help="a prepared VOC folder, as dataset=pascal reads it")
    parser.add_argument("--prepared", type=Path, help="where its index is (IMAGES/prepared)")
    parser.add_argument("--min-area", type=int, default=2048, help="pixels; less where the images were made smaller")
    parser.add_argument("--weights", help="of the backbone; none: random")
    parser.add_argument("--stride-in-1x1", action="store_true", help="the weights are of a Caffe ResNet")
    parser.add_argument("--backbone", choices=("resnet50", "resnet101"), default="resnet50")
    parser.add_argument("--methods", nargs="+", choices=("baseline", "pfenet", "bam"), default=["pfenet", "bam"])
    parser.add_argument("--fold", type=int, default=1)
    parser.add_argument("--size", type=int, default=473)
    parser.add_argument("--settings", nargs="+", default=["1:1", "1+5:5"], help="SHOTS:SEEDS, such as 1+5:5")
    parser.add_argument("--episodes", type=int, default=1000, help="of each seed and number of shots")
    parser.add_argument("--part", type=int, default=1, help="run one of so many parts")
    parser.add_argument("--plain-episodes", type=int, default=12, help="of each number of shots")
    parser.add_argument("--factored", action="store_true", help="also the plain loop with factored convolutions")
    parser.add_argument("--batch", type=int, default=8, help="images or episodes, of the engine")
    parser.add_argument("--cache-gb", type=float, default=4.0)
    parser.add_argument("--threads", type=int)
    options = parser.parse_args()
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
