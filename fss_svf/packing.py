"""Makes the folder of a packed model (packed.py) from a checkpoint, and proves that it is the same model."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
import yaml

from fss_svf import packed, svf
from fss_svf.checkpoint import load_checkpoint
from fss_svf.config import TrainConfig, from_mapping, to_mapping
from fss_svf.errors import WeightsError, listing
from fss_svf.methods.method import FewShotMethod
from fss_svf.model import restore_model


def pack(checkpoint: Path, out: Path, score: str, licence: str, card: Path) -> int:
    """Pack a run folder or checkpoint file of `fss-svf train` into the new folder `out`, whose name is the model's.

    score    one number with what it is of, for the list of `fss-svf models`
    licence  of the pretrained weights and of the images it was trained on
    card     a Markdown file, copied

    Returns the size of the adapter in bytes. Raises WeightsError where the checkpoint is more than an SVF adapter, where
    `out` exists, and where the model restored from `out` is another one. Nothing is left of a folder that is refused.
    """
    content = load_checkpoint(checkpoint, "train")
    config = from_mapping(TrainConfig, content["config"])
    _require_adapter(content, checkpoint)
    if not card.is_file():
        raise WeightsError(f"card={card}: no such file; write what the model was trained on, and what it cannot do")
    if out.exists():
        raise WeightsError(f"out={out}: exists already; choose another folder")
    model = _restored(config, content, str(checkpoint))
    out.mkdir(parents=True)
    try:
        svf.save_adapter(model.backbone.body, out / packed.ADAPTER)
        (out / packed.ADAPTER).chmod(0o644)  # a wheel keeps the mode, and safetensors' is for its owner alone
        shutil.copyfile(card, out / packed.CARD)
        text = yaml.safe_dump(
            {
                "format": packed.FORMAT,
                "name": out.name,
                "score": score,
                "licence": licence,
                **{key: content[key] for key in packed.OF_CHECKPOINT},
                "config": _without_paths(to_mapping(config)),
                "base": {**content["base"], **_base_without_paths(content["base"])},
            },
            sort_keys=False,
            allow_unicode=True,
        )
        (out / packed.MODEL).write_text(text, encoding="utf-8")
        _require_same(model, out, str(content["base"]["file"] or "") or None)
    except BaseException:
        shutil.rmtree(out)
        raise
    return (out / packed.ADAPTER).stat().st_size


def _require_adapter(content: dict[str, Any], checkpoint: Path) -> None:
    """Raise WeightsError where the checkpoint holds more than SVF layers of a backbone."""
    if not content.get("base"):
        raise WeightsError(
            f"{checkpoint}: holds all weights, not what trained alone; train with checkpoint.weights=tuned"
        )
    others = [name for name in content["model"] if not name.startswith("backbone.")]
    if others:
        raise WeightsError(
            f"{checkpoint}: its method has {len(others)} tensors of its own ({listing(others, 2)}), and a packed model is "
            "an adapter of the backbone; pack one of method=panet or ssp, or pass the checkpoint on"
        )


def _restored(config: TrainConfig, content: dict[str, Any], what: str, weights: str | None = None) -> FewShotMethod:
    parts = config.method, config.backbone, config.tuning
    return restore_model(*parts, content["model"], what, content["base"], weights)


def _require_same(model: FewShotMethod, out: Path, weights: str | None) -> None:
    content = packed.load_trained(out)
    again = _restored(from_mapping(TrainConfig, content["config"]), content, str(out), weights).state_dict()
    other = [name for name, value in model.state_dict().items() if not torch.equal(value, again[name])]
    if other:
        raise WeightsError(
            f"{out}: {listing(other, 3)} would not be as in the checkpoint: more than SVF trained; pass the checkpoint on"
        )


def _without_paths(config: dict[str, Any]) -> dict[str, Any]:
    """The config without folders and files of this machine: those of the dataset are left out, of others the name stays."""
    dataset = {key: value for key, value in config["dataset"].items() if key not in packed.FOLDERS}
    if dataset.get("train_list") is not None:
        dataset["train_list"] = Path(dataset["train_list"]).name
    tuning = dict(config["tuning"])
    if tuning.get("cache") is not None:
        tuning["cache"] = "auto"
    backbone = dict(config["backbone"])
    if backbone.get("weights") is not None:
        backbone["weights"] = Path(backbone["weights"]).name
    return {**config, "dataset": dataset, "tuning": tuning, "backbone": backbone, "resume": None}


def _base_without_paths(base: dict[str, Any]) -> dict[str, Any]:
    """Of a file its name: whoever uses the model gives backbone.weights=PATH of the same weights."""
    return {"weights": Path(base["weights"]).name, "file": None if base["file"] is None else Path(base["file"]).name}
