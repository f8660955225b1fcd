"""Backbones: torchvision's networks, cut and dilated; and their weights."""

import hashlib

import pytest
import torch
import torchvision
from torchvision.models.vgg import cfgs, make_layers

from fss_svf.backbones.resnet import ResNetOptions, TinyOptions, resnet18, resnet50, resnet101, tiny
from fss_svf.backbones.stages import STAGES
from fss_svf.backbones.vgg import VGGOptions, vgg16, vgg16_hsnet, vgg16_plain
from fss_svf.errors import ConfigError, WeightsError
from fss_svf.model import trainable_values
from fss_svf.registry import TUNINGS


def image(size=65):
    return torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0))


def conv_settings(backbone, stage):
    convs = [
        m for m in getattr(backbone, stage).modules() if isinstance(m, torch.nn.Conv2d) and m.kernel_size == (3, 3)
    ]
    return [(c.stride[0], c.dilation[0], c.padding[0]) for c in convs]


@pytest.mark.numeric
def test_torchvision_style_equals_torchvisions_own_dilation():
    reference = torchvision.models.resnet50(replace_stride_with_dilation=[False, True, True]).eval().double()
    backbone = resnet50(ResNetOptions(dilation="torchvision"))[0].eval().double()
    state = {k: v for k, v in reference.state_dict().items() if not k.startswith("fc.")}
    backbone.load_state_dict({(f"layer0.{k}" if not k.startswith("layer") else k): v for k, v in state.items()})
    x = image().double()
    with torch.no_grad():
        y = reference.maxpool(reference.relu(reference.bn1(reference.conv1(x))))
        for i in (1, 2, 3, 4):
            y = getattr(reference, f"layer{i}")(y)
        torch.testing.assert_close(backbone(x, ["layer4"])["layer4"], y, rtol=0, atol=1e-10 * float(y.max()))


def test_pfenet_style_dilates_every_3x3_and_keeps_the_stride_at_8():
    backbone = resnet50(ResNetOptions(dilation="pfenet"))[0]
    assert set(conv_settings(backbone, "layer3")) == {(1, 2, 2)}
    assert set(conv_settings(backbone, "layer4")) == {(1, 4, 4)}
    assert {m.stride for m in backbone.layer3.modules() if isinstance(m, torch.nn.Conv2d)} == {(1, 1)}


@pytest.mark.parametrize(
    ("build", "options", "channels", "stride"),
    [
        (resnet18, ResNetOptions(), [64, 64, 128, 256, 512], 8),
        (resnet50, ResNetOptions(stem="deep"), [128, 256, 512, 1024, 2048], 8),
        (resnet50, ResNetOptions(stride_in_1x1=True), [64, 256, 512, 1024, 2048], 8),
        (vgg16, VGGOptions(), [64, 128, 256, 512, 512], 16),
        (vgg16_plain, VGGOptions(), [64, 128, 256, 512, 512], 8),
        (tiny, TinyOptions(width=8), [8, 8, 16, 32, 64], 8),
    ],
)
def test_stages_channels_and_stride(build, options, channels, stride):
    backbone = build(options)[0].eval()
    with torch.no_grad():
        outputs = backbone(image(65), STAGES)
    assert list(outputs) == list(STAGES)
    assert [outputs[s].shape[1] for s in STAGES] == channels == [backbone.taps[s].channels for s in STAGES]
    # 65 = 64 + 1: corners stay aligned at 64 / stride + 1; VGG's pools round up to the same
    assert outputs["layer3"].shape[-1] == outputs["layer4"].shape[-1] == 64 // stride + 1
    assert [backbone.tap(role).stride for role in ("mid", "deep")] == [stride, stride]


@pytest.mark.numeric
def test_plain_vgg_computes_panets_features():
    """Written out: five blocks, 3x3 pools of which the fourth keeps the size, block 5 dilated and without last ReLU."""
    torch.manual_seed(0)
    backbone = vgg16_plain(VGGOptions())[0].eval().double()
    convs = iter([m for m in backbone.modules() if isinstance(m, torch.nn.Conv2d)])
    x = image().double()
    with torch.no_grad():
        for block, count in enumerate((2, 2, 3, 3, 3)):
            for i in range(count):
                conv, dilation = next(convs), 2 if block == 4 else 1
                x = torch.nn.functional.conv2d(x, conv.weight, conv.bias, padding=dilation, dilation=dilation)
                if (block, i) != (4, 2):
                    x = x.relu()
            if block < 4:
                x = torch.nn.functional.max_pool2d(x, 3, stride=1 if block == 3 else 2, padding=1)
        assert (x < 0).any()
        torch.testing.assert_close(backbone(image().double(), ["layer4"])["layer4"], x)


