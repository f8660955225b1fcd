"""The door between YAML and code, and the config tree behind it."""

import ast
import dataclasses
import functools
import itertools
from pathlib import Path

import hydra
import pytest
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

import fss_svf
from fss_svf import cli, config
from fss_svf.conf_files import conf_dir
from fss_svf.errors import ConfigError
from fss_svf.registry import BACKBONES, DATASETS, METHODS, TUNINGS
from fss_svf.run_folder import register_resolvers

CONF = conf_dir()
GROUPS = {"dataset": DATASETS, "backbone": BACKBONES, "method": METHODS, "tuning": TUNINGS}
# What import-official alone takes for a method.
NO_METHOD = {"base_learner"}
# Which verb composes an option of a group.
VERB_OF = dict.fromkeys(("protocol", "recipe", "dataset", "backbone", "tuning"), "train") | {"table": "reproduce"}


def compose(verb, *overrides):
    register_resolvers()
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = hydra.compose(verb, overrides=list(overrides), return_hydra_config=True)
    HydraConfig.instance().set_config(cfg)
    values = OmegaConf.to_container(OmegaConf.masked_copy(cfg, [k for k in cfg if k != "hydra"]), resolve=True)
    return config.from_mapping(cli.VERBS[verb].config, values)


@functools.cache
def shipped_tuning(name):
    """tuning=NAME as conf/tuning/NAME.yaml has it."""
    return compose("train", f"tuning={name}").tuning


# Of the tunings those that a convolutional network has something for.
TUNINGS_OF_CNNS = [name for name in TUNINGS.names() if name != "layernorm"]


def group_options():
    for group in sorted(
        p.name for p in CONF.iterdir() if p.is_dir() and p.name not in ("run", "hydra", "experiment", "debug")
    ):
        for path in sorted((CONF / group).glob("*.yaml")):
            yield group, path.stem


@pytest.mark.parametrize("verb", cli.VERBS)
def test_every_verb_composes_and_converts(verb):
    assert compose(verb)


@pytest.mark.parametrize(("group", "option"), list(group_options()))
def test_every_group_option_composes_and_converts(group, option):
    verb = "import-official" if option in NO_METHOD else VERB_OF.get(group, "evaluate")
    verb = "evaluate" if (group, option) == ("protocol", "gfss") else verb  # no training is validated by it
    composed = compose(verb, f"{group}={option}")
    chosen = getattr(composed, group)
    assert (chosen["name"] if isinstance(chosen, dict) else chosen.name) == option
    if verb == "evaluate" and group != "protocol":
        # evaluate keeps its groups open until it has read the checkpoint
        options = {key: value for key, value in chosen.items() if key != "name"}
        config.from_mapping(GROUPS[group].entry(option).options, options)


@pytest.mark.parametrize(
    "path", sorted(p for group in ("experiment", "debug") for p in (CONF / group).glob("*.yaml")), ids=lambda p: p.stem
)
def test_every_experiment_composes_by_the_command_in_its_head(path):
    command = path.read_text().splitlines()[1].removeprefix("# fss-svf ").split()
    assert f"{path.parent.name}={path.stem}" in command
    assert compose(*command)


@pytest.mark.parametrize("kind", GROUPS)
def test_every_registered_component_has_its_yaml_with_exactly_its_options(kind):
    registry = GROUPS[kind]
    assert set(registry.names()) == {p.stem for p in (CONF / kind).glob("*.yaml")} - NO_METHOD
    for name in registry.names():
        assert keys_of(CONF / kind / f"{name}.yaml") - {"name"} == {
            f.name for f in dataclasses.fields(registry.entry(name).options) if f.init
        }, name


def keys_of(path):
    """The keys of a YAML and of those it starts from."""
    values = OmegaConf.load(path)
    parents = [parent for parent in values.pop("defaults", []) if parent != "_self_"]
    return set(values).union(*(keys_of(path.with_name(f"{parent}.yaml")) for parent in parents))


