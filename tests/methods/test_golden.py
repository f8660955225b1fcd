"""Official checkpoints, loaded by load_official, give the outputs, losses and gradients of the official code."""

import json
import re
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from fss_svf import Episode, load_official, registry, svf
from fss_svf.model import build_backbone
from fss_svf.official import read_official
from fss_svf.registry import TUNINGS
from tests.cli.test_config import shipped_tuning
from tests.golden import episodes, fill

pytestmark = pytest.mark.numeric

GOLDEN = Path(__file__).parents[1] / "golden"
METHODS = {"aspp": "baseline", "pfenet": "pfenet", "bam": "bam"}
CASES = [f"{name}_r50_{case}" for name in METHODS for case in ("1shot", "5shot", "1shot_svf")]
# Relative to the largest logit. The SVF cases multiply 53 weights together from float32 factors of two LAPACKs.
LOGITS = {False: 1e-5, True: 5e-5}
# Relative. Gradients of S are those of single singular vectors, which float32 fixes less well the closer their values
# lie: evaluated in float64 throughout, norms in layer4 differ from the golden ones by 1.0e-3 (PFENet) and 1.7e-3 (BAM). With
# SSE4.1 single ones were off by 3.3e-3.
HEAD_GRADIENT, S_GRADIENT = 1e-3, 1e-2

fill.values = cache(fill.values)  # the cases share nearly all tensors


@cache
def checkpoint(name, case):
    """What a user has: the official state dict."""
    if not case.endswith("_svf"):
        return fill.official_state_dict(GOLDEN / f"{name}_r50_{case}.keys.json", name)
    return decomposed(checkpoint(name, case.removesuffix("_svf")), backbone_of(name))


@cache
def factors(name):
    """SVD of every weight of the stages, the rank floored to a multiple of 4 as in the official code."""
    state = checkpoint(name, "1shot")
    weights = {k: v for k, v in state.items() if re.match(r"layer\d\.", k) and v.ndim == 4}
    found = {}
    for key, weight in weights.items():
        u, s, vh = torch.linalg.svd(weight.flatten(1), full_matrices=False)
        r = len(s) // 4 * 4
        found[key] = u[:, :r, None, None], s[:r], vh[:r].reshape(r, *weight.shape[1:])
    return found


def backbone_of(name):
    """The baseline's and PFENet's cases hold the same backbone."""
    return "bam" if name == "bam" else "aspp"


def decomposed(state, backbone):
    """The official SVF state dict, trained a little in layers 2 to 4: S_i *= 1 + 0.1 cos(i)."""
    out = dict(state)
    for key, (u, s, v) in factors(backbone).items():
        del out[key]
        layer = key.removesuffix(".weight")
        trains = layer.startswith(("layer2", "layer3", "layer4"))
        s = s * (1 + 0.1 * torch.cos(torch.arange(len(s)))) if trains else s
        out |= {f"{layer}.conv_U.weight": u, f"{layer}.conv_V.weight": v, f"{layer}.vector_S": s.view(1, -1, 1, 1)}
    return out


@pytest.mark.parametrize("case", CASES)
def test_equals_the_official_implementation(case):
    name, shots = case.split("_r50_")
    golden = np.load(GOLDEN / f"{case}.npz")
    info = json.loads(str(golden["info"]))
    svf = info["svf"]
    model = load_official(
        {"state_dict": {f"module.{k}": v for k, v in checkpoint(name, shots).items()}},
        method=METHODS[name],
        backbone="resnet50",
        shot=info["shot"],
        dataset=info["dataset"],
        tuning="svf" if svf else "frozen",
    )
    episode = make_episode(info)
    compare_outputs(model, episode, golden, LOGITS[svf])
    compare_training(model, episode, golden)