def test_stride_in_1x1_moves_the_stride():
    block = resnet50(ResNetOptions(stride_in_1x1=True))[0].layer2[0]
    assert (block.conv1.stride, block.conv2.stride) == ((2, 2), (1, 1))


@pytest.mark.parametrize("options", [ResNetOptions(stem="deep"), ResNetOptions(stride_in_1x1=True)])
def test_bottleneck_options_are_refused_for_basic_blocks(options):
    with pytest.raises(ConfigError, match="resnet18, which has no bottlenecks"):
        resnet18(options)


# The paper's numbers of trainable values (facts: 12,544 / 25,600 / 3,840).
@pytest.mark.parametrize(
    ("build", "options", "values"),
    [
        (resnet50, ResNetOptions(), 12_544),
        (resnet101, ResNetOptions(), 25_600),
        (vgg16, VGGOptions(), 3_840),
        (vgg16_plain, VGGOptions(), 3_840),  # the same convolutions
    ],
)
def test_svf_trains_the_papers_number_of_values(build, options, values):
    svf_options = TUNINGS.entry("svf").options(include=(r"^layer[234]\.",), exclude=(), rank=None, rank_multiple=1)
    with torch.device("meta"):
        backbone = build(options)[0]
        TUNINGS.entry("svf").build(backbone, svf_options)
    assert trainable_values(backbone) == values


def save(tmp_path, content):
    path = tmp_path / "weights.pth"
    torch.save(content, path)
    return str(path)


def test_weights_from_a_plain_torchvision_file(tmp_path):
    reference = torchvision.models.resnet18()
    path = save(tmp_path, reference.state_dict())
    backbone, report = resnet18(ResNetOptions(weights=path))
    assert torch.equal(backbone.layer3[1].conv2.weight, reference.layer3[1].conv2.weight)
    assert torch.equal(backbone.layer0.bn1.running_var, reference.bn1.running_var)
    assert report.ignored == ()
    assert "weights.pth" in str(report)


def test_weights_are_known_by_their_content(tmp_path):
    """Not by their file: names around them, a classifier, half precision that holds them and BatchNorm's counters differ."""
    reference = {
        k: v.half().float() if v.is_floating_point() else v for k, v in tiny(TinyOptions())[0].state_dict().items()
    }
    plain = {k.removeprefix("layer0."): v for k, v in reference.items()}

    def digest(content):
        return tiny(TinyOptions(weights=save(tmp_path, content)))[1].digest

    expected = hashlib.blake2b(digest_size=8)
    for name in sorted(plain):
        if "num_batches" not in name:
            expected.update(
                f"{name} torch.float32 {tuple(plain[name].shape)}\0".encode() + plain[name].numpy().tobytes()
            )
    assert digest(plain) == expected.hexdigest()
    uncounted = {k: v for k, v in plain.items() if "num_batches" not in k}
    for same in (
        {"state_dict": {f"module.{k}": v for k, v in plain.items()}},
        {**plain, "fc.weight": torch.zeros(2, 3)},
        {k: v.half() if v.is_floating_point() else v for k, v in plain.items()},
        uncounted,
    ):
        assert digest(same) == expected.hexdigest()
    changed = {**plain, "layer4.0.bn2.running_var": plain["layer4.0.bn2.running_var"] + 1}
    assert digest(changed) != expected.hexdigest()
    assert tiny(TinyOptions())[1].digest is None


@pytest.mark.parametrize("prefix", ["module.", "encoder.", "module.encoder.", "backbone."])
def test_weights_under_prefixes_and_nests(tmp_path, prefix):
    reference, _ = tiny(TinyOptions())
    plain = {k.removeprefix("layer0."): v for k, v in reference.state_dict().items()}
    path = save(tmp_path, {"epoch": 3, "state_dict": {prefix + k: v for k, v in plain.items()}})
    backbone, _ = tiny(TinyOptions(weights=path))
    for name, value in reference.state_dict().items():
        assert torch.equal(backbone.state_dict()[name], value), name


def test_weights_with_the_numbered_stem_of_official_checkpoints(tmp_path):
    reference, _ = resnet50(ResNetOptions(stem="deep"))
    number = {"conv1": 0, "bn1": 1, "conv2": 3, "bn2": 4, "conv3": 6, "bn3": 7}
    official = {}
    for name, value in reference.state_dict().items():
        stage, module, rest = name.split(".", 2)
        official[f"module.layer0.{number[module]}.{rest}" if stage == "layer0" else f"module.{name}"] = value
    backbone, report = resnet50(ResNetOptions(stem="deep", weights=save(tmp_path, official)))
    assert report.ignored == ()
    assert all(torch.equal(value, reference.state_dict()[name]) for name, value in backbone.state_dict().items())


