"""fss-svf info: what is installed, which datasets are ready, and what can be chosen. It writes nothing."""

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
from omegaconf import OmegaConf

from fss_svf.cli import conf_dir
from fss_svf.config import InfoConfig, from_mapping
from fss_svf.data.build import cores
from fss_svf.data.dataset import Dataset, DatasetOptions, Split
from fss_svf.data.file_names import present
from fss_svf.errors import ConfigError, FssError, listing
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
# launcher: module, the extra of this package that brings it, what for
_LAUNCHERS = {
    "joblib": ("hydra_plugins.hydra_joblib_launcher", "joblib", "sweeps side by side on one machine"),
    "submitit_slurm": ("hydra_plugins.hydra_submitit_launcher", "slurm", "sweeps on a Slurm cluster"),
}
_WIDTH = 80

# A line: what, and what is said of it.
Line = tuple[str, str]


def info(config: InfoConfig, _: Path) -> None:
    """Print it all, in lines of at most 80 columns but for long paths. What is missing is said, and is no error."""
    parts: dict[str, Iterable[Line]] = {
        "Versions": _versions(),
        "Devices": _devices(),
        "Datasets": _datasets(config.dataset),
        "To choose from": _choices(),
        "Launchers of sweeps": _launchers(),
    }
    for title, lines in parts.items():
        print(f"{title}\n{_table(list(lines))}\n")


def _table(lines: list[Line]) -> str:
    width = max(len(what) for what, _ in lines)
    shown = []
    for what, said in lines:
        indent = " " * (width + 4)
        wrapped = textwrap.wrap(said, _WIDTH - len(indent), break_long_words=False, break_on_hyphens=False)
        shown.append(f"  {what.ljust(width)}  {f'{chr(10)}{indent}'.join(wrapped)}".rstrip())
    return "\n".join(shown)


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
    threads = f"{torch.get_num_threads()} threads of PyTorch's (OMP_NUM_THREADS sets them)"
    yield "cpu", f"{cores()} cores, {threads}"
    if not torch.cuda.is_available():
        yield "cuda", f"none that this PyTorch sees (built for {_built_for()}); device=auto is the CPU"
    for number in range(torch.cuda.device_count()):
        of = torch.cuda.get_device_properties(number)
        yield f"cuda:{number}", f"{of.name}, {of.total_memory / 2**30:.0f} GB, compute capability {of.major}.{of.minor}"


def _built_for() -> str:
    version: Any = torch.version
    return f"CUDA {version.cuda}" if version.cuda else f"ROCm {version.hip}" if version.hip else "the CPU alone"


# Datasets


def _datasets(chosen: Mapping[str, Any]) -> Iterator[Line]:
    data = os.environ.get("FSS_SVF_DATA")
    yield "FSS_SVF_DATA", data or "not set: datasets are looked for in data/ of the current folder"
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
    path = conf_dir() / "dataset" / f"{name}.yaml"
    if not path.is_file():
        raise ConfigError(f"no {path.name} in conf/dataset; say fss-svf info dataset={name} --config-dir=YOURS")
    values: Any = OmegaConf.to_container(OmegaConf.load(path), resolve=True)
    return values


def _state(dataset: Dataset) -> str:
    """Whether a dataset is there, prepared and whole, by its folders and indexes: no image is opened."""
    name, options = dataset.name, dataset.options
    prepare = f"fss-svf prepare dataset={name}"
    if not options.root.is_dir():
        get = f"'{prepare}' renders it" if name == "toy" else "data/README.md shows what goes where"
        return f"not there; {get}"
    try:
        splits = {split: dataset.split(split) for split in ("train", "val")}
    except FssError as error:
        return f"not ready; '{prepare}' says what is missing, or prepares it ({error})"
    counts = ", ".join(f"{len(split.index):,} images of {name}" for name, split in splits.items())
    missing = sorted({path for split in splits.values() for path in _missing(split)})
    if missing:
        return f"prepared ({counts}), but {len(missing):,} files are gone: {listing(missing, 1)}; '{prepare}' again"
    left_out = options.prepared / "missing.txt"
    if left_out.exists():
        return f"prepared, {counts}; in parts: {left_out} lists the files it was prepared without"
    return f"ready, {counts}"


def _missing(split: Split) -> list[str]:
    """The files of images and labels that are not in their folders any more; lists folders, which is fast."""
    try:
        images = [split.image_path(number) for number in range(len(split.index))]
        labels = [split.label_path(number) for number in range(len(split.index))]
    except FssError as error:
        return [str(error)]
    there: set[Path] = set().union(*map(present, {path.parent for path in (*images, *labels)}))
    return [str(path) for path in (*images, *labels) if path not in there]


# What conf/ and the registries hold


def _choices() -> Iterator[Line]:
    for registry in (METHODS, BACKBONES, TUNINGS):
        yield registry.kind, ", ".join(registry.names())
    for group in ("protocol", "recipe", "experiment"):
        folder = conf_dir() / group
        names = (path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.yaml"))
        yield group, ", ".join(sorted(names)) or "none"


def _launchers() -> Iterator[Line]:
    for name, (module, extra, what) in _LAUNCHERS.items():
        how = "installed" if _installed(module) else f"not installed; pip install 'fss-svf[{extra}]'"
        yield name, f"{how} ({what}: -m hydra/launcher={name})"


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False
