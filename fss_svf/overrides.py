"""key=value of the command line in Hydra's grammar: a value with letters that it does not take is put in quotes."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException

from fss_svf.conf_files import options
from fss_svf.errors import ConfigError

# Keys whose value is a path. A folder may be named 2026, 1e3 or true.
PATHS = frozenset(
    (
        *("checkpoint", "resume", "method.base_learner", "backbone.weights", "source", "target", "tuning.cache"),
        *("dataset.root", "dataset.prepared", "dataset.train_list", "dataset.voc", "dataset.aug", "dataset.sbd"),
        *("support", "query", "out", "save_support", "runs", "a", "b", "episodes.save", "episodes.load"),
        *("hydra.run.dir", "hydra.sweep.dir", "hydra.sweep.subdir"),
    )
)
# Those of them that may be a list.
_LISTS = ("runs", "a", "b")
# Hydra's flags that begin with two dashes.
_FLAGS = (
    *("help", "hydra-help", "version", "cfg", "resolve", "package", "run", "multirun", "shell-completion"),
    *("config-path", "config-name", "config-dir", "info"),
)
# A word that needs no quotes, and is no number.
_PLAIN = re.compile(r"(?!(?:true|false|null|nan|inf)$)[a-z_/][\w./:@-]*", re.ASCII | re.IGNORECASE)
# What Hydra's grammar gives a meaning, beside commas: null, quotes, lists, interpolations, functions of sweeps.
_GRAMMAR = re.compile(r"""null$|['"\[{]|.*\$\{|\w+\(""", re.DOTALL)
# A value in quotes, or what stands between commas and brackets.
_PART = re.compile(r"""\s*(?:'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*"|(?:\\.|[^,\[\]\\])+)""")


def refuse_dashed_keys(arguments: Sequence[str]) -> None:
    """Raise ConfigError for --KEY=VALUE or --KEY where Hydra has no such flag: keys are written without dashes."""
    for argument in arguments:
        name, equals, value = argument.removeprefix("--").partition("=")
        # As argparse, which takes the beginning of a flag for it.
        if argument.startswith("--") and name and not any(flag.startswith(name) for flag in _FLAGS):
            raise ConfigError(f"{argument}: keys have no dashes; write {name}={value if equals else 'VALUE'}")


def understood_all(verb: str, arguments: Sequence[str]) -> list[str]:
    """The arguments of a verb as Hydra's grammar understands them.

    What stands behind -- becomes the key of reproduce that hands it on to every training. Raises ConfigError.
    """
    at = arguments.index("--") if verb == "reproduce" and "--" in arguments else len(arguments)
    # Interpolations are for the training to resolve.
    behind = [f"overrides=[{','.join(quote(understood(a)) for a in arguments[at + 1 :])}]"] if arguments[at:] else []
    # Between overrides Hydra's parser does not take -m.
    ordered = sorted(arguments[:at], key=lambda a: a not in ("-m", "--multirun"))
    return [*(understood(a, is_sweep(ordered)) for a in ordered), *behind]


def key_of(override: str) -> str:
    """The dotted key of key=value, +key=value and ~key."""
    return override.partition("=")[0].lstrip("+~")


def is_sweep(arguments: Sequence[str]) -> bool:
    """Whether -m is among them, as Hydra reads it."""
    return any(a == "-m" or a.startswith(("--mu", "hydra.mode=MULTIRUN")) for a in arguments)


def quote(text: str, interpolations: bool = False) -> str:
    """`text` in quotes of Hydra's grammar, letter by letter; with `interpolations` ${...} stays one."""
    # There a backslash is one of its own, but for those before a quote.
    escaped = re.sub(r'(\\*)("|$)', lambda found: found[1] * 2 + found[2].replace('"', '\\"'), text)
    return '"' + (escaped if interpolations else escaped.replace("${", "\\${")) + '"'


def given(key: str, value: object) -> str:
    """The override that gives a key this path, word or number."""
    text = str(value)
    return f"{key}={text if isinstance(value, (int, float)) or _PLAIN.fullmatch(text) else quote(text)}"


def understood(argument: str, sweep: bool = False) -> str:
    """key=value with quotes where Hydra would not understand the value, or not as the path that it is.

    What Hydra reads already keeps its meaning, but for a path that exists: that is this path. sweep: commas part the values
    of several jobs. GROUP=null becomes ~GROUP, as Hydra takes no null. Raises ConfigError for a path without a value.
    """
    key, equals, value = argument.partition("=")
    name = key.lstrip("+")
    if argument.startswith(("-", "~")) or not equals:
        return argument
    if value in ("", "null") and options(name):
        return f"~{name}"
    if name in PATHS:
        if not value:
            raise ConfigError(
                f"{argument}: there is no path (a variable of the shell that is not set?); {name}=null is none"
            )
        if value.startswith("~"):  # the shell leaves it behind an equals sign
            value = str(Path(value).expanduser())
        exists = value != "null" and os.path.exists(value) and not (sweep and "," in value)
        # Without -m a comma is a letter of the path, unless it stands between paths that exist.
        parts = value.split(",")
        several = len(parts) > 1 and (sweep or name in _LISTS or all(map(os.path.exists, parts)))
        if exists or not (several or _GRAMMAR.match(value)):
            return given(key, value)
    if _parsed(f"{key}={value}") is None:
        value = _PART.sub(lambda part: _quoted(part[0].strip()), value)
    return f"{key}={value}"


def plugins_of(arguments: Sequence[str]) -> list[str]:
    """The modules of plugins=[...] on a command line. Raises ConfigError for anything but one list of words."""
    found: list[str] = []
    for argument in arguments:
        if argument.partition("=")[0].lstrip("+") != "plugins":
            continue
        override = _parsed(argument)
        value = None if override is None or override.is_sweep_override() else override.value()
        if not isinstance(value, list) or not all(isinstance(word, str) for word in value):
            raise ConfigError(f"{argument}: expected one list of modules, plugins=[one,two], for all jobs")
        found = value
    return found


def ambiguous(argument: str) -> str:
    """What to say of key=a,b without a sweep."""
    key, _, value = argument.partition("=")
    name = key.lstrip("+")
    a_list = "" if name in PATHS and name not in _LISTS else f"{key}=[{value}] is a list, "
    return (
        f"{argument}: has a comma; sweep with -m: -m {argument} runs a job of each; {a_list}and in quotes it is one value: "
        f"\"{key}='{value}'\""
    )


def _quoted(value: str) -> str:
    return value if _parsed(f"key={value}") is not None else quote(value, interpolations=True)


def _parsed(argument: str) -> Override | None:
    try:
        return OverridesParser.create().parse_override(argument)
    except HydraException:
        return None
