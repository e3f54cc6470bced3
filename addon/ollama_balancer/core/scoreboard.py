"""The lowest rank among any number of members, in constant time.

Members with the same rank share a bucket, kept in the order of their arrival; the ranks that have a bucket are in a
heap. The heap is touched only when a rank appears that has no bucket yet or the lowest bucket has run empty, so that
taking and giving back (a member goes up and down between the same two ranks) moves a member between two ordered
dictionaries and nothing else. Buckets that stay empty are swept when they outnumber the members.
"""

from collections import OrderedDict
from collections.abc import Callable, Collection, Hashable, Iterator
from heapq import heapify, heappop, heappush


class Scoreboard[T: Hashable]:
    """Members with an integer rank each; `lowest()` rotates among those that share the lowest one.

    `rank` gives a member's rank now, or None for one that is not to be on the board.
    """

    __slots__ = ("_buckets", "_heap", "_places", "_rank")

    def __init__(self, rank: Callable[[T], int | None]) -> None:
        self._rank = rank
        self._places: dict[T, OrderedDict[T, None]] = {}
        self._buckets: dict[int, OrderedDict[T, None]] = {}
        self._heap: list[int] = []

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, member: object) -> bool:
        return member in self._places

    def __repr__(self) -> str:
        return f"Scoreboard({len(self._places)} members, {len(self._buckets)} buckets)"

    def update(self, member: T) -> bool:
        """Put a member where its rank is now; it goes behind those who have that rank, unless it is one of them.

        False: its rank is None, and it is not on the board.
        """
        rank = self._rank(member)
        if rank is None:
            self.remove(member)
            return False
        old = self._places.get(member)
        new = self._buckets.get(rank)
        if old is not None:
            if old is new:
                return True
            del old[member]
        if new is None:
            if len(self._buckets) >= 2 * len(self._places) + 64:
                self._sweep()
            new = self._buckets[rank] = OrderedDict()
            heappush(self._heap, rank)
        new[member] = None
        self._places[member] = new
        return True

    def remove(self, member: T) -> None:
        """Take a member off the board; no error if it is not there."""
        bucket = self._places.pop(member, None)
        if bucket is not None:
            del bucket[member]

    def lowest(self, exclude: Collection[T] = ()) -> T | None:
        """The member that has been longest at the lowest rank, sent to the end of its bucket; None if there is none.

        `exclude` is for a few members: each excluded one at the bottom of the board costs a step.
        """
        heap, buckets = self._heap, self._buckets
        while heap:
            bucket = buckets[heap[0]]
            if bucket:
                member = next(iter(bucket))
                if member in exclude:
                    return self._lowest_but(exclude)
                bucket.move_to_end(member)
                return member
            del buckets[heappop(heap)]
        return None

    def _lowest_but(self, exclude: Collection[T]) -> T | None:
        for bucket in self._ascending():
            for member in bucket:
                if member not in exclude:
                    bucket.move_to_end(member)
                    return member
        return None

    def _ascending(self) -> Iterator[OrderedDict[T, None]]:
        """The buckets from the lowest rank on. Reads a copy of the heap lazily: it costs as much as is consumed."""
        heap = self._heap.copy()
        while heap:
            yield self._buckets[heappop(heap)]

    def _sweep(self) -> None:
        self._buckets = {rank: bucket for rank, bucket in self._buckets.items() if bucket}
        self._heap = list(self._buckets)
        heapify(self._heap)
