"""Plain numbers that become counters and histograms."""

from __future__ import annotations

from relay.observe.tallies import OTHER, Counts, Timings


def test_every_declared_series_is_there_from_the_start() -> None:
    counts = Counts("eggs", "Eggs.", colour=("white", "brown"), size=("s",))
    counts.add("white", "s")
    counts.add("white", "s", by=2)
    assert (counts.labels, counts.series) == (("colour", "size"), {("white", "s"): 3, ("brown", "s"): 0})


def test_a_value_that_was_not_declared_makes_no_series_of_its_own() -> None:
    counts = Counts("eggs", "Eggs.", colour=("white", "brown"), size=("s",))
    timings = Timings("boiled", "How long.", (1.0,), colour=("white",))
    for colour in ("blue", "red", "s"):
        counts.add(colour, "s")
        timings.add(0.5, colour)
    counts.add("brown", "enormous")
    assert counts.series == {("white", "s"): 0, ("brown", "s"): 0, (OTHER, "s"): 3, ("brown", OTHER): 1}
    assert list(timings.series()) == [(("white",), [0, 0], 0.0), ((OTHER,), [3, 3], 1.5)]


def test_a_series_that_is_made_known_counts_nothing_and_loses_nothing() -> None:
    counts, timings = Counts("eggs", "Eggs.", colour=()), Timings("boiled", "How long.", (1.0,), colour=())
    for one in (counts, timings):
        one.known("white")
    counts.add("white")
    timings.add(0.5, "white")
    for one in (counts, timings):
        one.known("white")
        one.known("brown")
    assert counts.series == {("white",): 1, ("brown",): 0}
    assert list(timings.series()) == [(("white",), [1, 1], 0.5), (("brown",), [0, 0], 0.0)]


def test_a_bucket_holds_what_took_at_most_its_bound() -> None:
    timings = Timings("boiled", "How long.", (1.0, 2.0))
    for seconds in (0.5, 1.0, 1.5, 2.0, 99.0):
        timings.add(seconds)
    assert list(timings.series()) == [((), [2, 4, 5], 104.0)]
