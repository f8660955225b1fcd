"""What an evaluation asks for, in numbers of the engine's calls and in FLOPs, and the fastest arithmetic of this process."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any

import torch
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from fss_svf import tuned
from fss_svf.episode import Episode
from fss_svf.evaluation.groups import Query, QueryGroup, Support, roles_of_images
from fss_svf.evaluation.inference import Inference
from fss_svf.methods.method import FewShotMethod


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


@torch.no_grad()
def flops_needed(model: FewShotMethod, episodes: Mapping[int, Episode], work: Work, batch: int) -> dict[str, float]:
    """FLOPs of all calls by what they are for, from the calls for an episode of each shot.

    Comparisons are of different sizes with some methods: the mean of these episodes' supports stands for all.
    """
    tuned.merge(model)
    inference, first = Inference(model, torch.device("cpu"), "float32"), torch.zeros(1, dtype=torch.int64)
    compared, segmented = [], {}
    for shot, episode in episodes.items():
        images, masks = episode.support_images[0], episode.support_masks[0]
        query, as_query = flops(model.encode_query, episode.query_image)
        _, as_support = flops(model.encode_support, images[:1], masks[:1])
        _, as_both = flops(model.encode_both, images[:1], first, first, masks[:1])
        kept = model.kept(model.encode_support(images, masks))
        pairs = [flops(inference.compare, query, [row]) for row in kept]
        compared += [count for _, count in pairs]
        rows = [row for found, _ in pairs for row in found]
        # A batch of episodes has the query in common.
        segmented[shot] = flops(inference.segment, query, [rows] * batch, episode.size)[1] / batch
    tuned.unmerge(model)
    shared = as_query + as_support - as_both
    return {
        "encoding": (as_query - shared) * work.queries + (as_support - shared) * work.supports + shared * work.images,
        "comparing": mean(compared) * work.pairs,
        "segmenting": sum(segmented[shot] * number for shot, number in work.different.items()),
    }


def flops(call: Callable, *arguments: Any) -> tuple[Any, int]:
    """What a call returns, and its FLOPs."""
    # The counter does not know a CPU's fused attention.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        result = call(*arguments)
    return result, counter.get_total_flops()


@torch.inference_mode()
def peak() -> tuple[float, float]:
    """FLOPs a second of a large matrix product and of a 3x3 convolution, the best of some."""
    a, b = torch.rand(2048, 2048), torch.rand(2048, 2048)
    x = torch.rand(8, 256, 60, 60).to(memory_format=torch.channels_last)
    weight = torch.rand(256, 256, 3, 3).to(memory_format=torch.channels_last)
    products = 2 * 2048**3 / _best(lambda: a @ b)
    return products, 2 * x.numel() * weight[:, 0].numel() / _best(lambda: F.conv2d(x, weight, padding=1))


def _best(call: Callable, repetitions: int = 5) -> float:
    taken = []
    for _ in range(repetitions):
        began = time.perf_counter()
        call()
        taken.append(time.perf_counter() - began)
    return min(taken)
