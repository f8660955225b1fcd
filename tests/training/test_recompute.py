"""recompute=true on networks of timm that cannot."""

import pytest

from fss_svf.backbones.resnet import TinyOptions, tiny
from fss_svf.backbones.timm_backbone import TimmOptions, timm_backbone
from fss_svf.backbones.timm_network import TimmBackbone
from fss_svf.errors import ConfigError
from fss_svf.training.pretrain import refuse_double_counts
from tests.backbones.networks import network


def test_pretrain_refuses_batchnorms_that_would_count_twice():
    for kind in ("resnet", "efficientnet"):
        with pytest.raises(ConfigError, match=r"^recompute=true: the BatchNorms .* would count a batch twice; set"):
            refuse_double_counts(TimmBackbone(network(kind)))
    for kind in ("vit", "swin", "convnext"):
        refuse_double_counts(TimmBackbone(network(kind)))
    refuse_double_counts(tiny(TinyOptions(width=8))[0])  # joined blocks keep their statistics


def test_a_network_that_cannot_recompute_is_one_line():
    backbone, _ = timm_backbone(TimmOptions("vgg11"))
    with pytest.raises(
        ConfigError, match=r"^recompute=true: VGG of timm cannot recompute its activations; set it to false$"
    ):
        backbone.recompute()
