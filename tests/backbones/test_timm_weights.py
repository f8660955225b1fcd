"""backbone.weights of timm's networks: files and state dicts of timm's names, of official repositories and of runs."""

import re

import pytest
import torch

from fss_svf import build_backbone
from fss_svf.backbones.timm_backbone import TimmOptions, timm_backbone
from fss_svf.errors import WeightsError

MODEL = "test_vit"


def equal(ours, theirs):
    return all(torch.equal(value, theirs[name]) for name, value in ours.items())


def load(model, weights, **options):
    backbone, report = build_backbone("timm", model=model, weights=weights, **options)
    return backbone.network.state_dict(), report


@pytest.fixture(scope="module")
def state():
    return timm_backbone(TimmOptions(MODEL))[0].network.state_dict()


@pytest.mark.parametrize("prefix", ["", "module.", "teacher.backbone.", "backbone.network."])
def test_timms_names_in_a_file(tmp_path, state, prefix):
    content = {f"{prefix}{name}": value for name, value in state.items()} | {"head.weight": torch.ones(3, 64)}
    torch.save({"model": content}, tmp_path / "weights.pth")
    found, report = load(MODEL, tmp_path / "weights.pth")
    assert equal(found, state)
    assert report.loaded == len(state)
    assert report.digest is not None


def test_official_dinov2_without_and_with_registers():
    """Official names: mask_token, and register_tokens with a position for the class token, which timm takes apart."""
    for model in ("vit_small_patch14_dinov2", "vit_small_patch14_reg4_dinov2"):
        ours = timm_backbone(TimmOptions(model))[0].network.state_dict()
        official = {**ours, "mask_token": torch.zeros(1, 384)}
        if "reg_token" in ours:
            place = torch.randn(1, 1, 384)
            official["register_tokens"] = official.pop("reg_token")
            official["cls_token"] = ours["cls_token"] - place
            official["pos_embed"] = torch.cat([place, ours["pos_embed"]], dim=1)
        found, report = load(model, official)
        cls = found.pop("cls_token")
        assert equal(found, ours)
        torch.testing.assert_close(cls, ours["cls_token"])
        assert report.loaded == len(ours)


@pytest.mark.parametrize("wrapper", ["", "module.", "state_dict.model."])
def test_official_clip(wrapper):
    ours = timm_backbone(TimmOptions("vit_base_patch16_clip_quickgelu_224.openai"))[0].network.state_dict()
    names = {
        "patch_embed.proj": "conv1", "norm_pre": "ln_pre", "qkv.": "in_proj_", "attn.proj": "attn.out_proj",
        "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj", "blocks.": "transformer.resblocks.", "norm1": "ln_1",
        "norm2": "ln_2",
    }  # fmt: skip
    official = {"logit_scale": torch.ones(()), "transformer.resblocks.0.ln_1.weight": torch.ones(512)}
    for name, value in ours.items():
        for old, new in names.items():
            name = name.replace(old, new)
        name = "ln_post." + name.removeprefix("norm.") if name.startswith("norm.") else name
        name = {"pos_embed": "positional_embedding", "cls_token": "class_embedding"}.get(name, name)
        official[f"visual.{name}"] = value.squeeze() if name.endswith("embedding") else value
    official = {f"{wrapper}{name}": value for name, value in official.items()}
    found, report = load("vit_base_patch16_clip_quickgelu_224.openai", official)
    assert equal(found, ours)
    assert report.loaded == len(ours)


@pytest.mark.parametrize("wrapper", ["", "model.", "module.", "state_dict.module.", "teacher."])
def test_official_convnext(wrapper):
    ours = timm_backbone(TimmOptions("test_convnext"))[0].network.state_dict()
    official = {}
    for name, value in ours.items():
        name = name.replace("stem.", "downsample_layers.0.").replace("conv_dw", "dwconv").replace("mlp.fc", "pwconv")
        name = re.sub(r"stages\.(\d)\.downsample\.", r"downsample_layers.\1.", name).replace("blocks.", "")
        official[name] = value
    assert any(name not in ours for name in official)
    official |= {"norm.weight": torch.ones(64), "norm.bias": torch.ones(64), "head.weight": torch.ones(5, 64)}
    content = {f"{wrapper}{name}": value for name, value in official.items()}
    if wrapper == "teacher.":
        content |= {f"student.{name}": value + 1 for name, value in official.items()}
    elif wrapper == "model.":
        content |= {f"model_ema.{name}": value + 1 for name, value in official.items()}
    found, report = load("test_convnext", content)
    assert equal(found, ours)
    assert report.loaded == len(ours)
    assert report.prefix == wrapper
    with pytest.raises(WeightsError, match=r"does not fit"):  # which of two?
        load("test_convnext", {f"{net}.{name}": value for net in "ab" for name, value in official.items()})


