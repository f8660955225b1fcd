"""Class names with the same meaning: spellings, and words that datasets use for the same thing.

A class seen in training is not novel under another name, so names are compared by meaning.
"""

from __future__ import annotations

import logging
import re
import unicodedata
from collections.abc import Iterable, Sequence

log = logging.getLogger(__name__)

# Words for the same thing in Pascal VOC, COCO, CIFAR-10, ADE20K, and LVIS, whose annotations list the WordNet synset of
# each category. Only words with a single meaning are here: no subtypes (airliner) and no ambiguous words (plane, bike,
# monitor, mouse). Blanks, hyphens, underscores and case need no entry.
SYNONYMS = (
    ("aeroplane", "airplane"),  # VOC; COCO, airplane.n.01
    ("motorbike", "motorcycle"),  # VOC; COCO, motorcycle.n.01
    ("car", "automobile", "motorcar", "car_(automobile)"),  # VOC, COCO; CIFAR-10; car.n.01; LVIS
    ("bus", "autobus", "bus_(vehicle)"),  # VOC, COCO; bus.n.01; LVIS
    ("truck", "lorry"),  # COCO, CIFAR-10; British
    ("train", "railroad train", "train_(railroad_vehicle)"),  # VOC, COCO; train.n.01; LVIS
    ("traffic light", "stoplight", "traffic signal"),  # COCO; traffic_light.n.01
    ("fire hydrant", "fireplug", "hydrant"),  # COCO; fireplug.n.01
    ("sofa", "couch"),  # VOC; COCO, sofa.n.01
    ("potted plant", "pot plant"),  # VOC, COCO; British
    # VOC, whose paper writes tv/monitor; COCO, television_receiver.n.01
    ("tvmonitor", "tv/monitor", "tv", "television", "television set", "television receiver"),
    ("cell phone", "cellular phone", "cellular telephone", "mobile phone"),  # COCO; cellular_telephone.n.01
    ("remote", "remote control"),  # COCO; remote_control.n.01
    ("refrigerator", "fridge"),  # COCO
    ("microwave", "microwave oven"),  # COCO; microwave.n.02
    ("hair drier", "hair dryer", "blow drier", "blow dryer", "hand blower"),  # COCO; hand_blower.n.01
    ("donut", "doughnut"),  # COCO; doughnut.n.02
    ("orange", "orange_(fruit)"),  # COCO; LVIS
    ("backpack", "knapsack", "rucksack"),  # COCO; backpack.n.01
    ("tennis racket", "tennis racquet"),  # COCO
    ("skis", "ski"),  # COCO; ski.n.01
    ("laptop", "laptop computer"),  # COCO; laptop.n.01
    ("necktie", "tie"),  # necktie.n.01; COCO
)  # fmt: skip

# Characters between two letters or digits that are neither; the first group is between two digits.
_BETWEEN = re.compile(r"(?<=\d)([\s_\-/.'()]+)(?=\d)|(?<=[^\W_])[\s_\-/.'()]+(?=[^\W_])")

Synonyms = Sequence[Sequence[str]]


def spelling(name: str) -> str:
    """A name without differences of spelling: case, the encoding of accents, WordNet's ".n.01", and the blanks, hyphens,
    underscores, slashes, dots and brackets between words. Between two digits they stay: "part 1-12" is not "part 11-2"."""
    plain = unicodedata.normalize("NFKC", name).casefold().strip()
    plain = re.sub(r"\.[nv]\.\d+$", "", plain)
    return _BETWEEN.sub(lambda gap: "_" if gap[1] else "", plain).strip(" _()")


def same_things(a: Iterable[str], b: Iterable[str], more: Synonyms = ()) -> list[tuple[str, str]]:
    """Pairs of a name in `a` and one in `b` with the same meaning, in the order of `b`; equal names are a pair.

    more: further groups of words, joined with the groups of SYNONYMS that share a word with them.
    """
    joined = _joined([*SYNONYMS, *more])
    by_meaning: dict[str, list[str]] = {}
    for name in dict.fromkeys(a):
        for meaning in _meanings(name, joined):
            by_meaning.setdefault(meaning, []).append(name)
    pairs = (
        (other, name) for name in b for meaning in _meanings(name, joined) for other in by_meaning.get(meaning, ())
    )
    return list(dict.fromkeys(pairs))


def listed_twice(names: Sequence[str], more: Synonyms = ()) -> list[tuple[str, str]]:
    """Pairs of names in one list with the same meaning, the earlier name first."""
    position = {name: i for i, name in enumerate(names)}
    return [(a, b) for a, b in same_things(names, names, more) if position[a] < position[b]]


def other_names(names: Iterable[str], more: Synonyms = ()) -> dict[str, list[str]]:
    """The names in the table of synonyms, and in `more`, that have the meaning of each of `names`; without those that have
    none."""
    words = list(dict.fromkeys(word for group in (*SYNONYMS, *more) for word in group))
    found: dict[str, list[str]] = {}
    for name, word in same_things(names, words, more):
        if spelling(name) != spelling(word):
            found.setdefault(name, []).append(word)
    return found


def warn_of_twice(names: Sequence[str], more: Synonyms = ()) -> None:
    """Warn of two names with the same meaning in a dataset: one may be trained on and the other novel."""
    for a, b in listed_twice(names, more):
        log.warning(
            "the classes %r and %r have the same meaning: if one is novel and the other is trained on, the result is for a "
            "class seen in training; join them, or rename one if they are different things",
            a,
            b,
        )


def _meanings(name: str, joined: dict[str, str]) -> set[str]:
    """The meaning of a name, or of each word of a list such as ADE20K's "sofa, couch, lounge"."""
    words = [spelling(name), *map(spelling, re.split(r"[,;]", name))]
    return {joined.get(word, word) for word in words if word}


def _joined(groups: Iterable[Sequence[str]]) -> dict[str, str]:
    """For each spelling in the groups the one that represents its meaning."""
    meaning_of: dict[str, str] = {}
    for group in groups:
        words = [spelling(word) for word in group]
        same = {meaning_of.get(word, word) for word in words}
        first = min(same)
        joined = [*words, *(word for word, meaning in meaning_of.items() if meaning in same)]
        meaning_of |= dict.fromkeys(joined, first)
    return meaning_of