def test_weights_of_plain_vgg_by_torchvisions_and_panets_names(tmp_path):
    reference = make_layers(cfgs["D"])
    firsts = {0: 0, 2: 5, 4: 10, 6: 17, 8: 24}  # of PANet's blocks, as torchvision numbers them
    panet = {
        f"module.encoder.backbone.features.{block}.{2 * i}.{kind}": getattr(reference[first + 2 * i], kind)
        for block, first in firsts.items()
        for i in range(2 if block < 4 else 3)
        for kind in ("weight", "bias")
    }
    assert len(panet) == 26
    for state in ({f"features.{k}": v for k, v in reference.state_dict().items()}, panet):
        backbone, report = vgg16_plain(VGGOptions(weights=save(tmp_path, state)))
        assert (report.loaded, report.ignored) == (26, ())
        for name, value in backbone.state_dict().items():
            assert torch.equal(value, reference.state_dict()[name.split(".", 1)[1]]), name
    with pytest.raises(WeightsError, match="does not fit backbone=vgg16 "):
        vgg16(VGGOptions(weights=save(tmp_path, panet)))


@pytest.mark.parametrize("build", [vgg16, vgg16_plain, vgg16_hsnet])
def test_a_vgg_without_weights_starts_as_torchvisions(seeded, build):
    layers = [module for module in build(VGGOptions())[0].modules() if not list(module.children())]
    convs = [layer for layer in layers if isinstance(layer, torch.nn.Conv2d)]
    norms = [layer for layer in layers if isinstance(layer, torch.nn.BatchNorm2d)]
    assert (len(convs), len(norms)) == (13, 13 if build is vgg16 else 0)
    for conv in convs:
        assert float(conv.weight.detach().std()) == pytest.approx((2 / (9 * conv.out_channels)) ** 0.5, rel=0.06)
        assert not conv.bias.any()
    for norm in norms:
        assert all((value == 1).all() for value in (norm.weight, norm.running_var))
        assert not any(value.any() for value in (norm.bias, norm.running_mean, norm.num_batches_tracked))


@pytest.mark.parametrize("build", [vgg16, vgg16_plain, vgg16_hsnet])
def test_weights_of_a_run_serve_vgg_too(tmp_path, build):
    reference, _ = build(VGGOptions())
    run = {f"backbone.{k}": v for k, v in reference.state_dict().items()}
    path = save(tmp_path, {"model": {**run, "ppm.weight": torch.ones(1)}})
    backbone, report = build(VGGOptions(weights=path))
    for name, value in reference.state_dict().items():
        assert torch.equal(backbone.state_dict()[name], value), name
    assert report.loaded == len(reference.state_dict())


def test_weights_that_do_not_fit_say_what_to_do(tmp_path):
    deep = resnet50(ResNetOptions(stem="deep"))[0].state_dict()
    with pytest.raises(WeightsError, match=r"does not fit backbone=resnet50 .*set backbone.stem=deep"):
        resnet50(ResNetOptions(weights=save(tmp_path, deep)))
    with pytest.raises(WeightsError, match="choose the backbone the file was made for"):
        resnet50(ResNetOptions(weights=save(tmp_path, torchvision.models.resnet18().state_dict())))
    with pytest.raises(WeightsError, match=r"neither a file .* nor torchvision weights of resnet50"):
        resnet50(ResNetOptions(weights="nowhere.pth"))
    (tmp_path / "half.pth").write_bytes(b"PK\x03\x04 half a download")
    with pytest.raises(WeightsError, match=r"half\.pth: not a readable checkpoint"):
        resnet50(ResNetOptions(weights=str(tmp_path / "half.pth")))
    plain = {f"backbone.{name}": value for name, value in tiny(TinyOptions())[0].state_dict().items()}
    for name in ("0.conv1.S", "0.conv1.lora_a", "adapter0.down.weight"):
        with pytest.raises(WeightsError, match=rf"has layer2\.{name} besides .* tuned backbone"):
            tiny(TinyOptions(weights=save(tmp_path, {**plain, f"backbone.layer2.{name}": torch.ones(1, 3)})))


def test_weights_never_run_code(tmp_path):
    class Evil:
        def __reduce__(self):
            return (print, ("executed",))

    with pytest.raises(WeightsError, match="not a readable checkpoint"):
        resnet18(ResNetOptions(weights=save(tmp_path, {"a": Evil()})))
