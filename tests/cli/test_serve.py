import sys
from pathlib import Path

import pytest

from ollama_balancer.cli import serve
from ollama_balancer.cli.main import main

LOADED = ["-s", str(serve.SCRIPT)]


@pytest.mark.parametrize(
    ("typed", "tool", "arguments"),
    [
        ([], "mitmdump", LOADED),
        (["--demo", "3"], "mitmdump", [*LOADED, "--set", "balancer_demo=3"]),
        (["--web", "--listen-port", "9090", "~u chat"], "mitmweb", [*LOADED, "--listen-port", "9090", "~u chat"]),
        (
            ["--console", "-p", "1", "--demo=2", "-q"],
            "mitmproxy",
            [*LOADED, "--set", "balancer_demo=2", "-p", "1", "-q"],
        ),
        (["--", "--options"], "mitmdump", [*LOADED, "--options"]),
        (["--", "--web"], "mitmdump", [*LOADED, "--web"]),
        (["--set", "a=--web", "--we"], "mitmdump", [*LOADED, "--set", "a=--web", "--we"]),
    ],
)
def test_arguments_go_to_mitmproxys_tool(typed: list[str], tool: str, arguments: list[str]) -> None:
    assert serve.command_line(typed) == (tool, arguments)


@pytest.mark.parametrize("typed", [["--web", "--console"], ["--demo"], ["--demo", "three"]])
def test_wrong_arguments_are_refused(typed: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        serve.command_line(typed)
    assert "ollama-balancer serve: error" in capsys.readouterr().err


@pytest.mark.parametrize("typed", [[], ["serve"], ["--set", "balancer_demo=1"]])
def test_the_process_becomes_mitmdump(typed: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    if sys.platform == "win32":
        pytest.skip("Windows has no exec")
    executed: list[list[str]] = []
    monkeypatch.setattr("os.execv", lambda path, words: executed.append([path, *words]))
    main(typed)
    [(program, *words)] = executed
    assert Path(program).name == "mitmdump"
    assert words == [program, *LOADED, *(word for word in typed if word != "serve")]


def test_a_word_that_is_no_command_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["sevre"])
    assert "invalid choice: 'sevre'" in capsys.readouterr().err


def test_the_path_is_that_of_a_file_alone_in_its_folder(capsys: pytest.CaptureFixture[str]) -> None:
    main(["path"])
    script = Path(capsys.readouterr().out.strip())
    assert {each.name for each in script.parent.iterdir()} - {"__pycache__"} == {"__init__.py", script.name}