def test_official_dinov3():
    ours = timm_backbone(TimmOptions("vit_small_patch16_dinov3"))[0].network.state_dict()
    official = {name.replace("reg_token", "storage_tokens").replace("gamma_1", "ls1.gamma").replace("gamma_2", "ls2.gamma"):
                value for name, value in ours.items()}  # fmt: skip
    official |= {"mask_token": torch.zeros(1, 384), "rope_embed.periods": torch.ones(16)}
    official["blocks.0.attn.qkv.bias_mask"] = torch.ones(3 * 384)
    found, report = load("vit_small_patch16_dinov3", official)
    assert equal(found, ours)
    assert report.loaded == len(ours)


def test_patches_and_windows_of_another_size_are_refused(tmp_path):
    """timm would resample them. The official Swin lacks nothing and has its downsampling at the end of a stage."""
    state = timm_backbone(TimmOptions("vit_tiny_patch16_224"))[0].network.state_dict()
    larger = {**state, "patch_embed.proj.weight": torch.ones(192, 3, 32, 32)}
    torch.save({"model": larger}, tmp_path / "vit.pth")
    with pytest.raises(WeightsError, match=r"vit.pth: it has patches of 32 x 32, the network .* has 16 x 16; choose"):
        load("vit_tiny_patch16_224", str(tmp_path / "vit.pth"))
    swin = timm_backbone(TimmOptions("swin_tiny_patch4_window7_224"))[0].network.state_dict()
    name = "layers.1.blocks.0.attn.relative_position_bias_table"
    with pytest.raises(WeightsError, match=r"a state dict: it has windows of 12 x 12, the network .* has 7 x 7"):
        load("swin_tiny_patch4_window7_224", {**swin, name: torch.ones(23 * 23, 6)})


def test_resized_positions_and_the_normalisation_are_said(state):
    grid = torch.randn(1, 1 + 24 * 24, 192)
    net = timm_backbone(TimmOptions("vit_tiny_patch16_224"))[0].network.state_dict()
    _, report = load("vit_tiny_patch16_224.augreg_in21k", {**net, "pos_embed": grid})
    line = (
        "; pos_embed resized from 24 x 24 to 14 x 14; images normalised by mean 0.5, 0.5, 0.5, deviation 0.5, 0.5, 0.5"
    )
    assert str(report).endswith(line)
    _, report = load(MODEL, state)
    assert "resized" not in str(report)
    assert str(load(MODEL, None)[1]) == "backbone: random weights"


def test_what_does_not_fit_is_refused(tmp_path, state):
    missing = {name: value for name, value in state.items() if "blocks.3.mlp" not in name}
    with pytest.raises(
        WeightsError, match=r"a state dict: does not fit backbone=timm backbone.model=test_vit \(missing"
    ):
        load(MODEL, missing)
    with pytest.raises(WeightsError, match=r"its names are not those of timm backbone.model=test_vit in timm"):
        load(MODEL, {"conv1.weight": torch.ones(4, 3, 7, 7)})
    with pytest.raises(WeightsError, match=r"shapes differ: norm.weight \(9,\) for \(64,\)"):
        load(MODEL, {**state, "norm.weight": torch.ones(9)})
    with pytest.raises(WeightsError, match=r"blocks.0.attn.qkv.S besides the backbone's weights"):
        load(MODEL, {**state, "blocks.0.attn.qkv.S": torch.ones(4)})
    with pytest.raises(WeightsError, match=r"backbone.weights=nowhere.pth: no such file .*give a file, pretrained"):
        load(MODEL, "nowhere.pth")
    with pytest.raises(WeightsError, match="NaN or infinity"):
        load(MODEL, {**state, "norm.weight": state["norm.weight"] * float("nan")})


def test_a_state_dict_for_any_backbone_and_eval_mode():
    first, report = build_backbone("tiny", width=8)
    assert report.source == "random"
    second, report = build_backbone(
        "tiny", width=8, weights={f"backbone.{k}": v for k, v in first.state_dict().items()}
    )
    assert equal(second.state_dict(), first.state_dict())
    assert report.source == "a state dict"
    assert not second.training
