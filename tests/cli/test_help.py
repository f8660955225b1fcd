"""--help and completion by Tab: what they show is what conf/ has, and every example composes."""

import functools
import os
import shlex
import subprocess
import sys

import pytest
import yaml
from omegaconf import OmegaConf

from fss_svf import usage
from fss_svf.cli import _EXAMPLES, VERBS
from fss_svf.conf_files import conf_dir, options
from fss_svf.newest_run import with_newest_run
from fss_svf.overrides import understood_all
from tests.cli.test_config import compose
from tests.cli.test_documented_commands import first


@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_shows_its_own_keys_and_groups_and_three_examples(fss, verb):
    status, out, err = fss(verb, "--help")
    assert (status, err) == (0, "")
    assert out.startswith(f"fss-svf {verb}: {VERBS[verb].what}\n")
    plain = OmegaConf.to_container(OmegaConf.load(conf_dir() / f"{verb}.yaml"))
    keys, groups = {key.name: key for key in usage.keys(verb)}, usage.groups(verb)
    assert {str(k) for k in plain if k not in ("defaults", "hydra")} <= {name.split(".")[0] for name in keys}
    assert all(options(group) for group in groups)
    if verb in ("train", "pretrain", "import-official"):
        assert (keys["device"].default, keys["keep"].default) == ("auto", "0")
        assert "N: repeat the first N items" in keys["overfit"].comment
    for key in keys.values():  # a default is what the YAML has
        *above, last = key.name.split(".")
        inner = functools.reduce(lambda tree, name: tree.get(name, {}), above, plain)
        if last in inner and not (isinstance(inner[last], dict) and inner[last]):
            assert yaml.safe_load(key.default) == inner[last]
        assert not key.comment.startswith("#")
    assert ("groups: GROUP=NAME" in out) == bool(groups)
    assert all(f"\n  {name}={default}" in out for name, default in groups.items())
    commands, _ = usage.header(verb)
    assert len(commands) >= 3
    for command in commands:
        assert f"\n  {command}\n" in out
        _, its_verb, *arguments = shlex.split(command)
        assert its_verb == verb
        # Base learners, plugins and other files are made up: that the keys exist is what is seen.
        made_up = [a for a in understood_all(verb, arguments) if not a.startswith(("-", "plugins="))]
        assert compose(verb, *map(first, made_up))


def test_a_choice_is_offered_where_it_composes():
    pages = {verb: usage.verb_help(verb, "") for verb in ("train", "pretrain", "evaluate", "import-official")}
    assert [verb for verb, page in pages.items() if "base_learner, baseline" in page] == ["import-official"]
    assert "\n  experiment=null\n" in pages["evaluate"]
    for name in ("toy", "quickstart", "toy_pretrain", "pascal/base_learner"):
        (verb,) = (verb for verb in ("train", "pretrain") if usage._takes(verb, "experiment", name))
        assert compose(verb, f"experiment={name}")


def test_a_comment_belongs_to_its_key():
    train = {key.name: key for key in usage.keys("train")}
    assert train["fold"].default == "0"
    assert train["fold"].comment.startswith("0..3: its classes are novel, the others train")
    assert train["validate.selection"].comment.startswith("The classes whose mIoU chooses best.pt. novel: the test")
    assert train["resume"].comment.startswith("null: a new run")
    assert train["shot"].comment == ""
    assert "defaults" not in train
    assert [key.name for key in usage.keys("import-official")][:3] == ["source", "target", "dilation"]


def test_the_program_shows_its_verbs_and_examples(fss):
    _, out, _ = fss("--help")
    for verb in VERBS:
        assert f"\n  {verb} " in out
    for example in _EXAMPLES:
        assert f"\n  {example}\n" in out
        _, verb, *arguments = shlex.split(example)
        assert compose(verb, *understood_all(verb, arguments))


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("fss-svf ", set(VERBS)),
        ("fss-svf pre", {"prepare", "pretrain", "predict"}),
        ("fss-svf nonsense fo", set()),
        ("fss-svf train fold=0 tuning=sv", {"tuning=sv", "tuning=svf", "tuning=svf_official"}),
        ("/some/where/fss-svf evaluate sho", {"shot="}),
        ("fss-svf train experiment=to", {"experiment=toy"}),
        ("fss-svf train fold=0 experiment=pascal/bam", {"experiment=pascal/bam_frozen", "experiment=pascal/bam_svf"}),
        ("fss-svf train experiment/pascal/pan", {"experiment=pascal/panet"}),
        (
            "fss-svf pretrain experiment=",
            {"experiment=toy_pretrain", "experiment=pascal/base_learner", "experiment=coco/base_learner"},
        ),
    ],
)
def test_tab_completes(fss, monkeypatch, line, words):
    monkeypatch.setenv("COMP_LINE", line)
    status, out, err = fss("-sc", "query=bash")  # as Hydra's script calls it: without the verb
    assert (status, set(out.split()), err) == (0, words, "")


def test_the_script_for_the_shell_is_of_the_program(fss):
    for arguments in (("-sc", "install=bash"), ("train", "-sc", "install=bash")):
        status, out, _ = fss(*arguments)
        assert status == 0
        assert out.strip().endswith("complete -o nospace -o default -F hydra_bash_completion fss-svf")
    status, _, err = fss("-sc", "install=csh")
    assert (status, len(err.splitlines())) == (1, 1)
    assert "bash" in err


def test_a_pipe_that_is_closed_early_is_no_error():
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run([sys.executable, "-m", "fss_svf", "--help"], stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, "")


def test_a_folder_of_runs_is_its_newest_finished_training(fss, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for number, (run, finished) in enumerate([("b/1", True), ("b/2", False), ("a/3", True), ("b/0", True)]):
        folder = tmp_path / "outputs" / "train" / run
        (folder / "checkpoints").mkdir(parents=True)
        for file in ["checkpoints/last.pt", *["finished.json"] * finished]:
            (folder / file).touch()
            os.utime(folder / file, (number, number))

    def found(value, verb="evaluate", sweep=False):
        (argument,) = with_newest_run(verb, [f"checkpoint={value}"], sweep)
        return argument.removeprefix("checkpoint=")

    assert found("latest") == found("outputs/train") == found("outputs/train/b") == "outputs/train/b/0"
    assert capsys.readouterr().err.splitlines()[0] == "checkpoint=latest: outputs/train/b/0"
    assert found("outputs/train/a,latest", sweep=True) == "outputs/train/a/3,outputs/train/b/0"
    for same in ("outputs/train/b/2", "outputs/train/b/2/checkpoints/last.pt", "none", "null"):
        assert found(same) == same
    assert found("latest", verb="train") == "latest"
    (tmp_path / "elsewhere" / "c" / "4" / "checkpoints").mkdir(parents=True)
    (tmp_path / "elsewhere" / "c" / "4" / "finished.json").touch()
    (tmp_path / "outputs" / "train" / "linked").symlink_to(tmp_path / "elsewhere")
    assert found("latest") == "outputs/train/linked/c/4"  # of name=linked/c
    (tmp_path / "outputs" / "train" / "a" / "3" / "finished.json").unlink()
    status, _, err = fss("evaluate", "checkpoint=outputs/train/a")
    assert status == 1
    assert "no training has finished under outputs/train/a; checkpoint=outputs/train/a/3 is of one that has not" in err
    (tmp_path / "latest").mkdir()  # a path is that path
    with pytest.raises(Exception, match="under latest"):
        found("latest")
