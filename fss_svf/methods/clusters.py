"""Agglomerative clusters of an image's positions, by their features."""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform
from torch import Tensor


def cluster(features: Tensor, tau: float) -> tuple[Tensor, int]:
    """Clusters of the positions of each of (B, C, n) features of unit length.

    Average linkage of 1 - cosine: two clusters are merged while the mean cosine of their pairs is above `tau`. Returns
    labels (B, n) int64 from 0 on, on the features' device, and the largest number of clusters. The host waits for the
    distances and computes the merges: each depends on the one before.
    """
    found = []
    for x in features:  # image by image: the distances of 64 x 64 positions take 67 MB
        distances = 1 - (x.T @ x).clamp(-1, 1)
        found.append(partition(distances.cpu(), 1 - tau))
    labels = np.stack(found)
    return torch.from_numpy(labels).to(features.device, non_blocking=True), 1 + int(labels.max())


def partition(distances: Tensor, cut: float) -> np.ndarray:
    """(n, n) distances on the host to labels (n,) int64: merged by average linkage while the distance is below `cut`."""
    if len(distances) == 1:
        return np.zeros(1, np.int64)
    merges = linkage(squareform(distances.double().numpy(), checks=False), "average")
    # fcluster merges at the cut itself, too.
    return fcluster(merges, math.nextafter(cut, -1), "distance").astype(np.int64) - 1
