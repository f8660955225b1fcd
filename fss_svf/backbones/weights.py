"""Pretrained weights for a backbone: a torchvision name, a file, or none; and a report of what was loaded."""

from __future__ import annotations

import hashlib
import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

from fss_svf.errors import WeightsError, listing

# A run's checkpoint stores its model's backbone under this name.
_BACKBONE = "backbone."
# torchvision's names where ours differ.
_TORCHVISION = {"vgg16": "vgg16_bn", "vgg16_plain": "vgg16"}
# Tunings that leave the weights and train something beside them, by a name that they alone give.
_BESIDE = {
    "an SVF-tuned": re.compile(r"\.S0?$"),
    "a LoRA-tuned": re.compile(r"\.lora_a$"),
    "an adapter-tuned": re.compile(r"\.adapter\w+\.down\.weight$"),
}
# The first layer of each block of torchvision's vgg16.features (without BatchNorm).
VGG16_BLOCKS = (0, 5, 10, 17, 24)
# The first module of each stage in torchvision's vgg16_bn.features.
_VGG_STARTS = (0, 7, 14, 24, 34)


@dataclass(frozen=True)
class LoadReport:
    """What went into a backbone.

    source   the file or torchvision name, "random" for none
    loaded   number of tensors
    ignored  names in the file that a backbone does not have (a classifier, an auxiliary head)
    trained_on  for a checkpoint of this project: dataset, fold and base classes it was trained on, and its `origin`; else
                None
    digest   of the tensors as they were loaded (state_digest), None for random ones
    """

    source: str
    loaded: int = 0
    ignored: tuple[str, ...] = ()
    trained_on: Mapping[str, Any] | None = None
    digest: str | None = None

    @property
    def label(self) -> str:
        """A short name for tables: random, a torchvision name, a file's name, or whose base learner it is."""
        if self.trained_on:
            return f"base learner, {self.trained_on['dataset']} fold {self.trained_on['fold']}"
        return Path(self.source).name

    def __str__(self) -> str:
        if self.source == "random":
            return "backbone: random weights"
        ignored = f"; not used: {listing(self.ignored, 4)}" if self.ignored else ""
        known_by = f" ({short(self.digest)})" if self.digest else ""
        return f"backbone: {self.loaded} tensors from {self.source}{known_by}{ignored}"


