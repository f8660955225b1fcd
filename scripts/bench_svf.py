"""SVF's training step and evaluation against the official form of it, and against the undecomposed network.

With model=NAME instead: a training step of a network of timm under SVF, LoRA and full tuning (bench_transformer.py).

official   every convolution of layer0 to layer4 as conv_V, a product with S, conv_U; BatchNorm and ReLU as modules;
           queries and supports apart, a loop over shots; the prior by autograd through all pairs of positions
ours       layers 2 to 4 in the execution asked for, the rest plain; convolutions joined with BatchNorm, residual and
           ReLU; one pass over queries and supports
rebuilt    ours, each weight rebuilt from its factors
frozen     ours without SVF

All have the same head and weights. Loss and the norm of S's gradient are compared first. A training step is forward,
losses and backward; ratios are medians over interleaved repetitions, memory the peak of a process of its own, above the
model. The allocator is as installed for all; with --kept all keep freed memory, as train and evaluate do.

    OMP_NUM_THREADS=2 python scripts/bench_svf.py
    OMP_NUM_THREADS=2 python scripts/bench_svf.py --kept --no-memory
    python scripts/bench_svf.py --device cuda
    OMP_NUM_THREADS=2 python scripts/bench_svf.py model=vit_small_patch14_dinov2 --size 224 --batch 4
"""

from __future__ import annotations

import argparse
import copy
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
from unittest import mock

import torch
from bench_methods import choice, make_episode, peak_resident, wait
from torch import Tensor, nn
from torchvision.models.resnet import Bottleneck

from fss_svf import svf
from fss_svf.allocator import keep_freed_memory
from fss_svf.backbones.joined import JoinedBottleneck, JoinedSequential
from fss_svf.backbones.stages import STAGES
from fss_svf.episode import Episode, Prediction
from fss_svf.methods import prior_guided
from fss_svf.methods.method import FewShotMethod
from fss_svf.model import build_backbone, choose_device
from fss_svf.registry import BACKBONES, METHODS

# ---------------------------------------------------------------------------------------------------------------------
# The official form


class OfficialConv(nn.Module):
    """conv_V, vector_S, conv_U, at a rank floored to a multiple of 4."""

    def __init__(self, conv: nn.Conv2d, trains: bool) -> None:
        super().__init__()
        u, s, vh = torch.linalg.svd(conv.weight.detach().flatten(1), full_matrices=False)
        r = len(s) // 4 * 4
        self.conv_V = nn.Conv2d(
            conv.in_channels, r, conv.kernel_size, conv.stride, conv.padding, conv.dilation, bias=False
        )
        self.conv_U = nn.Conv2d(r, conv.out_channels, 1, bias=False)
        self.conv_V.weight = nn.Parameter(vh[:r].reshape(r, *conv.weight.shape[1:]).clone(), requires_grad=False)
        self.conv_U.weight = nn.Parameter(u[:, :r, None, None].clone(), requires_grad=False)
        self.vector_S = nn.Parameter(s[:r].view(1, -1, 1, 1).clone(), requires_grad=trains)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv_U(self.vector_S * self.conv_V(x))


def official_backbone(net: nn.Module) -> nn.Module:
    net = unjoined(copy.deepcopy(net)).requires_grad_(False)
    for stage in STAGES:
        for parent in list(getattr(net, stage).modules()):
            for name, child in list(parent.named_children()):
                if type(child) is nn.Conv2d:
                    setattr(parent, name, OfficialConv(child, trains=stage in STAGES[2:]))
    return net


def unjoined(net: nn.Module) -> nn.Module:
    """The blocks as torchvision runs them, module by module."""
    for module in net.modules():
        if type(module) is JoinedBottleneck:
            module.__class__ = Bottleneck
        elif type(module) is JoinedSequential:
            module.__class__ = nn.Sequential
    return net


def official(model: FewShotMethod, episode: Episode) -> Prediction:
    """Shot by shot, the query apart, the prior over all pairs of positions."""
    shots = [
        model.encode_support(episode.support_images[:, k], episode.support_masks[:, k]) for k in range(episode.shot)
    ]
    support = {name: torch.stack([shot[name] for shot in shots], dim=1) for name in shots[0]}
    with mock.patch.object(prior_guided, "prior_mask", all_pairs_prior):
        return model.segment(model.encode_query(episode.query_image), support, episode.size)


