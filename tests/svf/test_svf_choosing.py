"""svf.decompose and layers that it cannot take: each is named in an error or in a warning."""

import copy
import warnings

import pytest
import torch
import torchvision
from torch import nn
from torch.nn.utils import parametrizations, prune

from fss_svf import svf
from tests.svf.test_svf import DoubledConv, image, same, snapshot, svf_names

pytestmark = [pytest.mark.usefixtures("one_thread", "seeded"), pytest.mark.filterwarnings("ignore::FutureWarning")]


def bias_alone(layer: nn.Module) -> nn.Module:
    nn.utils.parametrize.register_parametrization(layer, "bias", nn.Identity())
    return layer


COMPUTED = {
    "weight_norm, the older": nn.utils.weight_norm,
    "spectral_norm, the older": nn.utils.spectral_norm,
    "weight_norm": parametrizations.weight_norm,
    "spectral_norm": parametrizations.spectral_norm,
    "orthogonal": parametrizations.orthogonal,
    "a parametrised bias": bias_alone,
    "prune": lambda layer: prune.l1_unstructured(layer, "weight", 2),
}


@pytest.mark.parametrize("make", [lambda: nn.Conv2d(3, 4, 3), lambda: nn.Linear(4, 3)], ids=["conv", "linear"])
@pytest.mark.parametrize("kind", COMPUTED)
def test_a_computed_weight_is_refused_by_name(kind: str, make) -> None:
    model = nn.ModuleDict({"a": nn.Conv2d(3, 4, 3), "b": COMPUTED[kind](make())})
    before = snapshot(model)
    for include in ([], ["^b$"]):
        with pytest.raises(ValueError, match=r"layer 'b': .*remove that first"):
            svf.decompose(model, include)
    assert same(before, model.state_dict())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        svf.decompose(model, exclude=["^b"])
    assert svf_names(model) == ["a"]


def test_a_lazy_layer_is_refused_until_it_has_a_weight() -> None:
    model, x = nn.Sequential(nn.LazyConv2d(4, 3), nn.Flatten(), nn.LazyLinear(2)), image()
    with pytest.raises(ValueError, match="layer '0': it is lazy and has no weight yet; run a forward first"):
        svf.decompose(model)
    before = model(x)
    assert torch.equal(svf.decompose(model)(x), before)
    assert svf_names(model) == ["0", "2"]


class Matrix(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 3))


OTHERS = {
    "ConvTranspose2d": lambda: nn.ConvTranspose2d(3, 4, 3),
    "Conv1d": lambda: nn.Conv1d(3, 4, 3),
    "Conv3d": lambda: nn.Conv3d(3, 4, 3),
    "LazyConvTranspose2d": lambda: nn.LazyConvTranspose2d(3, 4),
    "Bilinear": lambda: nn.Bilinear(2, 3, 4),
    "LSTM": lambda: nn.LSTM(3, 4),
    "MultiheadAttention": lambda: nn.MultiheadAttention(4, 2),
    "DoubledConv, a subclass of Conv2d": lambda: DoubledConv(3, 4, 3),
    "DeformConv2d": lambda: torchvision.ops.DeformConv2d(3, 4, 3),
    "Matrix": Matrix,
    "Linear": lambda: torch.ao.nn.quantized.dynamic.Linear(4, 4),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_another_kind_of_layer_is_named_in_a_warning(kind: str) -> None:
    model = nn.ModuleDict({"a": nn.Conv2d(3, 4, 3), "up": OTHERS[kind]()})
    with pytest.warns(UserWarning, match=rf"svf\.decompose: up \({kind}\).* left as they are"):
        svf.decompose(copy.deepcopy(model))
    with pytest.raises(ValueError, match=rf"matches none of the 1 Conv2d and Linear layers .*but up \({kind}\)"):
        svf.decompose(model, ["^up"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        svf.decompose(copy.deepcopy(model), ["^a$"])
        svf.decompose(model, exclude=["^up"])
    assert svf_names(model) == ["a"]


def test_nothing_else_is_warned_of() -> None:
    model = nn.ModuleDict({
        "a": nn.Conv2d(3, 4, 3), "norm": nn.LayerNorm((4, 4)), "batch": nn.BatchNorm2d(4), "words": nn.Embedding(9, 4),
        "prelu": nn.PReLU(4), "stages": torchvision.models.resnet18()})  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        svf.decompose(model)
        svf.decompose(nn.ModuleDict({"old": model, "new": nn.Linear(2, 2)}))  # SVF layers stay as they are


def test_layers_that_swin_reads_past_their_forward_are_left_with_a_warning() -> None:
    from torchvision.models.swin_transformer import SwinTransformer

    model = SwinTransformer([4, 4], 8, [2], [2], [4, 4]).eval()
    x = torch.randn(1, 3, 16, 16)
    with pytest.warns(UserWarning, match=r"attn\.qkv \(Linear, whose weight ShiftedWindowAttention reads"):
        svf.decompose(model.requires_grad_(False))
    assert not any("attn" in name for name in svf_names(model))
    model(x).sum().backward()
    assert all(p.grad is not None for _, p in svf.trainable_parameters(model))


def test_a_weight_shared_with_what_is_not_decomposed() -> None:
    words = nn.ModuleDict({"words": nn.Embedding(9, 4), "head": nn.Linear(4, 9)})
    words["head"].weight = words["words"].weight
    with pytest.warns(UserWarning, match=r"shared with a module .*'words' \(Embedding\) that of 'head'; .* frozen"):
        svf.decompose(words)
    two = nn.ModuleDict({"a": nn.Linear(4, 4), "b": nn.Linear(4, 4)})
    two["b"].weight = two["a"].weight
    with pytest.warns(UserWarning, match=r"'b' \(Linear\) that of 'a'"):
        svf.decompose(copy.deepcopy(two), exclude=["^b$"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        svf.decompose(two)  # together they stay tied
    assert two["a"].S is two["b"].S


def test_training_while_merged_warns() -> None:
    model, x = svf.merge(svf.decompose(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()))), image()
    with pytest.warns(UserWarning, match="merged, so its tuned values do not train; call svf.unmerge"):
        model(x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with torch.no_grad():
            model(x)
        model.eval()(x)
        svf.unmerge(model).train()(x)
