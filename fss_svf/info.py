"""fss-svf info: lists what is installed, which datasets are ready, and what can be chosen. It writes nothing."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from fss_svf import plugins
from fss_svf.conf_files import options, plain_values
from fss_svf.config import InfoConfig, from_mapping
from fss_svf.data.dataset import Dataset, DatasetOptions, Split
from fss_svf.data.file_names import present
from fss_svf.errors import ConfigError, FssError, listing
from fss_svf.machine import cores
from fss_svf.plugins import Plugin
from fss_svf.registry import BACKBONES, DATASETS, METHODS, TUNINGS, Choice

_PACKAGES = (
    "fss-svf",
    "torch",
    "torchvision",
    "numpy",
    "opencv-python-headless",
    "pycocotools",
    "hydra-core",
    "pillow",
)
# launcher: its module, the extra of this package that installs it, its use
_LAUNCHERS = {
    "joblib": ("hydra_plugins.hydra_joblib_launcher", "joblib", "sweeps side by side on one machine"),
    "submitit_slurm": ("hydra_plugins.hydra_submitit_launcher", "slurm", "sweeps on a Slurm cluster"),
}
# logger of a training: the extra of this package that installs it has its name
_LOGGERS = ("wandb", "mlflow")
_WIDTH = 80

# A line: a name and its text.
Line = tuple[str, str]


def info(config: InfoConfig, _: Path) -> None:
    """Print everything, in lines of at most 80 columns except for long paths. Missing parts are listed, not errors."""
    parts: dict[str, Iterable[Line]] = {
        "Versions": _versions(),
        "Devices": _devices(),
        "Datasets": _datasets(config.dataset),
        "Plugins": _plugins(),
        "To choose from": _choices(),
        "Launchers of sweeps": _launchers(),
        "Loggers of trainings": _loggers(),
    }
    for title, lines in parts.items():
        print(f"{title}\n{_table(list(lines))}\n")


def _table(lines: list[Line]) -> str:
    width = max(len(name) for name, _ in lines)
    rows = []
    for name, text in lines:
        indent = " " * (width + 4)
        wrapped = textwrap.wrap(text, _WIDTH - len(indent), break_long_words=False, break_on_hyphens=False)
        rows.append(f"  {name.ljust(width)}  {f'{chr(10)}{indent}'.join(wrapped)}".rstrip())
    return "\n".join(rows)


def _versions() -> Iterator[Line]:
    yield "python", platform.python_version()
    for name in _PACKAGES:
        version = _version(name)
        if version is None and name.startswith("opencv"):  # another build of the same module
            version = _version("opencv-python") or _version("opencv-contrib-python")
        yield name, version or f"not found; pip install {name}"


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _devices() -> Iterator[Line]:
    threads = f"{torch.get_num_threads()} PyTorch threads (set by OMP_NUM_THREADS)"
    yield "cpu", f"{cores()} cores, {threads}"
    if not torch.cuda.is_available():
        yield "cuda", f"none visible to this PyTorch (built for {_built_for()}); device=auto is the CPU"
    for number in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(number)
        memory = f"{gpu.total_memory / 2**30:.0f} GB"
        yield f"cuda:{number}", f"{gpu.name}, {memory}, compute capability {gpu.major}.{gpu.minor}"


def _built_for() -> str:
    version: Any = torch.version
    return f"CUDA {version.cuda}" if version.cuda else f"ROCm {version.hip}" if version.hip else "the CPU only"


# Datasets


def _datasets(chosen: Mapping[str, Any]) -> Iterator[Line]:
    data = os.environ.get("FSS_SVF_DATA")
    yield "FSS_SVF_DATA", data or "not set: datasets are expected in data/ of the current folder"
    for name in DATASETS.names():
        try:
            values = dict(chosen) if chosen.get("name") == name else _defaults(name)
            known: type[DatasetOptions] = DATASETS.entry(name).options
            options = from_mapping(known, {key: value for key, value in values.items() if key != "name"})
            yield name, f"{options.root}: {_state(DATASETS.build(Choice(name, options)))}"
        except (FssError, OSError) as error:
            yield name, str(error)


def _defaults(name: str) -> dict[str, Any]:
    """The values of conf/dataset/NAME.yaml."""
    values = plain_values("dataset", name)
    if values is None:
        raise ConfigError(f"no {name}.yaml in conf/dataset; run fss-svf info dataset={name} --config-dir=YOURS")
    return values


def _state(dataset: Dataset) -> str:
    """Whether a dataset is there, prepared and complete, by its folders and indexes; no image is opened."""
    name, options = dataset.name, dataset.options
    prepare = f"fss-svf prepare dataset={name}"
    if not options.root.is_dir():
        get = f"'{prepare}' renders it" if name == "toy" else "data/README.md lists the expected files"
        return f"not there; {get}"
    try:
        splits = {split: dataset.split(split) for split in dataset.splits}
    except FssError as error:
        return f"not ready; '{prepare}' prepares it, or lists what is missing ({error})"
    counts = ", ".join(f"{len(split.index):,} images of {name}" for name, split in splits.items())
    missing = sorted({path for split in splits.values() for path in _missing(split)})
    if missing:
        return f"prepared ({counts}), but {len(missing):,} files are gone: {listing(missing, 1)}; run '{prepare}' again"
    left_out = options.prepared / "missing.txt"
    if left_out.exists():
        return f"prepared, {counts}; incomplete: {left_out} lists the missing files"
    return f"ready, {counts}"


def _missing(split: Split) -> list[str]:
    """The files of images and labels that no longer exist. Folders are listed, which is fast."""
    try:
        images = [split.image_path(number) for number in range(len(split.index))]
        labels = [split.label_path(number) for number in range(len(split.index))]
    except FssError as error:
        return [str(error)]
    existing: set[Path] = set().union(*map(present, {path.parent for path in (*images, *labels)}))
    return [str(path) for path in (*images, *labels) if path not in existing]


# Plugins, and choices of conf/ and the registries


def _plugins() -> Iterator[Line]:
    for plugin in plugins.known():
        failure = plugins.load_one(plugin)
        yield plugin.module, str(failure) if failure else f"{plugin.source}; adds {_added(plugin)}"
    if not plugins.known():
        yield "none", "docs/extending.md describes how to write one"


def _added(plugin: Plugin) -> str:
    names = [
        f"{registry.kind}={name}"
        for registry in (METHODS, BACKBONES, TUNINGS, DATASETS)
        for name, module in registry.modules().items()
        if plugins.plugin_of(module) == plugin
    ]
    folder = plugins.conf_folder(plugin)
    files = [] if folder is None else [f"configs in {folder}"]
    return ", ".join([*names, *files]) or "nothing that is registered"


def _choices() -> Iterator[Line]:
    for registry in (METHODS, BACKBONES, TUNINGS):
        yield registry.kind, ", ".join(registry.names())
    for group in ("protocol", "recipe", "experiment"):
        yield group, ", ".join(options(group)) or "none"


def _launchers() -> Iterator[Line]:
    for name, (module, extra, what) in _LAUNCHERS.items():
        how = "installed" if _installed(module) else f"not installed; pip install 'fss-svf[{extra}]'"
        yield name, f"{how} ({what}: -m hydra/launcher={name})"


def _loggers() -> Iterator[Line]:
    yield "tensorboard", "installed"
    for name in _LOGGERS:
        how = "installed" if _installed(name) else f"not installed; pip install 'fss-svf[{name}]'"
        yield name, f"{how} (logger={name})"


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False
