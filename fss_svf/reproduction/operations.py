"""Floating-point operations of a training step, by PyTorch's counter on the meta device: nothing is computed."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from fss_svf.backbones.backbone import Backbone
from fss_svf.config import PretrainConfig, TrainConfig
from fss_svf.episode import Episode
from fss_svf.methods.base_learner import BaseLearner
from fss_svf.methods.method import cross_entropy
from fss_svf.model import build_backbone, build_model, without_weights

_META = torch.device("meta")
# A BatchNorm that trains needs two items where its map is a single pixel.
_BATCH = 2
_BASE_CLASSES = 15  # of a base learner; another number changes its last layer alone


def operations(run: PretrainConfig | TrainConfig) -> float:
    """Operations of a training for one item of its batch: an episode, or an image of a base learner.

    They are those of forward, losses and backward; a multiplication and an addition are two. Raises RuntimeError for a
    model that needs the values of its tensors.
    """
    with _META:
        backbone, loss = _base_learner(run) if isinstance(run, PretrainConfig) else _method(run)
        if run.recompute:
            backbone.recompute()
        with FlopCounterMode(display=False) as counter:
            loss().backward()
    return counter.get_total_flops() / _BATCH


def _base_learner(run: PretrainConfig) -> tuple[Backbone, Callable[[], Tensor]]:
    backbone, _ = build_backbone(without_weights(run.backbone))
    learner = BaseLearner(backbone.requires_grad_(True), _BASE_CLASSES).to(_META).train()
    size = run.recipe.size
    return backbone, lambda: cross_entropy(learner(_images(size, _BATCH)), _masks(size, _BATCH))


def _method(run: TrainConfig) -> tuple[Backbone, Callable[[], Tensor]]:
    model, _ = build_model(*map(without_weights, (run.method, run.backbone, run.tuning)))
    model.to(_META).train()  # to: some buffers are made on the CPU wherever the model is built
    size, supports = run.recipe.size, (_BATCH, *([run.way] if run.way > 1 else []), run.shot)
    episode = Episode(
        _images(size, _BATCH),
        _images(size, *supports),
        _masks(size, *supports),
        _masks(size, _BATCH),
        base_mask=_masks(size, _BATCH),
        base_class=torch.zeros(_BATCH, dtype=torch.int64),
    )
    return model.backbone, lambda: torch.stack(list(model.losses(model(episode), episode).values())).sum()


def _images(size: int, *lead: int) -> Tensor:
    return torch.zeros(*lead, 3, size, size)


def _masks(size: int, *lead: int) -> Tensor:
    return torch.zeros(*lead, size, size, dtype=torch.uint8)
