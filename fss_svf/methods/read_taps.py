"""For methods that read taps beside the roles: names of taps, and the freezing of what runs behind the last one read."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from fss_svf.backbones.backbone import Backbone
from fss_svf.backbones.stages import SUM
from fss_svf.errors import ConfigError

log = logging.getLogger(__name__)


def require_tap(backbone: Backbone, name: str, key: str) -> str:
    """The tap of a role or tap. Raises ConfigError, with `key` of the config before it, for a name that is none."""
    try:
        return backbone.tap_name(name)
    except ConfigError as error:
        raise ConfigError(f"{key}: {error}") from None


def sums_of(backbone: Backbone, stage: str) -> list[str]:
    """The taps of a stage before its layers' last ReLUs ("layer3.0:sum", ...), in order; none of most networks of timm."""
    return [tap for tap in backbone.taps if tap.startswith(f"{stage}.") and tap.endswith(SUM)]


def warn_if_dilated(method: str, backbone: Backbone, strides: Sequence[int]) -> None:
    """A line for a dilated network, whose levels are all of one size, where the paper's model has a pyramid."""
    if len(set(strides)) == 1 and backbone.continues:
        log.warning(
            "method=%s: its levels are all at 1/%d of the image; the paper's are at 1/8, 1/16 and 1/32 (a ResNet: "
            "backbone.dilation=none, EfficientNet-Lite0: backbone.output_stride=32)",
            method,
            strides[0],
        )


def freeze_unread(backbone: Backbone, taps: Sequence[str]) -> None:
    """Freeze what runs behind the last of `taps`: no loss reaches it, so that a tuning must not train it."""
    stages = backbone.stages
    order = list(stages)
    # Stages of a name inside another's do not exist; "layer3.5:sum" is of layer3, "blocks.8" of blocks.8.
    places = {tap: [i for i, name in enumerate(order) if f"{tap}.".startswith(f"{name}.")] for tap in taps}
    if not all(places.values()):
        return
    last = max(place[0] for place in places.values())
    for name in order[last + 1 :]:
        stages[name].requires_grad_(False)
    inside = [tap.removesuffix(SUM) for tap in taps if places[tap][0] == last]
    if order[last] in inside:
        return
    children = dict(stages[order[last]].named_children())
    read = [list(children).index(tap.removeprefix(f"{order[last]}.")) for tap in inside]
    for child in list(children.values())[max(read) + 1 :]:
        child.requires_grad_(False)
