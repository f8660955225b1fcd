"""Plugins: found by an entry point or by name, recorded in checkpoints, refused in one line where they cannot be used."""

import json
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest
import yaml

from fss_svf import plugins
from fss_svf.checkpoint import load_checkpoint
from fss_svf.conf_files import conf_dir
from fss_svf.errors import PluginError
from fss_svf.methods.method import method_class
from fss_svf.prediction.segmenter import Segmenter
from fss_svf.registry import METHODS
from fss_svf.reproduction.jobs import make_jobs
from tests.cli.test_reproduce import wanted
from tests.conftest import TOY
from tests.examples import plugins_apart
from tests.processes import PACKAGE_AT, TORCHRUN, ended, starting

EXAMPLE = Path(__file__).parent / "plugin_example"
THEIRS = ("dataset=toy", *TOY[1:], "backbone=tiny", "backbone.width=8", "method=brightness", "tuning=frozen",
          "recipe=two_steps", "validate.every=2", "validate.episodes=4", "workers=0")  # fmt: skip
NAMED = "plugins=[fss_svf_example]"


@pytest.fixture(autouse=True)
def _apart():
    with plugins_apart("fss_svf_example", "their_"):
        yield


@pytest.fixture
def on_path(monkeypatch):
    """The example can be imported, but is not installed."""
    monkeypatch.syspath_prepend(EXAMPLE)


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Writes files of a plugin into a folder of sys.path; with a distribution's name the module is its entry point."""
    folder = tmp_path / "theirs"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)

    def make(module, text, distribution=None, **files):
        (folder / f"{module}.py").write_text(text)
        for path, content in files.items():
            path = folder / path.replace("__", "/")
            path.with_suffix(".yaml").parent.mkdir(parents=True, exist_ok=True)
            path.with_suffix(".yaml").write_text(content)
        if distribution:
            info = folder / f"{distribution.replace('-', '_')}-1.0.dist-info"
            info.mkdir()
            (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
            (info / "entry_points.txt").write_text(f"[fss_svf.plugins]\none = {module}\n")
            plugins.installed.cache_clear()
        return folder

    return make


METHOD = """
from dataclasses import dataclass
from fss_svf.registry import METHODS
from fss_svf.reproduction.jobs import make_jobs

@dataclass(frozen=True)
class Options:
    pass

@METHODS.register({name!r}, Options)
class Theirs:
    pass
"""


# ---------------------------------------------------------------------------------------------------------------------
# A run with a plugin that is named


@pytest.fixture
def trained(fss, on_path, toy_root, tmp_path):
    status, _, err = fss("train", NAMED, *THEIRS, f"dataset.root={toy_root}", "hydra.run.dir=run")
    assert status == 0, err
    return tmp_path / "run"


def test_a_run_says_which_plugin_made_it(trained):
    record = {"module": "fss_svf_example", "distribution": None, "version": None}
    assert load_checkpoint(trained, "train")["plugins"] == [record]
    start = json.loads((trained / "provenance.json").read_text())["starts"][0]
    assert [{key: p[key] for key in record} for p in start["plugins"]] == [record]
    assert set(start["plugins"][0]["git"] or {"commit": "", "modified": ""}) == {"commit", "modified"}
    config = yaml.safe_load((trained / "config.yaml").read_text())
    assert config["plugins"] == ["fss_svf_example"]
    assert config["method"] == {"name": "brightness", "start": 1.0}
    assert config["recipe"]["max_steps"] == 2


def test_the_checkpoint_alone_brings_its_plugin(fss, trained, tmp_path, monkeypatch):
    """evaluate and resume need no word of it."""
    for state in ("_named", "_failed"):
        monkeypatch.setattr(plugins, state, {})
    status, _, err = fss("evaluate", "checkpoint=run", "protocol.episodes=60", "workers=0", "pictures=0", "seeds=1",
                         "hydra.run.dir=result")  # fmt: skip
    assert status == 0, err
    assert "last.pt: imports the plugin fss_svf_example (of no installed package)" in err
    assert json.loads((tmp_path / "result" / "result.json").read_text())["method"] == "brightness"
    (trained / "finished.json").unlink()
    monkeypatch.setattr(plugins, "_named", {})
    status, _, err = fss("train", "resume=run")
    assert status == 0, err
    assert "resumed at step 2 of 2" in err


def test_a_checkpoint_whose_plugin_is_missing(fss, trained, monkeypatch):
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path != str(EXAMPLE)])
    for name in [name for name in sys.modules if name.startswith("fss_svf_example")]:
        del sys.modules[name]
    monkeypatch.setattr(plugins, "_named", {})
    monkeypatch.setattr(METHODS, "_entries", {k: v for k, v in METHODS._entries.items() if k != "brightness"})
    for verb, key in (("evaluate", "checkpoint"), ("train", "resume")):
        status, _, err = fss(verb, f"{key}={trained}")
        assert status == 1
        assert "last.pt: was made with the plugin fss_svf_example" in err
        assert "put the folder that holds fss_svf_example into PYTHONPATH" in err
        assert len(err.splitlines()) == 1
    with pytest.raises(PluginError, match=r"last.pt: was made with the plugin fss_svf_example"):
        Segmenter.load(trained)


