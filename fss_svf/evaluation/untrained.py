"""A method without a trained parameter, on a backbone as it is: a model that needs no checkpoint."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch

from fss_svf.backbones.weights import LoadReport
from fss_svf.config import from_mapping
from fss_svf.errors import ConfigError
from fss_svf.methods.method import FewShotMethod, method_class
from fss_svf.model import build_model
from fss_svf.registry import BACKBONES, METHODS, TUNINGS, Choice, Registry

log = logging.getLogger(__name__)


def untrained_model(
    method: Mapping[str, Any], backbone: Mapping[str, Any], seed: int = 0
) -> tuple[FewShotMethod, LoadReport, Choice, Choice]:
    """The model, what its backbone's weights are, and the two choices made.

    method, backbone  `name` and options, as a verb's config gives them without a checkpoint
    seed              of random weights

    Raises ConfigError for a method that has to be trained, WeightsError where the weights cannot be loaded.
    """
    if method_class(method["name"]).trainable:
        raise ConfigError(f"method={method['name']}: has parameters to train; give checkpoint=PATH of a trained one")
    options = dict(backbone)
    if options.get("weights") is None and not hasattr(BACKBONES.entry(options["name"]).options, "weights"):
        options.pop("weights", None)  # of a verb's YAML, for checkpoints; not every backbone has them
    chosen = choose(METHODS, method), choose(BACKBONES, options)
    torch.manual_seed(seed)
    model, report = build_model(*chosen, Choice("frozen", TUNINGS.entry("frozen").options()))
    log.info("%s", report)
    return model, report, *chosen


def choose(registry: Registry, values: Mapping[str, Any]) -> Choice:
    """The component `name` of a mapping, with the rest as its options. Raises ConfigError."""
    options = {key: value for key, value in values.items() if key != "name"}
    name = str(values["name"])
    return Choice(name, from_mapping(registry.entry(name).options, options, registry.kind))
