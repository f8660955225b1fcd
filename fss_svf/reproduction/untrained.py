"""A row of a method without parameters on a frozen backbone: it is evaluated as it is, no training comes before."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf

from fss_svf.methods.method import method_class
from fss_svf.overrides import given

_PARTS = ("dataset", "backbone", "method")


def nothing_trains(train: DictConfig) -> bool:
    """Whether the composed config of a training has no parameter that trains."""
    return train.tuning.name == "frozen" and not method_class(train.method.name).trainable


def as_it_is(train: DictConfig, compose: Callable[[tuple[str, ...]], DictConfig]) -> tuple[str, ...]:
    """Overrides of fss-svf evaluate for what the composed config of a training names: dataset, backbone, method, size, way.

    compose: gives the config of evaluate by its overrides.
    """
    names = tuple(f"{part}={train[part].name}" for part in _PARTS)
    default, wanted = compose(names), train
    options = [
        given_value(f"{part}.{key}", value)
        for part in _PARTS
        for key, value in _differing(_resolved(default, part), _resolved(wanted, part))
    ]
    return (*names, *options, f"size={train.recipe.test_size or train.recipe.size}", f"way={train.way}")


def given_value(key: str, value: Any) -> str:
    """The override that gives a key any plain value, a list or mapping too."""
    return f"{key}={_literal(value)}"


def _literal(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list):
        return f"[{','.join(map(_literal, value))}]"
    if isinstance(value, dict):
        return f"{{{','.join(f'{key}:{_literal(of_key)}' for key, of_key in value.items())}}}"
    return given("", value).removeprefix("=")


def _resolved(config: DictConfig, part: str) -> dict[str, Any]:
    values: Any = OmegaConf.to_container(config, resolve=True)
    return dict(values[part])


def _differing(default: Mapping[str, Any], wanted: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Keys and values in which a mapping differs; of a mapping in it those that differ there."""
    for key, value in wanted.items():
        before = default.get(key)
        if isinstance(value, dict) and isinstance(before, dict):
            yield from ((f"{key}.{inner}", v) for inner, v in _differing(before, value))
        elif value != before or key not in default:
            yield key, value
