"""key=value of the command line in Hydra's grammar: a value with letters that it does not take is put in quotes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException

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
# What the grammar takes as one string, whatever the key.
_PLAIN = re.compile(r"[\w\-./:@?|+*%$ \\]*", re.ASCII)

# A sweep that is not written with commas alone.
_FUNCTION = re.compile(r"(choice|range|interval|glob|shuffle|sort|tag)\(.*\)")


def conf_dir() -> Path:
    """The Hydra tree: inside the package when installed from a wheel, at the top of the repository otherwise."""
    packaged = Path(__file__).parent / "conf"
    return packaged if packaged.is_dir() else Path(__file__).parent.parent / "conf"


def quote(text: str, interpolations: bool = False) -> str:
    """`text` in quotes of Hydra's grammar, letter by letter; with `interpolations` ${...} stays one."""
    # There a backslash is one of its own, but for those before a quote.
    escaped = re.sub(r'(\\*)("|$)', lambda found: found[1] * 2 + found[2].replace('"', '\\"'), text)
    return '"' + (escaped if interpolations else escaped.replace("${", "\\${")) + '"'


def is_plain(value: str) -> bool:
    """Whether Hydra's grammar takes it as one value without quotes, whatever the key."""
    return _PLAIN.fullmatch(value) is not None


def given(key: str, value: object) -> str:
    """The override that gives a key this text, in quotes where Hydra would not understand it without."""
    text = str(value)
    plain = is_plain(text) and not (key in PATHS and _differs(text))
    return f"{key}={text if plain else quote(text)}"


def understood(argument: str, sweep: bool = False) -> str:
    """key=value with quotes where Hydra would not understand the value, or not as the path that it is.

    What has quotes, brackets or interpolations of Hydra's grammar already keeps them. sweep: commas part the values of
    several jobs. Raises ConfigError for a path without a value, and for several paths without a sweep.
    """
    key, equals, value = argument.partition("=")
    name = key.lstrip("+")
    if argument.startswith(("-", "~")) or not equals:
        return argument
    if name not in PATHS:
        return argument if _parsed(argument) else f"{key}={_quoted(value, sweep)}"
    if not value:
        raise ConfigError(
            f"{argument}: there is no path (a variable of the shell that is not set?); {name}=null is none"
        )
    if value.startswith("~"):  # the shell leaves it behind an equals sign
        value = str(Path(value).expanduser())
    several = "," in value and (sweep or _all_there(value))
    if _there(value) and not several:
        return f"{key}={quote(value) if _differs(value) else value}"
    if several and not sweep and not value.startswith(("[", "'", '"')):
        raise ConfigError(ambiguous(f"{key}={value}"))
    return f"{key}={_quoted(value, sweep, of_paths=True)}"


def value_of(argument: str) -> str:
    """The value of key=value as text, without quotes."""
    override = _parsed(argument)
    return argument.partition("=")[2] if override is None or override.is_sweep_override() else str(override.value())


def ambiguous(argument: str) -> str:
    """What to say of key=a,b without a sweep."""
    key, _, value = argument.partition("=")
    name = key.lstrip("+")
    a_list = "" if name in PATHS and name not in _LISTS else f"{key}=[{value}] is a list, "
    return (
        f"{argument}: has a comma; {a_list}-m {argument} is a sweep, and in quotes it is one value: \"{key}='{value}'\""
    )


def without_null_groups(verb: str, arguments: list[str]) -> list[str]:
    """GROUP=null and ~GROUP left out, where a verb can do without the config group; raises ConfigError where it cannot.

    Hydra takes neither null, nor the name of a group with nothing chosen.
    """
    defaults = _defaults(verb)
    for argument in arguments:
        key, equals, value = argument.partition("=")
        group = key.lstrip("+~").split("@")[0]
        options = sorted(path.stem for path in (conf_dir() / group).glob("*.yaml"))
        if not ((options and group) or group.startswith("hydra/")) or argument.startswith("-"):
            continue
        nothing = (equals and value in ("null", "")) or key.startswith("~")
        if equals and "null" in value.split(",")[:-1] + value.split(",")[1:]:
            raise ConfigError(
                f"{argument}: null is no value of a sweep over {group}; run it without {group} on its own"
            )
        if not nothing:
            continue
        if group in defaults and defaults[group] is None:
            arguments = [a for a in arguments if a.partition("=")[0].lstrip("+~") != group]
        elif group in defaults or not key.startswith("~"):
            of = f"one of {', '.join(options)}" if options else "one of its options"
            raise ConfigError(f"{argument}: {verb} needs {group}={of}")
    return arguments


@cache
def _defaults(name: str) -> dict[str, Any]:
    """Config groups of a verb and what is chosen by default; None where a group is optional."""
    found: dict[str, Any] = {}
    for entry in yaml.safe_load((conf_dir() / f"{name}.yaml").read_text(encoding="utf-8")).get("defaults", ()):
        if isinstance(entry, dict):
            found.update({key.removeprefix("override ").lstrip("/"): value for key, value in entry.items()})
        elif entry != "_self_":
            found.update(_defaults(entry))
    return found


def _quoted(value: str, sweep: bool, of_paths: bool = False) -> str:
    """A value, its parts where it is a list, or of several jobs, each in quotes where it needs them."""
    if value.startswith("[") and value.endswith("]") and len(parts := list(_parts(value))) == 1:
        inner = ",".join(_quoted(part.strip(), False, of_paths) for part in _parts(value[1:-1]))
        return f"[{inner}]"
    if sweep and not _FUNCTION.fullmatch(value) and len(parts := list(_parts(value))) > 1:
        return ",".join(_quoted(part, False, of_paths) for part in parts)
    override = _parsed(f"key={value}")
    if override is None:
        return quote(value, interpolations=True)
    # A comma without a sweep is left to Hydra's error.
    if not of_paths or override.is_sweep_override() or value == "null":
        return value
    wrong = isinstance(override.value(), (int, float, bool)) or override.value() == value.strip() != value
    return quote(value, interpolations=True) if wrong else value


def _parts(value: str) -> Iterator[str]:
    """What stands between the commas that are in no quotes, brackets or braces."""
    depth, inside, begin, escaped = 0, "", 0, False
    for at, letter in enumerate(value):
        if inside:
            inside = "" if letter == inside and not escaped else inside
        elif letter in "'\"" and not value[begin:at].strip(" [{("):
            inside = letter
        elif letter in "[{(":
            depth += 1
        elif letter in "]})":
            depth -= 1
        elif letter == "," and depth <= 0 and not escaped:
            yield value[begin:at]
            begin = at + 1
        escaped = letter == "\\" and not escaped
    yield value[begin:]


def _differs(value: str) -> bool:
    """Whether Hydra understands something else than this text."""
    override = _parsed(f"key={value}")
    if override is None or override.is_sweep_override() or "${" in value:
        return True
    return value != "null" and override.value() != value


def _there(value: str) -> bool:
    try:
        return value != "null" and Path(value).exists()
    except (OSError, ValueError):  # too long, a zero byte
        return False


def _all_there(value: str) -> bool:
    return not _there(value) and all(map(_there, value.split(",")))


def _parsed(argument: str) -> Override | None:
    try:
        return OverridesParser.create().parse_override(argument)
    except HydraException:
        return None