def all_pairs_prior(query: Tensor, support: Tensor) -> Tensor:
    q = query.float().flatten(2)
    priors = []
    for s in support.float().flatten(3).unbind(1):
        similarity = s.transpose(1, 2) @ q / (s.norm(dim=1).unsqueeze(2) * q.norm(dim=1).unsqueeze(1) + 1e-7)
        best = similarity.max(1)[0]
        low, high = best.amin(-1, keepdim=True), best.amax(-1, keepdim=True)
        priors.append((best - low) / (high - low + 1e-7))
    return torch.stack(priors, dim=1).unflatten(-1, query.shape[-2:]).unsqueeze(2)


def ours(model: FewShotMethod, episode: Episode) -> Prediction:
    return model(episode)


# ---------------------------------------------------------------------------------------------------------------------
# The sides


class Side:
    """A model and how it runs; `autocast`: in bfloat16."""

    def __init__(self, model: FewShotMethod, forward: Callable, autocast: bool = False, last: bool = False) -> None:
        self.model, self.forward, self.autocast, self.last = model, forward, autocast, last

    def place(self, device: torch.device) -> None:
        self.model.to(device)
        if self.last:
            self.model.to(memory_format=torch.channels_last)

    def step(self, episode: Episode) -> tuple[float, float]:
        """One training step: its loss, and the norm of the gradient of all S."""
        model = self.model.train()
        for module in model.modules():
            if isinstance(module, nn.modules.dropout._DropoutNd):
                module.eval()  # the same work, and comparable
        model.zero_grad(set_to_none=True)
        with torch.autocast(episode.query_image.device.type, torch.bfloat16, enabled=self.autocast):
            loss = torch.stack(list(model.losses(self.forward(model, episode), episode).values())).sum()
        loss.backward()
        of_s = [p.grad.flatten() for p in model.backbone.parameters() if p.grad is not None]
        return float(loss.detach()), float(torch.cat(of_s).norm()) if of_s else 0.0

    def evaluate(self, episode: Episode) -> None:
        self.model.eval()
        with (
            torch.inference_mode(),
            torch.autocast(episode.query_image.device.type, torch.bfloat16, enabled=self.autocast),
        ):
            self.forward(self.model, episode)


def make_sides(method: str, shot: int, cuda: bool) -> dict[str, Side]:
    torch.manual_seed(0)
    net, _ = build_backbone(choice(BACKBONES, "resnet50", shot))
    net.requires_grad_(False)
    torch.manual_seed(1)
    model: FewShotMethod = METHODS.build(choice(METHODS, method, shot), net)

    def with_backbone(backbone: nn.Module) -> FewShotMethod:
        other = copy.deepcopy(model)
        other.backbone = backbone
        return other

    decomposed = svf.decompose(copy.deepcopy(net), [r"^layer[234]\."], execution="auto")
    rebuilt = copy.deepcopy(decomposed)
    for _, layer in svf.layers(rebuilt):
        layer.execution = "rebuilt"
    sides = {
        "official": Side(with_backbone(official_backbone(net)), official),
        "ours": Side(with_backbone(decomposed), ours),
        "rebuilt": Side(with_backbone(rebuilt), ours),
        "frozen": Side(with_backbone(copy.deepcopy(net)), ours),
    }
    sides["ours, bf16"] = Side(with_backbone(copy.deepcopy(decomposed)), ours, autocast=True, last=cuda)
    if cuda:
        sides["official, bf16"] = Side(with_backbone(official_backbone(net)), official, autocast=True)
    return sides


def seconds(sides: dict[str, Side], run: Callable[[Side], object], episode: Episode, repetitions: int) -> dict:
    """Seconds of every side by name, a list of interleaved repetitions; the first one warms up and is dropped."""
    taken: dict[str, list[float]] = {name: [] for name in sides}
    for repetition in range(repetitions + 1):
        for name, side in sides.items():
            wait(episode)
            began = time.perf_counter()
            run(side)
            wait(episode)
            if repetition:
                taken[name].append(time.perf_counter() - began)
    return taken


