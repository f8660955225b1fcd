"""Loads pretrained weights into a backbone from a torchvision name or a file, and reports what was loaded."""

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

from fss_svf.backbones.prefixes import find, unwrapped, wrappers
from fss_svf.backbones.reading import read_checkpoint, tensors
from fss_svf.errors import WeightsError, listing

# torchvision's names where this project's differ.
_TORCHVISION = {"vgg16": "vgg16_bn", "vgg16_plain": "vgg16", "vgg16_hsnet": "vgg16"}
# The first layer of each block of torchvision's vgg16.features (without BatchNorm).
VGG16_BLOCKS = (0, 5, 10, 17, 24)
# The first module of each stage in torchvision's vgg16_bn.features.
_VGG_STARTS = (0, 7, 14, 24, 34)


@dataclass(frozen=True)
class LoadReport:
    """What was loaded into a backbone.

    source      the file or torchvision name, "random" for none
    loaded      number of tensors
    ignored     names in the file that a backbone does not have (a classifier, an auxiliary head)
    trained_on  for a checkpoint of this project: dataset, fold and base classes of its training, and its `origin`; else
                None
    digest      state_digest of the loaded tensors; None for random weights
    prefix      prefix of the tensors' names in the file, nesting included
    others      further prefixes with all of these names, of other networks (DINO's student)
    notes       what else the log says of them: resized position embeddings, the normalisation of images
    """

    source: str
    loaded: int = 0
    ignored: tuple[str, ...] = ()
    trained_on: Mapping[str, Any] | None = None
    digest: str | None = None
    prefix: str = ""
    others: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """A short name for tables: random, a torchvision name, a file's name, or a base learner's dataset and fold."""
        if self.trained_on:
            return f"base learner, {self.trained_on['dataset']} fold {self.trained_on['fold']}"
        return Path(self.source).name

    def __str__(self) -> str:
        if self.source == "random":
            return "backbone: random weights"
        ignored = f"; not used: {listing(self.ignored, 4)}" if self.ignored else ""
        under = f", under {self.prefix!r}" if self.prefix else ""
        others = f" (not {listing(map(repr, self.others), 2)})" if self.others else ""
        notes = "".join(f"; {note}" for note in self.notes)
        known_by = f" ({short(self.digest)})" if self.digest else ""
        return f"backbone: {self.loaded} tensors from {self.source}{known_by}{under}{others}{ignored}{notes}"


