"""Factored and rebuilt execution of a training step: the same outputs and gradients, for every kind of convolution."""

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torchvision.models.resnet import BasicBlock, Bottleneck

from fss_svf import svf
from fss_svf.backbones.joined import JoinedBasicBlock, JoinedBottleneck, JoinedSequential, join_units, recompute
from fss_svf.svf.execution import factored_is_cheaper

pytestmark = [pytest.mark.numeric, pytest.mark.usefixtures("one_thread", "seeded")]


@st.composite
def convolutions(draw):
    """(Conv2d, input) of any kernel, stride, padding, dilation, groups, bias and dtype."""
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    inputs, outputs = (groups * draw(st.integers(1, 4)) for _ in range(2))
    kernel, stride, padding, dilation = (
        (draw(st.integers(low, high)), draw(st.integers(low, high))) for low, high in ((1, 3), (1, 3), (0, 2), (1, 2))
    )
    conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, dilation, groups, bias=draw(st.booleans()))
    size = [draw(st.integers(max(1, d * (k - 1) + 1), 9)) for k, d in zip(kernel, dilation)]
    x = torch.randn(draw(st.integers(1, 2)), inputs, *size)
    dtype = draw(st.sampled_from([torch.float32, torch.float64, torch.bfloat16]))
    return conv.to(dtype), x.to(dtype)


def gradients(layer, x, execution):
    """Output, and gradients of x and of everything that trains, by name."""
    layer.execution = execution
    layer.zero_grad(set_to_none=True)
    x = x.detach().requires_grad_()
    y = layer(x)
    (y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)).sum().backward()
    return {"y": y.detach(), "x": x.grad, **{n: p.grad for n, p in layer.named_parameters() if p.requires_grad}}


# Of the largest value, or of 1: float32 by rounding; of bfloat16's 8 bits up to four are lost in a sum whose terms cancel.
BOUNDS = {torch.float64: 1e-10, torch.float32: 2e-5, torch.bfloat16: 8e-2}


def assert_same(found, expected, bound):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        scale = max(float(value.abs().max()), 1.0)  # sums of values of about 1 may cancel
        assert float((found[name] - value).abs().max()) <= bound * scale, name


@settings(max_examples=80, deadline=None)
@given(convolutions(), st.sampled_from(["direct", "scale", "log"]), st.booleans())
def test_factored_equals_rebuilt(pair, parametrisation, cut):
    conv, x = pair
    svf.decompose(conv, rank=1 if cut else None, parametrisation=parametrisation)
    with torch.no_grad():
        next(svf.singular_values(conv))[1].mul_(1.25)
    # In bfloat16 the rebuilt form rounds the weight too, so both are compared with the same layer in float64.
    exact = copy.deepcopy(conv).double()
    expected = gradients(exact, x.double(), "rebuilt")
    for execution in ("factored", "rebuilt"):
        found = {name: value.double() for name, value in gradients(conv, x, execution).items()}
        assert_same(found, expected, BOUNDS[conv.weight.dtype])


@pytest.mark.parametrize("groups", [1, 2])
def test_gradients_equal_finite_differences(groups):
    conv = svf.decompose(nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=groups).double(), rank=2, execution="factored")
    x = torch.randn(1, 4, 5, 6, dtype=torch.double, requires_grad=True)
    s = conv.S.detach().clone().requires_grad_()

    def run(x, s):
        return torch.func.functional_call(conv, {"S": s}, (x,))

    assert torch.autograd.gradcheck(run, (x, s))


def test_the_step_keeps_less_than_rebuilt():
    """z of r channels and a byte a value instead of the whole input, BatchNorm's input and ReLU's output."""
    block = Bottleneck(64, 16).eval().requires_grad_(False)
    joined = copy.deepcopy(block)
    join_units(joined)
    kept = {}
    for name, model, execution in (("modules", block, "rebuilt"), ("joined", joined, "factored")):
        svf.decompose(model, execution=execution)
        sizes = {}

        def pack(tensor, sizes=sizes):
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        x = torch.randn(2, 64, 24, 24, requires_grad=True)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            model(x).sum()
        kept[name] = sum(sizes.values())
    assert kept["joined"] < 0.4 * kept["modules"]


def test_evaluation_and_what_does_not_train_run_rebuilt():
    conv, x = svf.decompose(nn.Conv2d(3, 8, 3), execution="factored"), torch.randn(1, 3, 6, 6)
    assert conv.runs_factored(x)
    with torch.no_grad():
        assert not conv.runs_factored(x)
    with svf.disabled(conv):
        assert not conv.runs_factored(x)
    svf.merge(conv)
    assert not conv.runs_factored(x)
    svf.unmerge(conv)
    conv.requires_grad_(False)
    assert not conv.runs_factored(x)
    for other in (nn.Conv2d(3, 8, 3, padding="same"), nn.Conv2d(3, 8, 3, padding=1, padding_mode="reflect")):
        assert not svf.decompose(other, execution="factored").runs_factored(x)
    assert not svf.decompose(nn.Conv2d(3, 8, 3), train=("S", "U"), execution="factored").runs_factored(x)
    with pytest.raises(ValueError, match="execution 'fast' is not one of auto, factored, rebuilt"):
        svf.decompose(nn.Conv2d(3, 8, 3), execution="fast")


