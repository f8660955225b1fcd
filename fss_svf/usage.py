"""`--help` and completion by Tab: what a verb does, its examples, config groups and keys, all read from conf/."""

from __future__ import annotations

import os
import re
import shutil
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import yaml

from fss_svf.conf_files import conf_dir, options

_KEY = re.compile(r"(?P<indent> *)(?P<key>[\w/]+):(?: (?P<value>(?:[^#]|(?<! )#)*))?(?: *# (?P<comment>.*))?$")
# Options of a group that a line has room for.
_SHOWN = 12


class Key(NamedTuple):
    """A dotted key, its default as the YAML has it, and its comments."""

    name: str
    default: str
    comment: str


def verb_help(verb: str, what: str) -> str:
    """A verb's page: one sentence, examples, groups and keys with their defaults."""
    commands, notes = header(verb)
    parts = [f"fss-svf {verb}: {what}", *(["\n".join(notes)] if notes else [])]
    parts.append(_section("examples", commands))
    rows = [(f"{name}={default}", _choices(verb, name)) for name, default in groups(verb).items()]
    parts += [_section("groups: GROUP=NAME", _table(rows))] if rows else []
    rows = [(f"{key.name}={key.default}" if key.default else key.name, key.comment) for key in keys(verb)]
    parts.append(_section("keys", _table(rows)))
    parts.append(f"'fss-svf {verb} --cfg job' shows all keys, those of the chosen groups too; -m k=1,2 is a sweep")
    return "\n\n".join(parts)


def header(verb: str) -> tuple[list[str], list[str]]:
    """The commands, and the other lines, of the comment that begins a verb's YAML."""
    lines: list[str] = []
    for line in _text(verb).splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.removeprefix("#").strip())
    return [line for line in lines if line.startswith("fss-svf ")], [line for line in lines if line[:8] != "fss-svf "]


def groups(verb: str) -> dict[str, str]:
    """The config groups that a verb has, with their defaults; `run` is not for choosing."""
    found = {}
    for entry in _content(verb)["defaults"]:
        if isinstance(entry, Mapping):
            ((group, name),) = entry.items()
            found[str(group).removeprefix("override ")] = "null" if name is None else str(name)
        elif entry != "_self_":  # import-official begins with train
            found = groups(str(entry)) | found
    return {group: name for group, name in found.items() if group != "run"}


def keys(verb: str) -> list[Key]:
    """The keys of a verb's YAML, and of the files that its defaults join to them."""
    found = {key.name: key for key in _keys_of(verb)}
    for entry in _content(verb)["defaults"]:
        other = f"run/{entry['run']}" if isinstance(entry, Mapping) and "run" in entry else entry
        if isinstance(other, str) and other != "_self_":
            found = found | {key.name: key for key in _keys_of(other) if key.name not in found}
            if "/" not in other:
                found |= {key.name: key for key in keys(other) if key.name not in found}
    return list(found.values())


def _keys_of(file: str) -> Iterator[Key]:
    """The keys of one file, down to the last dot. A comment above a key belongs to it, as one behind it does."""
    path: list[tuple[int, str]] = []
    above: list[str] = []
    lines = _text(file).splitlines()
    # The comment at the top is of the file.
    begin = next(number for number, line in enumerate(lines) if not line.startswith("#"))
    for number, line in enumerate(lines[begin:], begin):
        if line.strip().startswith("#"):
            above.append(line.strip().removeprefix("#").strip())
            continue
        match = _KEY.match(line)
        if match is None:  # an item of a list, or an empty line
            above = []
            continue
        indent = len(match["indent"])
        path = [*(part for part in path if part[0] < indent), (indent, match["key"])]
        comment, above = " ".join([*above, *filter(None, [match["comment"]])]), []
        following = lines[number + 1] if number + 1 < len(lines) else ""
        has_below = not match["value"] and following.startswith(" " * (indent + 1))
        if path[0][1] not in ("defaults", "hydra") and (not has_below or comment):
            yield Key(".".join(name for _, name in path), (match["value"] or "").strip(), comment)


def _choices(verb: str, group: str) -> str:
    known = [name for name in options(group) if _takes(verb, group, name)]
    more = f", ... ({len(known)})" if len(known) > _SHOWN else ""
    return ", ".join(known[:_SHOWN]) + more


def _takes(verb: str, group: str, name: str) -> bool:
    """Whether a verb that has the group runs with this option of it."""
    if group == "experiment":
        of_pretrain = "pretrain" in name or "base_learner" in name
        return verb != "evaluate" and of_pretrain == (verb == "pretrain")
    return (group, name) != ("method", "base_learner") or verb == "import-official"


def _section(title: str, lines: list[str]) -> str:
    return "\n".join([title, *(f"  {line}" for line in lines)])


def _table(rows: list[tuple[str, str]]) -> list[str]:
    """Two columns as wide as the screen; a long first one has its line to itself."""
    first, width = 26, max(60, min(shutil.get_terminal_size().columns, 120)) - 4
    lines = []
    for left, right in rows:
        wrapped = textwrap.wrap(right, width - first, break_on_hyphens=False) or [""]
        if len(left) >= first:
            lines.append(left)
        else:
            wrapped[0] = f"{left.ljust(first)}{wrapped[0]}".rstrip()
            lines.append(wrapped.pop(0))
        lines += [f"{'':{first}}{line}" for line in wrapped if line]
    return lines


def _text(file: str) -> str:
    return (conf_dir() / f"{file}.yaml").read_text(encoding="utf-8")


def _content(file: str) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load(_text(file))
    return content


# Completion: the shell calls `fss-svf -sc query=SHELL`, without the verb, and leaves the line in COMP_LINE.


def completed_verb(known: list[str]) -> str | None:
    """The verb of the line to complete, which is then left without it, as Hydra expects; None where that is the verb."""
    _, _, rest = os.environ.get("COMP_LINE", "").lstrip().partition(" ")
    verb, blank, arguments = rest.lstrip().partition(" ")
    if not blank or verb not in known:
        return None
    os.environ["COMP_LINE"] = f"fss-svf {arguments}"
    return verb


def verbs_to_complete(known: list[str]) -> list[str]:
    """The verbs that the line's last word may become; none behind a wrong one."""
    words = os.environ.get("COMP_LINE", "").lstrip().split(" ")
    return [verb for verb in known if verb.startswith(words[-1])] if len(words) == 2 else []


def experiments_to_complete(verb: str) -> list[str] | None:
    """What experiment=... may become, in its folders too, for which Hydra has experiment/FOLDER=; None: another word."""
    word = os.environ.get("COMP_LINE", "").split(" ")[-1]
    if not word.startswith(("experiment=", "experiment/")):
        return None
    known = [f"experiment={name}" for name in options("experiment") if _takes(verb, "experiment", name)]
    return [choice for choice in known if choice.startswith(word.replace("/", "=", 1) if word[10] == "/" else word)]
