"""The matcher against outputs of the official implementation of INSID3."""

import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch

from fss_svf import Episode
from fss_svf.backbones.backbone import Backbone, Sizes, Tap
from fss_svf.backbones.timm_network import TimmBackbone
from fss_svf.methods.matcher import Matcher, MatcherOptions, object_patches
from fss_svf.methods.method import flat_supports, regroup
from tests.golden import episodes, fill
from tests.methods.test_methods import in_float64

pytestmark = pytest.mark.numeric

GOLDEN = Path(__file__).parents[1] / "golden"


class Encoder(Backbone):
    """Gives the map of the case's image number images[:, 0, 0, 0], and that of an empty image for any other."""

    sizes = Sizes()

    def __init__(self, maps, empty):
        super().__init__()
        self.maps = torch.nn.Parameter(maps, requires_grad=False)
        self.empty = torch.nn.Parameter(empty, requires_grad=False)
        self.taps, self.roles = {"norm": Tap(maps.shape[1], 14)}, {}

    @property
    def stages(self):
        return {}

    def run(self, images, taps):
        numbers = images[:, 0, 0, 0].tolist()
        return {"norm": torch.stack([self.maps[int(n)] if n >= 0 else self.empty[0] for n in numbers])}


def load(case):
    golden = np.load(GOLDEN / f"{case}.npz")
    return golden, json.loads(str(golden["info"]))


def of_features(info):
    """The matcher on the case's feature maps, and an episode of images that stand for them."""
    maps, masks, empty = episodes.object_features(*(info[k] for k in ("shot", "size", "patch", "channels", "seed")),
                                                  tiny=info["tiny"])  # fmt: skip
    images = torch.arange(len(maps)).view(-1, 1, 1, 1).expand(-1, 3, info["size"], info["size"]).float()
    return matcher(Encoder(maps, empty), info), Episode(images[-1:], images[None, :-1], masks[None].to(torch.uint8))


def of_images(info):
    """The matcher on a ViT, and the case's episode."""
    network = timm.create_model(
        "vit_tiny_patch16_224", patch_size=14, embed_dim=96, depth=3, num_heads=3, num_classes=0
    )
    network.load_state_dict(fill.vit_state_dict(GOLDEN / "insid3_vit_1shot.keys.json"))
    # The case's images are normalised as any other's.
    network.pretrained_cfg.update(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    query, support, masks, _ = episodes.object_episode(1, info["shot"], info["size"], info["seed"])
    return matcher(TimmBackbone(network), info), Episode(query, support, masks)


def matcher(backbone, info):
    options = {key: info[key] for key in ("svd_components", "tau", "merge_threshold")}
    return Matcher(backbone, MatcherOptions(**options)).eval()


@pytest.mark.parametrize("case", ["insid3_features_1shot", "insid3_features_5shot", "insid3_vit_1shot"])
@torch.no_grad()
def test_equals_the_official_implementation(case):
    golden, info = load(case)
    model, episode = (of_images if "vit" in case else of_features)(info)
    # In float64, so that no near tie turns; the official outputs are float32's.
    model, episode = model.double(), in_float64(episode)
    query, support = model.encode(episode)
    support = {**support, **model.compare(query, support)}
    match = model.match(query, support)

    close(query["feature"][0], golden["debiased_target"])
    if "features" in golden:
        raw = model.backbone(episode.query_image, ("norm",))["norm"][0]
        close(raw, golden["features"])
    prototype = torch.nn.functional.normalize(support["prototype"].mean(1), dim=1)
    close(prototype[0], golden["prototype"])
    close(match.forward[0], golden["forward"])
    assert np.array_equal(support["patches"][0].numpy(), golden["reference_patches"])
    assert np.array_equal(support["votes"][0].sum(0).numpy(), golden["votes"])
    assert np.array_equal(match.candidates[0].numpy(), golden["candidates"])
    assert np.array_equal(match.patches[0].numpy(), golden["patches"])

    ours, theirs = query["labels"][0].numpy(), golden["labels"]
    pairs = {(int(a), int(b)) for a, b in zip(ours.flat, theirs.flat)}
    assert len(pairs) == len(np.unique(ours)) == len(np.unique(theirs))  # one partition
    order = [ours_ for ours_, _ in sorted(pairs, key=lambda pair: pair[1])]
    assert order[int(golden["seed_cluster"])] == int(match.seed)
    for name, key in (("cross", "cross"), ("intra", "intra"), ("area", "area_weights"), ("combined", "combined")):
        close(getattr(match, name)[0][order], golden[key])

    mask = np.unpackbits(golden["mask"], axis=1)[:, : info["size"]]
    assert np.array_equal(model(episode).logits.argmax(1)[0].numpy(), mask)


def close(ours, theirs):
    assert np.abs(ours.numpy() - theirs).max() <= 5e-5 * np.abs(theirs).max()


def test_a_tiny_object_keeps_a_patch():
    """By the last rule of three; the case with five supports has one in its third."""
    masks = torch.zeros(4, 42, 42, dtype=torch.uint8)
    masks[0, 10:32, 15:40] = 1  # covers patches
    masks[1, 14, 28] = 1  # the pixel that nearest takes
    masks[2, 17:20, 30:33] = 1  # between
    masks[3] = 255
    found = object_patches(masks, (3, 3))
    assert found[0].sum() > 1
    for number, place in ((1, (1, 2)), (2, (1, 2))):
        assert found[number].nonzero().tolist() == [list(place)]
    assert not found[3].any()


def test_encoding_apart_equals_the_whole():
    _, info = load("insid3_features_5shot")
    model, e = of_features(info)
    model, e = model.double(), in_float64(e)
    whole = model(e).logits
    support = regroup(model.encode_support(*flat_supports(e)), 5)
    apart = model.segment(model.encode_query(e.query_image), support, e.size).logits
    assert torch.equal(apart.argmax(1), whole.argmax(1))
    torch.testing.assert_close(apart, whole)