def test_another_version_is_a_warning(monkeypatch, on_path, caplog):
    plugins.require([{"module": "fss_svf_example", "distribution": "fss-svf-example", "version": "0.1"}], "last.pt")
    assert "last.pt: was made with version 0.1 of plugin fss_svf_example, here is None" in caplog.text


def test_a_sweep_goes_on_with_its_runs(fss, on_path, toy_root, tmp_path):
    sweep = ("train", "-m", NAMED, *THEIRS, f"dataset.root={toy_root}", "method.start=1,2")
    for times in (1, 1):
        status, _, err = fss(*sweep)
        assert status == 0, err
        assert "sweep: 2 of 2 jobs finished" in err
        runs = [json.loads(p.read_text())["starts"] for p in tmp_path.glob("outputs/train/*/*/provenance.json")]
        assert [len(run) for run in runs] == [times, times]


# ---------------------------------------------------------------------------------------------------------------------
# Installed ones


def test_an_installed_plugin_is_there(fss, write):
    folder = write("their_method", METHOD.format(name="theirs"), "their-package", conf__method__theirs="name: theirs\n")
    assert "their_method" not in sys.modules
    assert METHODS.entry("theirs").build.__module__ == "their_method"
    status, out, _ = fss("info")
    assert status == 0
    said = " ".join(out.split())
    assert f"their_method their-package 1.0; adds method=theirs, configs in {folder}" in said
    status, out, err = fss("train", "method=theirs", "--cfg", "job")
    assert status == 0, err
    assert "name: theirs" in out
    assert plugins.records(["their_method"]) == [
        {"module": "their_method", "distribution": "their-package", "version": "1.0"}
    ]


def test_info_without_plugins(fss):
    _, out, _ = fss("info")
    assert "Plugins none" in " ".join(out.split())


def test_components_belong_to_the_plugin_of_their_package(write):
    write("their_method", METHOD.format(name="theirs"), "their-package")
    assert plugins.plugin_of("their_method.deep.down").distribution == "their-package"
    assert plugins.plugin_of("fss_svf.methods.bam") is None
    # A script that imports its own module and trains.
    assert plugins.plugin_of("somebody.else").module == "somebody.else"
    assert plugins.records(["fss_svf.methods.bam", "__main__"]) == []


# ---------------------------------------------------------------------------------------------------------------------
# What cannot be used


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (
            "plugins=[their_gone]",
            "plugins: Python finds no module 'their_gone'; install its package, or put the folder",
        ),
        ("plugins=[their.gone]", "plugins: Python finds no module 'their.gone'"),
        ("plugins=[./their.py]", "plugins: './their.py' is no name of a module"),
        ("plugins=theirs", "plugins=theirs: expected one list of modules, plugins=[one,two]"),
        ("plugins=[one],[two]", "expected one list of modules"),
    ],
)
def test_a_list_that_is_none(fss, given, says):
    status, _, err = fss("train", given)
    assert status == 1
    assert says in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize("distribution", [None, "their-package"])
