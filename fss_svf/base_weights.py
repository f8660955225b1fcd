"""The pretrained weights that a checkpoint leaves out, named by file and hash, and found again.

A checkpoint holds what trained. All else of a backbone is what its config builds from the same pretrained weights: the
weights themselves, and what a tuning computes from them, such as the singular vectors U and V of SVF.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fss_svf.backbones.backbone import Backbone
from fss_svf.backbones.weights import LoadReport, short
from fss_svf.errors import WeightsError, listing
from fss_svf.registry import BACKBONES, TUNINGS, Choice
from fss_svf.tuned import tuned_layers

log = logging.getLogger(__name__)
_PREFIX = "backbone."  # of a method's backbone in its state dict
# How far a layer's probe may be from that of the training.
_TOLERANCE = 1e-4


@dataclass(frozen=True)
class BaseWeights:
    """What the checkpoints of a run leave out.

    weights   backbone.weights as it was given
    file      the file, as an absolute path; None for weights known by a name (torchvision's, a package's)
    hash      LoadReport.digest: of the weights as they were loaded
    start     checksums of tensors at the start, by their names in the model: a checkpoint leaves such a tensor out while its
              checksum is unchanged
    probes    TunedLayer.probe of every layer that computes something from its weight
    """

    weights: str
    file: str | None
    hash: str
    start: Mapping[str, int]
    probes: Mapping[str, float]

    def split(self, model: nn.Module) -> dict[str, Any]:
        """The entries `model` and `base` of a checkpoint: the state dict without what is left out, and what that is."""
        state = model.state_dict()
        now = _sums({name: state[name] for name in self.start})
        held = {name: value for name, value in state.items() if name not in now or now[name] != self.start[name]}
        left_out = len(state) - len(held)
        entry = {"weights": self.weights, "file": self.file, "hash": self.hash, "left_out": left_out}
        computed = _joint({name: self.start[name] for name in _computed(model)})
        return {"model": held, "base": {**entry, "computed": computed, "probes": dict(self.probes)}}


def base_weights(model: nn.Module, backbone: Choice, loaded: LoadReport) -> BaseWeights | None:
    """Of a model just built on the weights that `loaded` tells of; None, said in the log, where they have no name."""
    given = getattr(backbone.options, "weights", None)
    if given is None or loaded.digest is None:
        log.info("checkpoints hold all weights: those of backbone=%s are in no file to name (random)", backbone.name)
        return None
    file = Path(given).expanduser()
    kept = {name for name, p in model.named_parameters() if p.requires_grad}
    kept |= {f"{prefix}.{name}" for prefix, layer in tuned_layers(model) for name in layer.own} - _computed(model)
    state = {k: v for k, v in model.state_dict().items() if k.startswith(_PREFIX) and k not in kept}
    start = _sums(state)
    path = str(file.absolute()) if file.is_file() else None
    log.info("checkpoints hold what trains; the other weights stay in %s (%s)", path or given, short(loaded.digest))
    return BaseWeights(str(given), path, loaded.digest, start, _probes(model))


def build_on_base(
    backbone: Choice, tuning: Choice, base: Mapping[str, Any], what: str, weights: str | None = None
) -> tuple[Backbone, LoadReport, Choice]:
    """The tuned backbone as it was when the training began, from the weights that a checkpoint's `base` entry names.

    weights  a file, or a name, in place of the recorded one. Also returns the choice of backbone with the weights found.
    Raises WeightsError where there is no such file, or where it holds other weights; `what` is the checkpoint.
    """
    way_out = f"give backbone.weights=PATH of the weights of hash {base['hash']}, or train with checkpoint.weights=full"
    source = weights or base["weights"]
    if weights is None and base["file"] is not None:
        # Where it was, or at the same place in a folder that was moved as a whole.
        places = (Path(base["file"]), Path(base["weights"]).expanduser())
        found = next((place for place in places if place.is_file()), None)
        if found is None:
            raise WeightsError(
                f"{what}: holds what trained alone; the other weights are those of {base['file']}, and there is no such "
                f"file; {way_out}"
            )
        source = str(found)
    choice = replace(backbone, options=replace(backbone.options, weights=source))
    net: Backbone
    net, loaded = BACKBONES.build(choice)
    if loaded.digest != base["hash"]:
        raise WeightsError(
            f"{what}: was trained on weights of hash {base['hash']} ({base['weights']}), {source} has {loaded.digest}; "
            f"{way_out}"
        )
    TUNINGS.build(tuning, net)
    _check_computed(net, base, what)
    return net, loaded, choice


def completed(model: nn.Module, held: Mapping[str, Tensor], base: Mapping[str, Any], what: str) -> dict[str, Tensor]:
    """The whole state dict of a checkpoint that holds `held`: what it leaves out is as `model` was built."""
    left_out = {
        name: value for name, value in model.state_dict().items() if name.startswith(_PREFIX) and name not in held
    }
    if len(left_out) != base["left_out"]:
        raise WeightsError(
            f"{what}: leaves out {base['left_out']} tensors, of the model built here {len(left_out)} are not in it; it was "
            "written by another version of the backbone or tuning"
        )
    return {**left_out, **held}


def _check_computed(net: nn.Module, base: Mapping[str, Any], what: str) -> None:
    """Raise WeightsError where singular vectors computed here make other weights than those of the training."""
    model = nn.ModuleDict({"backbone": net})
    computed, state = _computed(model), model.state_dict()
    if base["computed"] == _joint(_sums({name: state[name] for name in computed})):
        return
    probes = _probes(model)
    others = [n for n, expected in base["probes"].items() if abs(probes.get(n, float("inf")) - expected) > _TOLERANCE]
    if others:
        raise WeightsError(
            f"{what}: the singular vectors of {listing(others, 2)} computed here are not those of the training (another "
            "version of PyTorch or another machine); train with checkpoint.weights=full for a checkpoint that goes there"
        )
    log.info("%s: its singular vectors are computed anew here, equal to those of the training within rounding", what)


def _computed(model: nn.Module) -> set[str]:
    """Names of the tensors that tunings compute from the pretrained weights."""
    return {f"{prefix}.{name}" for prefix, layer in tuned_layers(model) for name in layer.computed}


def _probes(model: nn.Module) -> dict[str, float]:
    return {prefix: layer.probe() for prefix, layer in tuned_layers(model) if layer.computed}


def _sums(state: Mapping[str, Tensor]) -> dict[str, int]:
    """A checksum of every tensor: the sum of its bits read as integers. One transfer from the device for all."""
    integers = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    sums = [value.detach().view(integers[value.dtype.itemsize]).sum(dtype=torch.int64) for value in state.values()]
    return dict(zip(state, torch.stack(sums).tolist())) if sums else {}


def _joint(sums: Mapping[str, int]) -> str:
    """One digest of many checksums."""
    return hashlib.blake2b(repr(sorted(sums.items())).encode(), digest_size=8).hexdigest()
