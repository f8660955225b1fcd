"""How far two float32 computations of one prediction may lie apart, in pixels.

Another machine or release adds in another order, and a pixel whose two logits agree in all but their last digits turns.
That is one of some 100,000. A fault in what is computed (a resize, a border, a class) turns hundreds, which `allowed`
does not let pass. Two computations in float64 agree in every pixel, as long as no test puts one exactly on the edge.
"""


def allowed(counted):
    """Of so many counted pixels how many may turn: two (for the few of a small test), and one more in each 100,000."""
    return 2 + counted // 100_000


def turned(ours, theirs):
    """The least number of pixels that differ between two lists of pairs (intersection, union) of the same episodes.

    An object's pixel that turns moves the intersection by one, another pixel the union.
    """
    return sum(abs(a - c) + abs(b - d) for (a, b), (c, d) in zip(ours, theirs, strict=True))


def assert_hardly_any_turned(ours, theirs):
    """Of two arrays of an EpisodeTable's counts (E, 2 + C, 2) in float32."""
    counted = [counts[:, 0, 0] + counts[:, 1, 1] for counts in (ours, theirs)]
    assert (counted[0] == counted[1]).all()
    assert ((ours[..., 1] > 0) == (theirs[..., 1] > 0)).all()
    found = turned(ours[:, 1].tolist(), theirs[:, 1].tolist())
    assert found <= allowed(counted[0].sum()), f"{found} of {counted[0].sum()} pixels"
