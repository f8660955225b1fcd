"""How many singular values of a layer are kept: all, a number, a fraction, a share of the energy, or one of these a layer.

None             all
8                the 8 largest; more than the matrix has is an error
0.25             a quarter of them, at least 1; 1.0 is all (and 1, a whole number, is one singular value)
Energy(0.9)      as few as hold 0.9 of the sum of their squares; in YAML "energy:0.9"
{"layer4": 0.5}  regular expressions, searched in the layer's name; the first that matches says, and no match is all
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Energy:
    """The smallest rank whose squared singular values hold `share`, in (0, 1], of their sum (over all groups)."""

    share: float

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ValueError(f"expected an energy above 0 and up to 1, got {self.share}")


Rank = int | float | str | Energy | None
Ranks = Rank | Mapping[str, Rank]


def parse_ranks(rank: Ranks) -> Ranks:
    """`rank` with its strings read. Raises ValueError for what is no rank or no regular expression."""
    if not isinstance(rank, Mapping):
        return _parse(rank)
    for pattern in rank:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"{pattern!r} is not a regular expression: {error}") from None
    return {pattern: _parse(value) for pattern, value in rank.items()}


def _parse(rank: object) -> Rank:
    if rank is None or isinstance(rank, Energy):
        return rank
    if isinstance(rank, int) and not isinstance(rank, bool) and rank >= 1:
        return rank
    if isinstance(rank, float) and 0 < rank <= 1:
        return rank
    if isinstance(rank, str) and re.fullmatch(r"energy:\d*\.?\d+", rank):
        return Energy(float(rank.removeprefix("energy:")))
    raise ValueError(
        "expected null (full), a whole number >= 1, a fraction above 0 and up to 1.0, "
        f'"energy:SHARE", or a mapping of patterns to these, got {rank!r}'
    )


def ranks_of(names: Iterable[str], ranks: Ranks) -> dict[str, Rank]:
    """The rank of each layer. Raises ValueError for a pattern that is the first match of no layer."""
    names = list(names)
    if not isinstance(ranks, Mapping):
        return dict.fromkeys(names, ranks)
    first = {name: next((p for p in ranks if re.search(p, name)), None) for name in names}
    for pattern in ranks:
        if pattern not in first.values():
            raise ValueError(f"pattern {pattern!r} is the first match of none of the {len(names)} layers")
    return {name: None if pattern is None else ranks[pattern] for name, pattern in first.items()}


def check_rank(rank: Rank, rows: int, columns: int) -> None:
    """Raise ValueError for a whole number above what a rows x columns matrix has."""
    if isinstance(rank, int) and rank > min(rows, columns):
        raise ValueError(
            f"rank {rank} is not between 1 and {min(rows, columns)}, the rank of a {(rows, columns)} matrix"
        )


def count(rank: Rank, s: Tensor, multiple: int) -> int:
    """How many of the singular values s, (groups, full) in descending order, `rank` keeps: from 1 to full.

    Floored to a multiple of `multiple`, unless that leaves none. Of tensors without values (meta) an Energy keeps all.
    """
    full = s.shape[1]
    if rank is None or (isinstance(rank, Energy) and s.is_meta):
        r = full
    elif isinstance(rank, Energy):
        held = s.double().square().sum(0).cumsum(0)
        # The last is the sum itself, and rounding must not ask for more than it.
        r = min(int(torch.searchsorted(held, rank.share * held[-1])) + 1, full)
    elif isinstance(rank, float):
        r = max(int(rank * full + 1e-9), 1)  # 0.29 of 100 are 29
    else:
        assert isinstance(rank, int)
        r = rank
    return r // multiple * multiple or r
