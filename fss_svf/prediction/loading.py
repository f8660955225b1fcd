"""The model that predict and demo use: a checkpoint's, a packed one, or a method that needs none."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fss_svf.config import DemoConfig, PredictConfig
from fss_svf.errors import ConfigError
from fss_svf.packed import chosen

if TYPE_CHECKING:
    from fss_svf.prediction.segmenter import Segmenter

_BACKBONE = "efficientnet_lite0"  # its weights lie in a package of pip's: no download, and quick on a CPU


def check_model(config: PredictConfig | DemoConfig) -> None:
    """Raise ConfigError unless the config gives a checkpoint, a packed model or a method, and no more than goes with it."""
    trained = chosen(config.checkpoint, config.model)
    if trained is None:
        if "name" not in config.method:
            raise ConfigError(
                "checkpoint: nothing given; say checkpoint=PATH of a run folder of train, or, without one, model=NAME "
                "('fss-svf models' lists them) or method=prototype (docs/predict.md)"
            )
        return
    for key, allowed in (("method", set()), ("backbone", {"weights"})):
        others = set(getattr(config, key)) - allowed
        if others:
            which = "" if "name" in others else f".{min(others)}"
            name = getattr(config, key).get("name")
            raise ConfigError(
                f"{key}{which}{f'={name}' if name else ''}: {trained[1]} has its own; leave one of the two out"
            )


def load_segmenter(config: PredictConfig | DemoConfig) -> Segmenter:
    """The model, on its device. Raises WeightsError, ConfigError."""
    from fss_svf.prediction.segmenter import Segmenter  # as late as this, so that check_model needs no PyTorch

    check_model(config)
    how = (config.device, config.precision, config.shots, config.size)
    trained = chosen(config.checkpoint, config.model)
    if trained is not None:
        return Segmenter.load(trained[0], *how, config.backbone.get("weights"))
    backbone = config.backbone
    if "name" not in backbone:
        given = {key: value for key, value in backbone.items() if value is not None}
        backbone = {"name": _BACKBONE, **given}
    return Segmenter.untrained(config.method, backbone, *how)


def model_name(config: PredictConfig | DemoConfig) -> str:
    """What a page calls the model."""
    if config.model is not None or config.checkpoint is not None:
        return config.model or str(config.checkpoint)
    return f"{config.method['name']} on {config.backbone.get('name', _BACKBONE)}, untrained"
