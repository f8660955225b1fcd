"""Training over processes: the steps of one process, one run folder, and an end for all when one fails."""

import json
import time

import pytest
import torch

from fss_svf.checkpoint import load_checkpoint
from fss_svf.errors import ConfigError
from fss_svf.training.step import Shares
from tests.conftest import TOY
from tests.processes import TORCHRUN, ended, starting

pytestmark = pytest.mark.usefixtures("one_thread")  # as the processes beside it have one

# fss-svf that keeps the gradients of its first step in GRADIENTS, without dropout where NO_DROPOUT is set; process FAILS
# fails in its third step.
CHANGED = """
import os
import time
import torch
from fss_svf import distributed
from fss_svf.cli import main
from fss_svf.training import validation
from fss_svf.training.step import Step

if "NO_MEMORY" in os.environ:  # for a validation's features, so that they lie in files
    assert validation._CACHE_GB > 0
    validation._CACHE_GB = 0.0
if "FAILS" in os.environ:  # NCCL's waits for the other processes
    torch.distributed.destroy_process_group = lambda: time.sleep(600)
if "NO_DROPOUT" in os.environ:
    torch.nn.Dropout2d.forward = lambda self, x: x
call, move, number = Step.__call__, Step._move, iter(range(10**6))

def keep(self):
    path = os.environ.get("GRADIENTS")
    if path and distributed.rank() == 0 and not os.path.exists(path):
        names = {id(p): name for name, p in self.model.named_parameters()}
        torch.save({n: p.grad for n, p in self.model.named_parameters() if p.grad is not None}, path)
    move(self)

def failing(self, step, parts, **how):
    if step == 2 and str(distributed.rank()) == os.environ.get("FAILS"):
        raise ZeroDivisionError("a defect")
    return call(self, step, parts, **how)

Step.__call__, Step._move = failing, keep
main()
"""


@pytest.fixture
def start(tmp_path):
    """Start Python with arguments in tmp_path, where changed.py lies."""
    (tmp_path / "changed.py").write_text(CHANGED)
    with starting(tmp_path) as start:
        yield start


@pytest.fixture
def small(toy_root):
    """A training of four steps of six episodes."""
    return ("train", *TOY, f"dataset.root={toy_root}", "backbone=tiny", "backbone.width=8", "method.width=8",
            "recipe=toy", "recipe.size=65", "recipe.batch_size=6", "recipe.max_steps=4", "workers=0", "device=cpu",
            "validate.every=2", "validate.episodes=6", "log_every=1", "tuning=svf")  # fmt: skip


def trained(folder):
    return load_checkpoint(folder, "train")


def scores(folder):
    """The scores of the validations as TensorBoard has them."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in ("miou", "fb_iou", "loss/main")}


# ---------------------------------------------------------------------------------------------------------------------
# The same steps

# A score moves by the pixels that turn, over a union: in 6 episodes two at most, over the 200 of the smallest object.
TWO_PIXELS = 2 / 200


@pytest.mark.long  # the next test has the weights of whole runs
@pytest.mark.parametrize(("method", "processes"), [("baseline", 3), ("pfenet", 2)])
def test_gradients_are_those_of_one_process(start, small, tmp_path, method, processes):
    """Items hold different numbers of pixels that are not ignored: a mean of the processes' means would be another."""
    arguments = (*small, f"method={method}", "recipe.max_steps=1", "validate.episodes=3")
    runs = {"alone": ("changed.py",), "shared": (*TORCHRUN, processes, "changed.py")}
    for name, command in runs.items():
        gradients = str(tmp_path / f"{name}.pt")
        ended(start(*command, *arguments, f"hydra.run.dir={name}", NO_DROPOUT="1", GRADIENTS=gradients))
    assert_same_gradients(tmp_path)


def assert_same_gradients(folder):
    alone, shared = (torch.load(folder / f"{name}.pt") for name in ("alone", "shared"))
    assert any(name.endswith(".S") for name in alone)
    assert shared.keys() == alone.keys()
    for name, value in alone.items():
        assert (shared[name] - value).norm() <= 1e-4 * value.norm() + 1e-12, name  # float32


