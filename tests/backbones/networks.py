"""Small networks of timm, one of each kind, with random weights as if trained: no two layers alike."""

import timm
import torch
from torch import nn

# name: timm's model, and what makes it small
SMALL = {
    "vit": ("vit_tiny_patch16_224", {"embed_dim": 48, "depth": 4, "num_heads": 3}),
    "registers": ("vit_small_patch14_reg4_dinov2", {"embed_dim": 48, "depth": 4, "num_heads": 3, "img_size": 70}),
    "dinov3": ("vit_small_patch16_dinov3", {"embed_dim": 48, "depth": 4, "num_heads": 3}),
    "clip": ("vit_base_patch16_clip_224", {"embed_dim": 48, "depth": 4, "num_heads": 3}),
    "swin": ("swin_base_patch4_window7_224", {"embed_dim": 16, "depths": (1, 1, 2, 1), "num_heads": (1, 2, 4, 8)}),
    "convnext": ("convnext_tiny", {"dims": (16, 24, 32, 40), "depths": (1, 1, 2, 1)}),
    "efficientnet": ("test_efficientnet", {}),
    "resnet": ("test_resnet", {}),
}
DYNAMIC = ("vit", "registers", "dinov3", "clip", "swin")


def network(kind, **changes):
    """timm's own network, with its head."""
    model, small = SMALL[kind]
    torch.manual_seed(0)
    dynamic = {"dynamic_img_size": True} if kind in DYNAMIC else {}
    net = timm.create_model(model, pretrained=False, num_classes=0, **small, **dynamic, **changes)
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if parameter.ndim == 1 or "token" in name or "pos_embed" in name:
                parameter.add_(0.1 * torch.randn_like(parameter))
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.running_mean, -0.1, 0.1)
    return net.eval()