def test_auto_takes_what_has_fewer_operations():
    many = 10_000
    assert factored_is_cheaper((256, 256, 3, 3), 256, 1, many)
    assert factored_is_cheaper((1024, 256, 1, 1), 256, 1, many)
    assert not factored_is_cheaper((256, 256, 1, 1), 256, 1, many)  # a square matrix: three products against four
    assert factored_is_cheaper((256, 256, 1, 1), 64, 1, many)  # of low rank
    assert factored_is_cheaper((256, 256, 1, 1), 256, 1, 100)  # so few positions that making the weight counts
    square, x = svf.decompose(nn.Conv2d(8, 8, 1), execution="auto"), torch.randn(1, 8, 40, 40)
    assert not square.runs_factored(x)
    assert svf.decompose(nn.Conv2d(8, 8, 3), execution="auto").runs_factored(x)


def test_autocast_runs_in_bfloat16_and_stays_close():
    conv = svf.decompose(nn.Conv2d(16, 32, 3, padding=1), execution="factored")
    x = torch.randn(2, 16, 12, 12)
    expected = gradients(conv, x, "factored")
    with torch.autocast("cpu", torch.bfloat16):
        found = gradients(conv, x, "factored")
        assert conv(x).dtype == torch.bfloat16
    assert found["S"].dtype == torch.float32
    assert_same({k: v.float() for k, v in found.items()}, expected, 3e-2)


# Joined blocks


def settle(module):
    """BatchNorm statistics and weights of a trained network."""
    for m in module.modules():
        if isinstance(m, nn.BatchNorm2d):
            nn.init.uniform_(m.weight, 0.5, 1.5)
            nn.init.normal_(m.bias, std=0.2)
            nn.init.normal_(m.running_mean, std=0.2)
            nn.init.uniform_(m.running_var, 0.5, 1.5)
    return module


def shortcut(inputs, outputs):
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, 2, bias=False), nn.BatchNorm2d(outputs))


BLOCKS = {
    "bottleneck": (lambda: Bottleneck(16, 4), JoinedBottleneck),
    "bottleneck with a downsample": (lambda: Bottleneck(16, 8, 2, shortcut(16, 32)), JoinedBottleneck),
    "basic block": (lambda: BasicBlock(16, 16), JoinedBasicBlock),
    "basic block with a downsample": (lambda: BasicBlock(16, 24, 2, shortcut(16, 24)), JoinedBasicBlock),
    "sequence": (
        lambda: nn.Sequential(
            nn.Conv2d(16, 8, 3, bias=True), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.Conv2d(8, 8, 1), nn.ReLU(),
            nn.MaxPool2d(2), nn.Conv2d(8, 4, 1), nn.BatchNorm2d(4),
        ),
        JoinedSequential,
    ),
}  # fmt: skip


@pytest.mark.parametrize("tuning", ["frozen", "svf", "svf rebuilt", "full", "batchnorm", "bias"])
@pytest.mark.parametrize("name", BLOCKS)
def test_a_joined_block_is_the_block(name, tuning):
    make, kind = BLOCKS[name]
    plain = settle(make()).eval().double().requires_grad_(tuning == "full")
    for m in plain.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.requires_grad_(tuning in ("full", "batchnorm"))
        if tuning == "bias" and getattr(m, "bias", None) is not None:
            m.bias.requires_grad_()
    if tuning.startswith("svf"):
        svf.decompose(plain, execution="rebuilt")
    joined = copy.deepcopy(plain)
    join_units(joined)
    assert type(joined) is kind
    assert joined.state_dict().keys() == plain.state_dict().keys()
    for _, layer in svf.layers(joined):
        layer.execution = "rebuilt" if tuning == "svf rebuilt" else "factored"
    x = torch.randn(2, 16, 9, 8, dtype=torch.double)
    results = []
    for model in (plain, joined):
        own = x.clone().requires_grad_()
        y = model(own)
        y.square().sum().backward()
        grads = {n: p.grad for n, p in model.named_parameters() if p.requires_grad}
        results.append({"y": y.detach(), "x": own.grad, **grads})
        with torch.no_grad():
            results[-1]["evaluated"] = model(x)
    assert_same(results[1], results[0], 1e-10)


