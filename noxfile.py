"""The promised environments, one session each: `make matrix`, or `nox -s NAME -- tests/test_x.py` for a part of one.

suite      every test, on each Python with the oldest and the newest releases of what the package needs
processor  the numeric tests, at each level of instructions that this processor has, with one thread and with two
quickstart the README's conclusion: SVF above frozen and five shots above one, over seeds, threads and instructions

A session ends with a table of all cells so far, for docs/portability.md.
"""

import itertools
import json
import time
from pathlib import Path
from xml.etree import ElementTree

import nox

nox.options.default_venv_backend = "uv|virtualenv"
nox.options.error_on_missing_interpreters = True  # a cell that did not run proves nothing
nox.options.stop_on_first_error = False
nox.options.sessions = ["suite", "processor"]

PYTHONS = ("3.10", "3.12", "3.13")
OLDEST = {
    "torch": "2.6.0",
    "torchvision": "0.21.0",
    "numpy": "1.26.4",
    "scipy": "1.11.4",
    "hydra-core": "1.3.2",
    "opencv-python-headless": "4.9.0.80",
    "pillow": "10.1.0",
}
# The first with a wheel for Python 3.13; and the first OpenCV that loads beside NumPy 2.
OLDEST_ON = {"3.13": {"numpy": "2.1.0", "scipy": "1.14.1", "opencv-python-headless": "4.10.0.84", "pillow": "11.0.0"}}

# ATen's instructions and oneDNN's, from the plainest to all that there are, and what PyTorch calls the processor.
LEVELS = {
    "SSE4.1": ("default", "SSE41", "DEFAULT"),
    "AVX2": ("avx2", "AVX2", "AVX2"),
    "AVX-512": ("avx512", "DEFAULT", "AVX512"),
}
SIDE_BY_SIDE = ("-n", "2", "--dist", "worksteal")
HEAD = "| cell | passed | failed | skipped | minutes |\n| --- | --- | --- | --- | --- |\n"


@nox.session(python=PYTHONS)
@nox.parametrize("releases", ["oldest", "newest"])
def suite(session: nox.Session, releases: str) -> None:
    install(session, releases)
    arguments = session.posargs or SIDE_BY_SIDE
    finish(session, [cell(session, f"Python {session.python}, {releases}", arguments, OMP_NUM_THREADS="1")])


@nox.session(python="3.12")
def processor(session: nox.Session) -> None:
    install(session, "newest")
    ask = "import torch; print(torch.backends.cpu.get_cpu_capability())"
    has = str(session.run("python", "-c", ask, silent=True)).split()[-1]
    known = [capability for *_, capability in LEVELS.values()]
    levels = list(LEVELS.items())[: known.index(has) + 1 if has in known else 1]
    results = []
    for name, (aten, onednn, _) in levels:
        for threads in (1, 2):
            environment = {"ATEN_CPU_CAPABILITY": aten, "ONEDNN_MAX_CPU_ISA": onednn, "OMP_NUM_THREADS": str(threads)}
            arguments = [*(session.posargs or (SIDE_BY_SIDE if threads == 1 else ())), "-m", "numeric and not long"]
            results.append(cell(session, f"{name}, {threads} thread{'s' * (threads > 1)}", arguments, **environment))
    finish(session, results)


@nox.session(python="3.12")
def quickstart(session: nox.Session) -> None:
    """Sixteen runs, of some four minutes each; finished steps are kept, so that it goes on where it was."""
    install(session, "newest")
    data, rows, holds = Path(session.create_tmp()).absolute(), [], True
    runs = itertools.product(("AVX-512 or less", "SSE4.1"), (2, 1), (321, 322, 323, 324))
    for level, threads, seed in runs:
        aten, onednn, _ = LEVELS.get(level, ("", "DEFAULT", ""))
        environment = {
            "ONEDNN_MAX_CPU_ISA": onednn,
            "OMP_NUM_THREADS": str(threads),
            "FSS_SVF_DATA": str(data / "data"),
        }
        environment |= {"ATEN_CPU_CAPABILITY": aten} if aten else {}
        out = data / f"{level[:3]}-{threads}-{seed}"
        session.run("python", "scripts/quickstart.py", "--out", str(out), "--seed", str(seed), env=environment)
        frozen1, frozen5, svf1, svf5 = (
            100 * json.loads((out / f"evaluate/{tuning}/{shot}shot/result.json").read_text())["miou"]
            for tuning in ("frozen", "svf")
            for shot in (1, 5)
        )
        holds &= svf1 > frozen1 and svf5 > frozen5 and frozen5 > frozen1 and svf5 > svf1
        rows.append(f"| {level} | {threads} | {seed} | {frozen1:.1f} | {frozen5:.1f} | {svf1:.1f} | {svf5:.1f} |")
    print("| instructions | threads | seed | frozen, 1 shot | 5 shots | SVF, 1 shot | 5 shots |")
    print("| --- | --- | --- | --- | --- | --- | --- |", *rows, sep="\n")
    if not holds:
        session.error("the order is not that of the README in every run")


def install(session: nox.Session, releases: str) -> None:
    pins = {**OLDEST, **OLDEST_ON.get(str(session.python), {})} if releases == "oldest" else {}
    session.install("-e", ".[test]", *(f"{name}=={version}" for name, version in pins.items()))


def cell(session: nox.Session, name: str, arguments, **environment: str) -> bool:
    """Run pytest in one cell of the matrix, and note its row; whether all tests passed."""
    report, began = Path(session.create_tmp()) / "report.xml", time.monotonic()
    report.unlink(missing_ok=True)
    command = ("python", "-m", "pytest", *arguments, f"--junitxml={report}")
    if session.run(*command, env=environment, success_codes=range(256)) is None:
        session.skip("nothing runs with --install-only")
    minutes = (time.monotonic() - began) / 60
    count = dict.fromkeys(("tests", "failures", "errors", "skipped"), 0)
    if not report.exists():
        return False  # pytest did not start
    for found in ElementTree.parse(report).iter("testsuite"):
        count = {key: count[key] + int(found.get(key, 0)) for key in count}
    failed = count["failures"] + count["errors"]
    passed = count["tests"] - failed - count["skipped"]
    table = table_of(session)
    if not table.exists():
        table.write_text(HEAD)
    with table.open("a") as file:
        file.write(f"| {name} | {passed} | {failed} | {count['skipped']} | {minutes:.1f} |\n")
    return passed > 0 and not failed


def finish(session: nox.Session, results: list[bool]) -> None:
    print(f"\n{table_of(session).read_text()}")
    if not all(results):
        session.error("not every test passed")


def table_of(session: nox.Session) -> Path:
    return Path(session.cache_dir) / "matrix.md"
