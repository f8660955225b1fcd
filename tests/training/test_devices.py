"""device=: what this machine does not have is one line that says what it has."""

import pytest
import torch
from torch import nn

from fss_svf.errors import ConfigError
from fss_svf.model import choose_device, place
from fss_svf.prediction.segmenter import Segmenter


@pytest.fixture
def only_a_cpu(monkeypatch):
    for backend in (torch.cuda, torch.backends.mps, torch.xpu):
        monkeypatch.setattr(backend, "is_available", lambda: False)


@pytest.mark.parametrize("name", [
    "cuda", "cuda:7", "mps", "xpu", "xpu:0", "meta", "hpu", "xla", "vulkan", "privateuseone", torch.device("meta"),
    "gpu", "GPU", "CUDA", "cuda:", "cuda:-1", "cuda:99999999999999", "0", "None", "", "nonsense",
], ids=str)  # fmt: skip
def test_a_device_that_is_not_there(only_a_cpu, name):
    with pytest.raises(ConfigError) as caught:
        choose_device(name)
    message = str(caught.value)
    assert f"device={name}: " in message
    assert "available are auto, cpu " in message
    assert "\n" not in message
    assert ("did you mean 'cuda'" in message) == (name in ("gpu", "GPU", "CUDA", "cuda:", "cuda:-1"))


def test_a_number_that_is_not_there(only_a_cpu, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ConfigError, match=r"device=cuda:7: .*from 0 to 1; available are auto, cpu, cuda:0, cuda:1 "):
        choose_device("cuda:7")
    with pytest.raises(ConfigError, match=r"device=meta: no such device .*available are auto, cpu, cuda:0, cuda:1 "):
        choose_device("meta")


def test_what_is_there(only_a_cpu, monkeypatch):
    for name in ("auto", "cpu", "cpu:0", "cpu:3", torch.device("cpu")):
        assert choose_device(name) == torch.device("cpu")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert choose_device("mps") == torch.device("mps")


def test_a_segmenter_names_the_device_before_it_reads_a_file(only_a_cpu):
    with pytest.raises(ConfigError, match="device=cuda:3: no such device"):
        Segmenter.load("nowhere", device="cuda:3")


def test_a_device_that_takes_no_model(monkeypatch):
    class Full(nn.Linear):
        def _apply(self, fn, recurse=True):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate\nmore lines")

    with pytest.raises(ConfigError, match=r"device=cpu: the model cannot be moved there \(CUDA out of memory\.[^\n]*$"):
        place(Full(2, 2), torch.device("cpu"))
