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
    """Of two lists of EpisodeCount in float32."""
    counted = [count.counted for count in theirs]
    assert [count.counted for count in ours] == counted
    assert [count.classes for count in ours] == [count.classes for count in theirs]
    found = turned([count.foreground for count in ours], [count.foreground for count in theirs])
    assert found <= allowed(sum(counted)), f"{found} of {sum(counted)} pixels"
