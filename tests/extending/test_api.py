"""The Python API: its results are those of the command line, and docs/python.md runs as it stands."""

import csv
import doctest
import inspect
import json
import subprocess
import sys

import numpy as np
import pytest
import torch

import fss_svf
from fss_svf.checkpoint import load_checkpoint
from fss_svf.errors import ConfigError, DataError, WeightsError
from tests.conftest import SMALL_TOY, TOY, trained
from tests.examples import DOCS, blocks

SMALL = ("experiment=toy", *TOY, "recipe.size=65", "recipe.batch_size=2", "recipe.max_steps=2",
         "validate.every=2", "validate.episodes=4", "backbone.width=8", "method.width=8", "workers=0")  # fmt: skip


def dataset(root):
    return fss_svf.load_dataset("toy", root=root, **SMALL_TOY)


@pytest.fixture(scope="module")
def run(toy_root, tmp_path_factory):
    """The folder of a short training on the small toy dataset."""
    folder = tmp_path_factory.mktemp("run") / "train"
    return trained(folder, *SMALL, f"dataset.root={toy_root}")


def drawn(episodes, protocol="svf", runs=1):
    """A protocol of so few episodes that classes may have none."""
    return fss_svf.Protocol.load(protocol, episodes=episodes, runs=runs, never_drawn="leave_out")


