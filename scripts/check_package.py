"""Build the sdist and the wheel, check what a registry would show, install them into fresh environments and use them there.

    python scripts/check_package.py             under a minute; `make package`
    python scripts/check_package.py --complete  installs all dependencies: minutes, and 5 GB for each Python

Without --complete, this Python uses the packages it has, and trains two steps with the wheel. Other Pythons get the few
packages that the command line needs, and compose configs.
"""

import argparse
import os
import re
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
# What `fss-svf VERB --cfg=job` imports: no PyTorch.
LIGHT = ("filelock", "hydra-core", "pyyaml", "tqdm")
VERBS = ("train", "evaluate", "predict", "reproduce")
TOY = ("dataset=toy", "dataset.train_images=180", "dataset.val_images=120")
TRAIN = ("backbone=tiny", "recipe=toy", "recipe.size=65", "recipe.batch_size=2", "workers=0")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--complete", action="store_true", help="install all dependencies")
    parser.add_argument("--pythons", nargs="*", default=["3.10", "3.13"], help="versions, of those that are here")
    parser.add_argument("--dist", type=Path, default=ROOT / "dist", help="folder for the two files")
    options = parser.parse_args()
    run(sys.executable, "-m", "build", "--outdir", options.dist, ROOT)
    name = f"fss_svf-{version()}"
    sdist, wheel = (options.dist / f"{name}{ending}" for ending in (".tar.gz", "-py3-none-any.whl"))
    run(sys.executable, "-m", "twine", "check", "--strict", sdist, wheel)
    this = [] if options.complete else [sys.executable]
    for python, package in [
        (sys.executable, sdist),
        *((python, wheel) for python in (*this, *others(options.pythons))),
    ]:
        with tempfile.TemporaryDirectory() as folder:
            check(python, package, Path(folder), options.complete)
    print(f"{sdist.name} and {wheel.name} build, install and run")


def check(python: str, package: Path, folder: Path, complete: bool) -> None:
    """Install a package into an environment of `python`, and use it from a folder that holds nothing else."""
    run(python, "-m", "venv", folder / "env")
    pip = (folder / "env/bin/python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
    this = python == sys.executable
    if complete:
        run(*pip, package)
    else:
        if this:  # with the packages of this environment behind its own
            site = next(folder.glob("env/lib/python*/site-packages"))
            (site / "behind.pth").write_text(sysconfig.get_path("purelib"))
        else:
            run(*pip, *LIGHT)
        run(*pip, "--no-deps", package)
    (folder / "work").mkdir()
    fss = folder / "env/bin/fss-svf"

    def use(*words: object) -> str:
        return run(*words, cwd=folder / "work", quiet=True)

    assert use(fss, "--version").strip() == version()
    where = use(folder / "env/bin/python", "-c", "import fss_svf; print(fss_svf.__file__)").strip()
    assert Path(where).resolve().is_relative_to((folder / "env").resolve()), where
    for verb in VERBS:
        assert use(fss, verb, "--cfg=job")
    use(folder / "env/bin/python", "-m", "compileall", "-q", Path(where).parent)
    if complete or (this and package.suffix == ".whl"):
        use(fss, "prepare", *TOY)
        use(fss, "train", *TOY, *TRAIN, "debug=two_steps")


def others(versions: list[str]) -> list[str]:
    """Interpreters of these versions, but this one's; a line for each that is not here."""
    found = []
    for number in versions:
        ask = (f"python{number}", "-c", "import sys; print(sys.executable)")
        try:  # pyenv's python3.10 works where this names it
            done = subprocess.run(ask, env={**os.environ, "PYENV_VERSION": number}, text=True, capture_output=True)
        except FileNotFoundError:
            done = None
        if done is None or done.returncode:
            print(f"Python {number} is not here: left out")
        elif number != f"{sys.version_info.major}.{sys.version_info.minor}":
            found.append(done.stdout.strip())
    return found


def run(*words: object, cwd: Path | None = None, quiet: bool = False) -> str:
    """The output of a command, which must succeed; shown where it is not quiet or fails."""
    command = [str(word) for word in words]
    print("+", *command, flush=True)
    done = subprocess.run(command, cwd=cwd, text=True, capture_output=quiet)
    if done.returncode:
        sys.exit(f"{done.stdout or ''}{done.stderr or ''}failed: {' '.join(command)}")
    return done.stdout or ""


def version() -> str:
    found = re.search(r'^__version__ = "(.+)"$', (ROOT / "fss_svf/__init__.py").read_text(), re.MULTILINE)
    assert found
    return found[1]


if __name__ == "__main__":
    main()
