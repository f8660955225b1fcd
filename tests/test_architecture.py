"""Imports point one way: a module may import its own layer and lower ones (docs/architecture.md)."""

import ast
from pathlib import Path

import fss_svf

PACKAGE = Path(fss_svf.__file__).parent
LAYERS = [
    {
        "allocator",
        "attention",
        "errors",
        "registry",
        "conf_files",
        "config",
        "provenance",
        "episode",
        "console",
        "distributed",
        "files",
        "lock",
        "machine",
        "plugins",
        "precision",
        "relocation",
        "tuned",
    },
    {"backbones", "svf"},
    {"methods", "tuning", "data", "checkpoint", "base_weights", "packed"},
    {"model", "official", "packing"},
    {"reporting"},
    {"evaluation"},
    {"training", "prediction", "page"},
    {
        "api",
        "cli",
        "__main__",
        "info",
        "launch",
        "messages",
        "moved",
        "overrides",
        "resume",
        "run_folder",
        "sweeps",
        "usage",
        "newest_run",
        "reproduction",
    },
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}


def imports():
    for path in PACKAGE.rglob("*.py"):
        owner = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if owner == "__init__":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "fss_svf":
                parts = node.module.split(".")[1:]
                for name in parts[:1] or [alias.name for alias in node.names]:
                    yield path, owner, name


def test_every_module_has_a_layer():
    modules = {p.stem for p in PACKAGE.glob("[!_]*.py")} | {p.parent.name for p in PACKAGE.glob("*/__init__.py")}
    assert len(modules) > 10
    assert modules <= set(LEVEL)


def test_imports_point_down():
    found = list(imports())
    assert len(found) > 50
    wrong = [f"{path}: {name}" for path, owner, name in found if name in LEVEL and LEVEL[name] > LEVEL[owner]]
    assert not wrong


def test_the_svf_library_knows_nothing_of_segmentation():
    assert {name for _, owner, name in imports() if owner == "svf"} <= {
        "svf",
        "attention",
        "errors",
        "files",
        "precision",
        "relocation",
        "tuned",
    }


def test_the_command_line_starts_without_torch():
    # 'fss-svf --help' and error messages come at once.
    sources = [PACKAGE / "cli.py", PACKAGE / "launch.py", PACKAGE / "registry.py", *(PACKAGE / "config").glob("*.py")]
    assert len(sources) > 5
    assert not [path for path in sources if "import torch" in path.read_text()]
