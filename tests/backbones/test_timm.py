"""backbone=timm: the maps of every kind of network, sizes, roles, position embeddings, weights."""

import copy

import pytest
import timm
import torch
from torch.nn import functional as F

from fss_svf import build_backbone
from fss_svf.backbones import timm_import
from fss_svf.backbones.backbone import Tap
from fss_svf.backbones.timm_backbone import TimmOptions, _use_official_positions, timm_backbone
from fss_svf.backbones.timm_network import TimmBackbone, default_roles
from fss_svf.episode import IMAGENET_MEAN, IMAGENET_STD
from fss_svf.errors import ConfigError, WeightsError
from fss_svf.model import without_weights
from fss_svf.registry import Choice
from tests.backbones.networks import SMALL, network

pytestmark = pytest.mark.numeric
SIZES = {"registers": (70, 84)}


def images(kind, batch=1):
    return torch.rand(batch, 3, *SIZES.get(kind, (64, 96)), generator=torch.Generator().manual_seed(1))


def normalised(x, mean, std):
    return (x - torch.tensor(mean, dtype=x.dtype).view(3, 1, 1)) / torch.tensor(std, dtype=x.dtype).view(3, 1, 1)


def by_hooks(net, names, x):
    """What the modules of these names give in timm's own forward_features."""
    found = {}
    hooks = [
        net.get_submodule(name).register_forward_hook(lambda m, i, y, name=name: found.update({name: y}))
        for name in names
    ]
    with torch.no_grad():
        net.forward_features(x)
    for hook in hooks:
        hook.remove()
    return found


def as_map(value, net, grid):
    """Tokens (B, prefix + h * w, C) or (B, h, w, C) as (B, C, h, w)."""
    if value.ndim == 3:
        value = value[:, net.num_prefix_tokens :].unflatten(1, grid)
    return value.permute(0, 3, 1, 2) if value.shape[1:3] == grid else value


@pytest.mark.parametrize("kind", SMALL)
def test_every_tap_is_timms_own(kind):
    net, x = network(kind).double(), images(kind).double()
    backbone = TimmBackbone(copy.deepcopy(net)).eval().double()
    inside = by_hooks(net, list(backbone.taps), normalised(x, backbone.mean, backbone.std))
    with torch.no_grad():
        maps = backbone(normalised(x, IMAGENET_MEAN, IMAGENET_STD), list(backbone.taps))
    assert list(maps) == list(backbone.taps)
    for name, tap in backbone.taps.items():
        found = maps[name]
        assert found.shape[1] == tap.channels
        assert found.shape[-2:] == tuple(n // tap.stride for n in x.shape[-2:])
        expected = as_map(inside[name], net, tuple(found.shape[-2:]))
        # Renormalising rounds its two numbers in float32.
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))
    assert ("norm" in maps) == (kind in ("vit", "registers", "dinov3", "clip", "swin"))


@pytest.mark.parametrize("kind", SMALL)
def test_it_runs_no_further_than_the_last_tap(kind):
    backbone, calls = TimmBackbone(network(kind)).eval(), []
    for name, module in backbone.stages.items():
        module.register_forward_hook(lambda *_, name=name: calls.append(name))
    tap = list(backbone.taps)[1]
    backbone(images(kind), [tap])
    assert calls == list(backbone.stages)[: list(backbone.stages).index(tap) + 1]


@pytest.mark.parametrize("kind", SMALL)
def test_stages_are_modules_by_timms_names(kind):
    backbone = TimmBackbone(network(kind))
    modules = dict(backbone.body.named_modules())
    assert all(modules[name] is stage for name, stage in backbone.stages.items())
    held = sum(p.numel() for stage in backbone.stages.values() for p in stage.parameters())
    tokens = sum(p.numel() for p in backbone.network.parameters(recurse=False))  # of positions, class and registers
    assert held + tokens == sum(p.numel() for p in backbone.parameters())
    assert set(backbone.tuned_stages) <= set(backbone.stages)
    assert backbone.tuned_stages[-1] == backbone.roles["deep"]


@pytest.mark.parametrize("kind", SMALL)
def test_all_that_trains_gets_a_gradient_from_the_roles(kind):
    backbone = TimmBackbone(network(kind)).requires_grad_(True)
    sum(value.square().mean() for value in backbone(images(kind)).values()).backward()
    trains = {name for name, p in backbone.named_parameters() if p.requires_grad}
    assert {name for name, p in backbone.named_parameters() if p.grad is not None} == trains
    assert len(trains) > 10


@pytest.mark.parametrize("kind", ["swin", "convnext", "vit", "efficientnet"])
def test_train_mode_draws_nothing(kind):
    rates = (
        {"drop_path_rate": 0.5, "drop_rate": 0.5, "patch_drop_rate": 0.5} if kind == "vit" else {"drop_path_rate": 0.5}
    )
    backbone, x = TimmBackbone(network(kind, **rates)), images(kind)
    with torch.no_grad():
        expected = backbone.eval()(x)
        for module in backbone.train().modules():  # as methods keep it
            if isinstance(module, torch.nn.BatchNorm2d):
                module.eval()
        found = backbone(x)
    assert all(torch.equal(found[role], expected[role]) for role in expected)


