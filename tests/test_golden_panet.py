"""PANet against outputs of the official implementation."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from fss_svf.backbones.vgg import VGGOptions, vgg16_plain
from fss_svf.episode import Episode
from fss_svf.methods.panet import PANet, PANetOptions, our_name
from tests.golden import episodes, fill

GOLDEN = Path(__file__).parent / "golden"


@pytest.mark.parametrize("case", ["panet_vgg_1way1shot", "panet_vgg_1way5shot"])
def test_equals_the_official_implementation(case):
    golden = np.load(GOLDEN / f"{case}.npz")
    info = json.loads(str(golden["info"]))
    official = fill.official_state_dict(GOLDEN / "panet_vgg_1way1shot.keys.json", "panet")
    model = PANet(vgg16_plain(VGGOptions())[0], PANetOptions())
    model.load_state_dict({our_name(f"module.{name}"): value for name, value in official.items()})
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
