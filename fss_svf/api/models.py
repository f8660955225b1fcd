"""A backbone, a model of a method, a backbone and a tuning, and the model of a checkpoint."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from types import EllipsisType
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor, nn

from fss_svf import conf_files
from fss_svf import model as model_building
from fss_svf.api.choosing import Named, compose
from fss_svf.backbones.backbone import Backbone
from fss_svf.backbones.weights import LoadReport
from fss_svf.config import EvaluateConfig, from_mapping
from fss_svf.evaluation.subject import Subject, changed_options, make_subject
from fss_svf.evaluation.untrained import choose
from fss_svf.methods.base_classes import BaseClassMethod
from fss_svf.methods.method import FewShotMethod
from fss_svf.registry import BACKBONES, METHODS, TUNINGS

log = logging.getLogger(__name__)
# What a result says of models that were made here: fields of Subject.
origins: WeakKeyDictionary[nn.Module, Mapping[str, Any]] = WeakKeyDictionary()


def build_backbone(
    name: str, *, weights: str | Path | Mapping[str, Tensor] | EllipsisType | None = ..., **options: Any
) -> tuple[Backbone, LoadReport]:
    """backbone=NAME with the options of conf/backbone/NAME.yaml, or those given here, in eval mode; and what was loaded.

    weights: a state dict, or what backbone.weights may be: a file, a name, None (random); left out: as in the YAML.

    Images are normalised by ImageNet's mean and deviation, as everywhere here; a network that was trained with others
    converts them itself. Raises ConfigError for an unknown name or option, WeightsError.

    >>> backbone, report = fss_svf.build_backbone("efficientnet_lite0", output_stride=32)
    >>> maps = backbone(torch.zeros(1, 3, 129, 129), taps=["low", "deep"])
    >>> maps["deep"].shape
    torch.Size([1, 320, 5, 5])
    """
    state = weights if isinstance(weights, Mapping) else None
    if weights is not ...:
        options["weights"] = str(weights) if isinstance(weights, (str, Path)) else None
    choice = choose(BACKBONES, conf_files.values(f"backbone/{name}", options))
    if state is not None:
        choice = replace(choice, options=replace(choice.options, weights=state))
    backbone, report = model_building.build_backbone(choice)
    return backbone.eval(), report


def build_model(
    method: Named, *, backbone: Named | None = None, tuning: Named | None = None, shot: int = 1
) -> FewShotMethod:
    """The model that `fss-svf train` begins with, in eval mode. What the tuning trains requires grad, and the method's head.

    method, backbone, tuning  a name, or a mapping of `name` and options, as in conf/; None: the default of conf/train.yaml
    shot                      K of the training, which shapes BAM

    Raises ConfigError for an unknown name or option, WeightsError.

    >>> rank = {"name": "svf", "rank": 8}
    >>> model = fss_svf.build_model("panet", backbone={"name": "tiny", "width": 8}, tuning=rank)
    >>> model(fss_svf.episodes(fold, size=65)[0]).logits.shape
    torch.Size([1, 2, 65, 65])
    """
    values = compose("train", {"method": method, "backbone": backbone, "tuning": tuning}, {"shot": shot})
    choices = {registry.kind: choose(registry, values[registry.kind]) for registry in (METHODS, BACKBONES, TUNINGS)}
    model, report = model_building.build_model(*choices.values())
    log.info("%s", report)
    origins[model] = {
        **{kind: choice.name for kind, choice in choices.items()},
        "weights": report.label,
        "weights_hash": report.digest,
        "trained_on": model.trained_on if isinstance(model, BaseClassMethod) else report.trained_on,
        "options": changed_options(choices),
    }
    return model.eval()


def load_model(checkpoint: str | Path, weights: str | Path | None = None, **method: Any) -> FewShotMethod:
    """The model of a run folder of `fss-svf train` (its last.pt) or of a checkpoint file, in eval mode.

    weights  the file of its pretrained weights, where that has moved since the training
    method   options of the method for tests, as method.KEY=VALUE of `fss-svf evaluate`

    Raises ConfigError, WeightsError.
    """
    moved = {} if weights is None else {"backbone": {"weights": str(weights)}}
    values = compose("evaluate", {}, {"checkpoint": str(checkpoint), "method": method, **moved})
    model, subject = make_subject(from_mapping(EvaluateConfig, values))
    of_data = ("dataset", "fold", "way_rule")
    origins[model] = {f.name: getattr(subject, f.name) for f in fields(Subject) if f.name not in of_data}
    return model.eval()
