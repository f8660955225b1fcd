"""Maps of backbone=timm equal golden ones, square and not; weights are given as a state dict."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from fss_svf import build_backbone
from fss_svf.episode import IMAGENET_MEAN, IMAGENET_STD
from tests.golden import episodes, fill

pytestmark = pytest.mark.numeric

GOLDEN = Path(__file__).parents[1] / "golden"


def as_loaded(images, backbone):
    """Images that the network is to see as they are: as the loaders would give them, normalised by ImageNet's numbers."""
    mean, std, ours_mean, ours_std = (
        torch.tensor(v).double().view(3, 1, 1) for v in (backbone.mean, backbone.std, IMAGENET_MEAN, IMAGENET_STD)
    )
    return ((images.double() * std + mean - ours_mean) / ours_std).float()


@pytest.mark.parametrize("name", ["vit_small_patch14_dinov2", "vit_small_patch16_224"])
def test_maps_equal_the_golden_ones(name):
    golden = np.load(GOLDEN / f"{name}.npz")
    info = json.loads(str(golden["info"]))
    state = fill.vit_state_dict(GOLDEN / f"{name}.keys.json")
    backbone, report = build_backbone("timm", model=name, weights=state)
    assert (report.loaded, report.ignored) == (len(state), ())
    for height, width in info["sizes"]:
        images = episodes.object_episode(1, 1, (height, width), info["seed"])[0]
        taps = {f"block{n}": f"blocks.{n}" for n in info["blocks"]} | {"final": "norm"}
        with torch.no_grad():
            maps = backbone(as_loaded(images, backbone), taps=list(taps.values()))
        for key, tap in taps.items():
            expected = torch.from_numpy(golden[f"{height}x{width}_{key}"])
            found = maps[tap][0, ::12]
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))
