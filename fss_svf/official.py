"""Checkpoints of the official implementations of SVF's baseline, PFENet, BAM and its base learner, PANet, as our models.

Only names and shapes are known here; every number comes from the checkpoint.
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
from fss_svf.backbones.weights import name_in_stage, plain_state
from fss_svf.errors import ConfigError, WeightsError, listing
from fss_svf.methods import panet
from fss_svf.methods.base_learner import BaseLearner
from fss_svf.methods.method import FewShotMethod
from fss_svf.model import build_backbone, load_state, restore_model
from fss_svf.registry import BACKBONES, METHODS, TUNINGS, Choice

# Official name, ours; of everything but the stages. A name stands for all that begin with it and a dot.
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
        **{f"learner_base.0.{theirs}": f"base.ppm.{ours}" for theirs, ours in _PYRAMID.items()},
        "learner_base.1": "base.cls",
    },
    "base_learner": {**{f"ppm.{theirs}": f"ppm.{ours}" for theirs, ours in _PYRAMID.items()}, "cls": "cls"},
    "panet": {},  # nothing beside its VGG16
}
# Official tensors that nothing reads: the baseline's leftover of BAM, the PSPNet's second names of its stages.
_UNUSED = {"baseline": ("kshot_rw",), "base_learner": ("encoder",)}
# BAM dilates every block of layer3 and layer4, SVF's baseline and PFENet as torchvision does.
_DILATION = {"baseline": "torchvision", "pfenet": "torchvision", "bam": "pfenet", "base_learner": "pfenet"}
_BASE_CLASSES = {"pascal": 15, "coco": 60}


@dataclass(frozen=True)
class Official:
    """An official checkpoint in our terms: the choices of a run, and the state dict of its model."""

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

    source    a file, or its content: a state dict, also nested under 'state_dict', also with 'module.' before the names
    method    baseline (SVF's aspp.py), pfenet, bam, panet, or base_learner (BAM's PSPNet)
    shot      K of the training, which shapes BAM
    tuning    frozen; svf for an official SVF checkpoint (conv_U, conv_V, vector_S); for panet also full
    dilation  of a ResNet; default: pfenet for BAM, torchvision for SVF's baseline and PFENet. The original PFENet: pfenet
    options   of the method, such as bins=(1.0, 0.5, 0.25, 0.125) for the original PFENet on COCO
    """
    if method == "base_learner":
        return read_base_learner(source, backbone, dataset, dilation)[1].eval()
    found = read_official(source, method, backbone, shot, dataset, tuning, dilation, **options)
    return restore_model(found.method, found.backbone, found.tuning, found.state, found.what).eval()


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
    """load_official's model as choices and a state dict, for a checkpoint of this project; its arguments and errors."""
    what, state = _translate(source, method, backbone)
    folded = any(name.endswith(".vector_S") for name in state)
    # PANet trains its whole backbone: to go on from a checkpoint of it, all must move.
    fitting = ("svf",) if folded else ("frozen", "full") if method == "panet" else ("frozen",)
    if tuning not in fitting:
        raise WeightsError(
            f"{what}: tuning={tuning}, but its backbone is {'an SVF one' if folded else 'plain'}, "
            f"tuning={' or '.join(fitting)}"
        )
    if folded:
        state = _fold(state)
    if method == "bam":
        state = _share_stages(state)
        options |= _bam_options(state, shot, dataset, what)
    if method == "baseline":
        # It is the official optimizer that leaves this layer out, not the module.
        options.setdefault("down_query_trains", True)
    if "down_query.0.weight" in state:
        options.setdefault("width", len(state["down_query.0.weight"]))
    values: dict[str, Any] = {"include": (r"^layer[234]\.",), "exclude": (), "rank": None, "rank_multiple": 4}
    return Official(
        Choice(method, METHODS.entry(method).options(**options)),
        _backbone(backbone, method, dilation, "backbone.layer0.conv3.weight" in state),
        Choice(tuning, TUNINGS.entry(tuning).options(**(values if folded else {}))),
        state,
        what,
    )


def read_base_learner(
    source: Path | str | Mapping[str, Any], backbone: str, dataset: str = "pascal", dilation: str | None = None
) -> tuple[Choice, BaseLearner]:
    """The backbone of BAM's PSPNet as a choice of a run, and the model. Arguments and errors are load_official's."""
    what, state = _translate(source, "base_learner", backbone)
    classes = _count_classes(state, "cls.4.bias", dataset, what)
    choice = _backbone(backbone, "base_learner", dilation, "backbone.layer0.conv3.weight" in state)
    with torch.device("meta"):
        model = BaseLearner(build_backbone(choice)[0], classes)
    load_state(model, state, what, assign=True)
    return choice, model


