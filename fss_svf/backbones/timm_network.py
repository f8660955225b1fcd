"""Any network of timm as a backbone: features by its own forward_intermediates, names and strides by its feature_info."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from fss_svf.backbones.backbone import ROLES, Backbone, Tap
from fss_svf.backbones.renormalise import Renormalise
from fss_svf.backbones.timm_sizes import check_by_a_run, sizes_of
from fss_svf.episode import IMAGENET_MEAN, IMAGENET_STD
from fss_svf.errors import ConfigError, listing

NORM = "norm"


class TimmBackbone(Backbone):
    """A network of timm without its head, under `network`. Layers keep timm's names there: blocks.3.attn.qkv.

    taps   what timm lists in feature_info: "blocks.0" to the last block of a ViT (without prefix tokens, before the final
           norm), "stages.0" ... of a ConvNeXt, "layers.0" ... of a Swin. "norm", where there is a final LayerNorm over
           channels: the last map after it
    stages  blocks, stages or layers by these names, and what comes before and after them ("patch_embed", "stem", "norm")

    A map of it cannot be continued from, as positions are not all that its blocks pass on. Methods that mask a support's
    mid-level map before the deepest stage (the baseline, PFENet, BAM) take the deep map of the whole support here, masked.
    """

    parts = ("network",)
    # Stages of one class share code, and differ in shape. PyTorch 2.14 cannot compile a ConvNeXt's for any shape.
    compiled_dynamic = False
    # timm's networks have no common class.
    network: Any

    def __init__(self, network: nn.Module, roles: Mapping[str, str | None] | None = None) -> None:
        """network: of timm.create_model; its head is removed. roles: taps by role; None: default_roles."""
        super().__init__()
        self.network = network
        _without_chance(network)
        self._indices = {info["module"]: number for number, info in enumerate(_feature_info(network))}
        taps = {info["module"]: Tap(info["num_chs"], info["reduction"]) for info in _feature_info(network)}
        self.network.prune_intermediate_layers([len(taps) - 1], prune_norm=False, prune_head=True)
        if _has_final_norm(network):
            taps[NORM] = taps[next(reversed(taps))]
        self.taps = taps
        self._stages = _stage_names(network, list(self._indices))
        self.roles = {**default_roles(taps), **{role: tap for role, tap in (roles or {}).items() if tap is not None}}
        for role, tap in self.roles.items():
            try:
                self.tap_name(tap)
            except ConfigError as error:
                raise ConfigError(f"backbone.roles.{role}: {error}") from None
            if tap not in self._stages:
                raise ConfigError(
                    f"backbone.model: {type(network).__name__} of timm names a map {tap}, which is none of its stages "
                    f"({listing(self._stages, 4)}); choose another"
                )
        _check_order(self.roles, list(taps))
        self.tuned_stages = self._between_roles()
        config = self.network.pretrained_cfg
        self.mean, self.std = tuple(config["mean"]), tuple(config["std"])
        if (self.mean, self.std) != (IMAGENET_MEAN, IMAGENET_STD):
            self.renormalise = Renormalise(self.mean, self.std)
        self.sizes = sizes_of(network, taps)
        self._tried: set[int] = set()  # sizes that check_size has found good

    @property
    def stages(self) -> dict[str, nn.Module]:
        return {name: self.network.get_submodule(name) for name in self._stages}

    @property
    def body(self) -> nn.Module:
        return self.network

    def run(self, images: Tensor, taps: Sequence[str]) -> dict[str, Tensor]:
        if hasattr(self, "renormalise"):
            images = self.renormalise(images)
        last = next(reversed(self._indices))
        wanted = sorted({last if tap == NORM else tap for tap in taps}, key=self._indices.__getitem__)
        found = self.network.forward_intermediates(
            images, indices=[self._indices[tap] for tap in wanted], stop_early=True, intermediates_only=True
        )
        maps = dict(zip(wanted, found))
        if NORM in taps:
            maps[NORM] = self.network.norm(maps[last].permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return maps

    def check_size(self, size: int, key: str = "size", squash: bool = False) -> None:
        super().check_size(size, key, squash)
        if size not in self._tried:
            check_by_a_run(self, size, key)
            self._tried.add(size)

    @property
    def recompute_counts_twice(self) -> bool:
        return any(isinstance(module, _BatchNorm) for module in self.network.modules())

    def recompute(self) -> None:
        try:
            self.network.set_grad_checkpointing(True)
        except (AssertionError, AttributeError):  # timm's way of saying no, in a VGG
            raise ConfigError(
                f"recompute=true: {type(self.network).__name__} of timm cannot recompute its activations; set it to false"
            ) from None

    def requires_grad_(self, requires_grad: bool = True) -> TimmBackbone:
        """As nn.Module's, but what comes behind the last role stays frozen: no method's loss reaches it."""
        super().requires_grad_(requires_grad)
        for name in self._behind_roles():
            self.stages[name].requires_grad_(False)
        return self

    def _last_role(self) -> int:
        """The place of the last stage that a role reads."""
        return max(self._stages.index(tap) for tap in self.roles.values())

    def _behind_roles(self) -> tuple[str, ...]:
        return self._stages[self._last_role() + 1 :]

    def _between_roles(self) -> tuple[str, ...]:
        """The stages that make the mid and deep maps; of a network of several strides that of the low one too, as in a
        ResNet's layers 2 to 4.
        """
        first = self._stages.index(self.roles["low"])
        plain = len({tap.stride for tap in self.taps.values()}) == 1
        return self._stages[first + plain : self._last_role() + 1]


def default_roles(taps: Mapping[str, Tap]) -> dict[str, str]:
    """low, mid, deep: the last three maps of a network of several strides; of a ViT the blocks at 1/2, 3/4 and the end."""
    names = [name for name in taps if name != NORM]
    if len({taps[name].stride for name in names}) > 1:
        return dict(zip(ROLES, names[-3:]))
    n = len(names)
    return dict(zip(ROLES, (names[max(part - 1, 0)] for part in (n // 2, n * 3 // 4, n))))


def _without_chance(network: nn.Module) -> None:
    """Switch off what timm's networks draw at random in train mode: DropPath (0.1 in a Swin), DropBlock, Dropout, dropped
    patches. A backbone computes in train mode what it computes in eval mode, BatchNorm's statistics in pretrain aside.
    """
    modules: Iterable[Any] = network.modules()
    for module in modules:
        if isinstance(module, _DropoutNd):
            module.p = 0.0
        for rate in ("drop_prob", "drop_rate", "attn_drop_p"):  # of DropPath and DropBlock, DenseNet, parallel blocks
            if isinstance(getattr(module, rate, None), float):
                setattr(module, rate, 0.0)
        if type(module).__name__.startswith("PatchDropout"):
            module.prob = 0.0


def _check_order(roles: Mapping[str, str], taps: Sequence[str]) -> None:
    """Raise ConfigError unless low, mid and deep name maps in the order in which they are computed; two may be one."""
    places = [taps.index(roles[role]) for role in ROLES]
    if places != sorted(places):
        said = ", ".join(f"{role}={roles[role]}" for role in ROLES)
        raise ConfigError(
            f"backbone.roles: expected low before mid before deep, got {said}; set all three of them, from early to late"
        )


def _feature_info(network: nn.Module) -> list[dict[str, Any]]:
    info: Any = getattr(network, "feature_info", None)
    if not info or not hasattr(network, "forward_intermediates"):
        raise ConfigError(
            f"backbone.model: {type(network).__name__} of timm gives no intermediate maps; choose another"
        )
    return list(info)


def _has_final_norm(network: nn.Module) -> bool:
    from timm.layers import LayerNorm2d  # installed, as the network is its

    norm = getattr(network, NORM, None)
    return isinstance(norm, nn.LayerNorm) and not isinstance(norm, LayerNorm2d)


def _stage_names(network: nn.Module, taps: Sequence[str]) -> tuple[str, ...]:
    """Names of the network's children that hold parameters; of those that hold taps, the names of their children."""
    holders = {tap.rpartition(".")[0] for tap in taps}
    names: list[str] = []
    for name, child in network.named_children():
        inside = [f"{name}.{inner}" for inner, _ in child.named_children()] if name in holders else [name]
        names += [n for n in inside if n in taps or any(True for _ in network.get_submodule(n).parameters())]
    return tuple(names)