def test_every_key_is_read_by_something():
    """A key that nothing reads is a defect: each field of each config dataclass is an attribute read in the code."""
    read, classes = set(), []
    for path in Path(fss_svf.__file__).parent.rglob("*.py"):
        tree = ast.parse(path.read_text())
        # A dataclass checking its own field is no use of it.
        checks = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and n.name == "__post_init__"]
        checking = {id(node) for check in checks for node in ast.walk(check)}
        attributes = (n for n in ast.walk(tree) if isinstance(n, ast.Attribute) and isinstance(n.ctx, ast.Load))
        read |= {node.attr for node in attributes if id(node) not in checking}
    for kind in GROUPS.values():
        classes += [kind.entry(name).options for name in kind.names()]
    classes += [
        c for c in vars(config).values() if dataclasses.is_dataclass(c) and c.__module__.startswith(config.__name__)
    ]
    assert len(classes) > 15
    keys = {f.name for c in classes for f in dataclasses.fields(c)}
    assert keys - read == set()


def test_mapping_round_trip():
    composed = compose("train", "experiment=toy", "tuning=svf")
    assert config.from_mapping(config.TrainConfig, config.to_mapping(composed)) == composed


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"name": "constant", "power": 1, "warmup": 0, "powr": 2},
            r"schedule.powr: no such key \(did you mean 'power'\?\)",
        ),
        (
            {"name": "linear", "power": 1, "warmup": 0},
            r"schedule.name: expected one of constant \| poly \| cosine \| steps, got 'linear'",
        ),
        ({"name": "poly", "power": "fast", "warmup": 0}, r"schedule.power: expected a number, got 'fast'"),
        ({"name": "poly", "power": 1}, r"schedule.warmup: missing"),
        ({"name": "poly", "power": 1, "warmup": True}, r"schedule.warmup: expected a whole number, got True"),
        ({"name": "poly", "power": 1, "warmup": -1}, r"schedule.warmup: expected a number of steps >= 0, got -1"),
        (
            {"name": "steps", "power": 1, "warmup": 0},
            r"schedule.milestones: expected steps with name=steps, and none otherwise, got \[\]",
        ),
        (
            {"name": "steps", "power": 1, "warmup": 0, "milestones": [20, 10]},
            r"schedule.milestones: expected ascending steps >= 1, got \[20, 10\]",
        ),
        (7, r"schedule: expected a mapping of keys, got 7"),
    ],
)
def test_wrong_values_name_the_key(values, message):
    with pytest.raises(ConfigError, match=message):
        config.from_mapping(config.Schedule, values, "schedule")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["fold=4"], r"fold: expected 0..3, got 4"),
        (["shot=0"], r"shot: expected a whole number >= 1, got 0"),
        (["recipe.size=32"], r"recipe.size: expected at least 33 pixels, got 32"),
        (["recipe.augment.scale=[2,1]"], r"recipe.augment.scale: expected two positive numbers"),
        (["recipe.batch_size=0"], r"recipe.batch_size"),
        (["tuning=svf", "tuning.rank=0"], r"tuning.rank: expected null \(full\), a whole number >= 1, .*, got 0"),
        (["tuning=svf", "tuning.rank='energy:2'"], r"tuning.rank: expected an energy above 0 and up to 1, got 2"),
        (["tuning=svf", "tuning.rank=[1]"], r"tuning.rank: expected .*, got \[1\]"),
        (["tuning=svf", "tuning.train=[S,W]"], r"tuning.train\[1\]: expected one of S \| U \| V, got 'W'"),
        (["tuning=svf", "tuning.train=[]"], r"tuning.train: expected one or more of S, U, V, each once, got \[\]"),
        (["tuning=svf", "tuning.parametrisation=exp"], r"tuning.parametrisation: expected one of direct \| scale"),
        (
            ["tuning=lora", "tuning.stages=[]"],
            r"tuning.stages: expected null, or one or more stages, each once, got \[\]",
        ),
        (["tuning=lora", "tuning.rank=0"], r"tuning.rank: expected a whole number >= 1, got 0"),
        (["tuning=lora", "tuning.alpha=0"], r"tuning.alpha: expected a number > 0, got 0"),
        (["tuning=adapter", "tuning.width=0"], r"tuning.width: expected a whole number >= 1, got 0"),
        (["recipe.optimizer.backbone_weight_decay=-1"], r"backbone_weight_decay: expected null or a number >= 0"),
        (["dataset=coco", "dataset.mask_mode=half"], r"dataset.mask_mode: expected one of official \| full"),
        (["workers=-1"], r"workers"),
        (["protocol=panet", "protocol.pad=after_normalisation"], r"protocol.pad: .* resize=squash pads nothing"),
        (["protocol.shots=sum"], r"protocol.shots: expected one of train_k \| vote \| mean, got 'sum'"),
        (["protocol.queries=even"], r"protocol.queries: expected one of in_order \| pairs \| random"),
        (["protocol.half_width=1"], r"protocol.half_width: expected null or a fraction in \(0, 1\), got 1.0"),
        (["protocol.selection=base"], r"protocol.selection: expected one of any \| not_novel, got 'base'"),
    ],
)
def test_wrong_overrides_name_the_key(overrides, message):
    with pytest.raises(ConfigError, match=message):
        compose("train", *overrides)


