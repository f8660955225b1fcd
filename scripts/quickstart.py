"""The main job on the toy dataset, in a few minutes on two CPU cores: each step is a command that one can type.

A finished step leaves a file `done` and is kept; an interrupted training or evaluation goes on where it was.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

OUT = Path("outputs/quickstart")
EVALUATE = ("evaluate", "shot=[1,5]", "protocol.episodes=200", "pictures=6")


def step(title: str, folder: str, *command: str) -> None:
    """Run `fss-svf command...` in OUT/folder, unless that was done before."""
    target = OUT / folder
    print(f"\n== {title}", flush=True)
    if (target / "done").exists():
        print(f"   kept from before: {target}", flush=True)
        return
    begun = last_checkpoint(folder).exists() or any(target.glob("finished-*.jsonl"))
    command = (command[0], f"resume={target}") if begun else (*command, f"hydra.run.dir={target}")
    print("   fss-svf " + " ".join(command), flush=True)
    began = time.perf_counter()
    if subprocess.run([sys.executable, "-m", "fss_svf", *command]).returncode != 0:
        sys.exit(f"quickstart: this step failed; its log is {target}/log.txt")
    (target / "done").touch()
    print(f"   {time.perf_counter() - began:.0f} s", flush=True)


def last_checkpoint(folder: str) -> Path:
    return OUT / folder / "checkpoints" / "last.pt"


def main() -> None:
    began = time.perf_counter()
    step("Render the toy dataset and index it", "prepare", "prepare", "dataset=toy")
    step("Pretrain a tiny backbone on the base classes of fold 0", "pretrain", "pretrain", "experiment=toy_pretrain")
    weights = f"backbone.weights={last_checkpoint('pretrain')}"
    for tuning in ("frozen", "svf"):
        title = f"Meta-train the baseline, tuning={tuning}"
        step(title, f"train_{tuning}", "train", "experiment=toy", f"tuning={tuning}", weights)
    for control in ("background", "prototype"):
        title = f"Evaluate a control that has nothing to train: {control}"
        step(title, f"evaluate/{control}", *EVALUATE, f"method={control}", "dataset=toy", "backbone=tiny", "size=145")
    for tuning in ("frozen", "svf"):
        title = f"Evaluate the baseline on the novel classes, tuning={tuning}"
        step(title, f"evaluate/{tuning}", *EVALUATE, f"checkpoint={OUT}/train_{tuning}")
    step("The table", "report", "report", f"runs={OUT}/evaluate")
    print(f"\nThe table again: {OUT}/report/report.md")
    print(f"Episodes (support | query | truth | prediction): {OUT}/evaluate/svf/1shot/episodes.png")
    print(f"All of it is under {OUT}; delete that to start afresh. {(time.perf_counter() - began) / 60:.1f} minutes.")


if __name__ == "__main__":
    main()
