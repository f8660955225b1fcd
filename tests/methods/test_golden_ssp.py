"""SSP against outputs of the official implementation: refined or not, 1 and 5 shots, thresholds reached or not."""

import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from fss_svf import Episode, load_official
from fss_svf.errors import WeightsError
from fss_svf.methods.ssp import SCALE, sure_positions
from tests.golden import episodes, fill

pytestmark = pytest.mark.numeric

GOLDEN = Path(__file__).parents[1] / "golden"
KEYS = GOLDEN / "ssp_r50_1shot.keys.json"
CASES = ("ssp_r50_1shot", "ssp_r50_1shot_contrast", "ssp_r50_5shot_contrast")


@cache
def golden_of(case):
    return np.load(GOLDEN / f"{case}.npz")


def checkpoint(case):
    return fill.named_state_dict(KEYS, golden_of(case))


def episode_of(case):
    info = json.loads(str(golden_of(case)["info"]))
    make = {"episode": episodes.episode, "object": episodes.object_episode}[info["episode"]]
    return Episode(*make(*(info[key] for key in ("batch", "shot", "size", "seed")))[:4]), info["shot"]


def close(ours, theirs, bound):
    return np.abs(ours.detach().numpy() - theirs).max() <= bound * np.abs(theirs).max()


@pytest.mark.parametrize("refine", [True, False])
@pytest.mark.parametrize("case", CASES)
def test_equals_the_official_implementation(case, refine):
    golden, (episode, shot) = golden_of(case), episode_of(case)
    state = {f"module.{name}": value for name, value in checkpoint(case).items()}
    model = load_official(state, method="ssp", backbone="resnet50", shot=shot, tuning="layers", refine=refine)
    name = "refined" if refine else "plain"
    with torch.no_grad():
        assert close(model(episode).logits[..., ::4, ::4], golden[name], 1e-5)
        mean = model.encode_query(episode.query_image)["feature"].mean((2, 3))
    assert close(mean, golden["feature_mean"], 1e-5)

    model.train()
    prediction = model(episode)
    if refine:
        assert close(prediction.aux["plain"][..., ::4, ::4], golden["plain"], 1e-5)
    terms = model.losses(prediction, episode)
    found = [term.item() for term in terms.values()]
    weights = np.array([1] * (len(found) - 1) + [0.2])
    np.testing.assert_allclose(found, golden[f"terms_{name}"] * weights, rtol=1e-5)
    total = sum(terms.values())
    assert total.item() == pytest.approx(float(golden[f"loss_{name}"]), rel=1e-5)
    total.backward()
    gradients = {n.removeprefix("backbone."): p.grad for n, p in model.named_parameters() if p.grad is not None}
    # tuning=layers trains the norms of these layers too; SSP's optimizer has their convolutions alone.
    theirs = [str(n).removesuffix(".weight") for n in golden["grad_names"]]
    assert {n.removesuffix(".weight") for n in gradients if "conv" in n or "downsample.0" in n} == set(theirs)
    norms = [gradients[f"{n}.weight"].norm().item() for n in theirs]
    np.testing.assert_allclose(norms, golden[f"grad_norms_{name}"], rtol=1e-3)


def test_the_cases_reach_the_thresholds_and_do_not():
    """So that both ways of choosing positions are compared above."""
    over = {case: json.loads(str(golden_of(case)["info"]))["steps"] for case in CASES}
    assert not any(any(step["fg_over"]) or any(step["bg_over"]) for step in over["ssp_r50_1shot"])
    for case in CASES[1:]:
        assert all(all(step["fg_over"]) for step in over[case])


@pytest.mark.parametrize("case", CASES)
def test_the_scores_by_the_supports_alone_and_the_positions_chosen_of_them(case):
    golden, (episode, shot) = golden_of(case), episode_of(case)
    model = load_official(checkpoint(case), method="ssp", backbone="resnet50", shot=shot)
    with torch.no_grad():
        query, support = model.encode(episode)
        feature = torch.nn.functional.normalize(query["feature"], dim=1)
        prototypes = torch.nn.functional.normalize(support["prototypes"].mean(1), dim=-1)
        first = SCALE * torch.einsum("bchw,bnc->bnhw", feature, prototypes)
    assert close(first, golden["first"], 1e-5)
    sure = sure_positions(torch.from_numpy(golden["first"]).flatten(2)).sum(2).int().tolist()
    step = json.loads(str(golden["info"]))["steps"][0]
    assert sure == [[b or 12, f or 12] for b, f in zip(step["bg_over"], step["fg_over"])]


def test_what_is_not_ssps_is_named():
    official = checkpoint("ssp_r50_1shot")
    with pytest.raises(WeightsError, match=r"1 tensors do not belong to an official ssp: head\.weight"):
        load_official({**official, "head.weight": torch.zeros(1)}, method="ssp", backbone="resnet50")
    with pytest.raises(WeightsError, match=r"tuning=full, but its backbone is plain; set tuning=frozen or layers"):
        load_official(official, method="ssp", backbone="resnet50", tuning="full")
    del official["layer3.5.conv2.weight"]
    with pytest.raises(WeightsError, match=r"backbone\.layer3\.5\.conv2\.weight is missing"):
        load_official(official, method="ssp", backbone="resnet50")