def test_protocol_hash_covers_every_field():
    protocol = compose("train").protocol
    changes = {
        "name": "x",
        "episodes": 7,
        "runs": 2,
        "seed": 5,
        "queries": "random",
        "resize": "squash",
        "label": "resized",
        "never_drawn": "zero",
        "novel_threshold": 0.9,
        "pad": "after_normalisation",
        "shots": "mean",
        "selection": "not_novel",
        "supports": "with_replacement",
        "seen_classes": "count",
    }
    # The size counts as it is used; what width is asked for changes no number.
    no_part = {"size": 417, "half_width": 0.01}
    assert {*changes, *no_part, "classes"} == {f.name for f in dataclasses.fields(protocol)}
    assert dataclasses.replace(protocol, **no_part).hash() == protocol.hash()
    hashes = [protocol.hash(), *(dataclasses.replace(protocol, **{k: v}).hash() for k, v in changes.items())]
    hashes.append(protocol.hash(size=473))
    # All classes go with a list of queries alone.
    hashes.append(dataclasses.replace(protocol, classes="all", queries="every", episodes=None).hash())
    assert all(a != b for a, b in itertools.combinations(hashes, 2))


def test_protocols_keep_the_hash_they_had_before_they_had_more_keys():
    """Results that carry it still compare; the values were taken before the keys pad, size, shots, ... came."""
    protocols = {name: compose("train", f"protocol={name}").protocol for name in ("svf", "panet", "bam_generalized")}
    assert protocols["svf"].hash() == "3a0d6b3d"
    assert protocols["bam_generalized"].hash() == "78b9a57b"
    # panet now says what its K shots are, which was left to the method.
    assert dataclasses.replace(protocols["panet"], shots="train_k").hash() == "b4220fb7"


def test_recipes_for_coco():
    """COCO's rows of the recipes' table: crop, epochs, batch, scale, rates as the optimizer uses them."""
    found = {}
    for name in ("svf", "bam", "pfenet", "base_learner"):
        r = compose("train", f"recipe={name}_coco").recipe
        found[name] = (r.size, r.epochs, r.batch_size, r.augment.scale, r.optimizer.lr, r.optimizer.backbone_lr)
    assert found == {
        "svf": (641, 50, 8, (0.8, 1.25), 0.015, 0.0015),
        "bam": (641, 50, 8, (0.8, 1.25), 0.05, 0.005),
        "pfenet": (641, 50, 8, (0.8, 1.25), 0.05, 0.005),
        "base_learner": (417, 20, 12, (0.5, 2.0), 0.0025, 0.0025),
    }
