"""A method on a tuned backbone: built anew, or restored from a checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from fss_svf import distributed, svf
from fss_svf.allocator import keep_freed_memory
from fss_svf.backbones.backbone import Backbone
from fss_svf.backbones.weights import LoadReport
from fss_svf.base_weights import build_on_base, completed
from fss_svf.data.synonyms import Synonyms, same_things
from fss_svf.errors import ConfigError, WeightsError, did_you_mean, listing
from fss_svf.methods.base_classes import BaseClassMethod
from fss_svf.methods.method import FewShotMethod
from fss_svf.registry import BACKBONES, METHODS, TUNINGS, Choice


def build_backbone(backbone: Choice) -> tuple[Backbone, LoadReport]:
    """The chosen backbone with its weights, everything still trainable."""
    built: tuple[Backbone, LoadReport] = BACKBONES.build(backbone)
    return built


def build_model(method: Choice, backbone: Choice, tuning: Choice) -> tuple[FewShotMethod, LoadReport]:
    """The chosen method on the chosen backbone, of which only what the tuning says requires grad."""
    net, report = build_backbone(backbone)
    TUNINGS.build(tuning, net)
    model: FewShotMethod = METHODS.build(method, net)
    return model, report


def restore_model(
    method: Choice,
    backbone: Choice,
    tuning: Choice,
    state: Mapping[str, Any],
    what: str,
    base: Mapping[str, Any] | None = None,
    weights: str | None = None,
) -> FewShotMethod:
    """The model of a checkpoint. Raises WeightsError naming the tensors that do not fit; `what` is the file.

    base     the checkpoint's entry of that name, where it holds what trained alone (base_weights.py); with `adapter`, a
             file of svf.save_adapter that holds it in place of `state` (packed.py)
    weights  backbone.weights in place of those that `base` names. Raises ConfigError where the checkpoint holds them all
    """
    if base is not None:
        model, _, _ = start_on_base(method, backbone, tuning, state, base, what, weights)
        if "adapter" in base:
            svf.load_adapter(model.backbone.body, base["adapter"])
            return model
        load_state(model, completed(model, state, base, what), what)
        return model
    if weights is not None:
        raise ConfigError(f"backbone.weights={weights}: {what} holds all its weights; leave it out")
    # On the meta device nothing is initialised or decomposed only to be overwritten.
    with torch.device("meta"):
        model, _ = build_model(without_weights(method), without_weights(backbone), tuning)
        if isinstance(model, BaseClassMethod):
            model.fit_state(state)
        svf.fit_ranks(model, state)
    load_state(model, state, what, assign=True)
    return model


def start_on_base(
    method: Choice,
    backbone: Choice,
    tuning: Choice,
    state: Mapping[str, Any],
    base: Mapping[str, Any],
    what: str,
    weights: str | None = None,
) -> tuple[FewShotMethod, LoadReport, Choice]:
    """The model of a checkpoint that holds what trained alone, before `state` is loaded; the rest is build_on_base's."""
    net, loaded, found = build_on_base(backbone, tuning, base, what, weights)
    model: FewShotMethod = METHODS.build(without_weights(method), net)
    if isinstance(model, BaseClassMethod):
        model.fit_state(state)
    return model, loaded, found


def without_weights(choice: Choice) -> Choice:
    """The same backbone, method or tuning, whose values a checkpoint will bring (a cache of factors would not have them)."""
    none = {key: None for key in ("weights", "base_learner", "cache") if hasattr(choice.options, key)}
    return replace(choice, options=replace(choice.options, **none))


def load_state(model: nn.Module, state: Mapping[str, Any], what: str, assign: bool = False) -> None:
    """load_state_dict, strict, with one line that names what does not fit. Raises WeightsError."""
    own = model.state_dict()
    problems = [f"{name} is missing" for name in own if name not in state]
    problems += [f"{name} is left over" for name in state if name not in own]
    problems += [
        f"{name} has the shape {tuple(state[name].shape)}, the model {tuple(own[name].shape)}"
        for name in own
        if name in state and own[name].shape != state[name].shape
    ]
    if problems:
        raise WeightsError(f"{what}: does not fit the model: {listing(problems, 3)}")
    model.load_state_dict(state, assign=assign)


