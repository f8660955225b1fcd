"""The SVD of a network's convolutions: LAPACK's gesdd against the Gram matrix, one by one and in batches of a shape.

python scripts/bench_svd.py --threads 1 --weights resnet50.pth
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import torch
import torchvision
from torch import Tensor

from fss_svf.svf.cache import cached_svd
from fss_svf.svf.factors import Factors, by_gram


def gesdd(matrices: Tensor) -> Factors:
    u, s, vh = torch.linalg.svd(matrices, full_matrices=False)
    return u, s, vh


def gram(matrices: Tensor) -> Factors:
    found = by_gram(matrices)
    return gesdd(matrices) if found is None else found


def seconds(run: Callable[[], object]) -> float:
    began = time.perf_counter()
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - began


def errors(matrices: Tensor, factors: Factors) -> Tensor:
    """Largest entry of UᵀU - 1 and Vh Vhᵀ - 1, and the relative norm of W - U diag(S) Vh."""
    u, s, vh = (value.double() for value in factors)
    eye = torch.eye(s.shape[1], dtype=torch.float64, device=s.device)
    lost = (u * s.unsqueeze(1)) @ vh - matrices
    return torch.stack([(u.mT @ u - eye).abs().max(), (vh @ vh.mT - eye).abs().max(), lost.norm() / matrices.norm()])


def measure(route: Callable[[Tensor], Factors], matrices: list[Tensor], shapes: list[list[Tensor]]) -> None:
    factors: list[Factors] = []
    for matrix in matrices[:3]:  # warms up
        route(matrix)
    one = seconds(lambda: factors.extend(route(matrix) for matrix in matrices))
    batch = seconds(lambda: [route(torch.cat(group)) for group in shapes])
    worst = torch.stack([errors(*pair) for pair in zip(matrices, factors)]).amax(0)
    figures = ", ".join(f"{name} {float(value):.1e}" for name, value in zip(("U", "Vh", "rebuilt"), worst))
    print(f"{route.__name__}: {one:.1f} s one by one, {batch:.1f} s in batches; worst errors: {figures}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--weights", type=Path, help="a state dict of a torchvision ResNet-50; default: random weights")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    state = torch.load(arguments.weights, weights_only=True) if arguments.weights else None
    state = state or torchvision.models.resnet50(weights=None).state_dict()
    all_ = {name: value for name, value in state.items() if value.dim() == 4 and name.startswith("layer")}
    matrices = [value.float().flatten(1)[None].to(arguments.device) for value in all_.values()]
    shapes: dict[torch.Size, list[Tensor]] = defaultdict(list)
    for matrix in matrices:
        shapes[matrix.shape].append(matrix)
    print(f"{len(matrices)} matrices, {len(shapes)} shapes, {arguments.threads} threads, {arguments.device}")
    for route in (gesdd, gram):
        measure(route, matrices, list(shapes.values()))
    with tempfile.TemporaryDirectory() as folder:
        first = seconds(lambda: [cached_svd(m, Path(folder)) for m in matrices])
        again = seconds(lambda: [cached_svd(m, Path(folder)) for m in matrices])
        size = sum(file.stat().st_size for file in Path(folder).iterdir()) / 1e6
        print(f"cache: {first:.1f} s to compute and write {size:.0f} MB, {again:.1f} s to read")


if __name__ == "__main__":
    main()
