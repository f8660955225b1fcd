"""Reads checkpoints of the official implementations: SVF's baseline, PFENet, BAM, PANet, SSP, HSNet, DCAMA.

This module maps names and shapes; every number comes from the checkpoint.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fss_svf.backbones.reading import read_checkpoint
from fss_svf.backbones.weights import VGG16_BLOCKS, name_in_stage, plain_state
from fss_svf.errors import ConfigError, WeightsError, listing
from fss_svf.methods import dcama, panet
from fss_svf.methods.base_learner import BaseLearner
from fss_svf.methods.method import FewShotMethod
from fss_svf.model import build_backbone, load_state, restore_model
from fss_svf.registry import BACKBONES, METHODS, TUNINGS, Choice

# Official name: name in this project, for everything but the stages. A name includes all that begin with it and a dot.
_ASPP = {
    "down_query": "down_query",
    "down_supp": "down_support",
    "init_merge": "merge",
    "ASPP_meta.layer6_0": "aspp.pooled",
    "ASPP_meta.layer6_1": "aspp.pointwise",
    "ASPP_meta.layer6_2": "aspp.dilated.0",
    "ASPP_meta.layer6_3": "aspp.dilated.1",
    "ASPP_meta.layer6_4": "aspp.dilated.2",
    "res1_meta": "reduce",
    "res2_meta": "residual.body",
    "cls_meta": "classifier",
}
_PYRAMID = {f"features.{i}.{j + 1}": f"branches.{i}.{j}" for i in range(4) for j in range(2)}
_NAMES: dict[str, dict[str, str]] = {
    "baseline": _ASPP,
    "pfenet": {
        "down_query": "down_query",
        "down_supp": "down_support",
        "init_merge": "merge",
        "alpha_conv": "across",
        **{f"beta_conv.{i}": f"within.{i}.body" for i in range(9)},
        "inner_cls": "auxiliary",
        "res1": "reduce",
        "res2": "residual.body",
        "cls": "classifier",
    },
    "bam": {
        **_ASPP,
        "gram_merge": "gram_merge",
        "cls_merge": "cls_merge",
        "kshot_rw": "kshot",
        **{f"learner_base.0.{official}": f"base.ppm.{here}" for official, here in _PYRAMID.items()},
        "learner_base.1": "base.cls",
    },
    "base_learner": {**{f"ppm.{official}": f"ppm.{here}" for official, here in _PYRAMID.items()}, "cls": "cls"},
    "panet": {},  # nothing beside its VGG16
    "ssp": {},  # nothing beside its ResNet
    "hsnet": {
        **{f"hpn_learner.encoder_layer{4 - i}": f"head.squeeze.{2 - i}" for i in range(3)},
        "hpn_learner.encoder_layer4to3": "head.mix.1",
        "hpn_learner.encoder_layer3to2": "head.mix.0",
        **{f"hpn_learner.{name}": f"head.{name}" for name in ("decoder1", "decoder2")},
    },
    "dcama": {},  # its own name_here
}
# Official tensors that are not used: the baseline has a layer left over from BAM, the PSPNet two names for its stages,
# HSNet's backbone its classifier.
_UNUSED = {
    "baseline": ("kshot_rw",),
    "base_learner": ("encoder",),
    "hsnet": ("backbone.fc", "backbone.classifier"),
    "dcama": dcama.UNUSED,
}
# BAM dilates every block of layer3 and layer4, SVF's baseline and PFENet as torchvision does.
_DILATION = {
    **dict.fromkeys(("baseline", "pfenet", "ssp"), "torchvision"),
    **dict.fromkeys(("bam", "base_learner"), "pfenet"),
    **dict.fromkeys(("hsnet", "dcama"), "none"),
}
# The tuning, beside frozen, that goes on with the training of a backbone that trains; and its options.
_TRAINED_BY: dict[str, tuple[str, dict[str, Any]]] = {
    "panet": ("full", {}),
    "ssp": ("layers", {"stages": ("layer2", "layer3")}),
}
_BASE_CLASSES = {"pascal": 15, "coco": 60}


@dataclass(frozen=True)
class Official:
    """An official checkpoint as the choices of a run and the state dict of its model."""

    method: Choice
    backbone: Choice
    tuning: Choice
    state: dict[str, Tensor]
    what: str  # for messages


def load_official(
    source: Path | str | Mapping[str, Any],
    method: str,
    backbone: str,
    shot: int = 1,
    dataset: str = "pascal",
    tuning: str = "frozen",
    dilation: str | None = None,
    **options: Any,
) -> FewShotMethod | BaseLearner:
    """The model of an official checkpoint, in eval mode. Raises WeightsError naming what does not fit.

    source    a file, or its content: a state dict, possibly under 'state_dict' or with 'module.' before the names
    method    baseline (SVF's aspp.py), pfenet, bam, panet, ssp, hsnet, dcama (of a ResNet), or base_learner (BAM's PSPNet)
    shot      K of the training, which shapes BAM
    tuning    frozen; svf for an official SVF checkpoint (conv_U, conv_V, vector_S); for panet also full, for ssp
              also layers
    dilation  of a ResNet; default: pfenet for BAM, none for HSNet and DCAMA, torchvision for SVF's baseline, PFENet and SSP.
              The original PFENet: pfenet
    options   of the method, such as bins=(1.0, 0.5, 0.25, 0.125) for the original PFENet on COCO
    """
    if method == "base_learner":
        return read_base_learner(source, backbone, dataset, dilation)[1].eval()
    official = read_official(source, method, backbone, shot, dataset, tuning, dilation, **options)
    model = restore_model(official.method, official.backbone, official.tuning, official.state, official.what)
    return model.eval()


def read_official(
    source: Path | str | Mapping[str, Any],
    method: str,
    backbone: str,
    shot: int,
    dataset: str,
    tuning: str,
    dilation: str | None,
    **options: Any,
) -> Official:
    """The choices and the state dict of load_official's model. Same arguments and errors."""
    what, state = _translate(source, method, backbone)
    folded = any(name.endswith(".vector_S") for name in state)
    trained_by, train_options = _TRAINED_BY.get(method, ("frozen", {}))
    fitting = ("svf",) if folded else tuple(dict.fromkeys(("frozen", trained_by)))
    if tuning not in fitting:
        raise WeightsError(
            f"{what}: tuning={tuning}, but its backbone is {'an SVF one' if folded else 'plain'}; "
            f"set tuning={' or '.join(fitting)}"
        )
    if folded:
        state = _fold(state)
    if method == "bam":
        state = _share_stages(state)
        options |= _bam_options(state, shot, dataset, what)
    if method == "baseline":
        # The official optimizer leaves this layer out, not the module.
        options.setdefault("down_query_trains", True)
    if "down_query.0.weight" in state:
        options.setdefault("width", len(state["down_query.0.weight"]))
    choice = _backbone(backbone, method, dilation, "backbone.layer0.conv3.weight" in state)
    if method == "ssp":
        state = _with_unread_stage(state, choice)
    values = train_options if tuning == trained_by else {}
    if folded:
        values = {"include": (r"^layer[234]\.",), "exclude": (), "rank": None, "rank_multiple": 4}
    return Official(
        Choice(method, METHODS.entry(method).options(**options)),
        choice,
        Choice(tuning, TUNINGS.entry(tuning).options(**values)),
        state,
        what,
    )


