"""The two sides of bench_evaluate.py: their models, a plain loop over episodes, and the engine with its masks."""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from bench_methods import choice
from bench_svf import official, official_backbone, unjoined
from torch import Tensor, nn

from fss_svf import svf
from fss_svf.backbones.backbone import Backbone
from fss_svf.config import Protocol
from fss_svf.data.augment import query_mask
from fss_svf.data.loading import Episodes, base_label_lookup
from fss_svf.data.manifest import EpisodeList
from fss_svf.episode import Episode, Prediction
from fss_svf.evaluation.at_label import at_label
from fss_svf.evaluation.engine import Engine, GroupCounts, Masks
from fss_svf.evaluation.groups import EpisodeId
from fss_svf.evaluation.metric import count_labels, count_masks
from fss_svf.evaluation.task import EvaluationTask
from fss_svf.methods.base_classes import BaseClassMethod, further_predictions
from fss_svf.methods.blocks import argmax
from fss_svf.methods.dcama import DCAMA
from fss_svf.methods.hsnet import HSNet
from fss_svf.methods.matcher import NORM, SHARE
from fss_svf.methods.method import FewShotMethod
from fss_svf.methods.prior_guided import PriorGuided
from fss_svf.model import build_backbone
from fss_svf.registry import BACKBONES, METHODS, TUNINGS
from fss_svf.tuned import plain_copy

PYRAMIDS = ("hsnet", "dcama")  # read maps at 1/8, 1/16 and 1/32
READ_SUMS = ("ssp", *PYRAMIDS)  # of a ResNet, maps before a block's last ReLU, which joined blocks alone give
RESNETS = ("resnet50", "resnet101")

# ---------------------------------------------------------------------------------------------------------------------
# Models


def make_backbones(options: argparse.Namespace, method: str) -> tuple[Backbone, dict[str, nn.Module], nn.ModuleDict]:
    """The SVF backbone, those of the plain loops by name, and plain parts with the weights from before SVF."""
    torch.manual_seed(0)
    chosen = choice(BACKBONES, options.backbone, 1)
    changes: dict[str, object] = {} if options.weights is None else {"weights": options.weights}
    if options.backbone in RESNETS:
        dilation = "none" if method in PYRAMIDS else "pfenet"
        changes |= {"stride_in_1x1": options.stride_in_1x1, "dilation": dilation}
    elif options.backbone == "timm":
        changes["model"] = options.model
    elif method in PYRAMIDS:
        changes["output_stride"] = 32
    net, report = build_backbone(replace(chosen, options=replace(chosen.options, **changes)))
    print(report)
    TUNINGS.build(choice(TUNINGS, "svf", 1), net)
    with torch.no_grad():
        for _, s in svf.singular_values(net):
            s.mul_(1 + 0.05 * torch.cos(torch.arange(s.shape[-1])))
    merged = svf.to_plain(net)
    apart = (lambda network: network) if method in READ_SUMS else unjoined
    plain = {"plain": apart(copy.deepcopy(merged))}
    if options.factored:
        plain["factored"] = official_backbone(merged)
    return net, plain, nn.ModuleDict({name: apart(plain_copy(getattr(net, name))) for name in net.parts})


def make_model(name: str, net: Backbone, shot: int) -> FewShotMethod:
    torch.manual_seed(1)
    chosen = choice(METHODS, name, shot)
    if name == "matcher":
        channels = net.tap(NORM if NORM in net.taps else "deep").channels
        chosen = replace(chosen, options=replace(chosen.options, svd_components=int(SHARE * channels)))
    model: FewShotMethod = METHODS.build(chosen, copy.deepcopy(net))
    return model.eval()


@torch.no_grad()
def balance(task: EvaluationTask, episodes: EpisodeList) -> None:
    """Half of the pixels of some episodes become object: a head of random weights would say the same of all."""
    model = task.model
    if isinstance(model, HSNet):
        last = model.head.decoder2[-1]
    elif isinstance(model, DCAMA):
        last = model.decoder[-1][-1]  # type: ignore[index]
    elif hasattr(model, "classifier"):
        last = model.classifier[-1]
    else:
        return  # nothing of it is random
    differences = []
    for number in range(0, len(episodes), -(-len(episodes) // 4)):
        prediction = plain_forward(model, read_episode(task, episodes, number)[0])
        logits = prediction.aux.get("meta", prediction.logits)
        differences.append((logits[:, 1] - logits[:, 0]).flatten())
    last.bias[0] += torch.cat(differences).median()


# ---------------------------------------------------------------------------------------------------------------------
# The plain loop


@dataclass(frozen=True)
class Plain:
    """What a plain loop gave for an episode: (H, W) masks, counts (3, 2) by output, seconds."""

    mask: Tensor
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


def plain_forward(model: FewShotMethod, episode: Episode) -> Prediction:
    """As the official code computes it where that is slower than the method's own forward, else that forward."""
    return official(model, episode) if isinstance(model, PriorGuided) else model(episode)


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
    prediction = plain_forward(model, episode)
    size = (label.shape[0], label.shape[1])
    truth = torch.from_numpy(query_mask(label, episodes[number].class_ids))
    outputs = {"": prediction.logits, **{name: prediction.aux[name] for name in further_predictions(model)}}
    masks = {name: _mask_of(logits, size, task.protocol) for name, logits in outputs.items()}
    counts = {name: count_masks(mask[None], truth)[0] for name, mask in masks.items()}
    if task.base is not None:
        base = _mask_of(prediction.aux["base"], size, task.protocol)
        count_labels(
            base[None], torch.from_numpy(base_label_lookup(task.split.index, task.base)[label]), len(task.base) + 1
        )
    return Plain(masks[""], truth, counts, time.perf_counter() - began)


def _mask_of(logits: Tensor, size: tuple[int, int], protocol: Protocol) -> Tensor:
    return argmax(at_label(logits, size, protocol)[0], 0).to(torch.uint8)


# ---------------------------------------------------------------------------------------------------------------------
# The engine


@dataclass
class Watch:
    """The masks of an engine's run, of the episodes `wanted`."""

    wanted: set[EpisodeId]
    masks: dict[EpisodeId, Tensor] = field(default_factory=dict)


class WatchedEngine(Engine):
    """The engine, watched."""

    def __init__(self, watch: Watch, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.watch = watch

    def __iter__(self) -> Iterator[tuple[int, GroupCounts[np.ndarray], Masks]]:
        for position, counts, masks in super().__iter__():
            for images, ids in self.groups[position].episodes.items():
                for where in self.watch.wanted.intersection(ids):
                    self.watch.masks[where] = masks[images][0]
            yield position, counts, masks
