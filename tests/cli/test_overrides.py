"""What a person types after key= reaches the run letter by letter, and errors of the system are one line."""

import dataclasses
import errno
import typing
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import MissingConfigException

from fss_svf.cli import VERBS
from fss_svf.errors import ConfigError, DataError
from fss_svf.messages import one_line
from fss_svf.overrides import PATHS, ambiguous, given, quote, understood, understood_all
from fss_svf.registry import BACKBONES, DATASETS, METHODS, TUNINGS

# Names of folders, each of which means something else in Hydra's grammar, or nothing.
NAMES = (
    *("lr=0.1", "run (1)", "bär", "x#y", "a,b", "[l]", "[a,b]", "2026", "1e3", "true", "it's", 'q"q', "back\\slash"),
    *("end\\", "${x}", "{a}", "'a'", " blank ", "a\\,b", "choice(a,b)", "a!b&c;d", "~x", "a\tb", "\udcff"),
)


def read(argument):
    """The value as Hydra and OmegaConf read it, unresolved interpolations apart."""
    return OverridesParser.create().parse_override(argument).value()


@pytest.mark.parametrize("name", NAMES)
def test_a_path_that_exists_is_that_path(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    try:
        Path(name).mkdir()
    except OSError:  # a file system of UTF-8 alone
        pytest.skip("no such name here")
    escaped = name.replace("${", "\\${")
    for key in ("checkpoint", "+dataset.root", "hydra.run.dir", "runs", "backbone.weights"):
        if not name.startswith("~"):
            assert read(understood(f"{key}={name}")) == escaped
    assert read(given("resume", name)) == escaped
    assert read(f"key={quote(name)}") == escaped


def test_a_path_that_is_still_to_be_made():
    for name in ("lr=0.1", "run (1)", "bär", "x#y", "2026", "it's"):
        assert read(understood(f"out={name}")) == name
    assert read(understood("hydra.run.dir=~/x")) == str(Path("~/x").expanduser())


def test_hydras_grammar_keeps_its_meaning(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    same = ("shot=[1,5]", "fold=0", "checkpoint=null", "resume=auto", "checkpoint='a b'", "seed=range(1,4)", "-m", "~debug",
            "checkpoint=${oc.env:HOME}/x", "a=[x,y]", "dataset.folds=[[cat],[dog]]", "shot=1,5", "checkpoint=choice(x,y)",
            "a={b:[1,2]}", "--config-dir=x y (1)")  # fmt: skip
    for argument in same:
        assert understood(argument) == argument
    # Parts of lists, and interpolations beside other letters.
    assert read(understood("runs=[lr=0.1,bär,run (1)]")) == ["lr=0.1", "bär", "run (1)"]
    assert read(understood("dataset.folds=[[bär,x],[dog (s)]]")) == [["bär", "x"], ["dog (s)"]]
    assert read(understood("name=lr=${seed}")) == "lr=${seed}"


def test_sweeps_part_at_commas(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for argument, values in (
        ("fold=0,1", ["0", "1"]),
        ("tuning=frozen,svf", ["frozen", "svf"]),
        ("checkpoint=lr=0.1,bär", ['"lr=0.1"', '"bär"']),
        ("checkpoint='a,b',c", ["'a,b'", "c"]),
        ("shot=[1,5],[1]", ["[1,5]", "[1]"]),
        ("seed=range(1,3)", ["1", "2"]),
    ):
        override = OverridesParser.create().parse_override(understood(argument, sweep=True))
        assert [*override.sweep_string_iterator()] == values


def test_a_comma_without_a_sweep_says_what_it_may_be(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "sweep with -m: -m shot=1,5 runs a job of each; shot=[1,5] is a list" in ambiguous("shot=1,5")
    assert "\"checkpoint='a,b'\"" in ambiguous("checkpoint=a,b")
    assert "[a,b]" not in ambiguous("checkpoint=a,b")
    for name in ("lr=1", "lr=2"):
        Path(name).mkdir()
    assert understood("checkpoint=lr=1,lr=2") == 'checkpoint="lr=1","lr=2"'  # which Hydra calls ambiguous


def test_an_empty_path_is_a_variable_that_is_not_set():
    with pytest.raises(ConfigError, match=r"checkpoint=: there is no path .* checkpoint=null"):
        understood("checkpoint=")


def test_every_path_of_the_configuration_is_known():
    found = set()

    def walk(cls, where):
        hints = typing.get_type_hints(cls)
        for f in dataclasses.fields(cls):
            key, kinds = f"{where}{f.name}", str(hints[f.name])
            if dataclasses.is_dataclass(hints[f.name]):
                walk(hints[f.name], f"{key}.")
            elif "Path" in kinds:
                found.add(key)

    for verb in VERBS.values():
        walk(verb.config, "")
    for registry in (BACKBONES, DATASETS, METHODS, TUNINGS):
        for name in registry.names():
            walk(registry.entry(name).options, f"{registry.kind}.")
    assert {"checkpoint", "dataset.root", "episodes.save"} < found
    assert found <= PATHS


def test_a_group_of_null():
    for argument, expected in (
        ("experiment=null", "~experiment"),
        ("dataset=", "~dataset"),
        ("resume=null", "resume=null"),
        ("~validate.every", "~validate.every"),
    ):
        assert understood(argument) == expected
    for verb in ("train", "evaluate"):
        assert understood_all(verb, ["debug=null", "seed=1"]) == ["~debug", "seed=1"]


@pytest.mark.parametrize("key", ["hydra.run.dir", "out", "episodes.save", "dataset.prepared"])
def test_a_path_that_cannot_be_written_is_named_with_its_key(key, tmp_path):
    (tmp_path / "file").touch()
    first, _, rest = key.rpartition(".")
    path = tmp_path / "file" / "x" / "y"
    values = {key: str(path)} if key.startswith("hydra") or not first else {first: {rest: str(path)}}
    with pytest.raises(NotADirectoryError) as caught:
        path.mkdir(parents=True)
    line = one_line(caught.value, "train", {"checkpoint": str(tmp_path), **values})
    assert line.startswith(f"{caught.value.filename}: cannot be written (Not a directory)")
    assert f"{key}=" in line


def test_errors_of_the_system_in_one_line():
    values = {"hydra.run.dir": "/runs/a", "dataset": {"root": "/data"}}
    full = OSError(errno.ENOSPC, "No space left on device")  # of a file that was open
    assert one_line(full, "train", values).startswith("/runs/a: cannot be written (No space left on device)")
    partial = PermissionError(errno.EACCES, "Permission denied", "/runs/a/0f.partial")
    assert one_line(partial, "train", values).startswith("/runs/a: cannot be written (Permission denied)")
    unread = PermissionError(errno.EACCES, "Permission denied", "/data/x.jpg")
    assert (
        one_line(unread, "train", values)
        == "/data/x.jpg: cannot be used (Permission denied); it is set by dataset.root="
    )
    logging = ValueError("Unable to configure handler 'file'")
    logging.__cause__ = partial
    assert one_line(logging, "train", values).startswith("/runs/a: cannot be written")
    assert "ulimit" in one_line(OSError(errno.EMFILE, "Too many open files"), "train")
    assert one_line(DataError("said"), "train") == "said"
    for unexpected in (ZeroDivisionError("a defect"), OSError(errno.ECONNREFUSED, "refused"), RuntimeError("x")):
        assert one_line(unexpected, "train", values) is None


def test_a_wrong_option_of_a_group_is_an_error_of_hydra():
    error = MissingConfigException(
        "In 'train': Could not find 'method/x'\nAvailable options in 'method':\n\tbam\n\tpanet"
    )
    said = "In 'train': Could not find 'method/x'; available: bam, panet; one of a plugin that is not installed: "
    assert one_line(error, "train") == said + "plugins=[MODULE]"