def read_base_learner(
    source: Path | str | Mapping[str, Any], backbone: str, dataset: str = "pascal", dilation: str | None = None
) -> tuple[Choice, BaseLearner]:
    """The backbone of BAM's PSPNet as the choice of a run, and the model. Arguments and errors as in load_official."""
    what, state = _translate(source, "base_learner", backbone)
    classes = _count_classes(state, "cls.4.bias", dataset, what)
    choice = _backbone(backbone, "base_learner", dilation, "backbone.layer0.conv3.weight" in state)
    with torch.device("meta"):
        model = BaseLearner(build_backbone(choice)[0], classes)
    load_state(model, state, what, assign=True)
    return choice, model


def _translate(source: Path | str | Mapping[str, Any], method: str, backbone: str) -> tuple[str, dict[str, Tensor]]:
    """A name of the source for messages, and its tensors under this project's names. Raises WeightsError."""
    if method not in _NAMES:
        raise ConfigError(
            f"method={method}: there is no reader for its official checkpoints; there is one for: {', '.join(_NAMES)}"
        )
    content = source if isinstance(source, Mapping) else read_checkpoint(Path(source).expanduser())
    what = f"official {method}" if isinstance(source, Mapping) else str(source)
    state, unknown = {}, []
    for name, value in plain_state(content).items():
        here = _name_here(name, method, backbone.startswith("vgg"))
        if here is not None:
            state[here] = value.detach().clone()
        elif not name.startswith(tuple(f"{unused}." for unused in _UNUSED.get(method, ()))):
            unknown.append(name)
    if unknown:
        raise WeightsError(
            f"{what}: {len(unknown)} tensors do not belong to an official {method}: {listing(unknown, 10)}"
        )
    for name in [n for n in state if n.endswith(".running_var")]:  # files of old PyTorch do not have the counter
        state.setdefault(name.replace("running_var", "num_batches_tracked"), torch.zeros((), dtype=torch.long))
    return what, state


def _name_here(name: str, method: str, vgg: bool) -> str | None:
    """The name in this project of an official tensor; None for an unknown one."""
    own = {"panet": panet.name_here, "dcama": dcama.name_here}.get(method)
    if own is not None:
        here = own(name)
        return None if here == name else here
    if method == "hsnet" and name.startswith("backbone."):
        return _in_torchvision(name.removeprefix("backbone."))
    if method == "ssp":  # its stem: convolutions and norms numbered in layer0.0, but the last norm, which is layer0.1
        name = re.sub(r"^layer0\.0\.(\d)\.", r"layer0.\1.", re.sub(r"^layer0\.1\.", "layer0.7.", name))
    in_stage = re.match(r"layer([0-4])(p?)\.(.+)", name)
    if in_stage:
        stage, original, rest = in_stage.groups()
        prefix = "base.stages" if original else "backbone"
        return f"{prefix}.layer{stage}.{name_in_stage(int(stage), rest, vgg)}"
    for official, here in _NAMES[method].items():
        if name.startswith(f"{official}."):
            return here + name.removeprefix(official)
    return None


