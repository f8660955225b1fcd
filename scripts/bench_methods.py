"""One training step and one evaluation batch of each method: our forward, all shots at once, against a loop over shots.

batched  model(episode): one pass of the backbone over queries and supports
loop     encode_support once a support image, encode_query once a query, their rows concatenated, then segment

Both give the same result, which is asserted first: the logits, and in training (dropout asleep) the loss. A step is
forward, losses and backward. An evaluation is a forward in inference mode with SVF merged. In training the loop rebuilds
SVF's weights in every call of the backbone: that is a part of what it costs.

    OMP_NUM_THREADS=2 python scripts/bench_methods.py
    python scripts/bench_methods.py --device cuda --size 473 --batch 4
"""

from __future__ import annotations

import argparse
import copy
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from torch import Tensor, nn
from torch.nn import functional as F

from fss_svf import svf
from fss_svf.conf_files import conf_dir
from fss_svf.config import from_mapping
from fss_svf.episode import Episode, Features, Prediction
from fss_svf.methods.base_classes import BaseClassMethod
from fss_svf.methods.method import FewShotMethod, flat_supports, regroup
from fss_svf.model import build_backbone, choose_device, place, trainable_values
from fss_svf.registry import BACKBONES, METHODS, TUNINGS, Choice, Registry

NAMES = ("baseline", "pfenet", "bam", "panet")
PHASES = ("train", "evaluate")


# ---------------------------------------------------------------------------------------------------------------------
# The two sides


def batched(model: FewShotMethod, episode: Episode) -> Prediction:
    return model(episode)


def looped(model: FewShotMethod, episode: Episode) -> Prediction:
    """The same prediction, image by image."""
    images, masks = flat_supports(episode)
    support = rows([model.encode_support(*pair) for pair in zip(images.split(1), masks.split(1))])
    query = rows([model.encode_query(image) for image in episode.query_image.split(1)])
    if model.training and episode.base_class is not None:
        query["base_class"] = episode.base_class  # as BAM's forward adds it
    return model.segment(query, regroup(support, episode.shot, episode.way), episode.size)


def rows(of_images: list[Features]) -> Features:
    """Features of single images as those of all."""
    return {name: torch.cat([features[name] for features in of_images]) for name in of_images[0]}


Side = Callable[[FewShotMethod, Episode], Prediction]
SIDES: dict[str, Side] = {"loop": looped, "batched": batched}


def run(model: FewShotMethod, episode: Episode, side: Side) -> tuple[Tensor, Tensor | None]:
    """A training step or an evaluation, by the model's mode: the logits, and in training the loss."""
    if not model.training:
        with torch.inference_mode():
            return side(model, episode).logits, None
    model.zero_grad(set_to_none=True)
    prediction = side(model, episode)
    loss = torch.stack(list(model.losses(prediction, episode).values())).sum()
    loss.backward()
    return prediction.logits.detach(), loss.detach()


@contextmanager
def in_phase(model: FewShotMethod, phase: str) -> Iterator[None]:
    """Within the context the model is ready to train, or to be evaluated with SVF merged."""
    model.train(phase == "train")
    if phase == "train":
        yield
        return
    svf.merge(model)
    try:
        yield
    finally:
        svf.unmerge(model)


# ---------------------------------------------------------------------------------------------------------------------
# Models and episodes


def choice(registry: Registry, name: str, shot: int) -> Choice:
    """The options of conf/KIND/NAME.yaml, in a run of so many shots."""
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        config = compose(overrides=[f"+{registry.kind}={name}", f"+shot={shot}"])
    values = OmegaConf.to_container(config, resolve=True)[registry.kind]
    values.pop("name")
    return Choice(name, from_mapping(registry.entry(name).options, values, registry.kind))


