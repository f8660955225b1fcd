"""What bench_svf.py model=NAME measures: a training step of a network of timm (random weights) under several tunings.

full            every parameter trains
lora            tuning=lora
svf             tuning=svf: execution auto, factored where that takes fewer operations
svf, rebuilt    each weight rebuilt from its factors
svf, Q and K    auto, with the singular values of queries and keys, which nobody should train
frozen          the forward alone, without a graph

A step is the forward, the mean square of the features as a loss, and its backward; no optimizer. All sides have the same
weights and images, and the ratios are medians over interleaved repetitions of one run. Operations are multiplications and
additions of matrix products and convolutions, by PyTorch's own counter.
"""

from __future__ import annotations

import argparse
import copy
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from statistics import median

import timm
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from fss_svf import svf
from fss_svf.conf_files import conf_dir
from fss_svf.config import from_mapping
from fss_svf.model import choose_device, trainable_values
from fss_svf.registry import TUNINGS, Choice


class Staged(nn.Module):
    """A network whose stages are its blocks, or else its `stages` or `layers`; the last `tuned` of them are tuned."""

    def __init__(self, body: nn.Module, tuned: int | None) -> None:
        super().__init__()
        self.body = body
        name = next((name for name in ("blocks", "stages", "layers") if hasattr(body, name)), None)
        if name is None:
            raise SystemExit(
                f"{type(body).__name__} has none of blocks, stages and layers, so there is nothing to tune"
            )
        self.list = name
        self.tuned_stages = tuple(self.stages)[-(tuned or len(self.stages)) :]

    @property
    def stages(self) -> dict[str, nn.Module]:
        return {f"{self.list}.{n}": stage for n, stage in enumerate(getattr(self.body, self.list))}

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.body.forward_features(images)
        return features


def shipped(tuning: str, **options: object) -> Choice:
    """tuning=NAME as its YAML has it, with other options."""
    from omegaconf import OmegaConf

    values = OmegaConf.to_container(OmegaConf.load(conf_dir() / "tuning" / f"{tuning}.yaml"))
    assert isinstance(values, dict)
    del values["name"]
    return Choice(tuning, replace(from_mapping(TUNINGS.entry(tuning).options, values), **options))


def make_sides(options: argparse.Namespace) -> dict[str, Staged]:
    torch.manual_seed(0)
    plain = timm.create_model(options.model, num_classes=0, img_size=options.size).train()
    choices = {
        "full": shipped("full"),
        "lora": shipped("lora"),
        "svf": shipped("svf", cache=None),
        "svf, rebuilt": shipped("svf", cache=None, execution="rebuilt"),
        "svf, Q and K": shipped("svf", cache=None),
        "frozen": shipped("frozen"),
    }
    sides = {}
    for name, choice in choices.items():
        side = Staged(copy.deepcopy(plain), options.blocks)
        if name == "svf, Q and K":
            # Every layer of the tuned stages, and then queries and keys by their names.
            stages = "|".join(stage.replace(".", r"\.") for stage in side.tuned_stages)
            include = (rf"^({stages})\.", rf"^({stages})\..*qkv\.[qk]$")
            choice = replace(choice, options=replace(choice.options, include=include))
        try:
            TUNINGS.build(choice, side)
        except Exception as error:
            print(f"{name}: left out ({error})")
            continue
        sides[name] = side
    return sides


def step(side: Staged, images: Tensor, bf16: bool) -> float:
    """Seconds of a step on the device of the images."""
    side.zero_grad(set_to_none=True)
    trains = trainable_values(side) > 0
    _wait(images)
    began = time.perf_counter()
    with torch.set_grad_enabled(trains), torch.autocast(images.device.type, torch.bfloat16, enabled=bf16):
        loss = side(images).float().square().mean()
    if trains:
        loss.backward()
    _wait(images)
    return time.perf_counter() - began


def _wait(images: Tensor) -> None:
    if images.is_cuda:
        torch.cuda.synchronize(images.device)


def compare(options: argparse.Namespace) -> None:
    """Print a line for every side."""
    device = choose_device(options.device)
    sides = {name: side.to(device) for name, side in make_sides(options).items()}
    size = options.size or sides["full"].body.default_cfg["input_size"][-1]
    images = torch.randn(options.batch, 3, size, size, device=device)
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} threads"
    tuned = len(sides["full"].tuned_stages)
    print(
        f"{options.model}, {options.batch} images of {size} pixels, {tuned} of {len(sides['full'].stages)} blocks tuned, "
        f"{'bf16, ' if options.bf16 else ''}{where}, PyTorch {torch.__version__}, timm {timm.__version__}, medians of "
        f"{options.repetitions}"
    )
    taken: dict[str, list[float]] = {name: [] for name in sides}
    for repetition in range(options.repetitions + 1):
        for name, side in sides.items():
            seconds = step(side, images, options.bf16)
            if repetition:  # the first one warms up
                taken[name].append(seconds)
    operations = {}
    for name, side in sides.items():
        with FlopCounterMode(display=False) as counter:
            step(side, images, options.bf16)
        operations[name] = counter.get_total_flops()
    print(f"{'':16}{'trains':>12}{'operations':>12}{'of full':>9}{'seconds':>10}{'of full':>9}{'of lora':>9}")
    for name, side in sides.items():
        ratios = [median(a / b for a, b in zip(taken[name], taken[base])) for base in ("full", "lora")]
        values = f"{trainable_values(side):,}"
        share = operations[name] / operations["full"]
        print(
            f"{name:16}{values:>12}{operations[name]:12.2e}{share:9.2f}{median(taken[name]):10.3f}{ratios[0]:9.2f}"
            f"{ratios[1]:9.2f}"
        )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "adapter"
        svf.save_adapter(sides["svf"], path)
        print(f"the adapter of svf: {path.stat().st_size:,} bytes")
