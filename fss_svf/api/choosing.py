"""Names and options of Python as the values of a verb's config."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

from fss_svf import conf_files
from fss_svf.config import Protocol, to_mapping
from fss_svf.errors import ConfigError
from fss_svf.run_folder import register_resolvers

# A choice of a config group: a name, or a mapping of its options, with `name` where it is not the default's.
Named: TypeAlias = str | Mapping[str, Any]


def compose(verb: str, groups: Mapping[str, Named | Protocol | None], changes: Mapping[str, Any]) -> dict[str, Any]:
    """The config of `fss-svf VERB` with these choices of groups and changes of keys. None: the default.

    Raises ConfigError for an unknown name. Unknown keys are left to from_mapping.
    """
    names: dict[str, str] = {}
    changed = dict(changes)
    for group, choice in groups.items():
        if isinstance(choice, Protocol):
            changed[group] = to_mapping(choice)
        elif isinstance(choice, Mapping):
            changed[group] = {key: value for key, value in choice.items() if key != "name"}
            names |= {group: choice["name"]} if "name" in choice else {}
        elif isinstance(choice, str):
            names[group] = choice
        elif choice is not None:
            raise ConfigError(f"{group}: expected a name, or a mapping of name and options, got {choice!r}")
    register_resolvers()
    return conf_files.values(verb, changed, names)
