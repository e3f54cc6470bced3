"""`ollama-balancer keys`: adds, shows, changes and removes client keys in the balancer's folder."""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, NamedTuple

from ..core.access import Key, Limits, Right, changes_of
from ..core.priority import Priority
from ..storage.keys import DEFAULT_OVERLAP, FILE_NAME, MAX_OVERLAP, KeyFileError, KeyStore, UnknownKeyError
from ..tables import in_columns
from . import audit

_DURATION = re.compile(r"([0-9]{1,9})([smhdw]?)")
_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}

_LIMITS = {
    "rpm": ("requests_per_minute", "requests a minute"),
    "tpm": ("tokens_per_minute", "tokens a minute"),
    "tokens-per-day": ("tokens_per_day", "tokens a day (UTC)"),
    "parallel": ("parallel", "requests at once"),
}


class Change(NamedTuple):
    """What the audit file says of an action."""

    what: str
    key: str
    details: dict[str, Any]


type Action = Callable[[KeyStore, argparse.Namespace], Change | None]


def add_command(commands: Any) -> None:
    """Add the subcommand to those of argparse."""
    parser = commands.add_parser("keys", help="client keys: who may come in, and how much")
    actions = parser.add_subparsers(required=True, metavar="ACTION")

    def action(name: str, run: Action, text: str) -> argparse.ArgumentParser:
        added: argparse.ArgumentParser = actions.add_parser(name, help=text, description=text)
        audit.add_confdir(added)
        added.set_defaults(run=lambda options: _run(run, options))
        return added

    add = action("add", _add, "Add a key and print it: it cannot be seen again.")
    _add_name(add)
    _add_settings(add, new=True)
    listed = action("list", _list, "List all keys, without their secrets.")
    listed.add_argument("--json", action="store_true", help="print JSON")
    show = action("show", _show, "Show a key, without its secret.")
    _add_name(show)
    show.add_argument("--json", action="store_true", help="print JSON")
    change = action("set", _set, "Change what is given of a key; an empty value takes a limit away.")
    _add_name(change)
    _add_settings(change, new=False)
    for name, disabled in (("disable", True), ("enable", False)):
        switch = action(name, _switch(disabled), f"{name.capitalize()} a key.")
        _add_name(switch)
    rotate = action("rotate", _rotate, "Give a key a new secret and print it; the old one stays valid for a while.")
    _add_name(rotate)
    rotate.add_argument(
        "--overlap", metavar="TIME", type=duration, default=DEFAULT_OVERLAP, help="how long both are valid (1d)"
    )
    remove = action("remove", _remove, "Remove a key.")
    _add_name(remove)


def _add_name(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="the key's name")


def _add_settings(parser: argparse.ArgumentParser, *, new: bool) -> None:
    """`new`: what is not given has a default, which the help says; else it stays as it is."""

    def add(option: str, text: str, default: str, **details: Any) -> None:
        parser.add_argument(option, help=f"{text} ({default})" if new else text, **details)

    add("--rights", f"some of {','.join(Right)}", "infer", metavar="LIST", type=_rights)
    add("--models", "patterns of models that it may use: 'qwen3*,nomic-*'", "all", metavar="LIST", type=_models)
    for option, (_, text) in _LIMITS.items():
        add(f"--{option}", text, "no limit", metavar="N", type=_limit)
    add("--priority", "in the queue", "normal", choices=[each.label for each in Priority])
    expires = "when it expires: in 90d, or on a day as 2027-01-31" + ("" if new else ", or never")
    add("--expires", expires, "never", metavar="TIME", type=_expiry)
    parser.add_argument("--note", metavar="TEXT", help="a line for people")


def _run(run: Action, options: argparse.Namespace) -> None:
    folder = options.confdir.expanduser()
    store = KeyStore(folder / FILE_NAME)
    try:
        change = run(store, options)
    except UnknownKeyError as e:
        sys.exit(f"ollama-balancer: no key is called {str(e)!r}: 'ollama-balancer keys list' lists them")
    except (KeyFileError, ValueError) as e:
        sys.exit(f"ollama-balancer: {e}")
    finally:
        store.close()
    if change is not None:
        try:
            audit.record(folder, change.what, change.key, **change.details)
        except OSError as e:
            sys.exit(f"ollama-balancer: this is done, but the audit file cannot be written ({e.strerror or e})")


def _add(store: KeyStore, options: argparse.Namespace) -> Change:
    first = not store.load().had_keys
    key = _changed(Key(options.name, created=time.time()), options)
    secret = store.add(key)
    print(secret)
    _say("This is the key: it cannot be seen again.")
    if first:
        _say(
            "It is the first one: from now on calls need a key (unless balancer_access is open), and reporters the "
            "balancer's token or a key with the right report."
        )
    return Change("key.add", key.name, {"settings": changes_of(Key(key.name), key)})


