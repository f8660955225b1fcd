"""Pretrained weights for a backbone: a torchvision name, a file, or none; and a report of what was loaded."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

from fss_svf.backbones.prefixes import find, unwrapped
from fss_svf.backbones.reading import read_checkpoint, tensors
from fss_svf.errors import WeightsError, listing

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
    prefix   what stands before the tensors' names in the file, nests included
    others   further prefixes under which all of them stand, of other networks (DINO's student)
    """

    source: str
    loaded: int = 0
    ignored: tuple[str, ...] = ()
    trained_on: Mapping[str, Any] | None = None
    digest: str | None = None
    prefix: str = ""
    others: tuple[str, ...] = ()

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
        under = f", under {self.prefix!r}" if self.prefix else ""
        others = f" (not {listing(map(repr, self.others), 2)})" if self.others else ""
        known_by = f" ({short(self.digest)})" if self.digest else ""
        return f"backbone: {self.loaded} tensors from {self.source}{known_by}{under}{others}{ignored}"


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


def load_weights(
    net: nn.Module, source: str | None, name: str, rename: Callable[[str], str] | None = None
) -> LoadReport:
    """Load into `net`, whose classifier alone may stay as it is. Raises WeightsError.

    rename: a name of a file or run to the one in `net`; None: those of torchvision's networks.
    """
    if source is None:
        return LoadReport("random")
    own = net.state_dict()
    required = {k for k in own if not _is_head(k) and not k.endswith("num_batches_tracked")}
    if rename is None:
        rename = _vgg_name if name.startswith("vgg") else _resnet_name
    trained_on, prefix = None, ""
    others: list[str] = []
    ignored: list[str] = []
    if Path(source).expanduser().is_file():
        content = read_checkpoint(Path(source).expanduser())
        if content.get("trained_on"):
            trained_on = {**content["trained_on"], "origin": origin(content)}
        found = {unwrapped(key): value for key, value in tensors(content)}
        prefix, others = find(found, required, rename, str(source))
        state = {rename(k.removeprefix(prefix)): v for k, v in found.items() if k.startswith(prefix)}
        ignored = [k for k in found if not k.startswith(prefix)]
    else:
        found = state = _from_torchvision(source, name)
    beside = next(
        (kind for kind, pattern in _BESIDE.items() if any(pattern.search(k) for k in found if k.startswith(prefix))),
        None,
    )
    if beside:
        raise WeightsError(
            f"{source}: {beside} backbone, whose weights alone are the pretrained ones; evaluate it with checkpoint=, "
            "or give the weights it was tuned from"
        )
    _check_fits(own, state, required, source, name, list(found))
    _check_values(state, required, source)
    used = {k: v for k, v in state.items() if k in own and own[k].shape == v.shape}
    net.load_state_dict(used, strict=False)
    ignored = [k for k in state if k not in used] + ignored
    return LoadReport(
        str(source), len(used), tuple(ignored), trained_on, loaded_digest(net, used), prefix, tuple(others)
    )


def loaded_digest(net: nn.Module, used: Collection[str]) -> str:
    """Of the network's own tensors: a file in half precision holds the same weights once they are loaded."""
    return state_digest({key: value for key, value in net.state_dict().items() if key in used})


def plain_state(content: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of a state dict, also of one nested under 'state_dict' or 'model', without DataParallel's 'module.'."""
    for nest in ("state_dict", "model"):
        if isinstance(content.get(nest), Mapping):
            content = content[nest]
    return {unwrapped(key).removeprefix("module."): v for key, v in content.items() if isinstance(v, Tensor)}


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
    # The stem's modules, which PFENet and BAM number: 0 is conv1, 1 is bn1, 3 is conv2.
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
    own: Mapping[str, Tensor],
    state: Mapping[str, Tensor],
    required: set[str],
    source: str,
    name: str,
    names: list[str],
) -> None:
    """Raise WeightsError naming what is missing or has another shape. names: of the file, as they stand there."""
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
    elif len(missing) > len(required) // 2:
        hint = f"its names are not those of {name} in torchvision, the first are {listing(names, 3) or 'none'}; " + hint
    wrong = f"missing {listing(missing, 3)}" if missing else f"shapes differ: {listing(shapes, 2)}"
    raise WeightsError(f"{source}: does not fit backbone={name} ({wrong}); {hint}")


def _check_values(state: Mapping[str, Tensor], required: set[str], source: str) -> None:
    """Raise WeightsError for tensors that would be loaded without an error and are no weights."""
    for key in sorted(required):
        value = state[key]
        if value.is_meta or value.is_quantized or not value.is_floating_point():
            kind = "no values (meta)" if value.is_meta else str(value.dtype)
            raise WeightsError(f"{source}: {key} holds {kind}, expected floating-point numbers")
        if not torch.isfinite(value).all():
            raise WeightsError(
                f"{source}: {key} holds NaN or infinity; give weights of a training that did not diverge"
            )
