"""What a decomposition kept and what training has moved, as a table."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fss_svf.svf.decompose import layers
from fss_svf.svf.layers import SVFLayer


@dataclass(frozen=True)
class LayerReport:
    """One line of report(). All errors and changes are relative, 0 at the start of an exact layer.

    trainable  how many of its values train; what layers of one tie share counts at the first
    error      what the cut rank lost: Frobenius norm of weight - U diag(S0) Vh, over that of weight
    drift_max  largest |S - S0| / S0, with S0 of at least a millionth of the layer's largest
    drift_mean mean of the same
    change     Frobenius norm of effective weight - weight, over that of weight: U and Vh count here too
    """

    name: str
    shape: tuple[int, ...]
    rank: int
    trainable: int
    error: float
    drift_max: float
    drift_mean: float
    change: float


class Report(list[LayerReport]):
    """A list of LayerReports that prints as a table."""

    def __str__(self) -> str:
        heads = ("layer", "shape", "rank", "trains", "error", "drift max", "drift mean", "change")
        rows = [
            (
                line.name or "(the model)",
                "x".join(map(str, line.shape)),
                str(line.rank),
                f"{line.trainable:,}",
                *(f"{value:.1e}" for value in (line.error, line.drift_max, line.drift_mean, line.change)),
            )
            for line in self
        ]
        widths = [max(len(row[i]) for row in (heads, *rows)) for i in range(len(heads))]
        lines = [
            "  ".join(_pad(cell, width, i) for i, (cell, width) in enumerate(zip(row, widths)))
            for row in (heads, *rows)
        ]
        total = f"{len(self)} layers, {sum(line.trainable for line in self):,} trainable values"
        return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:], total])


def _pad(cell: str, width: int, column: int) -> str:
    return cell.ljust(width) if column == 0 else cell.rjust(width)


def report(module: nn.Module) -> Report:
    """A line for every SVF layer; print it for a table."""
    with torch.no_grad():
        counted: set[int] = set()
        return Report(_line(name, layer, counted) for name, layer in layers(module))


def relative_drift(layer: SVFLayer) -> Tensor:
    """(rank,) at least float32: (S - S0) / S0, with S0 of at least a millionth of the layer's largest."""
    with torch.no_grad():
        s, s0 = _precise(layer.singular_values()), _precise(layer.S0)
        return (s - s0) / s0.clamp_min(1e-6 * s0.max()).clamp_min(1e-30)


def _line(name: str, layer: SVFLayer, counted: set[int]) -> LayerReport:
    weight, drift = layer.weight, relative_drift(layer).abs()
    new = {id(p): p for own, p in layer.named_parameters(recurse=False) if layer.form.parameters.get(own)}
    trainable = sum(p.numel() for key, p in new.items() if key not in counted)
    counted |= set(new)
    return LayerReport(
        name,
        tuple(weight.shape),
        layer.rank,
        trainable,
        _cut_error(layer),
        float(drift.max()),
        float(drift.mean()),
        _relative(layer.effective_weight() - weight, weight),
    )


def _cut_error(layer: SVFLayer) -> float:
    if layer.form.train == ("S",):
        kept = ((layer.U * layer.S0.unsqueeze(1)) @ layer.Vh).reshape(layer.weight.shape)
        return _relative(layer.weight - kept, layer.weight)
    if layer.full_rank:
        return 0.0
    # U and Vh have moved, but the squares of all singular values sum to the weight's.
    kept, whole = layer.S0.double().square().sum(), layer.weight.double().square().sum()
    return float((1 - kept / whole.clamp_min(1e-30)).clamp_min(0).sqrt())


def _relative(difference: Tensor, weight: Tensor) -> float:
    return float(_precise(difference).norm() / _precise(weight).norm().clamp_min(1e-30))


def _precise(value: Tensor) -> Tensor:
    return value.to(torch.promote_types(value.dtype, torch.float32))
