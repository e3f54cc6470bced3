"""Adding to files: all of it or nothing."""

import os
import resource
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from ollama_balancer.storage import files
from ollama_balancer.storage.files import open_own, write_whole


@pytest.mark.e2e
def test_files_are_utf_8_whatever_the_locale_is(tmp_path: Path) -> None:
    code = "import sys; from pathlib import Path; from ollama_balancer.storage.files import replace; "
    subprocess.run(
        [sys.executable, "-c", code + r"replace(Path(sys.argv[1]), 'gpu \xe9\u2026')", str(tmp_path / "file")],
        env=os.environ | {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0", "PYTHONPATH": "addon"},
        check=True,
    )
    assert (tmp_path / "file").read_bytes() == "gpu é…".encode()


def test_a_full_disk_leaves_no_half_of_what_was_added(tmp_path: Path) -> None:
    path = tmp_path / "file"
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        with open_own(path, append=True) as file:
            write_whole(file.fileno(), b"one\n")
            resource.setrlimit(resource.RLIMIT_FSIZE, (10, hard))
            with pytest.raises(OSError, match="too large"):
                write_whole(file.fileno(), b"x" * 100)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    assert path.read_bytes() == b"one\n"


def test_a_pipe_that_takes_a_little_at_a_time_gets_all(monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    data, read = os.urandom(1_000_000), bytearray()

    def reader() -> None:
        while piece := os.read(reading, 65_536):
            read.extend(piece)

    thread = threading.Thread(target=reader)
    thread.start()
    write_whole(writing, data)
    os.close(writing)
    thread.join()
    os.close(reading)
    assert bytes(read) == data


def test_a_pipe_that_nobody_reads_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "PIPE_SECONDS", 0.0)
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    with pytest.raises(BlockingIOError):
        write_whole(writing, bytes(1_000_000))
    os.close(reading)
    os.close(writing)