def test_roles():
    twelve = {f"blocks.{n}": Tap(4, 16) for n in range(12)}
    assert default_roles(twelve) == {"low": "blocks.5", "mid": "blocks.8", "deep": "blocks.11"}
    taps = TimmBackbone(network("vit")).taps
    assert default_roles(taps) == {"low": "blocks.1", "mid": "blocks.2", "deep": "blocks.3"}
    backbone = TimmBackbone(network("vit"), {"low": "blocks.0", "mid": None, "deep": "norm"})
    assert dict(backbone.roles) == {"low": "blocks.0", "mid": "blocks.2", "deep": "norm"}
    assert backbone.tuned_stages == ("blocks.1", "blocks.2", "blocks.3", "norm")
    assert list(backbone(images("vit"))) == ["low", "mid", "deep"]
    assert TimmBackbone(network("convnext")).tuned_stages == ("stages.1", "stages.2", "stages.3")
    with pytest.raises(ConfigError, match=r"backbone.roles.deep: blocks.4: no tap .*it has low, mid, deep, blocks.0"):
        TimmBackbone(network("vit"), {"deep": "blocks.4"})
    with pytest.raises(ConfigError, match=r"bloks.1: no tap of this backbone \(did you mean 'blocks.1'\?\)"):
        backbone(images("vit"), ["bloks.1"])


@pytest.mark.parametrize(
    "roles",
    [{"low": "blocks.3"}, {"mid": "norm"}, {"deep": "blocks.0"}, {"low": "blocks.2", "mid": "blocks.1"}],
)  # fmt: skip
def test_roles_out_of_order_are_refused(roles):
    """Of four blocks; the others are blocks 1, 2 and 3. The final norm comes behind the last block."""
    with pytest.raises(
        ConfigError, match=r"^backbone.roles: expected low before mid before deep, got low=.*set all three"
    ):
        TimmBackbone(network("vit"), roles)
    assert (
        TimmBackbone(network("vit"), {"low": "blocks.0", "mid": "blocks.0", "deep": "blocks.1"}).roles["deep"]
        == "blocks.1"
    )


@pytest.mark.parametrize("name", ["dinov2_s", "dinov3_s", "vit_b_clip", "convnext_t", "swin_b"])
def test_networks_by_name(name):
    from fss_svf import conf_files

    values = conf_files.values(f"backbone/{name}", {})
    roles = dict(values["roles"])
    with torch.device("meta"):  # nothing needs values here
        net = timm.create_model(values["model"], num_classes=0)
    assert set(roles.values()) <= {info["module"] for info in net.feature_info}
    if name == "vit_b_clip":  # OpenAI's weights
        assert type(net.blocks[0].mlp.act).__name__ == "QuickGELU"
    assert values["name"] == name


@pytest.mark.parametrize(
    ("kind", "size", "message"),
    [
        ("vit", 100, r"recipe.size: expected n with n % 16 == 0 .*, got 100; the nearest possible: 96 or 112"),
        ("registers", 473, r"n % 14 == 0 .*: 462 or 476"),
        ("swin", 473, r"n % 4 == 0 .*: 472 or 476"),
        ("convnext", 20, r"n >= 33 .*: 33 or 34"),
    ],
)  # fmt: skip
def test_sizes(kind, size, message):
    backbone = TimmBackbone(network(kind))
    with pytest.raises(ConfigError, match=message):
        backbone.check_size(size, "recipe.size")
    for good in backbone.sizes.nearest(size):
        backbone.check_size(good, squash=True)
        assert all(torch.isfinite(value).all() for value in backbone(torch.zeros(1, 3, good, good)).values())
        break


def test_a_hybrid_has_a_position_for_a_stride():
    """Convolutions before its patches of 1 x 1: it has a position for every 32 pixels."""
    backbone, _ = timm_backbone(TimmOptions("vit_tiny_r_s16_p8_224"))
    with pytest.raises(ConfigError, match=r"n % 32 == 0 for this backbone, got 97; the nearest possible: 96 or 128"):
        backbone.check_size(97)
    assert backbone(torch.zeros(1, 3, 96, 96))["deep"].shape[-2:] == (3, 3)


def test_a_size_of_which_timm_says_nothing_is_tried():
    backbone, _ = timm_backbone(TimmOptions("hrnet_w18_small"))
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    backbone.train().check_size(96, "recipe.size")
    with pytest.raises(
        ConfigError, match=r"^recipe.size: HighResolutionNet of timm cannot read 97 x 97 \(.*multiple of 32"
    ):
        backbone.check_size(97, "recipe.size")
    assert backbone.training
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())


