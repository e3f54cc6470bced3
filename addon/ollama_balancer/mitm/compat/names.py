"""A name that belongs to a library: where it is, what it is for, whether it is what it was, and what replaces it."""

import enum
import importlib
import inspect
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any


class Use(enum.Enum):
    """What a name is used for. Only proxying is indispensable."""

    PROXYING = "proxying"
    RELAY = "the stream relay"
    SELECTOR = "the relay's selector"
    HOOKS = "the hook fast path"
    DISPLAY = "parts of mitmproxy's display"


class Absent:
    """Placeholder for a missing name until the check reports it; a class, so that it can be a base class."""


def lookup(target: str) -> Any:
    """What stands at `module:attribute.attribute` or `module`; `Absent` if there is nothing."""
    module, _, attributes = target.partition(":")
    try:
        value: Any = importlib.import_module(module)
        for attribute in filter(None, attributes.split(".")):
            value = getattr(value, attribute)
    except (ImportError, AttributeError):
        return Absent
    return value


@dataclass(eq=False)
class Name:
    """`target` is as for `lookup`; `fits` says of what stands there whether it has the expected shape."""

    target: str
    use: Use = Use.PROXYING
    fits: Callable[[Any], bool] = lambda value: True

    @property
    def value(self) -> Any:
        return lookup(self.target)

    def problem(self) -> str | None:
        value = self.value
        if value is Absent:
            return f"{self.target} is missing"
        try:
            return None if self.fits(value) else f"{self.target} has changed"
        except Exception as e:
            return f"{self.target} has changed ({type(e).__name__}: {e})"


@dataclass(eq=False)
class Replaced(Name):
    """A name that the balancer replaces with something of its own."""

    original: Any = field(init=False)
    """The library's own."""

    def __post_init__(self) -> None:
        self.original = self.value


class Patches:
    """Attributes that are replaced temporarily."""

    def __init__(self) -> None:
        self._undo: list[Callable[[], None]] = []

    def __bool__(self) -> bool:
        return bool(self._undo)

    def replace(self, name: Replaced, replacement: Any) -> None:
        """Put the replacement there. What stands there now becomes the name's `original`."""
        owner, separator, attribute = name.target.rpartition("." if "." in name.target.partition(":")[2] else ":")
        assert separator
        name.original = name.value
        self.set(lookup(owner), attribute, replacement)

    def set(self, owner: Any, attribute: str, value: Any) -> None:
        """Set an attribute of a module, a class or an instance; one that it only inherits is inherited again later."""
        before = vars(owner).get(attribute, Absent)
        setattr(owner, attribute, value)
        if before is Absent:
            self.on_restore(lambda: delattr(owner, attribute))
        else:
            self.on_restore(lambda: setattr(owner, attribute, before))

    def on_restore(self, undo: Callable[[], None]) -> None:
        self._undo.append(undo)

    def restore(self) -> None:
        """Put everything back as it was, the latest first."""
        while self._undo:
            self._undo.pop()()


# Shapes


def takes(*parameters: str) -> Callable[[Any], bool]:
    """A function with these parameters, in this order."""
    return lambda value: list(inspect.signature(value).parameters) == list(parameters)


def has(*attributes: str) -> Callable[[Any], bool]:
    """A class that has these attributes, or declares that its instances have them."""

    def fits(value: Any) -> bool:
        declared = {name for each in inspect.getmro(value) for name in getattr(each, "__annotations__", ())}
        return all(hasattr(value, attribute) or attribute in declared for attribute in attributes)

    return fits


def calls(name: str) -> Callable[[Any], bool]:
    """A module whose functions use that global name."""
    return lambda module: any(name in code.co_names for code in _codes(module))


def _codes(owner: Any) -> Iterator[types.CodeType]:
    for value in vars(owner).values():
        function = inspect.unwrap(getattr(value, "func", value)) if callable(value) else value
        if isinstance(function, types.FunctionType):
            yield function.__code__
        elif isinstance(value, type) and value.__module__ == getattr(owner, "__name__", None):
            yield from _codes(value)