def state_digest(state: Mapping[str, Tensor]) -> str:
    """16 hex digits over the tensors of a state dict, by name: equal for equal weights, whatever file holds them.

    BatchNorm's counters, which not every file has and no forward reads, are left out.
    """
    digest = hashlib.blake2b(digest_size=8)
    for name in sorted(state):
        if not name.endswith("num_batches_tracked"):
            value = state[name].detach().cpu().contiguous()
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}\0".encode())
            digest.update(value.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def short(digest: str | None) -> str:
    """A digest for tables and lines on screen."""
    return digest[:8] if digest else "not recorded"


def origin(content: Mapping[str, Any]) -> dict[str, Any]:
    """How a checkpoint of this project came about, but for its fold: what tells it from another one of the same name."""
    config = content.get("config", {})
    return {
        "seed": config.get("seed"),
        "recipe": config.get("recipe", {}).get("name"),
        "step": content.get("step"),
        "index": content["trained_on"].get("index"),
        "weights": content["trained_on"].get("weights_hash"),
    }


def load_weights(net: nn.Module, source: str | None, name: str) -> LoadReport:
    """Load into the torchvision-shaped `net`, whose classifier alone may stay as it is. Raises WeightsError."""
    if source is None:
        return LoadReport("random")
    trained_on = None
    if Path(source).expanduser().is_file():
        content = read_checkpoint(Path(source).expanduser())
        if content.get("trained_on"):
            trained_on = {**content["trained_on"], "origin": origin(content)}
        state = normalise_keys(content, vgg=name.startswith("vgg"))
    else:
        state = _from_torchvision(source, name)
    beside = next((kind for kind, name in _BESIDE.items() if any(name.search(key) for key in state)), None)
    if beside:
        raise WeightsError(
            f"{source}: {beside} backbone, whose weights alone are the pretrained ones; evaluate it with checkpoint=, "
            "or give the weights it was tuned from"
        )
    own = net.state_dict()
    required = {k for k in own if not _is_head(k) and not k.endswith("num_batches_tracked")}
    _check_fits(own, state, required, source, name)
    used = {k: v for k, v in state.items() if k in own and own[k].shape == v.shape}
    net.load_state_dict(used, strict=False)
    ignored = tuple(k for k in state if k not in used)
    # Of the network: a file in half precision holds the same weights once they are loaded.
    digest = state_digest({key: value for key, value in net.state_dict().items() if key in used})
    return LoadReport(str(source), len(used), ignored, trained_on, digest)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A file of torch.save with weights_only=True. Raises WeightsError naming the file."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise WeightsError(f"{path.absolute()}: no such checkpoint") from None
    except (RuntimeError, EOFError, pickle.UnpicklingError, ValueError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise WeightsError(f"{path}: not a readable checkpoint ({reason}); half a download? get it anew") from None
    if not isinstance(content, dict):
        raise WeightsError(f"{path}: holds a {type(content).__name__}, expected a dict of tensors")
    return content


def plain_state(content: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of a state dict, also of one nested under 'state_dict' or 'model', without DataParallel's 'module.'."""
    for nest in ("state_dict", "model"):
        if isinstance(content.get(nest), Mapping):
            content = content[nest]
    return {key.removeprefix("module."): value for key, value in content.items() if isinstance(value, Tensor)}


def normalise_keys(content: Mapping[str, Any], vgg: bool = False) -> dict[str, Tensor]:
    """Torchvision's names, from a plain state dict, one nested under 'state_dict' or 'model', semseg's, or a run's.

    Dropped: the prefixes 'module.' (DataParallel), 'encoder.' and 'backbone.', and 'layer0.' of the stem, whose modules
    PFENet and BAM number (0 is conv1, 1 is bn1, 3 is conv2, ...). PANet's names of its VGG16 are understood too.
    """
    state = plain_state(content)
    if any(key.startswith(_BACKBONE) for key in state):
        # A run's checkpoint: the backbone alone is taken, not its head.
        state = {key: value for key, value in state.items() if key.startswith(_BACKBONE)}
    rename = _vgg_name if vgg else _resnet_name
    return {rename(re.sub(r"^((encoder|backbone)\.)+", "", key)): value for key, value in state.items()}


def name_in_stage(stage: int, key: str, vgg: bool) -> str:
    """The name inside a stage of this project's backbones for one inside semseg's, PFENet's or BAM's stage."""
    number, _, rest = key.partition(".")
    if not number.isdecimal():
        return key
    if vgg:
        # Slices of torchvision's `features`: they keep its numbers, or count from 0 in every stage.
        first = _VGG_STARTS[stage]
        return f"{int(number) + first if int(number) < first else int(number)}.{rest}"
    if stage == 0:
        layer, kind = divmod(int(number), 3)  # convolution, BatchNorm, ReLU, three times in a deep stem
        return f"{('conv', 'bn', 'relu')[kind]}{layer + 1}.{rest}"
    return key


def _resnet_name(key: str) -> str:
    return name_in_stage(0, key.removeprefix("layer0."), vgg=False) if key.startswith("layer0.") else key


def _vgg_name(key: str) -> str:
    # PANet numbers blocks and the pools between them, and inside a block its layers: features.2.0 is features.5.
    panet = re.match(r"features\.([02468])\.([024])\.(\w+)$", key)
    if panet:
        return f"features.{VGG16_BLOCKS[int(panet[1]) // 2] + int(panet[2])}.{panet[3]}"
    inside = re.match(r"layer(\d)\.(\d+\.\w+)$", key)
    return f"features.{name_in_stage(int(inside[1]), inside[2], vgg=True)}" if inside else key


def _from_torchvision(source: str, name: str) -> dict[str, Tensor]:
    try:
        weights = torchvision.models.get_model_weights(_TORCHVISION.get(name, name))[source]
    except (KeyError, ValueError):
        raise WeightsError(
            f"backbone.weights={source}: neither a file ({Path(source).absolute()}) nor torchvision weights of {name}"
        ) from None
    try:
        return dict(weights.get_state_dict(progress=True, check_hash=True))
    except Exception as error:  # whatever the download raises: no network, a proxy, a broken file
        raise WeightsError(
            f"backbone.weights={source}: the download failed ({error}); fetch {weights.url} by other means and set "
            "backbone.weights to the file"
        ) from None


def _is_head(key: str) -> bool:
    return key.startswith(("fc.", "classifier."))


def _check_fits(
    own: Mapping[str, Tensor], state: Mapping[str, Tensor], required: set[str], source: str, name: str
) -> None:
    missing = sorted(required - set(state))
    shapes = [
        f"{key} {tuple(state[key].shape)} for {tuple(own[key].shape)}"
        for key in sorted(required & set(state))
        if own[key].shape != state[key].shape
    ]
    if not missing and not shapes:
        return
    hint = "choose the backbone the file was made for"
    deep = "conv3.weight" in state
    if name.startswith("resnet") and deep != ("conv3.weight" in own):
        hint = (
            f"the file has a {'deep' if deep else 'standard'} stem, set backbone.stem={'deep' if deep else 'standard'}"
        )
    wrong = f"missing {listing(missing, 3)}" if missing else f"shapes differ: {listing(shapes, 2)}"
    raise WeightsError(f"{source}: does not fit backbone={name} ({wrong}); {hint}")
