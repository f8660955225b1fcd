"""Packed models: a trained adapter with all that is needed to use it, in a folder of some 60 kB. Some lie in this package.

adapter.safetensors  what the training changed, of svf.save_adapter: the rest is in the pretrained weights
model.yaml           what a checkpoint says besides tensors: the config of its training, its classes, the hash of its weights
card.md              for people: data, recipe, seed, numbers, licence of the weights, what it cannot do

packing.py writes such a folder.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from fss_svf import plugins
from fss_svf.conf_files import plain_values
from fss_svf.errors import ConfigError, WeightsError, did_you_mean, listing

FORMAT = "fss-svf model 1"
ADAPTER, MODEL, CARD = "adapter.safetensors", "model.yaml", "card.md"
# Folders of this machine, which model.yaml leaves out: they are those of conf/dataset.
FOLDERS = ("root", "prepared")
ZOO = Path(__file__).parent / "zoo"
# What model.yaml has of a checkpoint, and what else it has.
OF_CHECKPOINT = ("verb", "config", "base", "step", "selection", "trained_on", "plugins")
NEEDED = ("format", "name", "score", "licence", *OF_CHECKPOINT)


def names() -> list[str]:
    """The models that lie in this package, sorted."""
    return sorted(path.parent.name for path in ZOO.glob(f"*/{MODEL}"))


def packaged(name: str) -> Path:
    """The folder of a model that lies in this package, such as voc-lite0, for Segmenter.load and load_model.

    Raises ConfigError with the known names.
    """
    known = names()
    if name not in known:
        listed = listing(known, 20) or "none, this package has no model"
        raise ConfigError(f"model={name}: unknown{did_you_mean(name, known)}; known: {listed}")
    return ZOO / name


def chosen(checkpoint: Path | None, model: str | None) -> tuple[Path, str] | None:
    """The trained model of a config with these two keys, and how a message names it; None where neither is given.

    Raises ConfigError for both, for an unknown name, and for a path that is not there.
    """
    if model is None:
        if checkpoint is not None and not checkpoint.exists():
            raise ConfigError(f"checkpoint={checkpoint}: no such checkpoint")
        return None if checkpoint is None else (checkpoint, f"checkpoint={checkpoint}")
    if checkpoint is not None:
        raise ConfigError(f"model={model}: checkpoint={checkpoint} is a model too; leave one of the two out")
    return packaged(model), f"model={model}"


def is_packed(path: Path) -> bool:
    """Whether `path` is the folder of a packed model."""
    return (path / MODEL).is_file()


def load_trained(path: Path) -> dict[str, Any]:
    """The content of a run folder of train, of a checkpoint file, or of a packed model.

    Of a packed one `model` is empty, and base["adapter"] is the file that restore_model loads.
    Raises WeightsError, PluginError.
    """
    if not is_packed(path):
        from fss_svf.checkpoint import load_checkpoint  # PyTorch, which a list of the models does not need

        return load_checkpoint(path, "train")
    content = read_model(path)
    plugins.require(content["plugins"], str(path))
    dataset = content["config"]["dataset"]
    defaults = plain_values("dataset", dataset["name"]) or {}
    dataset |= {key: defaults[key] for key in FOLDERS if key in defaults}
    base = {**content["base"], "adapter": str(path / ADAPTER)}
    return {**{key: content[key] for key in OF_CHECKPOINT}, "model": {}, "base": base}


def read_model(folder: Path) -> dict[str, Any]:
    """The content of model.yaml. Raises WeightsError for another file or format."""
    path = folder / MODEL
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise WeightsError(f"{path}: cannot be read ({' '.join(str(error).split())}); pack the model again") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        found = content.get("format") if isinstance(content, dict) else type(content).__name__
        raise WeightsError(f"{path}: expected format {FORMAT!r}, found {found!r}; pack the model again")
    missing = [key for key in NEEDED if key not in content]
    if missing:
        raise WeightsError(f"{path}: has no {listing(missing)}; pack the model again")
    return content