def state_digest(state: Mapping[str, Tensor]) -> str:
    """16 hex digits over the tensors of a state dict, by name: equal for equal weights in any file.

    BatchNorm's counters are left out: not every file has them and no forward reads them.
    """
    digest = hashlib.blake2b(digest_size=8)
    for name in sorted(state):
        if not name.endswith("num_batches_tracked"):
            value = state[name].detach().cpu().contiguous()
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}\0".encode())
            digest.update(value.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def short(digest: str | None) -> str:
    """The first 8 digits of a digest, for tables and log lines."""
    return digest[:8] if digest else "not recorded"


def origin(content: Mapping[str, Any]) -> dict[str, Any]:
    """How a checkpoint of this project was trained, without its fold: distinguishes checkpoints of the same name."""
    config = content.get("config", {})
    return {
        "seed": config.get("seed"),
        "recipe": config.get("recipe", {}).get("name"),
        "step": content.get("step"),
        "index": content["trained_on"].get("index"),
        "weights": content["trained_on"].get("weights_hash"),
    }


def load_weights(
    net: nn.Module,
    source: str | Mapping[str, Any] | None,
    name: str,
    rename: Callable[[str], str] | None = None,
    convert: Callable[[dict[str, Tensor]], Mapping[str, Tensor]] | None = None,
) -> LoadReport:
    """Load weights into `net`; only its classifier may be missing in them. Raises WeightsError.

    source   a torchvision name, a file, a state dict, or None for random weights
    rename   converts a name of a file or run to the one in `net`; None: that of torchvision's networks
    convert  makes tensors of `net` of those of a file that do not fit as they are
    """
    if source is None:
        return LoadReport("random")
    given, source = source, source if isinstance(source, str) else "a state dict"
    expected = net.state_dict()
    required = {k for k in expected if not _is_head(k) and not k.endswith("num_batches_tracked")}
    if rename is None:
        rename = _resnet_name
        if name.startswith("vgg"):
            rename = _vgg_name if name == "vgg16" else _plain_vgg_name
    trained_on, prefix = None, ""
    others: list[str] = []
    ignored: list[str] = []
    file = Path(source).expanduser()
    if not isinstance(given, str) or file.is_file():
        content = read_checkpoint(file) if isinstance(given, str) else dict(given)
        if content.get("base"):
            raise WeightsError(
                f"{source}: holds what its training moved alone, no whole backbone; give the weights it was trained from, "
                "or train it with checkpoint.weights=full where the backbone itself is what moves"
            )
        if content.get("trained_on"):
            trained_on = {**content["trained_on"], "origin": origin(content)}
        in_file = {unwrapped(key): value for key, value in tensors(content)}
        prefix, others = find(in_file, required, rename, str(source))
        state = {rename(k.removeprefix(prefix)): v for k, v in in_file.items() if k.startswith(prefix)}
        if convert is not None and not _fits(expected, state, required):
            prefix, state = _converted(convert, in_file, prefix, state, expected, required)
        ignored = [k for k in in_file if not k.startswith(prefix)]
    else:
        in_file = state = _from_torchvision(source, name)
    _check_fits(expected, state, required, source, name, list(in_file))
    names = list(state) if convert else [k.removeprefix(prefix) for k in in_file if k.startswith(prefix)]
    _refuse_additions(names, expected, rename, source)
    _check_values(state, required, source)
    used = {k: v for k, v in state.items() if k in expected and expected[k].shape == v.shape}
    net.load_state_dict(used, strict=False)
    ignored = [k for k in state if k not in used] + ignored
    return LoadReport(
        str(source), len(used), tuple(ignored), trained_on, loaded_digest(net, used), prefix, tuple(others)
    )


def loaded_digest(net: nn.Module, used: Collection[str]) -> str:
    """The digest of the network's tensors after loading: a file in half precision then gives the same one."""
    return state_digest({key: value for key, value in net.state_dict().items() if key in used})


def plain_state(content: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of a state dict, which may be nested under 'state_dict' or 'model', without DataParallel's 'module.'."""
    for nest in ("state_dict", "model"):
        if isinstance(content.get(nest), Mapping):
            content = content[nest]
    return {unwrapped(key).removeprefix("module."): v for key, v in content.items() if isinstance(v, Tensor)}


def name_in_stage(stage: int, key: str, vgg: bool) -> str:
    """Converts a name inside a stage of semseg, PFENet or BAM to the name inside this project's stage."""
    number, _, rest = key.partition(".")
    if not number.isdecimal():
        return key
    if vgg:
        # Slices of torchvision's `features`, with its numbers or counted from 0 in every stage.
        first = _VGG_STARTS[stage]
        return f"{int(number) + first if int(number) < first else int(number)}.{rest}"
    if stage == 0:
        layer, kind = divmod(int(number), 3)  # convolution, BatchNorm, ReLU, three times in a deep stem
        return f"{('conv', 'bn', 'relu')[kind]}{layer + 1}.{rest}"
    return key


def _resnet_name(key: str) -> str:
    # PFENet and BAM number the stem's modules: 0 is conv1, 1 is bn1, 3 is conv2.
    return name_in_stage(0, key.removeprefix("layer0."), vgg=False) if key.startswith("layer0.") else key


def _vgg_name(key: str) -> str:
    # PANet numbers the blocks and the pools between them, then the layers of a block: its features.2.0 is features.5.
    panet = re.match(r"features\.([02468])\.([024])\.(\w+)$", key)
    if panet:
        return f"features.{VGG16_BLOCKS[int(panet[1]) // 2] + int(panet[2])}.{panet[3]}"
    inside = re.match(r"layer(\d)\.(\d+\.\w+)$", key)
    return f"features.{name_in_stage(int(inside[1]), inside[2], vgg=True)}" if inside else key


def _plain_vgg_name(key: str) -> str:
    """As _vgg_name; in a run of a VGG16 without BatchNorm the layers of every stage keep torchvision's numbers."""
    inside = re.match(r"layer\d\.(\d+\.\w+)$", key)
    return f"features.{inside[1]}" if inside else _vgg_name(key)


def _from_torchvision(source: str, name: str) -> dict[str, Tensor]:
    try:
        weights = torchvision.models.get_model_weights(_TORCHVISION.get(name, name))[source]
    except (KeyError, ValueError):
        raise WeightsError(
            f"backbone.weights={source}: neither a file ({Path(source).absolute()}) nor torchvision weights of {name}"
        ) from None
    try:
        return dict(weights.get_state_dict(progress=True, check_hash=True))
    except Exception as error:  # a download raises anything: no network, a proxy, a broken file
        raise WeightsError(
            f"backbone.weights={source}: the download failed ({error}); download {weights.url} by other means and set "
            "backbone.weights to the file"
        ) from None


def _is_head(key: str) -> bool:
    return key.startswith(("fc.", "classifier."))


def _fits(expected: Mapping[str, Tensor], state: Mapping[str, Tensor], required: set[str]) -> bool:
    return all(key in state and state[key].shape == expected[key].shape for key in required)


def _converted(
    convert: Callable[[dict[str, Tensor]], Mapping[str, Tensor]],
    in_file: dict[str, Tensor],
    prefix: str,
    state: dict[str, Tensor],
    expected: Mapping[str, Tensor],
    required: set[str],
) -> tuple[str, dict[str, Tensor]]:
    """The prefix of the names that were converted, and the converted tensors; as they were where that is impossible."""
    # A few names alike (a head's) are no prefix of a network.
    starts = [prefix] if 2 * len(required & set(state)) > len(required) else wrappers(in_file)
    first: tuple[str, dict[str, Tensor]] | None = None
    for start in starts:
        tensors = {key.removeprefix(start): value for key, value in in_file.items() if key.startswith(start)}
        try:
            found = {key: value for key, value in convert(tensors).items() if isinstance(value, Tensor)}
        except WeightsError:
            raise
        except Exception:  # of a file of another network it raises anything; what is wrong, the checks say
            continue
        if _fits(expected, found, required):
            return start, found
        first = first or (start, found)
    return first or (prefix, state)


def _check_fits(
    expected: Mapping[str, Tensor],
    state: Mapping[str, Tensor],
    required: set[str],
    source: str,
    name: str,
    names: list[str],
) -> None:
    """Raise WeightsError naming tensors that are missing or have another shape. names: those of the file."""
    missing = sorted(required - set(state))
    shapes = [
        f"{key} {tuple(state[key].shape)} for {tuple(expected[key].shape)}"
        for key in sorted(required & set(state))
        if expected[key].shape != state[key].shape
    ]
    if not missing and not shapes:
        return
    hint = "choose the backbone the file was made for"
    deep = "conv3.weight" in state
    if name.startswith("resnet") and deep != ("conv3.weight" in expected):
        hint = (
            f"the file has a {'deep' if deep else 'standard'} stem, set backbone.stem={'deep' if deep else 'standard'}"
        )
    elif len(missing) > len(required) // 2:
        library = "timm" if name.startswith(("timm ", "efficientnet")) else "torchvision"
        hint = f"its names are not those of {name} in {library}, the first are {listing(names, 3) or 'none'}; " + hint
    wrong = f"missing {listing(missing, 3)}" if missing else f"shapes differ: {listing(shapes, 2)}"
    raise WeightsError(f"{source}: does not fit backbone={name} ({wrong}); {hint}")


def _refuse_additions(names: list[str], expected: Collection[str], rename: Callable[[str], str], source: str) -> None:
    """Raise WeightsError if a part of the network, such as a stage, has more tensors in the file than `expected`."""
    parts = {name.split(".")[0] for name in names if rename(name) in expected}
    additions = [name for name in names if name.split(".")[0] in parts and rename(name) not in expected]
    if additions:
        raise WeightsError(
            f"{source}: has {listing(additions, 2)} besides the backbone's weights, so it is a tuned backbone or another "
            "network; evaluate a checkpoint with checkpoint=, or give the weights it was tuned from"
        )


def _check_values(state: Mapping[str, Tensor], required: set[str], source: str) -> None:
    """Raise WeightsError for tensors that load without an error but are not weights."""
    for key in sorted(required):
        value = state[key]
        if value.is_meta or value.is_quantized or not value.is_floating_point():
            kind = "no values (meta)" if value.is_meta else str(value.dtype)
            raise WeightsError(f"{source}: {key} holds {kind}, expected floating-point numbers")
        if not torch.isfinite(value).all():
            raise WeightsError(f"{source}: {key} holds NaN or infinity; use weights of a training that did not diverge")