def _list(store: KeyStore, options: argparse.Namespace) -> None:
    keys = store.list_keys()
    if options.json:
        print(json.dumps([_described(key) for key in keys], indent=2))
        return
    head = ["key", "state", "rights", "models", "limits", "priority", "expires", "note"]
    rows = [
        [
            key.name,
            _state(key),
            ",".join(sorted(key.rights)),
            ",".join(key.models) or "all",
            ", ".join(f"{value} {option}" for option, value in _limits_of(key).items() if value is not None) or "none",
            key.priority.label,
            "never" if key.expires is None else _day(key.expires),
            key.note,
        ]
        for key in keys
    ]
    print(in_columns([head, *rows]) if rows else "There are no keys. 'ollama-balancer keys add NAME' adds one.")


def _show(store: KeyStore, options: argparse.Namespace) -> None:
    described = _described(store.get(options.name))
    if options.json:
        print(json.dumps(described, indent=2))
        return
    print(in_columns([[name, _text(value)] for name, value in described.items()]))


def _set(store: KeyStore, options: argparse.Namespace) -> Change:
    before = store.get(options.name)
    key = _changed(before, options)
    store.set(
        key.name,
        rights=key.rights,
        models=key.models,
        limits=key.limits,
        priority=key.priority,
        expires=key.expires,
        note=key.note,
    )
    return Change("key.set", key.name, {"settings": changes_of(before, key)})


def _switch(disabled: bool) -> Action:
    def run(store: KeyStore, options: argparse.Namespace) -> Change:
        store.set(options.name, disabled=disabled)
        return Change("key.set", options.name, {"settings": {"disabled": disabled}})

    return run


def _rotate(store: KeyStore, options: argparse.Namespace) -> Change:
    if options.overlap > MAX_OVERLAP:
        raise ValueError("--overlap: at most a year")
    print(store.rotate(options.name, options.overlap))
    _say("This is the new key: it cannot be seen again.")
    return Change("key.rotate", options.name, {"overlap": options.overlap})


def _remove(store: KeyStore, options: argparse.Namespace) -> Change:
    store.remove(options.name)
    if store.load().had_keys and all(key.is_hosts_own for key in store.list_keys()):
        _say("There is no key left: nobody gets in without the token, unless balancer_access is open.")
    return Change("key.remove", options.name, {})


def _changed(key: Key, options: argparse.Namespace) -> Key:
    """The key with what the options give."""
    given = {name: value for name in ("rights", "models", "note") if (value := getattr(options, name)) is not None}
    if options.priority is not None:
        given["priority"] = Priority.parse(options.priority)
    limits = {
        field: value[0]
        for option, (field, _) in _LIMITS.items()
        if (value := getattr(options, option.replace("-", "_"))) is not None
    }
    if options.expires is not None:
        given["expires"] = options.expires[0]
    return replace(key, **given, limits=replace(key.limits, **limits))


def _rights(text: str) -> frozenset[Right]:
    try:
        return frozenset(Right(each.strip()) for each in text.split(","))
    except ValueError as e:
        raise argparse.ArgumentTypeError(f"some of {', '.join(Right)}, with commas between") from e


def _models(text: str) -> tuple[str, ...]:
    return tuple(each.strip() for each in text.split(",") if each.strip())


def _limit(text: str) -> tuple[int | None]:
    """In a tuple, as none at all is something that can be given."""
    if not text.strip():
        return (None,)
    if not (text.isascii() and text.isdigit() and len(text) <= 12 and int(text)):
        raise argparse.ArgumentTypeError("a whole number from 1, or nothing for no limit")
    return (int(text),)


def duration(text: str) -> float:
    """Seconds of a time such as 12h, for argparse."""
    match = _DURATION.fullmatch(text)
    if match is None:
        raise argparse.ArgumentTypeError("a time such as 30m, 12h or 90d")
    return float(int(match[1]) * _SECONDS[match[2]])


def _expiry(text: str) -> tuple[float | None]:
    if not text.strip() or text == "never":
        return (None,)
    if _DURATION.fullmatch(text):
        return (time.time() + duration(text),)
    try:
        when = datetime.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError("a time such as 90d, a day such as 2027-01-31, or never") from None
    return ((when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp(),)


def _limits_of(key: Key) -> dict[str, int | None]:
    return {option: getattr(key.limits, field) for option, (field, _) in _LIMITS.items()}


def _described(key: Key) -> dict[str, Any]:
    return {
        "name": key.name,
        "state": _state(key),
        "rights": sorted(key.rights),
        "models": list(key.models),
        **{field: getattr(key.limits, field) for field in Limits.__slots__},
        "priority": key.priority.label,
        "created": _day(key.created),
        "expires": None if key.expires is None else _day(key.expires),
        "note": key.note,
    }


def _state(key: Key) -> str:
    return (key.problem(time.time()) and ("disabled" if key.disabled else "expired")) or "valid"


def _text(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(value) or "all"
    return "none" if value is None else str(value)


def _day(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")


def _say(text: str) -> None:
    print(text, file=sys.stderr)
