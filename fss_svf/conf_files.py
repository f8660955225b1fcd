"""Where the YAML of configs lies: the package's own tree, and the `conf` folder of each plugin."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import hydra
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.plugins import Plugins
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fss_svf import plugins
from fss_svf.errors import ConfigError, PluginError, did_you_mean, listing


def conf_dir() -> Path:
    """The Hydra tree: inside the package when installed from a wheel, at the top of the repository otherwise."""
    packaged = Path(__file__).parent / "conf"
    return packaged if packaged.is_dir() else Path(__file__).parent.parent / "conf"


def conf_folders() -> list[Path]:
    """The package's tree first, then those of plugins, which may share one."""
    folders = (plugins.conf_folder(plugin) for plugin in plugins.known())
    return list(dict.fromkeys([conf_dir(), *(folder for folder in folders if folder is not None)]))


def options(group: str) -> list[str]:
    """The names that a config group may be given, sorted; those in folders of it as FOLDER/NAME."""
    folders = [folder / group for folder in conf_folders()]
    return sorted(
        {p.relative_to(folder).with_suffix("").as_posix() for folder in folders for p in folder.rglob("*.yaml")}
    )


def values(
    config: str, changes: Mapping[str, Any], choices: Mapping[str, str] = MappingProxyType({})
) -> dict[str, Any]:
    """What a config composes to, with `changes` of its keys: of a verb (evaluate), or an option of a group (protocol/svf).

    choices: the options of a verb's groups, such as {"tuning": "svf"}

    Raises ConfigError for an option that is not there, or a value that no YAML can hold; PluginError.
    """
    plugins.add(changes.get("plugins") or ())  # before the files that they bring are looked for
    group, _, option = config.partition("/")
    for kind, name in {**choices, **({group: option} if option else {})}.items():
        if name not in (known := options(kind)):
            raise ConfigError(f"{kind}={name}: unknown{did_you_mean(str(name), known)}; known: {listing(known, 20)}")
    join_search_path()
    with hydra.initialize_config_dir(str(conf_dir()), version_base="1.3"):
        composed = hydra.compose(config, [f"{kind}={name}" for kind, name in choices.items()])
    OmegaConf.set_struct(composed, False)  # a key that is not there is refused with the others, by from_mapping
    try:
        merged = OmegaConf.merge(composed[group] if option else composed, dict(changes))
        plain: Any = OmegaConf.to_container(merged, resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError(f"{group}: {' '.join(str(error).split())}") from None
    return plain


def plain_values(group: str, option: str, resolve: bool = True) -> dict[str, Any] | None:
    """The values of conf/GROUP/OPTION.yaml as it stands, without Hydra's defaults; None where there is no such file.

    resolve: interpolations, which may lead to other files
    """
    paths = [folder / group / f"{option}.yaml" for folder in conf_folders()]
    path = next((path for path in paths if path.is_file()), None)
    found: Any = None if path is None else OmegaConf.to_container(OmegaConf.load(path), resolve=resolve)
    return found


def join_search_path() -> None:
    """Let Hydra look into the `conf` folders of plugins, from now on. Raises PluginError where two hold the same file."""
    seen: dict[Path, Path] = {}
    for folder in conf_folders():
        for path in sorted(_files(folder)):
            name = path.relative_to(folder)
            if name in seen and not path.samefile(seen[name]):
                raise PluginError(
                    f"{name}: is in two config trees, {seen[name]} and {path}; rename the plugin's, or leave the plugin out"
                )
            seen[name] = path
    Plugins.instance().register(_PluginConfigs)


def _files(folder: Path) -> Iterator[Path]:
    for ending in ("yaml", "yml"):
        yield from folder.rglob(f"*.{ending}")


class _PluginConfigs(SearchPathPlugin):
    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        for folder in conf_folders()[1:]:
            search_path.append(provider="fss_svf.plugins", path=f"file://{folder}")
