"""A training's work on a GPU, on fake tensors: one device, and a host that never waits. See tests/fake_gpu.py."""

import math
from dataclasses import fields, replace
from functools import partial
from itertools import product

import pytest
import torch
from torch import nn

from fss_svf import svf
from fss_svf.backbones.resnet import TinyOptions, tiny
from fss_svf.config import Optimizer
from fss_svf.data.loading import LabelBatch
from fss_svf.episode import normalize
from fss_svf.methods.base_learner import BaseLearner
from fss_svf.methods.method import cross_entropy
from fss_svf.precision import autocast, gradient_scaler
from fss_svf.registry import METHODS, TUNINGS
from fss_svf.svf.execution import Geometry, _Factored
from fss_svf.training.optim import make_optimizer
from fss_svf.training.step import Step
from tests.cli.test_config import TUNINGS_OF_CNNS, shipped_tuning
from tests.fake_gpu import CPU, CUDA, Allowed, FakeGPU, HostSync, needs_fake_tensors
from tests.methods.test_methods import SMALL, episode

pytestmark = needs_fake_tensors

PRECISIONS = ("float32", "bf16")
# Of the matcher nothing trains: its losses say so.
TRAINED = [name for name in METHODS.names() if name != "matcher"]


def tuned(method, tuning, shot=1):
    """A small method in its mode of training, on a tuned backbone."""
    torch.manual_seed(0)
    backbone, _ = tiny(TinyOptions(width=8))
    TUNINGS.build(shipped_tuning(tuning), backbone)
    entry = METHODS.entry(method)
    values = {**SMALL, "shot": shot}
    options = entry.options(**{f.name: values[f.name] for f in fields(entry.options) if f.name in values})
    return entry.build(backbone, options).to(memory_format=torch.channels_last).train()


def batch(shot=1, size=33):
    """Two episodes as a loader gives them."""
    e = episode(2, shot, size)
    pixels = [torch.zeros(x.shape, dtype=torch.uint8) for x in (e.query_image, e.support_images)]
    numbers = torch.tensor([1, 2])
    return replace(
        e, query_image=pixels[0], support_images=pixels[1], base_mask=e.query_mask, base_class=numbers, number=numbers
    )


def crossed():
    """Methods x tunings x precisions. By default every method with SVF and every kind of tuning with the baseline, in one
    precision each."""
    shown = {*product(TRAINED, ["svf"]), *product(["baseline"], ["full", "lora", "adapter", "usv"])}
    for number, (method, tuning) in enumerate(product(TRAINED, TUNINGS_OF_CNNS)):
        for precision in PRECISIONS:
            default = (method, tuning) in shown and precision == PRECISIONS[number % 2]
            yield pytest.param(method, tuning, precision, marks=[] if default else [pytest.mark.long])


@pytest.mark.parametrize(("method", "tuning", "precision"), list(crossed()))
def test_a_training_step_never_waits(method, tuning, precision, monkeypatch):
    """Upload, normalisation, forward, losses, the check that they are finite, clipping and the optimizer, twice.

    Only the backward is not there: autograd's engine asks for a real device.
    """
    model, computed = tuned(method, tuning, shot=2), set()
    # A stage whose blocks' sums are read gives its output and them.
    model.backbone.layer2.register_forward_hook(
        lambda module, inputs, output: computed.add((output[0] if isinstance(output, tuple) else output).dtype)
    )
    if not any(parameter.requires_grad for parameter in model.parameters()):
        model.backbone.requires_grad_(True)  # the controls and PANet have nothing of their own
    means_over = {"": "query_mask", **model.means_over}
    backward = []

    def loss(batch):
        on_device = batch.to(CUDA).normalized()
        prediction = model(on_device)
        terms = model.losses(prediction, on_device)
        assert prediction.logits.shape == (2, 2, 33, 33)
        assert all(term.device == CUDA and term.shape == () and term.dtype == torch.float32 for term in terms.values())
        return terms

    def gradients(loss):
        backward.append(loss.device)
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None

    monkeypatch.setattr(torch.Tensor, "backward", gradients)
    with FakeGPU() as gpu:
        gpu.module(model)
        optimizer = make_optimizer(model, model.backbone, Optimizer("sgd", 0.1, 0.1, 0.9, 1e-4))
        step = Step(
            model,
            loss,
            lambda batch: {term: batch.count(what) for term, what in means_over.items()},
            optimizer,
            0,
            gradient_scaler(CUDA, precision),
            clip_norm=1.0,
            context=partial(autocast, CUDA, precision),
        )
        for number in range(2):
            step(number, [gpu.tensors(batch(2), CPU)], norms=True)
        for read in (step.read, step.read_norms):
            with pytest.raises(HostSync, match=rf"^training/step\.py:{read.__name__}: "):
                read()
    assert backward == [CUDA, CUDA]
    assert all(state["momentum_buffer"].device == CUDA for state in optimizer.state.values())
    if method != "background":  # which asks no backbone
        assert computed == {torch.bfloat16 if precision == "bf16" else torch.float32}


