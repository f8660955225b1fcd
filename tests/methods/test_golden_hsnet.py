"""HSNet against outputs of the official implementation: ResNet-50 and VGG16 at one support, ResNet-50 at five."""

import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from fss_svf import Episode, load_official
from fss_svf.errors import WeightsError
from fss_svf.methods.hsnet import LEVELS
from tests.golden import episodes, fill

pytestmark = pytest.mark.numeric

GOLDEN = Path(__file__).parents[1] / "golden"
fill.values = cache(fill.values)


@cache
def golden_of(case):
    return np.load(GOLDEN / f"{case}.npz")


def model_of(case):
    backbone, keys = ("resnet50", "hsnet_r50_1shot") if "r50" in case else ("vgg16", case)
    # A VGG's classifier has 120 million values, which nothing uses.
    official = fill.named_state_dict(GOLDEN / f"{keys}.keys.json", skip=("backbone.classifier",))
    state = {f"module.{name}": value for name, value in official.items()}
    return load_official(state, method="hsnet", backbone=backbone)


def episode_of(case):
    info = json.loads(str(golden_of(case)["info"]))
    made = episodes.object_episode(*(info[key] for key in ("batch", "shot", "size", "seed")))
    return Episode(*made[:4])


def close(ours, theirs, bound):
    return np.abs(ours.detach().numpy() - theirs).max() <= bound * np.abs(theirs).max()


@pytest.mark.parametrize("case", ["hsnet_r50_1shot", "hsnet_vgg_1shot"])
def test_equals_the_official_implementation(case):
    golden, model, episode = golden_of(case), model_of(case), episode_of(case)
    with torch.no_grad():
        for level, found in zip(LEVELS, model.correlations(*model.encode(episode))):
            assert close(found.mean((4, 5)), golden[f"corr{level[-1]}"], 1e-5)
    model.train()
    prediction = model(episode)
    assert close(prediction.logits[..., ::4, ::4], golden["logits"][:, 0], 1e-5)
    turned = (prediction.logits.argmax(1).numpy() != golden["pred"]).sum()
    assert turned <= 5  # ties: README of the golden files
    loss = model.losses(prediction, episode)["main"]
    assert loss.item() == pytest.approx(float(golden["loss"]), rel=1e-5)
    loss.backward()
    names = [translated(str(name)) for name in golden["grad_names"]]
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert set(gradients) == set(names)
    theirs = golden["grad_norms"]
    np.testing.assert_allclose([gradients[n].norm().item() for n in names], theirs, rtol=1e-3)


def translated(official):
    """The name here of a head's tensor, written out once more."""
    pairs = {
        "encoder_layer4.": "squeeze.2.", "encoder_layer3.": "squeeze.1.", "encoder_layer2.": "squeeze.0.",
        "encoder_layer4to3.": "mix.1.", "encoder_layer3to2.": "mix.0.",
    }  # fmt: skip
    name = official.removeprefix("hpn_learner.")
    for theirs, ours in pairs.items():
        name = name.replace(theirs, ours)
    return f"head.{name}"


@pytest.mark.long
def test_five_supports_vote_as_in_the_official_implementation():
    case = "hsnet_r50_5shot"
    golden, model, episode = golden_of(case), model_of(case), episode_of(case)
    with torch.no_grad():
        voted = model(episode)
        query, support = model.encode(episode)
        alone = [
            model.segment(query, {n: v[:, k : k + 1] for n, v in support.items()}, episode.size).logits
            for k in range(5)
        ]
    assert close(torch.stack(alone, dim=1)[..., ::8, ::8], golden["logits"], 1e-5)
    assert (voted.aux["votes"].numpy() != golden["votes"]).sum() <= 10
    assert (voted.logits.argmax(1).numpy() != golden["pred"]).sum() <= 10
    assert set(np.unique(golden["votes"])) == set(range(6))


def test_what_is_not_hsnets_is_named():
    official = fill.named_state_dict(GOLDEN / "hsnet_r50_1shot.keys.json")
    with pytest.raises(WeightsError, match=r"1 tensors do not belong to an official hsnet: hpn_learner\.more\.weight"):
        load_official({**official, "hpn_learner.more.weight": torch.zeros(1)}, method="hsnet", backbone="resnet50")
    del official["backbone.layer3.5.conv2.weight"]
    with pytest.raises(WeightsError, match=r"backbone\.layer3\.5\.conv2\.weight is missing"):
        load_official(official, method="hsnet", backbone="resnet50")