def trainable_values(module: nn.Module) -> int:
    """How many numbers train."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


def refuse_leak(
    trained_on: Mapping[str, Any] | None,
    novel: Iterable[str],
    what: str,
    class_names: Collection[str] = (),
    synonyms: Synonyms = (),
) -> None:
    """Raise WeightsError for a checkpoint that was trained on novel classes. Arguments: of seen_classes."""
    seen = seen_classes(trained_on, novel, class_names, synonyms)
    if trained_on and seen:
        names = listing(sorted(name if theirs == name else f"{theirs} ({name} here)" for theirs, name in seen))
        fold, dataset = trained_on["fold"], trained_on["dataset"]
        mend = "evaluate it on another dataset" if fold == "all" else f"its fold={fold}"
        raise WeightsError(
            f"{what}: trained on fold {fold} of {dataset}, so it has seen {names}, novel here; use a checkpoint of this "
            f"fold, or {mend}"
        )


def seen_classes(
    trained_on: Mapping[str, Any] | None,
    novel: Iterable[str],
    class_names: Collection[str] = (),
    synonyms: Synonyms = (),
) -> list[tuple[str, str]]:
    """The classes that a checkpoint was trained on and that are to be novel now: the name there, and the name here.

    class_names: the dataset's. Of two names that it lists itself one may be novel: that is only a warning (warn_of_twice).
    """
    pairs = same_things((trained_on or {}).get("classes", ()), novel, synonyms)
    return [(theirs, name) for theirs, name in pairs if theirs == name or theirs not in class_names]


def place(model: nn.Module, device: torch.device, channels_last: bool = True) -> None:
    """Move to the device, in channels-last or else contiguous; a CPU's memory is kept for reuse. Raises ConfigError.

    A dilated ResNet is faster in channels-last on a CPU; scripts/bench_train.py says what it gains on a device.
    """
    if device.type == "cpu":
        keep_freed_memory()
    layout = torch.channels_last if channels_last else torch.contiguous_format
    try:
        model.to(device, memory_format=layout)  # type: ignore[call-overload]
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # a driver, a GPU that is taken, its memory
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigError(f"device={device}: the model cannot be moved there ({reason}); {_available()}") from error


def compile_stages(backbone: Backbone) -> None:
    """Compile the stages of a placed and tuned backbone in place, for training; names and state dicts stay.

    A forward without gradients (an evaluation, BAM's base branch) runs as it is: SVF's weights change their kind there,
    merged or disabled, and image sizes vary, so that each would be compiled for a few batches. The head is left out too: on
    a CPU, where prior_mask compares object positions alone, its shapes are others in every batch; on a GPU prior_mask takes
    all positions.
    """
    # PyTorch counts this over all stages together, since they enter by the same line; beyond it nothing would be compiled.
    stages = backbone.stages.values()
    limit = 8 * len(stages)
    torch._dynamo.config.cache_size_limit = max(limit, torch._dynamo.config.cache_size_limit)
    for stage in stages:
        stage.compile(dynamic=backbone.compiled_dynamic)
        compiled = stage._compiled_call_impl  # what a call of the stage runs; copies and pickles go without it
        assert compiled is not None
        stage._compiled_call_impl = _for_gradients(compiled, stage._call_impl)


def _for_gradients(compiled: Callable[..., Tensor], plain: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def call(*args: Any, **kwargs: Any) -> Tensor:
        return (compiled if torch.is_grad_enabled() else plain)(*args, **kwargs)

    return call


def choose_device(name: str | torch.device) -> torch.device:
    """auto (cuda where there is one, else cpu) or a torch device name; cuda is one for each process of this machine.

    A numbered one becomes PyTorch's current device. Raises ConfigError for a device that this machine does not have.
    """
    name = str(name).strip()
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except (RuntimeError, ValueError, OverflowError):
        close = {"gpu": "cuda", "nvidia": "cuda"}.get(name.lower(), name.lower())
        hint = did_you_mean(close, ("auto", "cpu", "cuda"))
        raise ConfigError(f"device={name}: expected auto, cpu, cuda or cuda:N{hint}; {_available()}") from None
    if device.type == "cpu":
        # A number means nothing for a CPU, but PyTorch takes any.
        return torch.device("cpu")
    devices = _count(device.type)
    if not devices:
        raise ConfigError(f"device={name}: no such device here that PyTorch sees; {_available()}")
    local = distributed.local_rank()
    if device.type == "cuda" and device.index is None and distributed.world() > 1:
        if local >= devices:
            raise ConfigError(
                f"device={name}: {devices} CUDA devices are too few for the processes of this machine, each takes its own; "
                f"start --nproc-per-node {devices}, or, where each process sees another one, set device=cuda:0"
            )
        device = torch.device("cuda", local)
    if (device.index or 0) >= devices:
        raise ConfigError(f"device={name}: {device.type} devices are numbered from 0 to {devices - 1}; {_available()}")
    if device.type == "cuda" and device.index is not None:
        # A loader that pins memory takes the current device: else all processes would take memory of the first GPU.
        torch.cuda.set_device(device)
    return device


def _count(kind: str) -> int:
    """How many devices of this type there are; 0 for types that no model can run on, such as meta."""
    if kind == "cuda":
        return torch.cuda.device_count() if torch.cuda.is_available() else 0
    if kind == "mps":
        return int(torch.backends.mps.is_available())
    if kind == "xpu":
        return torch.xpu.device_count() if torch.xpu.is_available() else 0
    return 0


def _available() -> str:
    """What device= may be here, for messages."""
    found = ["auto", "cpu"]
    for kind in ("cuda", "mps", "xpu"):
        found += [f"{kind}:{number}" for number in range(_count(kind))] if kind != "mps" else ["mps"] * _count("mps")
    return f"available are {', '.join(found)} ('fss-svf info' says what this PyTorch is built for)"
