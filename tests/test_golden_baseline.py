"""The baseline against outputs of the official implementation."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from fss_svf import svf
from fss_svf.backbones.resnet import ResNetOptions, resnet50
from fss_svf.episode import Episode
from fss_svf.methods.baseline import Baseline, BaselineOptions
from tests.golden import episodes, fill

GOLDEN = Path(__file__).parent / "golden"
HEAD = {
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
STEM = ("conv1", "bn1", "relu1", "conv2", "bn2", "relu2", "conv3", "bn3")


def our_name(official: str) -> str:
    stem = re.match(r"layer0\.(\d)\.(.*)", official)
    if stem:
        return f"backbone.layer0.{STEM[int(stem[1])]}.{stem[2]}"
    if official.startswith("layer"):
        return f"backbone.{official}"
    for theirs, ours in HEAD.items():
        if official.startswith(theirs + "."):
            return ours + official[len(theirs) :]
    return official


@pytest.mark.parametrize("case", ["aspp_r50_1shot", "aspp_r50_5shot", "aspp_r50_1shot_svf"])
def test_equals_the_official_implementation(case):
    golden = np.load(GOLDEN / f"{case}.npz")
    info = json.loads(str(golden["info"]))
    official = fill.official_state_dict(GOLDEN / "aspp_r50_1shot.keys.json", "aspp")
    model = Baseline(resnet50(ResNetOptions(stem="deep"))[0], BaselineOptions(down_query_trains=True))
    model.load_state_dict({our_name(name): value for name, value in official.items()})
    model.backbone.requires_grad_(False)
    if info["svf"]:
        # The official decomposition: every layer, the rank floored to a multiple of 4, layers 2 to 4 train.
        svf.decompose(model.backbone, rank_multiple=4)
        for name, layer in svf.layers(model.backbone):
            layer.S.requires_grad_(name.startswith(("layer2", "layer3", "layer4")))
            if layer.S.requires_grad:
                with torch.no_grad():
                    layer.S *= 1 + 0.1 * torch.cos(torch.arange(layer.rank))
    query, support, support_mask, query_mask, _, _ = episodes.episode(
        info["batch"], info["shot"], info["size"], info["seed"]
    )
    episode = Episode(query, support, support_mask, query_mask)

    model.eval()
    with torch.no_grad():
        logits = model(episode).logits.numpy()
    assert np.abs(logits - golden["logits"]).max() <= 1e-5 * np.abs(golden["logits"]).max()

    model.train()
    for module in model.modules():
        if isinstance(module, nn.Dropout2d):
            module.p = 0.0
    loss = model.losses(model(episode), episode)["main"]
    loss.backward()
    assert loss.item() == pytest.approx(float(golden["loss0"]), rel=1e-5)

    ours = {name: float(p.grad.norm()) for name, p in model.named_parameters() if p.grad is not None}
    theirs = {
        re.sub(r"\.vector_S$", ".S", our_name(str(name))): float(norm)
        for name, norm in zip(golden["grad_names"], golden["grad_norms"])
    }
    assert ours.keys() == theirs.keys()
    for name, norm in theirs.items():
        assert ours[name] == pytest.approx(norm, rel=1e-3), name
