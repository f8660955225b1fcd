"""The main job on the toy dataset, in a few minutes on two CPU cores: each step is a command that one can type.

A finished step leaves a file `done` and is kept; an interrupted training or evaluation goes on where it was.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("outputs/quickstart"), help="folder of all results")
    parser.add_argument("--seed", type=int, default=321, help="of the training and of the episodes")
    arguments = parser.parse_args()
    out, seed = arguments.out, f"seed={arguments.seed}"
    measured = ("shot=[1,5]", "protocol.episodes=400", seed)

    began = time.perf_counter()
    step("Draw the toy dataset and index it", out / "prepare", "prepare", "dataset=toy")
    step(
        "Evaluate PANet on the frozen backbone, as ImageNet left it",
        *(out / "evaluate/frozen", "evaluate", "method=panet", "dataset=toy", "backbone=efficientnet_lite0"),
        *("size=121", *measured, "pictures=6"),
    )
    step(
        "Train PANet's backbone with SVF on the base classes of fold 0",
        *(out / "train_svf", "train", "experiment=quickstart", "tuning=svf", "tuning.parametrisation=scale", seed),
    )
    step(
        "Evaluate it on the novel classes",
        *(out / "evaluate/svf", "evaluate", f"checkpoint={out / 'train_svf'}", *measured, "pictures=6"),
    )
    step("The table", out / "report", "report", f"runs={out / 'evaluate'}")
    print(f"\nThe table again: {out}/report/report.md, and with curves and pictures report.html")
    print(f"Episodes (support | query | truth | prediction): {out}/evaluate/svf/1shot/episodes.png")
    print(f"All of it is under {out}; delete that to start afresh. {(time.perf_counter() - began) / 60:.1f} minutes.")


def step(title: str, target: Path, *command: str) -> None:
    """Run `fss-svf command...` in the folder `target`, unless that was done before."""
    print(f"\n== {title}", flush=True)
    if (target / "done").exists():
        print(f"   kept from before: {target}", flush=True)
        return
    begun = (target / "checkpoints/last.pt").exists() or any(target.glob("finished-*.jsonl"))
    command = (command[0], f"resume={target}") if begun else (*command, f"hydra.run.dir={target}")
    print("   fss-svf " + " ".join(command), flush=True)
    began = time.perf_counter()
    if subprocess.run([sys.executable, "-m", "fss_svf", *command]).returncode != 0:
        sys.exit(f"quickstart: this step failed; its log is {target}/log.txt")
    (target / "done").touch()
    print(f"   {time.perf_counter() - began:.0f} s", flush=True)


if __name__ == "__main__":
    main()
