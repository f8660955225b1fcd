"""PANet against outputs of the official implementation."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from fss_svf import Episode, load_official
from fss_svf.errors import WeightsError
from tests.golden import episodes, fill

pytestmark = pytest.mark.numeric

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.mark.parametrize("case", ["panet_vgg_1way1shot", "panet_vgg_1way5shot"])
def test_equals_the_official_implementation(case):
    golden = np.load(GOLDEN / f"{case}.npz")
    info = json.loads(str(golden["info"]))
    official = fill.official_state_dict(GOLDEN / "panet_vgg_1way1shot.keys.json", "panet")
    # As DataParallel saves it.
    state = {f"module.{name}": value for name, value in official.items()}
    model = load_official(state, method="panet", backbone="vgg16", shot=info["shot"])
    images, masks, _, query = episodes.panet_episode(*(info[key] for key in ("ways", "shot", "batch", "size", "seed")))
    episode = Episode(
        query_image=query[0],
        support_images=torch.stack(images[0], dim=1),
        support_masks=torch.stack(masks[0], dim=1),
        query_mask=torch.zeros(info["batch"], info["size"], info["size"]),
    )
    with torch.no_grad():
        logits = model.eval()(episode).logits.numpy()
        model.train()
        align = model.losses(model(episode), episode)["align"]
    assert np.abs(logits - golden["logits"]).max() <= 1e-5 * np.abs(golden["logits"]).max()
    assert align.item() == pytest.approx(float(golden["align_loss"]), rel=1e-5)


def test_what_is_not_panets_is_named():
    official = fill.official_state_dict(GOLDEN / "panet_vgg_1way1shot.keys.json", "panet")
    with pytest.raises(WeightsError, match=r"encoder\.head\.weight"):
        load_official({**official, "encoder.head.weight": torch.zeros(1)}, method="panet", backbone="vgg16")
    lost = official.pop("encoder.backbone.features.2.0.weight")
    assert lost.shape[0] == 128
    with pytest.raises(WeightsError, match=r"backbone\.layer1\.5\.weight is missing"):
        load_official(official, method="panet", backbone="vgg16")


def test_it_trains_on_where_its_whole_backbone_moves():
    official = fill.official_state_dict(GOLDEN / "panet_vgg_1way1shot.keys.json", "panet")
    model = load_official(official, method="panet", backbone="vgg16", tuning="full")
    assert all(p.requires_grad for p in model.parameters())
    frozen = load_official(official, method="panet", backbone="vgg16")
    assert not any(p.requires_grad for p in frozen.parameters())
