"""A set with random sampling; all operations take constant time."""

from collections.abc import Callable, Hashable, Iterator


class RandomSet[T: Hashable]:
    __slots__ = ("_list", "_places")

    def __init__(self) -> None:
        self._list: list[T] = []
        self._places: dict[T, int] = {}
        """Where in the list each one is."""

    def __len__(self) -> int:
        return len(self._list)

    def __contains__(self, member: object) -> bool:
        return member in self._places

    def __iter__(self) -> Iterator[T]:
        return iter(self._list)

    def __repr__(self) -> str:
        return f"RandomSet({self._list})"

    def add(self, member: T) -> None:
        if member not in self._places:
            self._places[member] = len(self._list)
            self._list.append(member)

    def discard(self, member: T) -> None:
        at = self._places.pop(member, None)
        if at is None:
            return
        last = self._list.pop()
        if at < len(self._list):
            self._list[at] = last
            self._places[last] = at

    def draw(self, chance: Callable[[], float], count: int) -> dict[T, None]:
        """That many of them, or fewer where one is drawn again; `chance` gives random numbers from 0 to less than 1."""
        members = self._list
        size = len(members)
        return {members[int(chance() * size)]: None for _ in range(count if size else 0)}