def make_episode(batch: int, shot: int, size: int, base_classes: int = 0) -> Episode:
    """Smooth random pictures with a rectangle of the class in each; base classes are blocks."""
    g = torch.Generator().manual_seed(0)
    coarse = torch.rand(batch * (shot + 1), 3, 12, 12, generator=g) * 255
    images = F.interpolate(coarse, size=(size, size), mode="bilinear").to(torch.uint8)
    masks = torch.zeros(batch * (shot + 1), size, size, dtype=torch.uint8)
    for mask in masks:
        top, left = torch.randint(0, size // 2, (2,), generator=g).tolist()
        mask[top : top + size // 2, left : left + size // 3] = 1
    base = {}
    if base_classes:
        blocks = torch.randint(0, base_classes + 1, (batch, 1, 4, 4), generator=g).float()
        base["base_mask"] = F.interpolate(blocks, size=(size, size))[:, 0].to(torch.uint8)
        base["base_class"] = torch.randint(1, base_classes + 1, (batch,), generator=g)
    return Episode(
        images[:batch],
        images[batch:].unflatten(0, (batch, shot)),
        masks[batch:].unflatten(0, (batch, shot)),
        masks[:batch],
        **base,
    ).normalized()


# ---------------------------------------------------------------------------------------------------------------------
# Measuring


def assert_same(model: FewShotMethod, episode: Episode) -> None:
    """Raise AssertionError where the two sides differ. The model must be in its phase; in training dropout sleeps."""
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.eval()
    tf32 = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False  # three digits are too few to compare
    (theirs, their_loss), (ours, our_loss) = (run(model, episode, side) for side in SIDES.values())
    torch.backends.cudnn.allow_tf32 = tf32
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4 * float(theirs.abs().max()))
    if our_loss is not None:
        torch.testing.assert_close(our_loss, their_loss, rtol=1e-3, atol=0)
    model.train(model.training)


def seconds(model: FewShotMethod, episode: Episode, repetitions: int) -> tuple[float, float, float]:
    """Of the loop, of the batch, and their ratio; medians of interleaved repetitions."""
    taken: list[tuple[float, ...]] = []
    for repetition in range(repetitions + 1):
        sides = []
        for side in SIDES.values():
            wait(episode)
            began = time.perf_counter()
            run(model, episode, side)
            wait(episode)
            sides.append(time.perf_counter() - began)
        if repetition:  # the first one warms up
            taken.append(tuple(sides))
    return median(t[0] for t in taken), median(t[1] for t in taken), median(t[0] / t[1] for t in taken)


def wait(episode: Episode) -> None:
    if episode.query_image.is_cuda:
        torch.cuda.synchronize()


def peak_memory(file: Path, phase: str, side: str) -> float:
    """Megabytes, in a process of its own."""
    command = [sys.executable, __file__, "--measure", str(file), phase, side]
    return float(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def measure_memory(file: str, phase: str, side: str) -> None:
    """In that process: print the peak over two repetitions, the model's own tensors included."""
    before = peak_resident()
    content = torch.load(file, weights_only=False)
    model, device = content["model"], content["device"]
    place(model, device)
    episode = content["episode"].to(device)
    with in_phase(model, phase):
        for _ in range(2):
            run(model, episode, SIDES[side])
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else peak_resident() - before
    print(peak / 1e6)


def peak_resident() -> int:
    """Bytes. Linux's VmHWM, since ru_maxrss of a new process begins at its parent's."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description="Batched shots against a loop over shots.")
    parser.add_argument("--methods", nargs="+", choices=NAMES, default=NAMES)
    parser.add_argument("--backbone", choices=BACKBONES.names(), default="resnet50", help="with random weights")
    parser.add_argument("--tuning", choices=TUNINGS.names(), default="svf")
    parser.add_argument("--shot", type=int, default=5)
    parser.add_argument("--size", type=int, default=145, help="of the images; small enough for a CPU")
    parser.add_argument("--batch", type=int, default=2, help="episodes")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)  # what peak_memory starts
    options = parser.parse_args()
    if options.measure:
        measure_memory(*options.measure)
    else:
        compare(options)


def compare(options: argparse.Namespace) -> None:
    """Print the table."""
    device = choose_device(options.device)
    threads = torch.get_num_threads()
    torch.manual_seed(0)
    torch.set_num_threads(1)  # for the SVD, see svf.decompose
    # Decomposed once for all methods.
    net, _ = build_backbone(choice(BACKBONES, options.backbone, options.shot))
    TUNINGS.build(choice(TUNINGS, options.tuning, options.shot), net)
    torch.set_num_threads(threads)
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{threads} threads"
    print(
        f"{options.backbone}, tuning {options.tuning}, {options.shot}-shot, {options.batch} episodes of {options.size} "
        f"pixels, {where}, medians of {options.repetitions}, PyTorch {torch.__version__}\n"
        f"memory: peak of a process {'on the device' if device.type == 'cuda' else 'above its imports'}, model included"
    )
    print(f"{'':20}{'loop':>13}{'batched':>13}{'ratio':>8}{'loop':>13}{'batched':>13}{'ratio':>8}")
    for name in options.methods:
        model: FewShotMethod = METHODS.build(choice(METHODS, name, options.shot), copy.deepcopy(net))
        base_classes = model.base.classes if isinstance(model, BaseClassMethod) else 0
        episode = make_episode(options.batch, options.shot, options.size, base_classes)
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "model.pt"
            # Saved whole, since in building a model the SVD alone takes more memory than a small evaluation.
            torch.save({"model": model, "episode": episode, "device": device}, file)
            place(model, device)
            episode = episode.to(device)
            for phase in PHASES:
                if phase == "train" and not trainable_values(model):
                    print(f"{name:10}{phase:10}nothing trains with tuning {options.tuning}")
                    continue
                with in_phase(model, phase):
                    assert_same(model, episode)
                    slow, fast, ratio = seconds(model, episode, options.repetitions)
                large, small = (peak_memory(file, phase, side) for side in SIDES)
                print(
                    f"{name:10}{phase:10}{slow * 1000:10.1f} ms{fast * 1000:10.1f} ms{ratio:8.2f}"
                    f"{large:10.0f} MB{small:10.0f} MB{large / small:8.2f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