def test_a_plugin_that_cannot_be_imported(fss, write, distribution):
    write("their_broken", "x = 1\nimport their_einops\n", distribution)
    status, _, err = fss("train", *([] if distribution else ["plugins=[their_broken]"]), *THEIRS[:4])
    assert status == 1
    source = "their-package 1.0" if distribution else "of no installed package"
    assert (
        f"plugin their_broken ({source}): cannot be imported (ModuleNotFoundError: No module named 'their_einops'"
        in err
    )
    assert "their_broken.py, line 2); mend it, or " in err
    assert (
        "uninstall it: pip uninstall their-package" if distribution else "leave their_broken out of plugins="
    ) in err
    assert len(err.splitlines()) == 1
    # info says so, and the rest.
    status, out, _ = fss("info", *([] if distribution else ["plugins=[their_broken]"]))
    assert status == 0
    assert "cannot be imported" in " ".join(out.split())
    assert "baseline" in out


def test_a_plugin_with_a_syntax_error(write):
    folder = write("their_syntax", "x = 1\nx = = 2\n")
    plugins.add(["their_syntax"])
    with pytest.raises(PluginError) as found:
        METHODS.entry("baseline")
    assert f"(SyntaxError: invalid syntax; {folder}/their_syntax.py, line 2); mend it" in str(found.value)


def test_an_installed_plugin_without_its_module(write):
    (write("their_gone", "", "their-package") / "their_gone.py").unlink()
    with pytest.raises(
        PluginError, match=r"Python finds no module 'their_gone'; or uninstall it: pip uninstall their-pack"
    ):
        METHODS.entry("baseline")


def test_a_name_that_two_register(fss, write):
    write("their_one", METHOD.format(name="theirs"), "their-one")
    write("their_two", METHOD.format(name="theirs"), "their-two")
    write("their_three", METHOD.format(name="baseline"))
    with pytest.raises(PluginError) as found:
        METHODS.entry("baseline")
    both = [f"their_{n}.Theirs (plugin their_{n} (their-{n} 1.0))" for n in ("one", "two")]
    assert f"method=theirs: registered twice, by {both[0]} and {both[1]}; rename one" in str(found.value)


def test_a_function_that_registers_as_a_method(write):
    function = METHOD.format(name="theirs").replace("class Theirs:", "def theirs(backbone, options):")
    write("their_function", function)
    plugins.add(["their_function"])
    with pytest.raises(
        PluginError, match=r"method=theirs: their_function\.theirs .* is no class; register the method's class"
    ):
        METHODS.entry("theirs")


def test_a_class_that_is_no_method(write):
    write("their_class", METHOD.format(name="theirs"))
    plugins.add(["their_class"])
    with pytest.raises(PluginError, match=r"method=theirs: their_class\.Theirs is no subclass of FewShotMethod"):
        method_class("theirs")


def test_a_name_of_the_package(write):
    write("their_three", METHOD.format(name="baseline"))
    plugins.add(["their_three"])
    for _ in range(2):  # not only at the first look-up
        with pytest.raises(PluginError) as found:
            METHODS.entry("panet")
        for part in ("method=baseline", "fss_svf.methods.baseline.Baseline (of fss-svf itself)", "(plugin their_three"):
            assert part in str(found.value)


def test_a_config_that_two_have(fss, write):
    folder = write("their_one", "", conf__protocol__svf="name: svf\n")
    status, _, err = fss("train", "plugins=[their_one]")
    assert status == 1
    for part in ("protocol/svf.yaml", str(folder / "conf"), str(conf_dir())):
        assert part in err
    assert len(err.splitlines()) == 1


def test_a_method_of_a_plugin_that_is_not_named(fss):
    status, _, err = fss("train", "method=brightness")
    assert status == 1
    assert "Could not find 'method/brightness'" in err
    assert err.endswith("one of a plugin that is not installed: plugins=[MODULE]\n")