def _translate(source: Path | str | Mapping[str, Any], method: str, backbone: str) -> tuple[str, dict[str, Tensor]]:
    """What to call the source, and its tensors under our names. Raises WeightsError for names that say nothing to us."""
    if method not in _NAMES:
        raise ConfigError(f"method={method}: no official checkpoints are known of it; known: {', '.join(_NAMES)}")
    content = source if isinstance(source, Mapping) else read_checkpoint(Path(source).expanduser())
    what = f"official {method}" if isinstance(source, Mapping) else str(source)
    state, strange = {}, []
    for name, value in plain_state(content).items():
        ours = _our_name(name, method, backbone.startswith("vgg"))
        if ours is not None:
            state[ours] = value.detach().clone()
        elif not name.startswith(tuple(f"{unused}." for unused in _UNUSED.get(method, ()))):
            strange.append(name)
    if strange:
        raise WeightsError(
            f"{what}: {len(strange)} tensors do not belong to an official {method}: {listing(strange, 10)}"
        )
    for name in [n for n in state if n.endswith(".running_var")]:  # files of old PyTorch lack the counter
        state.setdefault(name.replace("running_var", "num_batches_tracked"), torch.zeros((), dtype=torch.long))
    return what, state


def _our_name(name: str, method: str, vgg: bool) -> str | None:
    if method == "panet":
        ours = panet.our_name(name)
        return None if ours == name else ours
    in_stage = re.match(r"layer([0-4])(p?)\.(.+)", name)
    if in_stage:
        stage, original, rest = in_stage.groups()
        owner = "base.stages" if original else "backbone"
        return f"{owner}.layer{stage}.{name_in_stage(int(stage), rest, vgg)}"
    for theirs, ours in _NAMES[method].items():
        if name.startswith(f"{theirs}."):
            return ours + name.removeprefix(theirs)
    return None


def _backbone(name: str, method: str, dilation: str | None, deep_stem: bool) -> Choice:
    if method == "panet" and name == "vgg16":
        name = "vgg16_plain"  # PANet's has no BatchNorm
    kind = BACKBONES.entry(name).options
    if not name.startswith("resnet"):
        return Choice(name, kind())
    return Choice(name, kind(dilation=dilation or _DILATION[method], stem="deep" if deep_stem else "standard"))


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
            f"{what}: shot={shot}, but it was trained at {trained} shots by its kshot_rw; say shot={trained}"
        )
    return options


def _count_classes(state: Mapping[str, Tensor], name: str, dataset: str, what: str) -> int:
    if name not in state:
        raise WeightsError(f"{what}: no classifier of base classes in it ({name} in our names)")
    found, expected = len(state[name]) - 1, _BASE_CLASSES.get(dataset)
    if expected not in (None, found):
        raise WeightsError(f"{what}: {found} base classes, dataset={dataset} has {expected} in a fold")
    return found


def _fold(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """conv_U, conv_V and vector_S as our SVF layers in layers 2 to 4; below, where nothing trains, as plain weights."""
    folded = {k: v for k, v in state.items() if not k.endswith((".conv_U.weight", ".conv_V.weight", ".vector_S"))}
    for name in [k.removesuffix(".vector_S") for k in state if k.endswith(".vector_S")]:
        u, v = (state[f"{name}.conv_{factor}.weight"] for factor in "UV")
        s = state[f"{name}.vector_S"].flatten()
        shape, u, vh = (len(u), *v.shape[1:]), u.flatten(1), v.flatten(1)
        weight, start = ((u * s) @ vh).view(shape), s
        if f"{name}.conv_U.bias" in folded:
            folded[f"{name}.bias"] = folded.pop(f"{name}.conv_U.bias")
        if name.startswith(("backbone.layer2", "backbone.layer3", "backbone.layer4")):
            # BAM alone keeps the weight that was decomposed; elsewhere what was trained takes its place.
            original = state.get(f"{name.replace('backbone', 'base.stages')}.weight")
            if original is not None:
                weight, start = original, ((u.T @ original.flatten(1)) * vh).sum(1)
            folded |= {f"{name}.U": u[None], f"{name}.Vh": vh[None], f"{name}.S": s[None], f"{name}.S0": start[None]}
        folded[f"{name}.weight"] = weight
    return folded


def _share_stages(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Without the stages of BAM's base branch whose weights the meta branch has too."""
    shared = dict(state)
    for stage in range(5):
        own = {k: v for k, v in state.items() if k.startswith(f"base.stages.layer{stage}.")}
        pairs = [(v, state.get(k.replace("base.stages", "backbone"))) for k, v in own.items()]
        if all(theirs is not None and torch.equal(v, theirs) for v, theirs in pairs):
            shared = {k: v for k, v in shared.items() if k not in own}
    return shared