@pytest.mark.slow
def test_a_run_over_processes_is_one_run(start, fss, small, tmp_path):
    """With dropout: processes and parts draw what their part of the batch draws, whoever does it. Validations use files."""
    assert fss(*small, "accumulate=6", "hydra.run.dir=alone")[0] == 0
    _, err = ended(start(*TORCHRUN, 3, "changed.py", *small, "accumulate=2", "name=of3", NO_MEMORY="1"))
    (folder,) = tmp_path.glob("outputs/train/*/*")
    assert folder.parent.name == "of3"
    assert {p.name for p in folder.iterdir()} == {
        ".hydra", ".lock", "checkpoints", "config.yaml", "finished.json", "log.csv", "log.txt", "provenance.json",
        "tensorboard",
    }  # fmt: skip
    assert len(list((folder / "tensorboard").iterdir())) == 1
    (began,) = json.loads((folder / "provenance.json").read_text())["starts"]
    assert began["processes"] == 3
    assert err.count("backbone: random weights") == 1  # process 0 alone speaks
    alone, shared = trained(tmp_path / "alone"), trained(folder)
    for name, value in alone["model"].items():
        assert torch.allclose(shared["model"][name], value, rtol=1e-4, atol=1e-5), name
    for tag, values in scores(tmp_path / "alone").items():
        assert [step for step, _ in scores(folder)[tag]] == [step for step, _ in values]
        bound = {"rel": 1e-4} if tag == "loss/main" else {"abs": TWO_PIXELS}
        assert [value for _, value in scores(folder)[tag]] == pytest.approx([v for _, v in values], **bound), tag


def test_shares_are_all_items_once_in_order(monkeypatch):
    alone = list(Shares(12, 1, 3, 5))
    assert alone == list(range(36, 60))
    found = {}
    for rank in range(3):
        monkeypatch.setattr("fss_svf.distributed._world", 3)
        monkeypatch.setattr("fss_svf.distributed._rank", rank)
        shares = Shares(12, 2, 3, 5)
        assert (len(shares), shares.part) == (8, 2)
        found[rank] = list(shares)
    assert found == {0: [36, 37, 38, 39, 48, 49, 50, 51], 1: [40, 41, 42, 43, 52, 53, 54, 55],
                     2: [44, 45, 46, 47, 56, 57, 58, 59]}  # fmt: skip
    with pytest.raises(ConfigError, match=r"recipe.batch_size=8: does not divide into 3 processes x accumulate=2.*=12"):
        Shares(8, 2, 0, 1)


# ---------------------------------------------------------------------------------------------------------------------
# The end of one


@pytest.mark.long
def test_an_exception_of_one_process_ends_the_job(start, fss, small, tmp_path):
    process = start(*TORCHRUN, 2, "changed.py", *small, "workers=1", "hydra.run.dir=run", FAILS="1")
    log, until = tmp_path / "run" / "log.txt", time.monotonic() + 120
    while "ZeroDivisionError" not in (log.read_text() if log.exists() else "") and time.monotonic() < until:
        time.sleep(0.1)
    began = time.monotonic()
    _, err = process.communicate(timeout=120)
    assert process.returncode != 0
    assert err.count("fss-svf train: process 1: unexpected error") == err.count("ZeroDivisionError: a defect") == 1
    assert "ZeroDivisionError: a defect" in log.read_text()
    assert time.monotonic() - began < 60  # the other process by itself would wait for 30 minutes
    assert trained(tmp_path / "run")["step"] == 2
    # Goes on with another number of processes.
    assert fss("train", "resume=run")[0] == 0
    assert trained(tmp_path / "run")["step"] == 4


@pytest.mark.long
def test_a_mistake_is_told_once(start, small):
    _, err = start(*TORCHRUN, 2, "-m", "fss_svf", *small, "recipe.batch_size=5").communicate(timeout=120)
    assert err.count("recipe.batch_size=5: does not divide into 2 processes x accumulate=1") == 1