# ---------------------------------------------------------------------------------------------------------------------
# Other processes


def test_reproduce_hands_it_on_to_every_job(on_path, tmp_path):
    changes = {"folds": [3], "shots": [1], "only": ("bam", "svf"), "plugins": ("fss_svf_example",)}
    jobs = make_jobs(wanted(**changes), tmp_path)
    assert {job.verb for job in jobs} == {"pretrain", "train", "evaluate"}
    assert all(NAMED in job.overrides and job.config.plugins == ("fss_svf_example",) for job in jobs)


@pytest.mark.long
def test_several_processes(toy_root, tmp_path):
    path = f"{PACKAGE_AT}{os.pathsep}{EXAMPLE}"
    with starting(tmp_path) as start:
        run = (*TORCHRUN, "2", "-m", "fss_svf")
        ended(start(*run, "train", NAMED, *THEIRS, f"dataset.root={toy_root}", "hydra.run.dir=run", PYTHONPATH=path))
        few = ("protocol.episodes=60", "workers=0", "pictures=0", "seeds=1", "hydra.run.dir=result")
        ended(start(*run, "evaluate", "checkpoint=run", *few, PYTHONPATH=path))
        sweep = ("train", "-m", NAMED, *THEIRS, f"dataset.root={toy_root}", "method.start=1,2", "hydra/launcher=joblib")
        for _ in range(2):  # the second time there is nothing to do
            _, err = ended(start("-m", "fss_svf", *sweep, PYTHONPATH=path))
            assert "sweep: 2 of 2 jobs finished" in err
    assert len(list(tmp_path.glob("outputs/train/*/*/finished.json"))) == 2
    assert json.loads((tmp_path / "result" / "result.json").read_text())["method"] == "brightness"


@pytest.mark.long
def test_a_package_of_its_own_in_an_environment_of_its_own(toy_root, tmp_path):
    """Installed by pip; trained from another folder, alone and in a joblib sweep; evaluated, and missed once it is gone."""
    environment = tmp_path / "env"
    venv.create(environment, with_pip=False)
    python = environment / "bin" / "python"
    # What is installed here already: minutes less than to install it again.
    (site,) = environment.glob("lib/python*/site-packages")
    here = [path for path in sys.path if path.endswith("site-packages")]
    (site / "here.pth").write_text("\n".join([str(PACKAGE_AT), *here]))
    shutil.copytree(EXAMPLE, tmp_path / "source")
    pip = [python, "-m", "pip", "--disable-pip-version-check"]
    work = tmp_path / "work"
    work.mkdir()
    clean = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}

    def call(*arguments, status=0):
        done = subprocess.run(
            [*map(str, arguments)], cwd=work, env={**clean, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True
        )
        assert done.returncode == status, done.stderr
        return done.stdout, done.stderr

    call(*pip, "install", "--no-deps", "--no-build-isolation", "--no-index", tmp_path / "source")
    shutil.rmtree(tmp_path / "source")
    fss = (python, "-m", "fss_svf")
    assert "fss-svf-example 0.3; adds method=brightness" in " ".join(call(*fss, "info")[0].split())
    train = ("train", *THEIRS, f"dataset.root={toy_root}")
    call(*fss, *train, "hydra.run.dir=run")
    joblib = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
    _, err = call(*fss, "train", "-m", *train[1:], "method.start=1,2", *joblib)
    assert "sweep: 2 of 2 jobs finished" in err
    few = ("protocol.episodes=60", "workers=0", "pictures=0", "seeds=1")
    call(*fss, "evaluate", "checkpoint=run", *few, "hydra.run.dir=result")
    assert json.loads((work / "result" / "result.json").read_text())["method"] == "brightness"
    call(*pip, "uninstall", "--yes", "fss-svf-example")
    _, err = call(*fss, "evaluate", "checkpoint=run", *few, status=1)
    assert "was made with the plugin fss_svf_example (fss-svf-example 0.3), which Python does not find here; " in err
    assert "pip install fss-svf-example==0.3" in err