@pytest.mark.parametrize(("model", "good"), [("pvt_v2_b0", 65), ("pit_ti_224", 224), ("xcit_nano_12_p16_224", 224)])
def test_patches_without_strict_img_size(model, good):
    backbone, _ = timm_backbone(TimmOptions(model))
    backbone.eval().check_size(good)
    with torch.no_grad():
        assert all(torch.isfinite(value).all() for value in backbone(torch.zeros(1, 3, good, good)).values())


@pytest.mark.parametrize("model", ["mvitv2_tiny", "twins_svt_small"])
def test_maps_that_are_no_stages_are_refused(model):
    with pytest.raises(
        ConfigError, match=r"^backbone.model: .* of timm names a map .*, which is none of its stages \("
    ):
        timm_backbone(TimmOptions(model))


def test_a_network_of_one_size():
    backbone, _ = timm_backbone(TimmOptions("test_maxvit"))
    backbone.check_size(160)
    with pytest.raises(ConfigError, match=r"expected 160, the network's own for this backbone, got 161; .*: 160"):
        backbone.check_size(161)


def test_official_positions_are_not_antialiased_and_offset():
    net = network("vit")
    changed = copy.deepcopy(net)
    _use_official_positions(changed, "vit")
    x = torch.randn(1, 6, 10, 48)
    own = net.pos_embed[:, 1:].unflatten(1, (14, 14)).permute(0, 3, 1, 2)
    # The sample for position i is at (i + 0.5) / scale - 0.5 of the own grid, scale = (side + 0.1) / 14.
    resized = F.interpolate(own, scale_factor=(6.1 / 14, 10.1 / 14), mode="bicubic")
    expected = x.flatten(1, 2) + resized.flatten(2).transpose(1, 2)
    with torch.no_grad():
        found, timms = changed._pos_embed(x), net._pos_embed(x)
    torch.testing.assert_close(found[:, 1:], expected)
    assert torch.equal(found[:, :1], timms[:, :1])
    assert (found - timms).abs().max() > 0.01
    # At the own size both leave them as they are; a copy has its own network's.
    at_home = torch.randn(1, 14, 14, 48)
    assert torch.equal(changed._pos_embed(at_home), net._pos_embed(at_home))
    with torch.no_grad():
        again = copy.deepcopy(changed)
        again.pos_embed.zero_()
        assert torch.equal(changed._pos_embed(x), found)
        assert not torch.equal(again._pos_embed(x), found)


@pytest.mark.parametrize("model", ["test_convnext", "vit_small_patch16_dinov3"])
def test_official_positions_need_positions(model):
    with pytest.raises(ConfigError, match=r"pos_embed=official: .* no absolute position embedding to resize"):
        timm_backbone(TimmOptions(model, pos_embed="official"))


def test_output_stride_is_timms():
    backbone, _ = timm_backbone(TimmOptions("test_convnext", output_stride=8))
    assert [tap.stride for tap in backbone.taps.values()] == [4, 8, 8, 8]
    assert backbone(torch.zeros(1, 3, 64, 64), ["deep"])["deep"].shape[-1] == 8
    with pytest.raises(ConfigError, match=r"backbone.output_stride=8: test_vit of timm has no such option"):
        timm_backbone(TimmOptions("test_vit", output_stride=8))


def test_unknown_models_are_one_line(monkeypatch):
    with pytest.raises(ConfigError, match=r"backbone.model=test_vitt: unknown to timm .*did you mean 'test_vit"):
        timm_backbone(TimmOptions("test_vitt"))
    with pytest.raises(ConfigError, match=r"timm .* knows no nope, but \['r160_in1k'\]"):
        timm_backbone(TimmOptions("test_vit.nope"))
    with pytest.raises(ConfigError, match=r"backbone.model: none is chosen"):
        build_backbone("timm")
    monkeypatch.setitem(__import__("sys").modules, "timm", None)
    with pytest.raises(ConfigError, match=r"backbone=timm: needs timm, .* pip install 'fss-svf\[timm\]'"):
        timm_import.import_timm("timm")


def test_timms_download_that_fails_is_one_line(monkeypatch):
    def create(*args, pretrained, **options):
        assert pretrained
        raise OSError("no route to host\nand more")

    monkeypatch.setattr(timm, "create_model", create)
    with pytest.raises(WeightsError, match=r"weights=pretrained: .*test_vit here \(no route to host\); .*to the file$"):
        timm_backbone(TimmOptions("test_vit", weights="pretrained"))


def test_on_the_meta_device_buffers_keep_their_values():
    """A checkpoint's model is built there; the positions of Swin's windows are in no state dict."""
    options = without_weights(Choice("timm", TimmOptions("swin_tiny_patch4_window7_224", weights="x"))).options
    with torch.device("meta"):
        backbone, _ = timm_backbone(options)
    assert all(p.is_meta for p in backbone.parameters())
    assert not any(b.is_meta for b in backbone.buffers())
