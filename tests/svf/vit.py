"""Small vision transformers of timm with random weights, for tests."""

import timm
import torch
from torch import nn

# Every form of attention that decompose knows in timm: plain, with LayerScale, rotary, with biases that are added past the
# layer's forward (EVA, BEiT, Swin v2), windows.
KINDS = {
    "vit": ("vit_small_patch16_224", {"embed_dim": 48, "depth": 3, "num_heads": 3}),
    "dinov2": ("vit_small_patch14_dinov2", {"embed_dim": 48, "depth": 3, "num_heads": 3, "init_values": 0.5}),
    "dinov3": ("vit_small_patch16_dinov3", {"embed_dim": 48, "depth": 3, "num_heads": 3}),
    "eva": ("eva02_tiny_patch14_224", {"embed_dim": 48, "depth": 3, "num_heads": 3, "qkv_fused": True}),
    "beit": ("beit_base_patch16_224", {"embed_dim": 48, "depth": 3, "num_heads": 3}),
    "swin": ("swin_tiny_patch4_window7_224", {"embed_dim": 24, "depths": (1, 1), "num_heads": (2, 4), "window_size": 4}),
    "swinv2": ("swinv2_tiny_window8_256", {"embed_dim": 24, "depths": (1, 1), "num_heads": (2, 4), "window_size": 4}),
}  # fmt: skip
SIZE = 64


def make(kind: str = "vit", seed: int = 0, dtype: torch.dtype = torch.float64) -> nn.Module:
    """A frozen network in eval mode, as if trained: no bias is zero, and no weight of a norm is one or zero."""
    name, arguments = KINDS[kind]
    size = 56 if "patch14" in name else SIZE
    torch.manual_seed(seed)
    net = timm.create_model(name, img_size=size, num_classes=0, **arguments)
    for own, p in net.named_parameters():
        if own.endswith("bias"):
            nn.init.normal_(p, std=0.1)
        elif p.dim() == 1:
            nn.init.uniform_(p, 0.5, 1)
    return net.to(dtype).eval().requires_grad_(False)


def images(kind: str = "vit", batch: int = 2, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    size = 56 if "patch14" in KINDS[kind][0] else SIZE
    return torch.randn(batch, 3, size, size, dtype=dtype, generator=torch.Generator().manual_seed(5))


class ViTBackbone(nn.Module):
    """A transformer as a backbone of this project has it: with stages, and the network's own names inside `body`."""

    def __init__(self, kind: str = "vit", tuned: tuple[int, ...] = (1, 2), dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        self.network = make(kind, dtype=dtype).requires_grad_(True)
        self.tuned_stages = tuple(f"blocks.{n}" for n in tuned)

    @property
    def stages(self) -> dict[str, nn.Module]:
        return {f"blocks.{n}": block for n, block in enumerate(self.network.blocks)}

    @property
    def body(self) -> nn.Module:
        return self.network

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        return self.network.forward_intermediates(images, norm=False, intermediates_only=True)