def peak_memory(side: Side, episode: Episode) -> float:
    """Megabytes of a training step above the model's own, in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "side.pt"
        torch.save((side, episode), file)
        command = [sys.executable, __file__, "--measure", str(file)]
        return float(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def measure(file: str) -> None:
    side, episode = torch.load(file, weights_only=False)
    device = episode.query_image.device
    side.place(device)
    cuda = device.type == "cuda"
    before = torch.cuda.memory_allocated() if cuda else peak_resident()
    for _ in range(2):
        side.step(episode)
    print(((torch.cuda.max_memory_allocated() if cuda else peak_resident()) - before) / 1e6)


def main() -> None:
    parser = argparse.ArgumentParser(description="SVF against its official form.")
    parser.add_argument("model", nargs="?", help="model=NAME: a network of timm in place of all that follows")
    parser.add_argument("--blocks", type=int, help="with model=: how many of the last blocks are tuned; else all")
    parser.add_argument("--bf16", action="store_true", help="with model=: by autocast")
    parser.add_argument("--methods", nargs="+", default=["baseline", "pfenet"], choices=["baseline", "pfenet"])
    parser.add_argument("--shots", nargs="+", type=int, default=[1, 5])
    parser.add_argument("--size", type=int, help="of images; 473, and with model= the network's own")
    parser.add_argument("--batch", type=int, default=2, help="episodes")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--no-memory", action="store_true")
    parser.add_argument("--kept", action="store_true", help="all keep freed memory")
    parser.add_argument("--measure", help=argparse.SUPPRESS)  # what peak_memory starts
    options = parser.parse_args()
    if options.model:
        key, _, options.model = options.model.partition("=")
        if key != "model" or not options.model:
            parser.error("expected model=NAME, such as model=vit_small_patch14_dinov2")
        import bench_transformer

        bench_transformer.compare(options)
        return
    options.size = options.size or 473
    if options.measure:
        measure(options.measure)
    else:
        compare_all(options)


def compare_all(options: argparse.Namespace) -> None:
    """Print a table for every method and number of shots."""
    if options.kept:
        keep_freed_memory()
    device = choose_device(options.device)
    cuda = device.type == "cuda"
    where = torch.cuda.get_device_name(device) if cuda else f"{torch.get_num_threads()} threads"
    print(
        f"resnet50, {options.batch} episodes of {options.size} pixels, {where}, PyTorch {torch.__version__}, medians of "
        f"{options.repetitions}"
    )
    for method in options.methods:
        for shot in options.shots:
            compare(method, shot, options, device)


def compare(method: str, shot: int, options: argparse.Namespace, device: torch.device) -> None:
    """Print the table of one method and number of shots."""
    sides = make_sides(method, shot, device.type == "cuda")
    episode = make_episode(options.batch, shot, options.size).to(device)
    for side in sides.values():
        side.place(device)
    expected = sides["official"].step(episode)
    for name, side in sides.items():
        bound = 3e-2 if side.autocast else 2e-3
        for found, value in zip(side.step(episode), expected):
            assert name == "frozen" or abs(found / value - 1) < bound, (name, found, value)
    print(f"\n{method}, {shot}-shot{'':22}seconds   ratio    peak MB   share", flush=True)
    taken = seconds(sides, lambda side: side.step(episode), episode, options.repetitions)
    base = None
    for name in sides:
        ratio = median(a / b for a, b in zip(taken["official"], taken[name]))
        line = f"train     {name:30}{median(taken[name]):7.2f}{ratio:8.2f}"
        if not options.no_memory:
            peak = peak_memory(sides[name], episode)
            base = base or peak
            line += f"{peak:11.0f}{peak / base:8.2f}"
        print(line, flush=True)
    for side in sides.values():
        svf.merge(side.model)
    one = replace(episode, query_image=episode.query_image[:1], support_images=episode.support_images[:1],
                  support_masks=episode.support_masks[:1], query_mask=episode.query_mask[:1])  # fmt: skip
    merged = {name: sides[name] for name in ("frozen", "ours")}
    taken = seconds(merged, lambda side: side.evaluate(one), one, 2 * options.repetitions + 1)
    for name in merged:
        ratio = median(a / b for a, b in zip(taken[name], taken["frozen"]))
        print(f"evaluate  {name:30}{median(taken[name]):7.2f}{ratio:8.3f} of frozen's seconds, one episode", flush=True)


if __name__ == "__main__":
    main()
