"""What kind each test is of, and what one test must not leave to the next."""

from __future__ import annotations

import functools
import gc
import logging
import os
import shutil
import sys
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests import examples

TESTS = Path(__file__).parent

KINDS = ("unit", "e2e", "browser", "chaos")
"""The markers that pyproject.toml describes; each test has exactly one."""

FOLDERS = {"benches": "e2e", "chaos": "chaos", "e2e": "e2e", "fuzz": "chaos", "simulator": "e2e"}
"""What the tests in a folder are where they do not say it themselves; elsewhere: unit."""


@functools.cache
def _folder_kind(path: Path) -> str:
    return FOLDERS.get(path.relative_to(TESTS).parts[0], "unit")


STARTS = {"subprocess.Popen", "os.fork", "os.forkpty", "os.posix_spawn"}
"""What Python tells of one process that starts another."""

_running: pytest.Item | None = None


HEAVY = {"anthropic", "ollama", "openai", "openapi_spec_validator", "schemathesis", "selenium", "trio"}
"""Modules that take from a fifth of a second to more than one."""

MOST_WORKERS = 4
"""Each takes as long to begin as all the tests do."""


@pytest.hookimpl(tryfirst=True)  # before xdist looks at it
def pytest_cmdline_main(config: pytest.Config) -> None:
    """All of `-m unit` runs on every core; a part of it, or what somebody watches, in this process."""
    option = config.option
    watched = option.usepdb or option.trace or option.collectonly or option.capture == "no"
    part = option.keyword or not any(TESTS.is_relative_to(Path(each).resolve()) for each in config.args)
    alone = getattr(option, "numprocesses", 0) is not None or hasattr(config, "workerinput")
    if option.markexpr == "unit" and not (watched or part or alone):
        option.numprocesses, option.maxprocesses = "logical", MOST_WORKERS
        option.dist = "worksteal"


os.environ["HYPOTHESIS_NO_PLUGINS"] = "1"  # one of trio, which would be imported

MEMORY = Path("/dev/shm")  # where files are kept in memory: nobody waits for a disk

ROOM = 1 << 28
"""Bytes that it has to have left. The tests leave a tenth, of failed runs three times."""


def pytest_configure(config: pytest.Config) -> None:
    examples.few = config.option.markexpr == "unit"
    if examples.few and os.access(MEMORY, os.W_OK) and shutil.disk_usage(MEMORY).free >= ROOM:
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(MEMORY))


def _check_start(event: str, _: object) -> None:
    if event in STARTS and _running is not None and "unit" in _running.keywords:
        pytest.fail(f"{_running.nodeid} is unit and starts a process: mark it e2e")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    global _running
    _running = item
    try:
        with logs_as_before():
            return (yield)
    finally:
        _running = None


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """`-m unit` does not import what only the other kinds need."""
    if config.option.markexpr == "unit" and collection_path.is_dir() and TESTS in collection_path.parents:
        return _folder_kind(collection_path) != "unit" or None
    return None


def is_random(item: pytest.Item) -> bool:
    """Whether hypothesis makes up what the test tries."""
    function = getattr(item, "obj", None)
    return hasattr(function, "is_hypothesis_test") or hasattr(getattr(function, "__self__", None), "settings")


@pytest.hookimpl(wrapper=True)
def pytest_generate_tests(metafunc: pytest.Metafunc) -> Generator[None, object, object]:
    """Of each test with many parameters, leave some from its first to its last."""
    result = yield
    if examples.few:
        metafunc._calls[:] = examples.some(metafunc._calls)
    return result


@pytest.hookimpl(tryfirst=True)  # before the markers are selected by
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        kinds = {mark.name for mark in item.iter_markers() if mark.name in KINDS}
        if not kinds:
            item.add_marker("chaos" if is_random(item) else _folder_kind(item.path))
        elif len(kinds) > 1:
            raise pytest.UsageError(f"{item.nodeid} is {' and '.join(sorted(kinds))}: a test is of one kind")
    if examples.few:
        # For one of its own that is left, hypothesis would first read all of the addon's source.
        unit = [item for item in items if item.get_closest_marker("unit")]
        config.hook.pytest_deselected(items=[item for item in items if not item.get_closest_marker("unit")])
        items[:] = unit


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Of thousands of tests and what they import nothing is garbage: no collection goes through them."""
    gc.disable()
    try:
        result = yield
    finally:
        gc.freeze()
        gc.enable()
    if examples.few and (found := HEAVY & sys.modules.keys()):
        raise pytest.UsageError(f"-m unit imports {', '.join(sorted(found))}, which takes long: import it in e2e tests")
    sys.addaudithook(_check_start)  # here, as it is told of each import, too
    return result


@contextmanager
def logs_as_before() -> Iterator[None]:
    """Programs that are run within a test set up logging for themselves."""
    reporter, disabled = logging.getLogger("agent_reporter"), logging.root.manager.disable
    handlers, level, propagate = reporter.handlers[:], reporter.level, reporter.propagate
    yield
    logging.disable(disabled)
    reporter.handlers[:], reporter.propagate = handlers, propagate
    reporter.setLevel(level)