def test_a_pretraining_never_waits():
    """Its BatchNorm trains, and counts its batches."""
    model = BaseLearner(tiny(TinyOptions(width=8))[0], classes=3).train()
    with FakeGPU() as gpu:
        gpu.module(model)
        images, labels = torch.zeros(2, 3, 33, 33, dtype=torch.uint8), torch.zeros(2, 33, 33, dtype=torch.uint8)
        made = gpu.tensors(LabelBatch(images, labels), CPU).to(CUDA)
        term = cross_entropy(model(normalize(made.images)), made.labels)
        assert (term.device, term.shape) == (CUDA, ())


@pytest.mark.parametrize("precision", [*PRECISIONS, "fp16"])
@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_the_optimizer_is_fused_and_never_waits(name, precision):
    """With the gradient scaler of fp16, too; what is partly on a GPU is not fused."""
    options = Optimizer(name, 0.1, 0.1, 0.9, 1e-4)
    model = nn.ModuleDict({"backbone": nn.Linear(2, 2), "head": nn.Linear(2, 2)})
    with FakeGPU() as gpu:
        gpu.module(model)
        optimizer, scaler = make_optimizer(model, model["backbone"], options), gradient_scaler(CUDA, precision)
        assert {group["fused"] for group in optimizer.param_groups} == {True}
        assert scaler.is_enabled() == (precision == "fp16")
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        scaler.scale(torch.zeros((), device=CUDA))
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
        model["head"].weight = nn.Parameter(gpu.tensors(torch.zeros(2, 2), CPU))
        mixed = make_optimizer(model, model["backbone"], options)
        assert {group["fused"] for group in mixed.param_groups} == {None}


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(("relu", "top"), [(False, math.inf), (True, math.inf), (True, 6)])
@pytest.mark.parametrize("shape", [(4, 6, 3, 1, 1), (6, 6, 3, 2, 6), (8, 6, 1, 1, 2)])
def test_the_backward_of_the_factored_execution_never_waits(shape, relu, top, precision):
    """Called as autograd calls it. Output channels, input channels, kernel, stride, groups."""
    out, inputs, kernel, stride, groups = shape
    conv = nn.Conv2d(inputs, out, kernel, stride, kernel // 2, groups=groups)
    layer = nn.Sequential(conv)
    svf.decompose(layer)
    half = torch.bfloat16 if precision == "bf16" else torch.float32
    with FakeGPU() as gpu:
        gpu.module(layer)
        x = gpu.tensors(torch.zeros(2, inputs, 9, 9)).to(half).requires_grad_()
        with torch.no_grad():
            y = nn.functional.conv2d(x, conv.weight.to(half), None, stride, kernel // 2, 1, groups)
        residual, (scale, shift) = torch.zeros_like(y), torch.ones(2, out, device=CUDA)
        saved = Saved(needs_input_grad=(True, True, *(False,) * 3, True, True, False, False, False))
        geometry = Geometry(conv.stride, conv.padding, conv.dilation, groups)
        filters = conv.Vh.reshape(-1, *conv.weight.shape[1:]).to(half)
        with torch.no_grad():
            made = _Factored.forward(saved, x, conv.S, conv.U, filters, scale, shift, residual, relu, top, geometry)
            grads = _Factored.backward(saved, torch.zeros_like(made))
        wanted = {0: x, 1: conv.S, 5: shift, 6: residual}
        assert [i for i, grad in enumerate(grads) if grad is not None] == sorted(wanted)
        for i, value in wanted.items():
            assert (grads[i].shape, grads[i].device) == (value.shape, CUDA)


class Saved:
    """What autograd hands to the functions of an autograd.Function."""

    def __init__(self, needs_input_grad):
        self.needs_input_grad = needs_input_grad

    def save_for_backward(self, *tensors):
        self.saved_tensors = tensors


# What the helper itself promises


SYNCS = {
    "item": lambda x: x.sum().item(),
    "float": lambda x: float(x.sum()),
    "int": lambda x: int(x.argmax()),
    "if": lambda x: 1 if x.any() else 0,
    "tolist": lambda x: x.tolist(),
    "mask": lambda x: x[x > 0],
    "write by a mask": lambda x: x.index_put_((x > 0,), torch.zeros((), device=CUDA)),
    "nonzero": lambda x: (x > 0).nonzero(),
    "where": lambda x: torch.where(x > 0),
    "unique": lambda x: x.unique(),
    "bincount": lambda x: x.long().flatten().bincount(),
    "equal": lambda x: torch.equal(x, x),
    "cpu": lambda x: x.cpu(),
    "a constant": lambda x: x * torch.tensor([1.0, 2.0], device=CUDA),
    "a list of rows": lambda x: x[[0, 1]],
    "one value": lambda x: x.__setitem__((0, 0), 1.0),
    "rows on the host": lambda x: x[torch.zeros(2, dtype=torch.int64)],
    "a blocking copy": lambda x: torch.zeros(2).to(CUDA),
}
FREE = {
    "arithmetic": lambda x: (x * 2 + torch.tensor(3.0)).sum(),
    "masks": lambda x: torch.where(x > 0, x, 0).masked_fill(x > 1, 0),
    "rows": lambda x: x[torch.zeros(2, dtype=torch.int64, device=CUDA)],
    "slices": lambda x: x[:1].split([1, 1], 1),
    "made there": lambda x: torch.full((2,), 2.0, device=CUDA) + torch.arange(2, device=CUDA),
    "a copy": lambda x: torch.zeros(2).to(CUDA, non_blocking=True),
}


@pytest.mark.parametrize("name", SYNCS)
def test_a_synchronisation_raises_with_file_and_function(name):
    with FakeGPU() as gpu:
        x = gpu.tensors(torch.ones(2, 2))
        with pytest.raises(HostSync, match=r"^test_fake_gpu\.py:<lambda>: the host waits for the device \("):
            SYNCS[name](x)


def test_what_does_not_wait_is_left_alone():
    with FakeGPU() as gpu:
        x = gpu.tensors(torch.ones(2, 2))
        for work in FREE.values():
            work(x)


def test_devices_do_not_mix():
    with FakeGPU() as gpu, pytest.raises(RuntimeError, match="same device"):
        gpu.tensors(torch.ones(2)) + torch.ones(2)


def test_a_named_synchronisation_gives_its_number():
    name = "test_fake_gpu.py:<lambda>"
    with FakeGPU({name: Allowed("a test", 7), "nowhere.py:nothing": Allowed("never met")}) as gpu:
        x = gpu.tensors(torch.ones(2, 2))
        assert SYNCS["item"](x) == 7
        assert SYNCS["int"](x) == 7
        assert SYNCS["if"](x) == 1
        assert SYNCS["cpu"](x).device == CPU
    assert gpu.met == {name}
