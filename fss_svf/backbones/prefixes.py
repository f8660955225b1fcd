"""Finds the prefix of a backbone's tensors in a file: 'state_dict.module.encoder_q.', 'teacher.module.backbone.', ''.

A file is read as one flat list of dotted names. A prefix fits when all required names exist under it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor

from fss_svf.errors import WeightsError, listing

# Parts of names that torch.compile, FSDP and activation checkpointing insert.
_WRAPPERS = re.compile(r"(^|\.)(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)(?=\.)")
# If several networks fit, those with such a word in their prefix are not used: MoCo's key encoder, MoCo v3's momentum
# encoder, DINO's student, BYOL's target, an average of weights, and the stages of BAM's base branch.
_SECONDARY = (
    re.compile(r"(^|[._])(encoder_k|key_encoder|momentum_encoder|momentum_backbone)\."),
    re.compile(r"(^|[._])student\b"),
    re.compile(r"(^|[._])target(_net|_network|_encoder|_backbone)?\."),
    re.compile(r"(^|[._])(ema|ema_model|model_ema|state_dict_ema|ema_state_dict)\."),
    re.compile(r"(^|\.)base\.stages\."),
)


def unwrapped(name: str) -> str:
    """The name without the parts that wrappers inserted."""
    return _WRAPPERS.sub("", name).lstrip(".")


def find(
    tensors: Mapping[str, Tensor], wanted: Iterable[str], rename: Callable[[str], str], what: str
) -> tuple[str, list[str]]:
    """The prefix under which the `wanted` names are, and further prefixes that fit.

    rename converts a name of the file. If no prefix has all names, the one with most of them is returned. Raises
    WeightsError if networks with different weights fit.
    """
    wanted = set(wanted)
    counts: Counter[str] = Counter()
    for name in tensors:
        starts = [0, *(match.end() for match in re.finditer(r"\.", name))]
        counts.update(name[:start] for start in starts if rename(name[start:]) in wanted)
    if not counts:
        return "", []
    complete = [prefix for prefix, count in counts.items() if count >= len(wanted)]
    if not complete:
        # Probably the right one with a few names missing; the caller's message lists them.
        return max(counts, key=lambda prefix: counts[prefix]), []
    fitting = complete
    for pattern in _SECONDARY:
        fitting = [prefix for prefix in fitting if not pattern.search(prefix)] or fitting
    first, *more = fitting
    for other in more:
        others = _under(tensors, other, rename)
        if any(
            not torch.equal(value, others[key])
            for key, value in _under(tensors, first, rename).items()
            if key in wanted
        ):
            raise WeightsError(
                f"{what}: {len(fitting)} networks in it fit, under {listing(map(repr, fitting))}; save the one you want in "
                "a separate file"
            )
    return first, [prefix for prefix in complete if prefix != first]


def wrappers(tensors: Mapping[str, Tensor], most: int = 4) -> list[str]:
    """The prefixes that may wrap a network of unknown names, from none on: '', 'model.', 'model.module.'.

    Each is the longer one's start, with the part that most names have next. Of two networks alike that of _SECONDARY is not
    followed; of two alike otherwise neither is.
    """
    found = [""]
    while len(found) <= most:
        before = found[-1]
        inside: dict[str, set[str]] = {}
        for name in tensors:
            part, dot, rest = name[len(before) :].partition(".")
            if name.startswith(before) and dot:
                inside.setdefault(f"{before}{part}.", set()).add(rest)
        for pattern in _SECONDARY:
            inside = {prefix: rest for prefix, rest in inside.items() if not pattern.search(prefix)} or inside
        if not inside:
            break
        largest = max(inside, key=lambda prefix: len(inside[prefix]))
        if list(inside.values()).count(inside[largest]) > 1 and _has_layers(inside[largest]):
            break
        found.append(largest)
    return found


def _has_layers(names: set[str]) -> bool:
    """Whether these are the names of a network and not of one of its equal blocks."""
    return sum(name.count(".") > 1 for name in names) > len(names) // 2


def _under(tensors: Mapping[str, Tensor], prefix: str, rename: Callable[[str], str]) -> dict[str, Tensor]:
    return {rename(name[len(prefix) :]): value for name, value in tensors.items() if name.startswith(prefix)}
