"""Class names of one meaning: spellings, and words that datasets use for the same thing.

A class that training has seen is not novel under another name, so that names are compared by what they mean.
"""

from __future__ import annotations

import logging
import re
import unicodedata
from collections.abc import Iterable, Sequence

log = logging.getLogger(__name__)

# Words of one thing, as its datasets spell them: Pascal VOC, COCO, CIFAR-10, ADE20K, and LVIS, whose annotations give the
# WordNet synset of each category with its words. Only words that mean nothing else are here: neither a kind of the thing
# (airliner) nor a word of two meanings (plane, bike, monitor, mouse). Blanks, hyphens, underscores and case need no entry.
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

# What is between two letters or digits and is none; the first group is that between two digits.
_BETWEEN = re.compile(r"(?<=\d)([\s_\-/.'()]+)(?=\d)|(?<=[^\W_])[\s_\-/.'()]+(?=[^\W_])")

Synonyms = Sequence[Sequence[str]]


def spelling(name: str) -> str:
    """A name without what spellings differ in: case, the encoding of accents, WordNet's ".n.01", and the blanks, hyphens,
    underscores, slashes, dots and brackets between words (between two digits they stay: "part 1-12" is not "part 11-2")."""
    plain = unicodedata.normalize("NFKC", name).casefold().strip()
    plain = re.sub(r"\.[nv]\.\d+$", "", plain)
    return _BETWEEN.sub(lambda gap: "_" if gap[1] else "", plain).strip(" _()")


def same_things(a: Iterable[str], b: Iterable[str], more: Synonyms = ()) -> list[tuple[str, str]]:
    """The pairs of a name in `a` and one in `b` that mean one thing, in the order of `b`; equal names are a pair.

    more: further words of one thing each, joined with those of SYNONYMS that they share a word with.
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
    """The pairs of names of one list that mean one thing, the earlier first."""
    place = {name: i for i, name in enumerate(names)}
    return [(a, b) for a, b in same_things(names, names, more) if place[a] < place[b]]


def warn_of_twice(names: Sequence[str], more: Synonyms = ()) -> None:
    """Warn where a dataset's own list holds one thing twice: it may be trained on by one name and novel by the other."""
    for a, b in listed_twice(names, more):
        log.warning(
            "the classes %r and %r are one thing: where one is novel and the other is trained on, the number is of a class "
            "that was seen; join them, or rename one if they are two things",
            a,
            b,
        )


def _meanings(name: str, joined: dict[str, str]) -> set[str]:
    """One of a name, or one of each word of a list such as ADE20K's "sofa, couch, lounge"."""
    words = [spelling(name), *map(spelling, re.split(r"[,;]", name))]
    return {joined.get(word, word) for word in words if word}


def _joined(groups: Iterable[Sequence[str]]) -> dict[str, str]:
    """Of each spelling in the groups the one that stands for all of its meaning."""
    found: dict[str, str] = {}
    for group in groups:
        words = [spelling(word) for word in group]
        same = {found.get(word, word) for word in words}
        first = min(same)
        found |= dict.fromkeys([*words, *(word for word, meaning in found.items() if meaning in same)], first)
    return found
