"""Compiled stages: the training steps of the network as it is, and nothing else compiled."""

import copy
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch._dynamo.utils import counters

from fss_svf import svf
from fss_svf.backbones.joined import recompute
from fss_svf.config import Optimizer
from fss_svf.model import compile_stages
from fss_svf.precision import autocast
from fss_svf.training.optim import make_optimizer
from tests.methods.test_methods import episode, model

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.slow]
STAGES = 5


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


@pytest.fixture
def traced(monkeypatch):
    """The graphs without the C++ that is made of them, which takes a minute a network."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))


def compiled_graphs():
    return counters["stats"]["unique_graphs"]


def pair(name, tuning, execution="auto", again=False):
    """The same method twice, the first one compiled."""
    method = model(name)
    if tuning == "svf":
        svf.decompose(method.backbone, [r"^layer[234]\."], execution=execution)
    plain = copy.deepcopy(method)
    if again:
        recompute(method.backbone)
    compile_stages(method.backbone)
    return method, plain


def batch(seed, rows=2):
    e = episode(rows, seed=seed)
    return replace(e, base_mask=e.query_mask.clone(), base_class=torch.ones(rows, dtype=torch.int64))


def train(method, optimizer, e, precision="float32"):
    torch.manual_seed(0)  # dropout
    method.train()
    with autocast(torch.device("cpu"), precision):
        loss = torch.stack(list(method.losses(method(e), e).values())).sum()
    optimizer.zero_grad()
    loss.backward()
    gradients = {n: p.grad.clone() for n, p in method.named_parameters() if p.grad is not None}
    optimizer.step()
    return loss.detach(), gradients


def validate(method, rows):
    method.eval()
    svf.merge(method)
    with torch.inference_mode():
        logits = method(batch(9, rows)).logits
    svf.unmerge(method)
    return logits


def assert_equal_runs(method, plain, precision="float32", bound=1e-4):
    """Steps with validations of several sizes between them, of both."""
    found = []
    for one in (method, plain):
        optimizer = make_optimizer(one, one.backbone, Optimizer("sgd", 0.01, 0.01, 0.9, 1e-4))
        found.append([])
        for step in range(3):
            found[-1] += [train(one, optimizer, batch(step), precision), *(validate(one, rows) for rows in (1, 2, 3))]
    for ours, theirs in zip(*found, strict=True):
        if isinstance(ours, tuple):
            torch.testing.assert_close(ours[0], theirs[0], rtol=bound, atol=0)
            assert ours[1].keys() == theirs[1].keys()
            ours, theirs = (torch.cat([g.flatten() for g in both[1].values()]) for both in (ours, theirs))
        torch.testing.assert_close(ours, theirs, rtol=0, atol=bound * float(theirs.abs().max()))
    assert compiled_graphs() == STAGES
    assert not counters["graph_break"]


FORMS = [("frozen", "auto"), ("svf", "factored"), ("svf", "rebuilt")]


# The C++ of each takes a minute of a free core. Their graphs are those of the next test, and test_svf_models.py has the
# C++ of a small network.
@pytest.mark.long
@pytest.mark.parametrize(("tuning", "execution"), FORMS)
def test_training_steps_equal_the_uncompiled_ones(tuning, execution):
    assert_equal_runs(*pair("baseline", tuning, execution))


@pytest.mark.usefixtures("traced")
@pytest.mark.parametrize(
    ("tuning", "execution"),
    [pytest.param(*form, marks=[pytest.mark.long] if form[1] == "rebuilt" else []) for form in FORMS],
)
def test_the_graphs_of_every_form_take_the_steps_of_the_network(tuning, execution):
    assert_equal_runs(*pair("baseline", tuning, execution))


@pytest.mark.usefixtures("traced")
@pytest.mark.parametrize(
    ("name", "again"),
    [
        ("bam", True),
        *(
            pytest.param(*pair, marks=pytest.mark.long)
            for pair in (("pfenet", False), ("bam", False), ("panet", False), ("baseline", True))
        ),
    ],
)
def test_every_method_and_bams_disabled_branch(name, again):
    assert_equal_runs(*pair(name, "svf", again=again))


@pytest.mark.usefixtures("traced")
def test_half_precision():
    assert_equal_runs(*pair("baseline", "svf"), "bf16", bound=2e-2)


@pytest.mark.long
@pytest.mark.usefixtures("traced")
def test_many_batch_sizes_stay_below_the_limit_of_compilations():
    method, plain = pair("baseline", "svf")
    for rows in (1, 2, 3, 4, 5, 3, 2):
        ours, theirs = (one.eval()(batch(0, rows)).logits for one in (method, plain))
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4 * float(theirs.abs().max()))
    # Once for the first size, for one image by itself, and once for all others.
    assert compiled_graphs() <= 3 * STAGES
    assert not counters["unimplemented"]


@pytest.mark.long
@pytest.mark.usefixtures("traced")
def test_recomputing_keeps_less_when_compiled():
    kept = {}
    for again in (False, True):
        torch._dynamo.reset()
        method, _ = pair("baseline", "svf", again=again)
        sizes = []

        def pack(tensor, sizes=sizes):
            sizes.append(tensor.numel() * tensor.element_size())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            method.train()(batch(0))
        kept[again] = sum(sizes)
    assert kept[True] < 0.8 * kept[False]


@pytest.mark.usefixtures("traced")
def test_names_and_copies_are_those_of_the_network():
    method, plain = pair("baseline", "svf")
    assert list(method.state_dict()) == list(plain.state_dict())
    duplicate = copy.deepcopy(method)
    duplicate.train()(batch(0))
    assert compiled_graphs() == 0
    method.train()(batch(0))
    assert compiled_graphs() == STAGES
