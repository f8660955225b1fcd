"""Shared fixtures: a small toy dataset, and the command line called in this process."""

import os
import shutil
import sys
from pathlib import Path

import pytest
from hydra._internal.hydra import Hydra

from fss_svf import cli, provenance
from fss_svf.reporting import pictures

# No test writes to the cache folder of whoever runs it.
os.environ["FSS_SVF_CACHE"] = "off"
# Of a tiny training or evaluation, half the time would go into pictures of episodes at their full size.
pictures._CELL = 60

SMALL_TOY = {"train_images": 180, "val_images": 120, "seed": 3}  # every class in enough images
TOY = ("dataset=toy", *(f"dataset.{key}={value}" for key, value in SMALL_TOY.items()))


@pytest.fixture(scope="session")
def toy_root(tmp_path_factory):
    """The root of the small toy dataset, prepared."""
    from fss_svf.registry import DATASETS

    root = tmp_path_factory.mktemp("toy")
    DATASETS.entry("toy").build(toy_options(root)).prepare(workers=0)
    return root


def toy_options(root: Path, **changes):
    """ToyOptions of the small toy dataset."""
    from fss_svf.data.toy import ToyOptions

    values = {
        "root": root,
        "prepared": root / "prepared",
        **SMALL_TOY,
        "class_partition": "contiguous",
        "min_area": 200,
        "filter_novel": True,
        "too_few_images": "error",
        "support_annotation": "mask",
    }
    return ToyOptions(**{**values, **changes})


@pytest.fixture
def fss(monkeypatch, tmp_path, capsys):
    """Call `fss-svf` with arguments in an empty folder; returns (exit status, standard output, standard error)."""
    monkeypatch.chdir(tmp_path)
    # Hydra composes everything twice, first to see whether hydra.mode is set, which no file or test does.
    monkeypatch.setattr(Hydra, "get_mode", lambda *_, **__: None)

    def call(*arguments: str):
        monkeypatch.setattr(sys, "argv", ["fss-svf", *map(str, arguments)])
        monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
        monkeypatch.setattr(provenance, "command", {})  # a refused command leaves its own, and ends its process
        status = 0
        try:
            cli.main()
        except SystemExit as end:
            status = end.code or 0
        out, err = capsys.readouterr()
        return status, out, err

    return call


def trained(folder, *arguments):
    """The folder of a run, after `fss-svf train` with these arguments; for fixtures of a module, which have no `fss`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["fss-svf", "train", *arguments, f"hydra.run.dir={folder}"])
        with pytest.raises(SystemExit) as end:
            cli.main()
    assert end.value.code == 0
    return folder


@pytest.fixture(scope="module")
def one_thread():
    """For small matrices: on shared cores torch's SVD threads wait for each other (20 times slower)."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def kept_factors(tmp_path_factory):
    """Factors on disk while a module runs: of a network that comes again and again the SVD is computed once."""
    folder = tmp_path_factory.mktemp("factors")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FSS_SVF_CACHE", str(folder))
        yield
    shutil.rmtree(folder)


@pytest.fixture
def seeded():
    import torch

    torch.manual_seed(0)
