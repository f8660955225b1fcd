"""Directions in which a network's features hold the place in the image, whatever the image shows."""

from __future__ import annotations

import weakref
from collections.abc import Hashable
from itertools import chain

import torch
from torch import Tensor
from torch.nn import functional as F

from fss_svf.backbones.backbone import Backbone
from fss_svf.episode import imagenet_statistics
from fss_svf.methods.blocks import at_least_float32
from fss_svf.precision import in_float32


class PositionalBasis:
    """The basis of a backbone's tap, computed once for each size of images, and anew when the weights have changed.

    A copy of it, and what is pickled of it, is empty: it belongs to the backbone of the original.
    """

    def __init__(self) -> None:
        self._bases: dict[Hashable, Tensor] = {}
        self._weights: list[tuple[weakref.ref[Tensor], int]] = []

    def __reduce__(self) -> tuple[type[PositionalBasis], tuple[()]]:
        return PositionalBasis, ()

    def __call__(self, backbone: Backbone, tap: str, images: Tensor, components: int) -> Tensor:
        """(C, k) orthonormal columns for `images` (B, 3, H, W), of which size, device and dtype count; see `basis`."""
        self._forget_other_weights(backbone)
        # Precision: what autocast makes of the products.
        half = torch.get_autocast_dtype(images.device.type) if torch.is_autocast_enabled(images.device.type) else None
        key = (tap, components, tuple(images.shape[-2:]), images.device, images.dtype, half)
        if key not in self._bases:
            self._bases[key] = basis(backbone, tap, images, components)
        return self._bases[key]

    def _forget_other_weights(self, backbone: Backbone) -> None:
        tensors = list(chain(backbone.parameters(), backbone.buffers()))
        # A change in place counts up the version; what was replaced is another tensor.
        versions = [0 if tensor.is_inference() else tensor._version for tensor in tensors]
        same = len(tensors) == len(self._weights) and all(
            known() is tensor and before == version
            for (known, before), tensor, version in zip(self._weights, tensors, versions)
        )
        if not same:
            self._bases.clear()
            self._weights = [(weakref.ref(tensor), version) for tensor, version in zip(tensors, versions)]


def basis(backbone: Backbone, tap: str, images: Tensor, components: int) -> Tensor:
    """The first `components` left singular vectors of the features (C, h * w) of a black image of the size of `images`.

    Features have unit length, and their mean over positions is taken away: so no more than h * w - 1 directions mean
    anything, and no more are given. Source: INSID3 (arXiv 2603.28480). The host waits for the decomposition.
    """
    # A basis outlives the mode it is made in.
    with torch.inference_mode(False), torch.no_grad():
        mean, deviation = imagenet_statistics(images.device)
        black = (-mean / deviation).to(images.dtype).expand(1, 3, *images.shape[-2:])
        feature = at_least_float32(backbone(black, (tap,))[tap]).flatten(2)[0]
        with in_float32(feature.device):
            feature = F.normalize(feature, dim=0)
            vectors = torch.linalg.svd(feature - feature.mean(1, keepdim=True), full_matrices=False)[0]
    return vectors[:, : min(components, feature.shape[1] - 1)]
