"""The balancer's options as mitmproxy's: added to them, read from them, and what is wrong with them at the start."""

import difflib
import os
from collections.abc import Sequence

from mitmproxy.addonmanager import Loader
from mitmproxy.optmanager import OptManager

from ..core.address import without_password
from ..settings.option_values import static_agents
from ..settings.options import PREFIX, TABLE, refusal
from .compat.mitmproxy_names import deferred_problem


def add_options(loader: Loader) -> None:
    """Tell mitmproxy of the options. The environment gives a default, so that `--set` and config.yaml win over it."""
    for name, row in TABLE.items():
        default = (row.environment and os.environ.get(row.environment)) or row.default
        loader.add_option(name, row.kind.raw, default, f"{row.help} It takes {row.kind.accepts}.")


def drop_unreadable(options: OptManager) -> list[str]:
    """Take values that are not even of their option's type out of what the command line set, and say what is wrong.

    mitmproxy would fail on them after the addon's `load`, without a word, and run on without the addon: an open proxy.
    """
    problems = []
    for name in list(options.deferred):
        problem = deferred_problem(options, name) if name in options and name.startswith(PREFIX) else None
        if problem is not None:
            del options.deferred[name]
            problems.append(refusal(name, problem) if name in TABLE else f"{name}: {problem}")
    return problems


class Overrides:
    """mitmproxy's own options that have other values as long as the balancer is loaded."""

    def __init__(self) -> None:
        self._values: dict[str, object] = {}
        self._before: dict[str, object] = {}

    def set(self, options: OptManager, name: str, value: object) -> None:
        """Without effect where mitmproxy has no such option."""
        if name not in options or (before := getattr(options, name)) == value:
            return
        if name not in self._values or before != self._values[name]:
            self._before[name] = before
        self._values[name] = value
        options.update(**{name: value})

    def restore(self, options: OptManager) -> None:
        """Give back what was there, where nobody has changed it since."""
        back = {name: self._before[name] for name, value in self._values.items() if getattr(options, name) == value}
        self._values.clear()
        options.update(**back)


def misplaced_options(options: OptManager) -> list[str]:
    """What is wrong with options that look like the balancer's and are not, and with arguments that look like a part of
    one; to be asked at the start, when all addons are loaded.
    """
    own_names = sorted(name for name in options.keys() if name.startswith(PREFIX))  # noqa: SIM118 - no mapping
    unknown = [name for name in options.deferred if name.startswith(PREFIX)]
    return [_no_such_option(name, own_names) for name in unknown] + _find_stray_value(options, own_names)


def _no_such_option(name: str, own_names: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, own_names, 1)
    hint = f"did you mean {close[0]}? The" if close else "the"
    return f"{name}: there is no such option; {hint} balancer's options are {', '.join(own_names)}"


def _find_stray_value(options: OptManager, own_names: Sequence[str]) -> list[str]:
    """mitmdump takes an argument that belongs to no option for a filter of flows, without a word. After a blank in a
    list, as in `--set balancer_agents=a=http://x, b=http://y`, that is the rest of the list.
    """
    words = str(getattr(options, "dumper_filter", None) or "").split()
    stray = [word for before, word in zip(["", *words], words, strict=False) if not before.startswith("~")]
    advice = "write the list without spaces, or quote it: --set 'NAME=ONE, TWO'"
    for word in stray:
        try:
            static_agents([word])
        except ValueError:
            continue
        return [f"balancer_agents: {without_password(word)[:200]!r} is not part of the option; {advice}"]
    for name in own_names:
        value = getattr(options, name)
        if stray and not isinstance(value, str) and isinstance(value, Sequence):
            last = str(value[-1]) if value else ""
            if last.rstrip().endswith(","):
                return [
                    f"{name}: {without_password(stray[0])[:200]!r} is not part of the option, whose value ends with a "
                    f"comma; {advice}"
                ]
    return []
