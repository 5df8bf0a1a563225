"""Ages of lists, from the topics alone."""

from __future__ import annotations

import math

from benchmarks.freshness import Span, freshness
from stream.testing_worker import NOW, MemoryWorld, item

SPANS = [
    Span(name="before", start=NOW, end=NOW + 100),
    Span(name="during", start=NOW + 100, end=NOW + 200),
    Span(name="after", start=NOW + 200, end=NOW + 300),
]


def test_ages_are_told_by_the_span_of_the_event() -> None:
    """A list that waited counts where its event came; lists without an event do not count."""
    world = MemoryWorld([item("a", "Alien"), item("b", "Brazil")], partitions=2)
    world.run()
    for wait, start in ((1.0, 10.0), (5.0, 110.0)):
        world.clock = NOW + start
        world.click("ada", "a" if wait == 1.0 else "b", after=0.0)
        world.clock += wait
        world.run()
    found = freshness(world.records("events"), world.records("recommendations"), SPANS)
    assert [(f.span.name, f.lists) for f in found] == [("before", 1), ("during", 1), ("after", 0)]
    assert [f.p99 for f in found[:2]] == [1.0, 5.0]
    assert math.isnan(found[2].p99)