def _in_torchvision(name: str) -> str | None:
    """The name in this project of a backbone's tensor under torchvision's; None for that of a classifier."""
    if found := re.match(r"features\.(\d+)\.(.+)", name):
        stage = max(i for i, first in enumerate(VGG16_BLOCKS) if first <= int(found[1]))
        return f"backbone.layer{stage}.{found[1]}.{found[2]}"
    if name.startswith(("conv1.", "bn1.")):
        return f"backbone.layer0.{name}"
    return f"backbone.{name}" if re.match(r"layer[1-4]\.", name) else None


def _backbone(name: str, method: str, dilation: str | None, deep_stem: bool) -> Choice:
    if name == "vgg16":  # PANet's and HSNet's have no BatchNorm
        name = {"panet": "vgg16_plain", "hsnet": "vgg16_hsnet"}.get(method, name)
    kind = BACKBONES.entry(name).options
    if not name.startswith("resnet"):
        return Choice(name, kind())
    return Choice(name, kind(dilation=dilation or _DILATION[method], stem="deep" if deep_stem else "standard"))


def _with_unread_stage(state: Mapping[str, Tensor], backbone: Choice) -> dict[str, Tensor]:
    """The state with zeros for layer4, which SSP's code does not have and the method does not read."""
    with torch.device("meta"):
        empty = build_backbone(backbone)[0].state_dict()
    unread = {f"backbone.{k}": torch.zeros(v.shape, dtype=v.dtype) for k, v in empty.items() if k.startswith("layer4.")}
    return {**unread, **state}


def _bam_options(state: Mapping[str, Tensor], shot: int, dataset: str, what: str) -> dict[str, Any]:
    options: dict[str, Any] = {"shot": shot}
    options["base_classes"] = _count_classes(state, "base.cls.4.bias", dataset, what)
    if "kshot.weight" in state:
        options["kshot_trans_dim"] = 0
    elif "kshot.0.bias" in state:
        options["kshot_trans_dim"] = len(state["kshot.0.bias"])
    layer = next((state[k] for k in ("kshot.weight", "kshot.0.weight") if k in state), None)
    trained = 1 if layer is None else layer.shape[1]
    if trained != shot:
        raise WeightsError(
            f"{what}: shot={shot}, but its kshot_rw was trained with {trained} shots; set shot={trained}"
        )
    return options


def _count_classes(state: Mapping[str, Tensor], name: str, dataset: str, what: str) -> int:
    if name not in state:
        raise WeightsError(f"{what}: it has no classifier of base classes (here called {name})")
    classes, expected = len(state[name]) - 1, _BASE_CLASSES.get(dataset)
    if expected not in (None, classes):
        raise WeightsError(f"{what}: {classes} base classes, dataset={dataset} has {expected} in a fold")
    return classes


def _fold(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """conv_U, conv_V and vector_S as SVF layers in layers 2 to 4, and as plain weights below, where nothing trains."""
    folded = {k: v for k, v in state.items() if not k.endswith((".conv_U.weight", ".conv_V.weight", ".vector_S"))}
    for name in [k.removesuffix(".vector_S") for k in state if k.endswith(".vector_S")]:
        u, v = (state[f"{name}.conv_{factor}.weight"] for factor in "UV")
        s = state[f"{name}.vector_S"].flatten()
        shape, u, vh = (len(u), *v.shape[1:]), u.flatten(1), v.flatten(1)
        weight, start = ((u * s) @ vh).view(shape), s
        if f"{name}.conv_U.bias" in folded:
            folded[f"{name}.bias"] = folded.pop(f"{name}.conv_U.bias")
        if name.startswith(("backbone.layer2", "backbone.layer3", "backbone.layer4")):
            # Only BAM keeps the weight that was decomposed. For the others the trained weight is used instead.
            original = state.get(f"{name.replace('backbone', 'base.stages')}.weight")
            if original is not None:
                weight, start = original, ((u.T @ original.flatten(1)) * vh).sum(1)
            folded |= {f"{name}.U": u[None], f"{name}.Vh": vh[None], f"{name}.S": s[None], f"{name}.S0": start[None]}
        folded[f"{name}.weight"] = weight
    return folded


def _share_stages(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state without those stages of BAM's base branch whose weights equal the meta branch's."""
    shared = dict(state)
    for stage in range(5):
        base = {k: v for k, v in state.items() if k.startswith(f"base.stages.layer{stage}.")}
        pairs = [(v, state.get(k.replace("base.stages", "backbone"))) for k, v in base.items()]
        if all(meta is not None and torch.equal(v, meta) for v, meta in pairs):
            shared = {k: v for k, v in shared.items() if k not in base}
    return shared