@pytest.mark.parametrize(
    "name", [pytest.param("pfenet", marks=pytest.mark.long), "bam"]
)  # the baseline's backbone is PFENet's
def test_tuning_svf_official_does_to_a_plain_network_what_the_official_code_does(kept_factors, name):
    golden = np.load(GOLDEN / f"{name}_r50_1shot_svf.npz")
    plain = read_official(checkpoint(name, "1shot"), METHODS[name], "resnet50", 1, "pascal", "frozen", None)
    backbone, _ = build_backbone(plain.backbone)
    of_backbone = {k.removeprefix("backbone."): v for k, v in plain.state.items() if k.startswith("backbone.")}
    backbone.load_state_dict(of_backbone)
    TUNINGS.build(shipped_tuning("svf_official"), backbone)
    model = registry.METHODS.build(plain.method, backbone)
    if name == "bam":
        model.fit_state(plain.state)
    of_head = {k: v for k, v in plain.state.items() if not k.startswith("backbone.")}
    assert model.load_state_dict(of_head, strict=False).unexpected_keys == []
    layers = dict(svf.layers(backbone))
    assert len(layers) == len(factors(backbone_of(name)))
    assert layers["layer0.conv1"].rank == 24
    with torch.no_grad():  # as `decomposed` does
        for _, s in svf.trainable_parameters(backbone):
            if s.requires_grad:  # not in layers 0 and 1
                s.mul_(1 + 0.1 * torch.cos(torch.arange(s.shape[-1])))
    episode = make_episode(json.loads(str(golden["info"])))
    compare_outputs(model, episode, golden, LOGITS[True])
    compare_training(model, episode, golden)


def make_episode(info):
    query, support, support_masks, query_mask, base_mask, base_class = episodes.episode(
        info["batch"], info["shot"], info["size"], info["seed"]
    )
    # The official number of a base class counts from 0.
    return Episode(query, support, support_masks, query_mask, base_mask=base_mask, base_class=base_class + 1)


def compare_outputs(model, episode, golden, bound):
    with torch.no_grad():
        prediction = model.eval()(episode)
    if "logits" in golden:
        pairs = {"logits": (prediction.logits, golden["logits"])}
    else:
        base = prediction.aux["base"]
        assert base.shape[-2:] == episode.size
        pairs = {
            "final": (prediction.logits, golden["final"]),
            "meta": (prediction.aux["meta"], golden["meta"]),
            "base": (base[..., ::8, ::8], golden["base"]),
        }
    for what, (ours, theirs) in pairs.items():
        deviation = np.abs(ours.numpy() - theirs).max() / np.abs(theirs).max()
        assert deviation <= bound, f"{what} {deviation}"


def compare_training(model, episode, golden):
    model.train()
    for module in model.modules():
        if isinstance(module, nn.Dropout2d):
            module.p = 0.0
    losses = model.losses(model(episode), episode)
    theirs = [float(golden[f"loss{i}"]) for i in range(len(losses))]
    assert [float(loss.detach()) for loss in losses.values()] == pytest.approx(theirs, rel=1e-5)
    sum(losses.values()).backward()

    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    norms = dict(zip(map(name_here, golden["grad_names"]), golden["grad_norms"]))
    assert gradients.keys() == norms.keys()
    for name, norm in norms.items():
        bound = S_GRADIENT if name.endswith(".S") else HEAD_GRADIENT
        assert float(gradients[name].norm()) == pytest.approx(norm, rel=bound), name
    for key in (k for k in golden if k.startswith("svf_grad::")):
        ours = gradients[name_here(key.removeprefix("svf_grad::"))].flatten()[:16].numpy()
        assert np.abs(ours - golden[key]).max() <= S_GRADIENT * np.abs(golden[key]).max(), key


def name_here(official):
    """The parameter of a gradient, by a table of its own: the importer's is what is tested."""
    name = str(official).replace(".vector_S", ".S")
    if name.startswith("layer"):
        return f"backbone.{name}"
    for pattern, ours in (
        (r"down_supp\.", "down_support."),
        (r"init_merge\.", "merge."),
        (r"ASPP_meta\.layer6_0\.", "aspp.pooled."),
        (r"ASPP_meta\.layer6_1\.", "aspp.pointwise."),
        (r"ASPP_meta\.layer6_2\.", "aspp.dilated.0."),
        (r"ASPP_meta\.layer6_3\.", "aspp.dilated.1."),
        (r"ASPP_meta\.layer6_4\.", "aspp.dilated.2."),
        (r"res1(_meta)?\.", "reduce."),
        (r"res2(_meta)?\.", "residual.body."),
        (r"cls(_meta)?\.", "classifier."),
        (r"alpha_conv\.", "across."),
        (r"beta_conv\.(\d)\.", r"within.\1.body."),
        (r"inner_cls\.", "auxiliary."),
        (r"kshot_rw\.", "kshot."),
    ):
        if re.match(pattern, name):
            return re.sub(f"^{pattern}", ours, name)
    return name