@pytest.mark.parametrize("name", BLOCKS)
def test_recomputing_changes_no_gradient_and_keeps_inputs_alone(name):
    stage = nn.Sequential(settle(BLOCKS[name][0]()).eval().requires_grad_(False))
    join_units(stage)
    svf.decompose(stage, execution="factored")
    x, results = torch.randn(2, 16, 9, 8), []
    for again in (False, True):
        if again:
            recompute(stage)
            assert stage[0].recompute
        stage.zero_grad(set_to_none=True)
        own, kept = x.clone().requires_grad_(), {}

        def pack(tensor, kept=kept):
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            y = stage(own)
        y.square().sum().backward()
        results.append(
            ({"y": y, "x": own.grad, **{n: p.grad for n, p in svf.singular_values(stage)}}, sum(kept.values()))
        )
    (found, much), (again, little) = results
    assert all(torch.equal(again[key], value) for key, value in found.items())
    assert little == x.nbytes < much


@pytest.mark.parametrize("name", BLOCKS)
def test_recomputing_counts_a_batch_once_in_running_statistics(name):
    """As in pretraining, where BatchNorm trains."""
    x, states = torch.randn(2, 16, 9, 8), []
    for again in (False, True):
        torch.manual_seed(0)
        stage = nn.Sequential(settle(BLOCKS[name][0]()).train())
        join_units(stage)
        if again:
            recompute(stage)
        stage(x.clone().requires_grad_()).square().sum().backward()
        states.append(stage.state_dict() | {f"grad.{n}": p.grad for n, p in stage.named_parameters()})
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[1][key], value) for key, value in states[0].items())


def test_modules_with_hooks_and_subclasses_are_called():
    block = settle(Bottleneck(16, 4)).eval().double()
    expected, x = block, torch.randn(1, 16, 6, 6, dtype=torch.double)
    joined = copy.deepcopy(block)
    join_units(joined)
    seen = []
    joined.bn2.register_forward_hook(lambda *_: seen.append("bn2"))
    joined.conv3.register_forward_pre_hook(lambda *_: seen.append("conv3"))

    class Doubled(nn.Conv2d):
        def forward(self, x):
            return 2 * super().forward(x)

    joined.conv1.__class__ = Doubled
    expected.conv1.__class__ = Doubled
    with torch.no_grad():
        torch.testing.assert_close(joined(x), expected(x))
    assert seen == ["bn2", "conv3"]


def test_another_relu_of_a_block_is_called():
    for make, _ in BLOCKS.values():
        plain = settle(make()).eval().double()
        for m in list(plain.modules()):
            for name, child in list(m.named_children()):
                if isinstance(child, nn.ReLU):
                    setattr(m, name, nn.GELU())
        joined = copy.deepcopy(plain)
        join_units(joined)
        x = torch.randn(1, 16, 9, 9, dtype=torch.double)
        with torch.no_grad():
            torch.testing.assert_close(joined(x), plain(x))
    block, seen = settle(Bottleneck(16, 4)).eval(), []
    join_units(block)
    block.relu.register_forward_pre_hook(lambda *_: seen.append("relu"))
    block(torch.randn(1, 16, 6, 6))
    assert seen == ["relu"] * 3


def test_half_precision_beside_a_float32_batchnorm():
    block = settle(Bottleneck(16, 4)).eval()
    joined = copy.deepcopy(block)
    join_units(joined)
    for model in (block, joined):
        for m in model.modules():
            if isinstance(m, nn.Conv2d):
                m.bfloat16()
    x = torch.randn(1, 16, 6, 6).bfloat16()
    with torch.no_grad():
        torch.testing.assert_close(joined(x), block(x))


def test_batchnorm_in_training_mode_is_called():
    block = Bottleneck(16, 4).train().requires_grad_(False)
    join_units(block)
    before = block.bn1.running_mean.clone()
    block(torch.randn(2, 16, 6, 6))
    assert not torch.equal(block.bn1.running_mean, before)


def test_compiled_and_exported():
    model = svf.decompose(settle(Bottleneck(16, 4)).eval().requires_grad_(False).double(), execution="factored")
    join_units(model)
    x = torch.randn(2, 16, 8, 8, dtype=torch.double)
    expected = model(x)
    expected.square().sum().backward()
    gradient = model.conv2.S.grad.clone()
    model.zero_grad()
    compiled = torch.compile(model, backend="aot_eager")
    found = compiled(x)
    found.square().sum().backward()
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)
    torch.testing.assert_close(model.conv2.S.grad, gradient, rtol=0, atol=1e-9 * float(gradient.abs().max()))
    with torch.no_grad():
        program = torch.export.export(model, (x,))
        torch.testing.assert_close(program.module()(x), expected, rtol=0, atol=1e-9)


def test_counted_operations_are_what_the_rule_says():
    """The rule's products are those of the convolutions that run, by PyTorch's own counter."""
    from torch.utils.flop_counter import FlopCounterMode

    conv, x = nn.Conv2d(8, 12, 3, padding=1, bias=False), torch.randn(2, 8, 10, 10, requires_grad=True)
    svf.decompose(conv, execution="factored")
    with FlopCounterMode(display=False) as counter:
        conv(x).sum().backward()
    rank, m, n = 12, 12, math.prod(conv.weight.shape[1:])
    # The mirrored kernel's products with the padding are counted too, as everywhere.
    assert counter.get_total_flops() == 2 * (2 * rank * (m + n) * 200)
