"""DCAMA against outputs of the official implementation."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from fss_svf import Episode, load_official
from fss_svf.errors import WeightsError
from fss_svf.methods import dcama
from tests.golden import episodes, fill

pytestmark = pytest.mark.numeric

GOLDEN = Path(__file__).parents[1] / "golden"
# Relative to the largest. float32's own deviation from float64 is 3e-6 of the logits, 4e-4 of the smallest gradient norms.
LOGITS, GRADIENT = 1e-5, 1e-3


@pytest.fixture(scope="module")
def official():
    return fill.named_state_dict(GOLDEN / "dcama_r50_1shot.keys.json")


@pytest.mark.parametrize("case", ["dcama_r50_1shot", "dcama_r50_5shot"])
def test_equals_the_official_implementation(official, case):
    golden = np.load(GOLDEN / f"{case}.npz")
    info = json.loads(str(golden["info"]))
    state = {f"module.{name}": value for name, value in official.items()}  # as DataParallel saves it
    model = load_official(state, method="dcama", backbone="resnet50", shot=info["shot"])
    query, support, masks, query_mask = episodes.object_episode(*(info[k] for k in ("batch", "shot", "size", "seed")))
    episode = Episode(query, support, masks, query_mask)
    with torch.no_grad():
        of_query, of_support = model.encode(episode)
        compared = model.compare(of_query, of_support)
        for name, coarse in zip(("coarse2", "coarse3", "coarse4"), model.coarse_masks(compared), strict=True):
            close(coarse.flatten(2), golden[name], LOGITS)
        logits = model(episode).logits
    step = info["size"] // golden["logits"].shape[-1]
    close(logits[..., ::step, ::step], golden["logits"], LOGITS)
    pred = np.unpackbits(golden["pred"], axis=2)[..., : info["size"]]
    assert (logits.argmax(1).numpy() != pred).sum() <= 3
    if "loss" not in golden:
        return
    model.train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    loss = model.losses(model(episode), episode)["main"]
    assert loss.item() == pytest.approx(float(golden["loss"]), rel=1e-5)
    loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    norms = {dcama.name_here(str(name)): norm for name, norm in zip(golden["grad_names"], golden["grad_norms"])}
    assert gradients.keys() == norms.keys()
    noise = {dcama.name_here(name) for name in info["zero_gradients"]}
    for name in norms.keys() - noise:
        assert float(gradients[name].norm()) == pytest.approx(norms[name], rel=GRADIENT, abs=4e-4 * GRADIENT), name


def close(ours, theirs, bound):
    assert np.abs(ours.numpy() - theirs).max() <= bound * np.abs(theirs).max()


def test_what_is_not_dcamas_is_named(official):
    with pytest.raises(WeightsError, match=r"model\.conv6\.0\.weight"):
        load_official({**official, "model.conv6.0.weight": torch.zeros(1)}, method="dcama", backbone="resnet50")
    without = {name: value for name, value in official.items() if name != "model.mixer3.2.bias"}
    with pytest.raises(WeightsError, match=r"decoder\.2\.2\.bias is missing"):
        load_official(without, method="dcama", backbone="resnet50")
    with pytest.raises(WeightsError, match="tuning=svf, but its backbone is plain"):
        load_official(official, method="dcama", backbone="resnet50", tuning="svf")
