"""Under which prefix of a file a backbone's tensors stand: 'state_dict.module.encoder_q.', 'teacher.module.backbone.', ''.

A file is read as one list of dotted names, of whatever nesting, and every prefix under which all wanted names stand fits.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor

from fss_svf.errors import WeightsError, listing

# What torch.compile, FSDP and activation checkpointing put inside names.
_WRAPPERS = re.compile(r"(^|\.)(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)(?=\.)")
# Where two networks fit, one that has such a word in its prefix gives way: MoCo's key encoder, MoCo v3's momentum encoder,
# DINO's student, BYOL's target, an average of weights, and the stages that BAM's base branch has beside its backbone.
_GIVES_WAY = (
    re.compile(r"(^|[._])(encoder_k|key_encoder|momentum_encoder|momentum_backbone)\."),
    re.compile(r"(^|[._])student\b"),
    re.compile(r"(^|[._])target(_net|_network|_encoder|_backbone)?\."),
    re.compile(r"(^|[._])(ema|ema_model|model_ema|state_dict_ema|ema_state_dict)\."),
    re.compile(r"(^|\.)base\.stages\."),
)


def unwrapped(name: str) -> str:
    return _WRAPPERS.sub("", name).lstrip(".")


def find(
    tensors: Mapping[str, Tensor], wanted: Iterable[str], rename: Callable[[str], str], what: str
) -> tuple[str, list[str]]:
    """The prefix of the wanted names, which `rename` makes of a file's names, and the others that would have fitted.

    Where none holds all of them: the one that holds most. Raises WeightsError where different networks fit.
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
        # As long as few names are missing it is the right one, and the message names them.
        return max(counts, key=lambda prefix: counts[prefix]), []
    fitting = complete
    for pattern in _GIVES_WAY:
        fitting = [prefix for prefix in fitting if not pattern.search(prefix)] or fitting
    first, *more = fitting
    for other in more:
        theirs = _under(tensors, other, rename)
        if any(
            not torch.equal(value, theirs[key])
            for key, value in _under(tensors, first, rename).items()
            if key in wanted
        ):
            raise WeightsError(
                f"{what}: {len(fitting)} networks in it fit, under {listing(map(repr, fitting))}; save the one that you "
                "want as a file of its own"
            )
    return first, [prefix for prefix in complete if prefix != first]


def _under(tensors: Mapping[str, Tensor], prefix: str, rename: Callable[[str], str]) -> dict[str, Tensor]:
    return {rename(name[len(prefix) :]): value for name, value in tensors.items() if name.startswith(prefix)}
