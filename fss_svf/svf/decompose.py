"""Turning the layers of a model into SVF layers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from fss_svf.precision import in_float32
from fss_svf.svf.batchnorm import remember
from fss_svf.svf.cache import cached_svd
from fss_svf.svf.choosing import Target, choose, why_not
from fss_svf.svf.factors import Factors, determined, matrices_of, svd
from fss_svf.svf.layers import EXECUTIONS, PARAMETER, Form, SVFLayer, become_svf
from fss_svf.svf.qkv import become_rows
from fss_svf.svf.rank import Rank, Ranks, check_rank, count, parse_ranks, ranks_of


def decompose(
    module: nn.Module,
    include: Iterable[str] = (),
    exclude: Iterable[str] = (),
    rank: Ranks = None,
    rank_multiple: int = 1,
    train: Iterable[str] = ("S",),
    parametrisation: str = "direct",
    execution: str = "rebuilt",
    cache: Path | str | None = None,
    progress: bool = False,
) -> nn.Module:
    """Convert every nn.Conv2d and nn.Linear of `module` into an SVF layer, in place; returns `module`.

    include, exclude  regular expressions, searched (re.search) in the qualified layer name such as
                      "layer2.0.conv1"; no include means every layer. A bare layer's name is "".
    rank              which singular values to keep (see rank.py); None keeps all, which changes no output
    rank_multiple     floor the rank to a multiple of it (the official code uses 4); a rank below it stays
    train             one or more of "S", "U", "V". With S alone the outputs stay bit for bit at full rank; with U or V
                      the weight is U diag(S) Vh itself, so they stay within the factors' rounding (1e-5 in float32)
    parametrisation   "direct" trains S; "scale" trains a in S = S0 a; "log" trains d in log S = log S0 + d. All start
                      at S0; a singular value of 0 stays 0 under scale and log
    execution         how a training step of a Conv2d runs: "rebuilt" (convolves with U diag(S) V), "factored" (with V,
                      then with U diag(S): faster, keeps less, and equal within rounding where rebuilt is equal to the
                      bit), "auto" (layer by layer what takes fewer operations). Without gradients it is always rebuilt
    cache             a folder for the factors, by the weights' hash, read where they were computed before
    progress          show a progress bar: the SVD of a ResNet-50 takes 3 s on one free core, and far longer on
                      cores that others use too (torch's threads wait for each other: set OMP_NUM_THREADS=1 there)

    What trains requires grad and the layers' weights do not; biases and other modules stay as they are, as do device,
    dtype, training mode, hooks, and ties (a layer used twice, or two layers that share one weight). Factors of a weight
    in half precision are float32. Layers that are SVF layers already stay as they are.
    Warns of layers that match and are of another kind (ConvTranspose2d, a subclass, the attention modules of PyTorch and
    torchvision), which are left as they are, and of a weight that a module shares which is not decomposed.
    Raises ValueError for a pattern that matches no layer, a rank above a matrix's, a weight that is not finite or
    that is computed (weight_norm, spectral_norm, parametrize, prune), a lazy layer without a weight, and a value that is
    none of the above; the model is then as it was.
    """
    form = Form(tuple(train), parametrisation)
    if execution not in EXECUTIONS:
        raise ValueError(f"svf.decompose: execution {execution!r} is not one of {', '.join(EXECUTIONS)}")
    folder = None if cache is None else Path(cache).expanduser()
    if rank_multiple < 1:
        raise ValueError(f"svf.decompose: rank_multiple {rank_multiple} is not 1 or more")
    chosen = choose(module, _patterns(include), _patterns(exclude))
    try:
        wanted = ranks_of([target.name for target in chosen], parse_ranks(rank))
    except ValueError as error:
        raise ValueError(f"svf.decompose: rank: {error}") from None
    _check(chosen, wanted)
    convert(module, chosen, wanted, rank_multiple, form, folder, progress, execution)
    return module


def convert(
    module: nn.Module,
    chosen: list[Target],
    ranks: dict[str, Rank],
    rank_multiple: int,
    form: Form,
    cache: Path | None,
    progress: bool,
    execution: str = "rebuilt",
) -> None:
    """Decompose what was chosen of `module`, which is known to be sound."""
    # All factors before the first conversion, so that an error leaves no model half converted.
    factors: dict[tuple[int, int, str], tuple[Factors, bool]] = {}
    at_once = all(target.weight.is_meta for target in chosen)  # a checkpoint will fill them
    for target in tqdm(chosen, desc="SVD", unit="layer", disable=at_once or not progress or None):
        if target.tie not in factors:
            factors[target.tie] = _factorise(target, ranks[target.name], rank_multiple, cache)
    first: dict[tuple[int, int, str], SVFLayer] = {}
    remember(module)
    for target in chosen:
        tie, layer = target.tie, target.layer
        arguments = (*factors[tie], form, execution, first.get(tie))
        converted: SVFLayer
        if target.part:
            assert isinstance(layer, nn.Linear)
            converted = become_rows(layer, target.part, *arguments)
        else:
            converted = become_svf(layer, *arguments)
        first.setdefault(tie, converted)
    for parent in module.modules():
        # Its fused inference path reads the weights of linear1 and linear2 past their forward; this turns it off.
        if isinstance(parent, nn.TransformerEncoderLayer) and any(layers(parent)):
            parent.activation_relu_or_gelu = 0


def _factorise(target: Target, rank: Rank, rank_multiple: int, cache: Path | None) -> tuple[Factors, bool]:
    """U (g, m, r), S (g, r), Vh (g, r, n) of a weight, cut to its rank, on the weight's device; and whether they are
    determined.
    """
    weight = target.weight
    matrices = matrices_of(weight, target.groups)
    with in_float32(weight.device):
        u, s, vh = svd(matrices) if cache is None or weight.is_meta else cached_svd(matrices, cache)
    r, alike = count(rank, s, rank_multiple), determined(s)
    u, s, vh = (value.contiguous() for value in (u[..., :r], s[..., :r], vh[:, :r]))
    return (u, s, vh), alike


def _check(chosen: list[Target], ranks: dict[str, Rank]) -> None:
    """Everything that can be wrong with a layer, before the first SVD."""
    of_tie: dict[tuple[int, int, str], str] = {}
    for target in chosen:
        name = target.name
        try:
            if why_not(target.layer):
                raise ValueError(why_not(target.layer))
            weight = target.weight
            if not weight.is_meta and not torch.isfinite(weight).all():
                raise ValueError("its weight holds NaN or infinity")
            check_rank(ranks[name], weight.shape[0] // target.groups, weight[0].numel())
            other = of_tie.setdefault(target.tie, name)
            if ranks[other] != ranks[name]:
                raise ValueError(
                    f"it shares its weight with {other!r}, so it cannot have another rank "
                    f"({ranks[name]} and {ranks[other]}); give both the same"
                )
        except ValueError as error:
            raise ValueError(f"svf.decompose: layer {name!r}: {error}") from None


def _patterns(patterns: Iterable[str]) -> list[str]:
    return [patterns] if isinstance(patterns, str) else list(patterns)


def layers(module: nn.Module) -> Iterator[tuple[str, SVFLayer]]:
    """The SVF layers of a model with their names."""
    return ((name, m) for name, m in module.named_modules() if isinstance(m, SVFLayer))


def singular_values(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """The parameter that holds S in every SVF layer (S, S_scale or S_log_scale) with its name; tied ones once."""
    # By identity: other modules may call a parameter S too.
    return _named(module, {id(getattr(layer, PARAMETER[layer.form.parametrisation])) for _, layer in layers(module)})


def trainable_parameters(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """What `train` chose in every SVF layer: its S, U and Vh as far as they train, with their names; tied ones once."""
    chosen = set()
    for _, layer in layers(module):
        chosen |= {id(getattr(layer, name)) for name, trains in layer.form.parameters.items() if trains}
    return _named(module, chosen)


def _named(module: nn.Module, chosen: set[int]) -> Iterator[tuple[str, nn.Parameter]]:
    return ((name, p) for name, p in module.named_parameters() if id(p) in chosen)


def fit_ranks(module: nn.Module, state: Mapping[str, Tensor]) -> nn.Module:
    """Give SVF layers the ranks that a state dict has, for it to be loaded next; returns `module`.

    For a rank that weights decide (Energy), which a model of other weights, or of none, cannot know. Layers whose rank
    changes hold no values until then; layers that the state dict does not name stay as they are.
    """
    fitted: dict[int, tuple[nn.Parameter, nn.Parameter]] = {}  # by the identity of the old one, for ties
    for name, layer in layers(module):
        s = state.get(f"{name}.S0" if name else "S0")
        full = min(layer.weight.shape[0] // layer.S0.shape[0], layer.weight[0].numel())
        if s is None or s.shape[-1] == layer.rank or not 1 <= s.shape[-1] <= full:
            continue
        r = s.shape[-1]
        layer.S0 = layer.S0.new_empty(layer.S0.shape[0], r)
        for own in layer.form.parameters:
            old = getattr(layer, own)
            shape = (old.shape[0], r, old.shape[2]) if own == "Vh" else (*old.shape[:-1], r)
            new = nn.Parameter(old.detach().new_empty(shape), requires_grad=old.requires_grad)
            layer.register_parameter(own, fitted.setdefault(id(old), (old, new))[1])
    return module
