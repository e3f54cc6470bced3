"""Names that belong to libraries: checked when the balancer is loaded, replaced, and given back."""

from __future__ import annotations

import types
from collections import Counter

import pytest
from mitmproxy import version
from mitmproxy.options import Options

from ollama_balancer.mitm import compat, patches, versions
from ollama_balancer.mitm.compat.names import Name, Patches, Replaced, Use, calls, has, takes
from ollama_balancer.mitm.mitmproxy_options import Overrides

HERE = __name__


@pytest.fixture(autouse=True)
def unpatched() -> None:
    """Other tests of this process may have left the patches in place."""
    patches.restore()


class Kind:
    declared: int

    def method(self, one: int, two: int) -> int:
        return max(one, two)


class Heir(Kind):
    pass


def test_all_that_is_replaced_is_put_back_and_what_was_inherited_is_inherited_again() -> None:
    module, one = types.ModuleType("some"), Kind()
    method, before = Kind.method, dict(vars(module))
    all_patches = Patches()
    assert not all_patches
    all_patches.set(Heir, "method", len)
    all_patches.set(one, "method", len)
    all_patches.set(module, "open", len)
    name = Replaced(f"{HERE}:Kind.method")
    all_patches.replace(name, lambda self, one, two: name.original(self, one, two) + 1)
    all_patches.set(Kind, "method", len)
    assert all_patches
    assert name.original is method
    all_patches.restore()
    assert Kind.method is Heir.method is method
    assert "method" not in vars(Heir)
    assert vars(one) == {}
    assert vars(module) == before
    assert not all_patches


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        (Name(f"{HERE}:Kind.method", fits=takes("self", "one", "two")), None),
        (Name(f"{HERE}:Kind.method", fits=takes("self", "one")), "has changed"),
        (Name(f"{HERE}:Kind", fits=has("method", "declared")), None),
        (Name(f"{HERE}:Kind", fits=has("other")), "has changed"),
        (Name(HERE, fits=calls("max")), None),
        (Name(HERE, fits=calls("min")), "has changed"),
        (Name(f"{HERE}:Kind.other"), "is missing"),
        (Name(f"{HERE}.other:Kind"), "is missing"),
        (Name(f"{HERE}:Kind", fits=lambda kind: kind.other), "has changed (AttributeError"),
    ],
)
def test_a_name_that_is_missing_or_has_another_shape_is_told(name: Name, problem: str | None) -> None:
    found = name.problem()
    if problem is None:
        assert found is None
    else:
        assert found is not None
        assert found.startswith(f"{name.target} {problem}")


def missing(use: Use) -> Name:
    return Name("mitmproxy.flow:Nothing", use)


def test_what_is_lost_depends_on_what_the_missing_name_is_for() -> None:
    assert compat.check([missing(Use.RELAY)]).uses == {Use.RELAY, Use.SELECTOR}
    assert compat.check([missing(Use.HOOKS), missing(Use.DISPLAY)]).uses == {Use.HOOKS, Use.DISPLAY}
    with pytest.raises(compat.IncompatibleError, match=r"mitmproxy\.flow:Nothing is missing\. It works with mitmproxy"):
        compat.check([missing(Use.PROXYING), missing(Use.RELAY)])


@pytest.mark.parametrize(
    ("number", "tested"),
    [("12.2.2", True), ("12.3.99", True), ("12.2.1", False), ("12.4.0", False), ("13.0.0.dev", False), ("11.1", False)],
)
def test_on_an_untested_version_of_mitmproxy_the_fast_paths_are_lost(
    number: str, tested: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(version, "VERSION", number)
    assert versions.is_tested() is tested
    lost = compat.check([])
    assert lost.uses == (frozenset() if tested else set(compat.FAST_PATHS))
    assert tested or number in str(lost)


def test_with_what_is_installed_nothing_is_lost() -> None:
    assert compat.check() == compat.Unsupported()


def test_the_table_names_each_once_and_all_that_is_replaced_is_in_it() -> None:
    assert Counter(name.target for name in compat.NAMES).most_common(1)[0][1] == 1
    assert {name.target for name, _ in patches._REPLACEMENTS} <= {name.target for name in compat.NAMES}


def test_applying_twice_is_as_once() -> None:
    names = [name for name, _ in patches._REPLACEMENTS]
    before = [name.value for name in names]
    patches.apply()
    applied = [name.value for name in names]
    assert all(one is not other for one, other in zip(before, applied, strict=True))
    patches.apply()
    assert [name.value for name in names] == applied
    patches.restore()
    patches.restore()
    assert [name.value for name in names] == before


def test_options_of_mitmproxy_are_given_back_unless_somebody_has_changed_them() -> None:
    options, overrides = Options(), Overrides()
    options.add_option("connection_strategy", str, "eager", "")
    options.add_option("body_size_limit", str, "", "")
    overrides.set(options, "tcp_timeout", 1000)
    overrides.set(options, "tcp_timeout", 2000)
    overrides.set(options, "connection_strategy", "lazy")
    overrides.set(options, "showhost", False)
    overrides.set(options, "of_no_addon", False)
    assert (options.tcp_timeout, options.connection_strategy) == (2000, "lazy")
    options.update(connection_strategy="eager")
    overrides.set(options, "connection_strategy", "lazy")
    options.update(body_size_limit="1m")
    overrides.set(options, "body_size_limit", "")
    options.update(body_size_limit="2m")
    overrides.restore(options)
    assert (options.tcp_timeout, options.connection_strategy, options.body_size_limit) == (600, "eager", "2m")
    overrides.restore(options)
