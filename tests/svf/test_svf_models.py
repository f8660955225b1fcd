"""fss_svf.svf in real surroundings: a vision transformer, DistributedDataParallel, a compiler, the document's example."""

import copy
import os
import re
import shutil
from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from fss_svf import svf
from tests.svf.test_svf import change, image, net, relative_error, svf_names

pytestmark = [pytest.mark.numeric, pytest.mark.usefixtures("one_thread", "seeded")]


def small_vit() -> nn.Module:
    model = torchvision.models.VisionTransformer(
        image_size=32, patch_size=8, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=32, num_classes=3
    )
    nn.init.normal_(model.heads.head.weight)  # torchvision starts it at zero
    return model.eval()


def test_a_vision_transformer_trains_its_mlps(tmp_path: Path) -> None:
    model, x, y = small_vit().requires_grad_(False), torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 2, 0])
    plain, before = copy.deepcopy(model), model(x)  # nothing wants a gradient: torch's fused attention
    svf.decompose(model, [r"mlp\.\d+$"])
    assert svf_names(model) == [f"encoder.layers.encoder_layer_{i}.mlp.{j}" for i in (0, 1) for j in (0, 3)]
    with torch.no_grad():
        assert torch.equal(model(x), before)
    optimizer = torch.optim.SGD([p for _, p in svf.trainable_parameters(model)], lr=0.05)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    svf.save_adapter(model, tmp_path / "adapter")
    svf.load_adapter(plain, tmp_path / "adapter")
    assert torch.equal(plain(x), model(x))


def test_the_attention_of_a_vision_transformer_stays_plain() -> None:
    # in_proj is a Parameter of MultiheadAttention and out_proj is read past its forward.
    names = svf_names(svf.decompose(small_vit()))
    assert "conv_proj" in names
    assert "heads.head" in names
    assert not any("attention" in name for name in names)


def two_forms() -> nn.Module:
    """A frozen model whose first layer trains S, and the others everything, S as a logarithm."""
    model = svf.decompose(net().requires_grad_(False), ["^0$"])
    return svf.decompose(model, ["^[35]$"], train="SUV", parametrisation="log")


def worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    torch.manual_seed(0)
    model, images = two_forms(), torch.randn(4, 3, 8, 8)
    parallel = DistributedDataParallel(model)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.01)
    for _ in range(2):
        optimizer.zero_grad()
        parallel(images[2 * rank : 2 * rank + 2]).square().mean().backward()
        optimizer.step()
    torch.save(model.state_dict(), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.long  # test_processes.py has whole runs
@pytest.mark.skipif(not torch.distributed.is_available(), reason="this PyTorch has no torch.distributed")
def test_two_processes_train_as_one(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(worker, (str(tmp_path),), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    assert all(torch.equal(first[name], second[name]) for name in first)

    torch.manual_seed(0)
    model, images = two_forms(), torch.randn(4, 3, 8, 8)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.01)
    start = copy.deepcopy(model.state_dict())
    for _ in range(2):
        optimizer.zero_grad()
        model(images).square().mean().backward()
        optimizer.step()
    alone = model.state_dict()
    assert all(torch.allclose(first[name], alone[name], rtol=1e-4, atol=1e-6) for name in alone)
    trained = [name for name, _ in svf.trainable_parameters(model)]
    assert len(trained) == 7
    assert not any(torch.equal(alone[name], start[name]) for name in trained)


@pytest.mark.long  # a plain backend traces the same graphs in test_svf_execution.py
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler, and there is no g++")
@pytest.mark.skipif(
    os.environ.get("ATEN_CPU_CAPABILITY") == "default", reason="PyTorch's C++ for this capability does not compile"
)
def test_compiled_by_inductor() -> None:
    model, x = two_forms(), image()
    change(model)
    compiled = torch.compile(model)
    assert relative_error(compiled(x), model(x)) < 1e-5
    compiled(x).square().sum().backward()
    found = {name: p.grad.clone() for name, p in svf.trainable_parameters(model)}
    model.zero_grad()
    model(x).square().sum().backward()
    assert all(torch.allclose(found[n], p.grad, rtol=1e-3, atol=1e-3) for n, p in svf.trainable_parameters(model))


DOCUMENT = Path(__file__).parents[2] / "docs" / "svf.md"


def test_the_example_of_the_document_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    example = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), re.S)[0]
    lines = [line for line in example.splitlines() if line.strip()]
    assert len(lines) <= 15
    batches = [(torch.randn(4, 3, 32, 32), torch.randint(5, (4,))) for _ in range(2)]
    names: dict = {"loader": batches}
    # No weights are fetched, and a smaller network does.
    monkeypatch.setattr(torchvision.models, "resnet50", lambda weights: torchvision.models.resnet18(weights=None))
    exec(compile(example, str(DOCUMENT), "exec"), names)
    model = names["model"]
    assert all(line.drift_max > 0 for line in svf.report(model))
    assert {name for name, p in model.named_parameters() if p.requires_grad} == {
        *(name for name, _ in svf.trainable_parameters(model)), "fc.weight", "fc.bias"}  # fmt: skip
    assert (tmp_path / "adapter.safetensors").is_file()