def counts(path):
    with open(path / "episodes.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_a_checkpoint_gives_the_result_of_the_command_line(fss, toy_root, run, tmp_path):
    status, _, err = fss("evaluate", f"checkpoint={run}", "shot=2", "protocol.episodes=30", "workers=0", "seeds=2",
                         "pictures=0", "hydra.run.dir=cli")  # fmt: skip
    assert status == 0, err
    protocol = fss_svf.Protocol.load("svf", episodes=30, runs=2)
    fold = dataset(toy_root).fold(0)
    result = fss_svf.evaluate(fss_svf.load_model(run), fold, protocol, 2, workers=0, out=tmp_path / "api")
    theirs = json.loads((tmp_path / "cli" / "result.json").read_text())
    assert json.loads(json.dumps(result)) == theirs
    assert result["checkpoint"]["path"] == str(run)
    assert json.loads((tmp_path / "api" / "result.json").read_text()) == theirs
    assert counts(tmp_path / "api") == counts(tmp_path / "cli")


@pytest.mark.parametrize("protocol", ["svf", "hsnet"])
def test_any_callable_gives_the_counts_of_the_engine(toy_root, run, tmp_path, protocol):
    model = fss_svf.load_model(run).double()
    where = dataset(toy_root).fold(0), drawn(12, protocol), 2

    def plain(episode):
        double = {"query_image": episode.query_image.double(), "support_images": episode.support_images.double()}
        return model(fss_svf.Episode(support_masks=episode.support_masks, **double))

    fss_svf.evaluate(model, *where, size=65, workers=0, out=tmp_path / "seam")
    result = fss_svf.evaluate(plain, *where, size=65, workers=0, method="plain", out=tmp_path / "whole")
    assert counts(tmp_path / "whole") == counts(tmp_path / "seam")
    assert (result["method"], result["checkpoint"], result["num_episodes"]) == ("plain", None, 12)


def test_several_ways(toy_root, caplog):
    seen = []

    def background(episode):
        seen.append((episode.way, episode.support_masks.unique().tolist()))
        logits = torch.zeros(len(episode.query_image), 3, *episode.size)
        logits[:, 0] = 1
        return logits

    result = fss_svf.evaluate(background, dataset(toy_root).fold(0), drawn(8, "panet"), 2, way=2, workers=0)
    assert result["miou"] == 0
    assert {way for way, _ in seen} == {2}
    assert result["way"] == 2
    assert "protocol.shots=mean: how the model combines its supports is its own matter" in caplog.text


class Fits(torch.nn.Module):
    """Learns each episode's brightness by gradient steps, in its own mode and dtype."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Conv2d(3, 2, 1).double()
        self.dropout = torch.nn.Dropout()

    def forward(self, episode):
        assert not self.training
        weight = self.layer.weight.clone()
        with torch.enable_grad():
            weight.requires_grad_()
            logits = torch.nn.functional.conv2d(episode.support_images[:, 0], weight)
            logits.square().sum().backward()
        assert weight.grad is not None
        return self.layer(episode.query_image)


def test_a_module_is_left_as_it_was(toy_root):
    model = Fits().train()
    model.dropout.eval()
    fss_svf.evaluate(model, dataset(toy_root).fold(0), drawn(20), size=65, workers=0)
    assert model.training
    assert model.layer.training
    assert not model.dropout.training
    assert model.layer.weight.requires_grad


def test_a_model_whose_base_learner_is_unknown(toy_root):
    """As load_official gives it: its base classes are not measured, and a protocol that fuses them is refused."""
    bam = {"name": "bam", "width": 8, "base_classes": 15}
    model = fss_svf.build_model(bam, backbone={"name": "tiny", "width": 8}, tuning="frozen")
    fold = dataset(toy_root).fold(0)
    assert set(fss_svf.evaluate(model, fold, drawn(6), size=65, workers=0)["also"]) == {"meta"}
    with pytest.raises(
        ConfigError, match="protocol=bam_generalized: the model does not say which base classes it knows"
    ):
        fss_svf.evaluate(model, fold, fss_svf.Protocol.load("bam_generalized", episodes=50, runs=1), size=65)


def test_episodes_are_those_that_are_evaluated(toy_root):
    fold = dataset(toy_root).fold(1)
    assert fold.novel == list(fold.data.class_names[5:10])
    assert sorted([*fold.novel, *fold.base]) == sorted(fold.data.class_names)
    protocol = drawn(20, runs=2)
    episodes = fss_svf.episodes(fold, protocol, shot=2, size=65)
    assert len(episodes) == len(list(episodes)) == 40
    seen = {}

    def model(episode):
        for query, supports in zip(episode.query_image, episode.support_images):
            seen[np.round(query.mean().item(), 4), np.round(supports.mean().item(), 4)] = True
        return torch.zeros(len(episode.query_image), 2, *episode.size)

    fss_svf.evaluate(model, fold, protocol, 2, size=65, workers=0)
    one = {(np.round(e.query_image.mean().item(), 4), np.round(e.support_images.mean().item(), 4)) for e in episodes}
    assert one == set(seen)
    with pytest.raises(IndexError):
        episodes[40]


@pytest.mark.parametrize(
    ("wrong", "error", "says"),
    [
        (lambda data, run: fss_svf.load_dataset("toi"), ConfigError, "dataset=toi: unknown (did you mean 'toy'?)"),
        (lambda data, run: fss_svf.load_dataset("toy", seeed=1), ConfigError, "dataset.seeed: no such key"),
        (lambda data, run: fss_svf.load_dataset("toy", root="gone").fold(0), DataError, "fss-svf prepare dataset=toy"),
        (lambda data, run: data.fold(4), ConfigError, "fold: expected 0..3, got 4"),
        (lambda data, run: fss_svf.episodes(data.fold(0), "svv"), ConfigError, "protocol=svv: unknown"),
        (lambda data, run: fss_svf.Protocol.load("svf", runss=2), ConfigError, "protocol.runss: no such key (did you m"),
        (lambda data, run: fss_svf.Protocol.load("svf", runs=np.int64(2)), ConfigError, "protocol: Value 'int64' is not"),
        (lambda data, run: fss_svf.episodes(data.fold(0), size=32), ConfigError, "size: expected at least 33"),
        (lambda data, run: fss_svf.episodes(data.fold(0), shot=0), ConfigError, "shot: expected a whole number >= 1"),
        (lambda data, run: fss_svf.evaluate(len, data.fold(0), shot=[1, 5]), ConfigError, "shot: expected one whole number"),
        (lambda data, run: fss_svf.episodes(data.fold(0))[0], ConfigError, "give the input's pixels"),
        (lambda data, run: fss_svf.build_model("pannet"), ConfigError, "method=pannet: unknown (did you mean 'panet'?)"),
        (
            lambda data, run: fss_svf.build_model("panet", tuning={"name": "svf", "ranc": 8}),
            ConfigError,
            "tuning.ranc: no such key (did you mean 'rank'?)",
        ),
        (lambda data, run: fss_svf.build_model("panet", backbone=50), ConfigError, "backbone: expected a name, or a map"),
        (lambda data, run: fss_svf.load_model(run, shots_reduc="mean"), ConfigError, "leave method.shots_reduc out"),
        (
            lambda data, run: fss_svf.train("panet", data.fold(0), recipe={"optimizer": {"lrr": 1}}),
            ConfigError,
            "recipe.optimizer.lrr: no such key (did you mean 'lr'?)",
        ),
        (lambda data, run: fss_svf.train("panet", data.fold(0), shots=5), ConfigError, "no such key (did you mean 'shot'"),
        (lambda data, run: fss_svf.train("panet", data.fold(0), dataset="coco"), ConfigError, "is that of the fold"),
        (lambda data, run: fss_svf.train("panet", data.fold(0), out=run), ConfigError, "holds a run already"),
        (lambda data, run: fss_svf.evaluate(len, data.fold(0), out=run), ConfigError, "holds a training; choose another"),
        (
            lambda data, run: fss_svf.train("panet", data.fold(0), out=run, resume="auto"),
            ConfigError,
            "validate, method; give the options of that run",
        ),
        (lambda data, run: fss_svf.train("panet", data.fold(0), resume="auto"), ConfigError, "with out=FOLDER"),
        (
            lambda data, run: fss_svf.evaluate(fss_svf.load_model(run), data.fold(0), size=64),
            ConfigError,
            "size: expected n with (n - 1) % 8 == 0",
        ),
        (
            lambda data, run: fss_svf.evaluate(fss_svf.load_model(run), data.fold(0), precision="half"),
            ConfigError,
            "precision: expected one of float32",
        ),
        (
            lambda data, run: fss_svf.evaluate(lambda e: e.query_image, data.fold(0), drawn(50), size=65, workers=0),
            ConfigError,
            "model: expected logits of (1, 2, 65, 65)",
        ),
        (lambda data, run: fss_svf.evaluate(fss_svf.load_model(run), data.fold(1)), WeightsError, "it has seen"),
        (
            lambda data, run: fss_svf.evaluate(
                fss_svf.load_model(run), data.fold(0), drawn(50, "panet"), way=2, way_rule="joint"
            ),
            ConfigError,
            "way_rule=joint: Baseline segments one class at a time",
        ),
    ],
)  # fmt: skip
def test_mistakes_are_one_line(toy_root, run, wrong, error, says):
    with pytest.raises(error) as found:
        wrong(dataset(toy_root), run)
    assert says in str(found.value)
    assert "\n" not in str(found.value)


def test_a_training_has_the_weights_of_the_command_line(toy_root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = ("backbone.width=8", "tuning=lora", "tuning.rank=2", "recipe.size=65", "recipe.batch_size=2",
               "recipe.max_steps=2", "recipe.optimizer.lr=0.01", "validate.every=1", "validate.episodes=2", "shot=2",
               "seed=5", "method.align_weight=0.5", "workers=0", "protocol=pfenet", "protocol.runs=2")  # fmt: skip
    cli = trained(tmp_path / "cli", "experiment=toy", *TOY, f"dataset.root={toy_root}", "method=panet", "~method.width",
                  "~method.shots_reduce", "~method.down_query_trains", *options)  # fmt: skip
    fold = dataset(toy_root).fold(0)
    same = {
        "backbone": {"name": "tiny", "width": 8},
        "tuning": {"name": "lora", "rank": 2},
        "recipe": {"name": "toy", "size": 65, "batch_size": 2, "max_steps": 2, "optimizer": {"lr": 0.01}},
        "protocol": fss_svf.Protocol.load("pfenet", runs=2),
        "validate": {"every": 1, "episodes": 2},
        "shot": 2,
        "seed": 5,
        "workers": 0,
    }
    method = {"name": "panet", "align_weight": 0.5}
    model = fss_svf.train(method, fold, **same)
    (ours,) = tmp_path.glob("outputs/train/toy-fold0-panet-tiny-lora-2shot-seed5/*")
    for name in ("best.pt", "last.pt"):
        theirs, mine = (load_checkpoint(run / "checkpoints" / name, "train") for run in (cli, ours))
        assert mine["config"] == theirs["config"]
        assert mine["model"].keys() == theirs["model"].keys()
        assert all(torch.equal(value, theirs["model"][key]) for key, value in mine["model"].items())
    gone = {"name": "tiny", "weights": "gone.pth"}
    with pytest.raises(WeightsError, match="gone"):
        fss_svf.train(method, fold, **{**same, "backbone": gone, "device": torch.device("cpu")}, out="refused")
    for file in ("result.json", "config.yaml"):  # of an evaluation
        (tmp_path / f"of {file}").mkdir()
        (tmp_path / f"of {file}" / file).write_text("{}")
        with pytest.raises(ConfigError, match="holds a run that is no training"):
            fss_svf.train(method, fold, **same, out=f"of {file}")
        assert (tmp_path / f"of {file}" / file).read_text() == "{}"
    assert not (tmp_path / "refused").exists()
    assert not model.training
    assert all(torch.equal(model.state_dict()[key], value) for key, value in mine["model"].items())
    starts = (ours / "provenance.json").read_text()
    fss_svf.train(method, fold, **same, out=ours, resume="auto")  # finished: nothing trains
    assert (ours / "provenance.json").read_text() == starts


def test_an_untrained_model_gives_the_result_of_the_command_line(fss, toy_root, tmp_path):
    status, _, err = fss("evaluate", "method=prototype", "backbone=tiny", "backbone.width=8", *TOY, "size=65", "shot=2",
                         f"dataset.root={toy_root}", "protocol.episodes=30", "workers=0", "pictures=0",
                         "hydra.run.dir=cli")  # fmt: skip
    assert status == 0, err
    torch.manual_seed(321)  # of the protocol, by which the command makes random weights
    model = fss_svf.build_model("prototype", backbone={"name": "tiny", "width": 8}, tuning="frozen")
    protocol = fss_svf.Protocol.load("svf", episodes=30)
    result = fss_svf.evaluate(model, dataset(toy_root).fold(0), protocol, 2, size=65, workers=0)
    assert json.loads(json.dumps(result)) == json.loads((tmp_path / "cli" / "result.json").read_text())


def test_defaults_are_those_of_the_yaml():
    from fss_svf.api.choosing import compose

    values = compose("evaluate", {}, {})
    given = {name: p.default for name, p in inspect.signature(fss_svf.evaluate).parameters.items() if name in values}
    given = {key: default for key, default in given.items() if key not in ("model", "fold", "method", "backbone")}
    assert len(given) > 10
    assert given == {**{key: values[key] for key in given}, "protocol": values["protocol"]["name"]}


def test_what_the_package_exports_comes_without_torch():
    code = "import fss_svf, sys; fss_svf.Protocol; assert 'torch' not in sys.modules; print(*dir(fss_svf))"
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert set(fss_svf.__all__) <= set(out.split())
    assert all(getattr(fss_svf, name).__name__ == name for name in fss_svf.__all__)
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        fss_svf.trian  # noqa: B018


EXAMPLES = ("load_dataset", "Protocol", "episodes", "build_backbone", "build_model", "train", "evaluate")


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_docstrings_run(toy_root, tmp_path, monkeypatch, name):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "toy").symlink_to(toy_root)
    monkeypatch.chdir(tmp_path)
    names = {"fss_svf": fss_svf, "torch": torch, "fold": dataset(toy_root).fold(0)}
    found = [test for test in doctest.DocTestFinder().find(getattr(fss_svf, name), name, globs=names) if test.examples]
    assert found
    for test in found:
        problems = []
        assert doctest.DocTestRunner(verbose=False).run(test, out=problems.append).failed == 0, "".join(problems)


def test_the_page_runs(fss, toy_root, run, tmp_path):
    """As it stands, on the small toy dataset, which is there already, with a tiny backbone and a run of this test."""
    page = (DOCS / "python.md").read_text()
    code = "\n".join(blocks(page, "python"))
    small = ", ".join(f"{key}={value}" for key, value in SMALL_TOY.items())
    for shown, smaller in {
        '"toy", prepare=True': f'"toy", root="{toy_root}", prepare=True, {small}',
        'backbone="efficientnet_lite0"': 'backbone={"name": "tiny", "width": 8}',
        'experiment="quickstart"': 'recipe={"name": "toy", "size": 65, "max_steps": 2}, workers=0',
        "episodes=200": "episodes=40",
        "outputs/train/NAME/STAMP": str(run),
    }.items():
        assert shown in code
        code = code.replace(shown, smaller)
    names = {"__name__": "page"}
    exec(compile(code, "docs/python.md", "exec"), names)
    assert 0 < names["result"]["miou"] < 1
    assert names["logits"].shape == (1, 2, 97, 97)
    assert {name for name in fss_svf.__all__ if f"`{name}(" in page or f"fss_svf.{name}" in page} == set(
        fss_svf.__all__
    )
    status, _, err = fss("compare", "a=outputs/evaluate/panet", "b=outputs/evaluate/nearest")
    assert status == 0, err
    status, _, err = fss("report")
    assert status == 0, err
