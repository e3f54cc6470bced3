from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ollama_balancer.ollama import json_scanning
from ollama_balancer.ollama.json_scanning import MAX_STRICT, MAX_STRICT_VALUES, is_json
from ollama_balancer.ollama.requests import ParsedRequest, read_request
from ollama_balancer.ollama.routes import ROUTES, Kind, Route, find_route
from tests.examples import amount

RECORDINGS = Path(__file__).parents[1] / "recordings"
NAME_TOO = ["/api/show", "/api/pull", "/api/push", "/api/create", "/api/delete"]


def asked(body: bytes | None, path: str = "/api/generate", content_type: str = "") -> ParsedRequest:
    route = find_route(path)
    assert route
    return read_request(route, path, body, content_type)


def model_of(body: bytes | None, path: str = "/api/generate") -> str | None:
    return asked(body, path).model


@pytest.mark.parametrize(
    "body",
    [
        b'{"model": "tiny-a", "prompt": "the quick"}',
        b'{"MODEL": "tiny-a"}',
        b'{"\\u006dodel": "tiny-a"}',
        b'{"\\u006D\\u004fDEL": "tiny-a"}',
        b'{"model":"nope","model": "tiny-a"}',
        b'{"model":"nope","MODEL":"nope too","model": "tiny-a"}',
        b'{"model":"nope","Model": "tiny-a"}',
        b'{"model":"tiny-a","model":null}',
        b'{"model": "tiny-a"}garbage',
        b'{"model": "tiny-a"}{"model": "other"}',
        b' \r\n\t{\n"model"\r:\t"tiny-a" }',
        b'{"messages": [{"model": "no"}], "options": {"model": "no"}, "model": "tiny-a"}',
        b'{"prompt": "\xff\xfe", "model": "tiny-a"}',
        b'{"model": "tiny\\u002da"}',
        b'{"x": "\\"", "y": "\\\\", "z": "\\\\\\"", "model": "tiny-a"}',
        b'{"x": ["]", "}", "\\"]", "\\\\"], "model": "tiny-a"}',
        b'{"x": -0.5e+10, "y": true, "z": null, "model": "tiny-a"}',
        b'{"' + b"k" * 1000 + b'": 1, "": 2, "model": "tiny-a"}',
    ],
)
def test_the_model_is_read_as_leniently_as_the_server_reads_it(body: bytes) -> None:
    assert model_of(body) == "tiny-a"
    assert is_json(body)


@pytest.mark.parametrize(
    "body",
    [
        b"{}",
        b'{"model": null}',
        b'{"model": ""}',
        b'{"model": 5}',
        b'{"model": true}',
        b'{"model": ["tiny-a"]}',
        b'{"model": {"model": "tiny-a"}}',
        b'{"name": "tiny-a"}',
        b'{"model": "tiny-a", "model": 5}',
    ],
)
def test_an_object_need_not_name_a_model(body: bytes) -> None:
    assert asked(body) == ParsedRequest()


@pytest.mark.parametrize(
    "body",
    [
        None,
        b"",
        b"   ",
        b'{"model": ',
        b'{"model": "tiny-a", ',
        b'{"model": "tiny-a"',
        b'{"model": "tiny-a",}',
        b'{"model" "tiny-a"}',
        b'{model: "tiny-a"}',
        b'{"model": tiny-a}',
        b'{"model": "tiny-a" "x": 1}',
        b'{"model": "tiny-a", "x": 01}',
        b'{"model": "tiny-a", "x": 1.}',
        b'{"model": "tiny-a", "x": NaN}',
        b'{"model": "tiny-a", "x": [1, 2}',
        b'\xef\xbb\xbf{"model": "tiny-a"}',  # the server refuses a byte order mark
        bytes.fromhex("1f8b0800dc8c046b02ff1dcb310e80200c85e1ab90ce3a9838791943a04622d00a"),  # and gzip
        b'[{"model": "tiny-a"}]',
        b'["model", "tiny-a"]',
        b'"model"',
        b"5",
        b'{"model": "tiny-a", "prompt": "unterminated',
        b'{"model": "tiny-a", "prompt": "unterminated\\"}',
    ],
)
def test_a_body_that_is_no_object_is_not_readable_and_no_error(body: bytes | None) -> None:
    assert asked(body) == ParsedRequest(readable=False)


def test_a_name_that_is_half_a_character_is_made_safe() -> None:
    assert model_of(b'{"model": "a\\ud800b"}') == "a?b"
    assert model_of(b'{"model": "a\xffb"}') == "a\ufffdb"


def test_a_malformed_name_is_none() -> None:
    assert model_of(b'{"model": "a\\qb"}') is None
    assert model_of(b'{"model": "a\nb"}') is None


def test_a_name_of_megabytes_is_cut() -> None:
    name = model_of(b'{"model": "' + b"\\u0000" * 1_000_000 + b'"}')
    assert name is not None
    assert len(name) < 100_000


@pytest.mark.parametrize("path", NAME_TOO)
def test_the_older_key_name_stands_in_where_model_is_missing(path: str) -> None:
    assert model_of(b'{"name": "tiny-a"}', path) == "tiny-a"
    assert model_of(b'{"name": "old", "model": "new"}', path) == "new"
    assert model_of(b'{"model": "new", "NAME": "old"}', path) == "new"
    assert model_of(b'{"name": "old", "model": ""}', path) == "old"


@pytest.mark.parametrize("path", ["/api/chat", "/api/embed", "/v1/chat/completions", "/api/copy"])
def test_the_older_key_name_means_nothing_elsewhere(path: str) -> None:
    assert model_of(b'{"name": "tiny-a"}', path) is None


def test_what_is_copied_is_the_source() -> None:
    assert model_of(b'{"source": "tiny-a", "destination": "copied", "model": "x"}', "/api/copy") == "tiny-a"


@pytest.mark.parametrize(
    ("path", "model"),
    [
        ("/v1/models/tiny-a", "tiny-a"),
        ("/v1/models/tiny-a:7b", "tiny-a:7b"),
        ("/v1/models/tiny-a%3A7b", "tiny-a:7b"),
    ],
)
def test_a_model_in_the_path_is_the_one_asked_for(path: str, model: str) -> None:
    assert asked(b'{"model": "ignored"}', path) == ParsedRequest(model)


@pytest.mark.parametrize(
    "path",
    [
        route.path.replace("{}", "x")
        for route in ROUTES
        if route.kind is not Kind.MODEL and route.path not in (*NAME_TOO, "/api/copy")
    ],
)
def test_the_body_of_other_routes_is_not_looked_at(path: str) -> None:
    assert asked(b'{"model": "tiny-a"}', path) == ParsedRequest()
    assert asked(None, path) == ParsedRequest()


@pytest.mark.parametrize(
    ("body", "stream"),
    [
        (b'{"stream": true}', True),
        (b'{"Stream": false}', False),
        (b'{"\xc5\xbftream": false}', False),  # the long s is an s in another case
        (b"{}", None),
        (b'{"stream": true, "stream": null}', None),
        (b'{"stream": "false"}', None),
        (b'{"stream": 0}', None),
    ],
)
def test_whether_to_stream_is_what_the_request_says(body: bytes, stream: bool | None) -> None:
    assert asked(body).stream is stream


ZERO = ["0", "0.0", "-0", "0e5", "-0.00E-1", '"0"', '"0s"', '"0m0s"', '"0h"', '"-0s"', '"+0"', '"0.0ms"', '".0us"']
NOT_ZERO = [
    "null",
    "true",
    "false",
    "1",
    "-1",
    "0.5",
    '""',
    '"0x"',
    '"00"',
    '"."',
    '"0s1s"',
    '"5m"',
    '" 0s"',
    "[]",
    "{}",
]


@pytest.mark.parametrize("keep_alive", ZERO)
@pytest.mark.parametrize(
    ("path", "rest"),
    [
        ("/api/generate", ""),
        ("/api/generate", ', "prompt": ""'),
        ("/api/generate", ', "prompt": null'),
        ("/api/generate", ', "prompt": "", "prompt": null, "messages": [1]'),
        ("/api/chat", ""),
        ("/api/chat", ', "messages": [ ]'),
        ("/api/chat", ', "messages": null, "prompt": "hi"'),
        ("/api/chat", ', "messages": [1], "messages": null'),
    ],
)
def test_nothing_to_say_and_nothing_to_keep_is_to_unload(keep_alive: str, path: str, rest: str) -> None:
    body = f'{{"model": "tiny-a", "KEEP_ALIVE": {keep_alive}{rest}}}'.encode()
    assert asked(body, path) == ParsedRequest("tiny-a", unloads=True, unloads_after=True)


@pytest.mark.parametrize("keep_alive", NOT_ZERO)
@pytest.mark.parametrize("path", ["/api/generate", "/api/chat"])
def test_what_is_kept_at_all_is_not_unloaded(keep_alive: str, path: str) -> None:
    assert not asked(f'{{"model": "tiny-a", "keep_alive": {keep_alive}}}'.encode(), path).unloads


@pytest.mark.parametrize(
    ("path", "members"),
    [
        ("/api/generate", '"prompt": "hi"'),
        ("/api/generate", '"prompt": "hi", "prompt": null'),
        ("/api/generate", '"prompt": 5'),
        ("/api/generate", '"keep_alive": null'),
        ("/api/chat", '"messages": [{}]'),
        ("/api/chat", '"messages": {}'),
        ("/api/embed", '"prompt": ""'),
        ("/v1/chat/completions", '"messages": []'),
    ],
)
def test_a_request_for_an_answer_does_not_unload(path: str, members: str) -> None:
    assert not asked(f'{{"model": "tiny-a", "keep_alive": 0, {members}}}'.encode(), path).unloads


@pytest.mark.parametrize(
    ("path", "unloads_after"),
    [
        ("/api/generate", True),
        ("/api/chat", True),
        ("/api/embed", True),
        ("/api/embeddings", True),
        ("/api/show", False),
        ("/v1/chat/completions", False),
    ],
)
def test_an_answer_after_which_the_model_is_not_kept_is_told(path: str, unloads_after: bool) -> None:
    given = asked(b'{"model": "tiny-a", "keep_alive": "0s", "prompt": "x", "input": "x", "messages": [{}]}', path)
    assert (given.unloads, given.unloads_after) == (False, unloads_after)


# --- Recordings of a real server --------------------------------------------------------------------------------------


def recorded(name: str) -> Any:
    return json.loads((RECORDINGS / f"{name}.json").read_text())


def answered() -> Iterator[tuple[str, Route, bytes, Any]]:
    """The recordings of requests for a model that were answered in JSON: name, route, body and the first JSON value."""
    for file in sorted(RECORDINGS.glob("*.json")):
        recording = json.loads(file.read_text())
        request, response = recording.get("request", {}), recording.get("response", {})
        route = find_route(request.get("path", ""))
        body, answer = ((side.get("body") or {}).get("text") or "" for side in (request, response))
        if route and route.kind is Kind.MODEL and body and response["status"] == 200 and answer.startswith("{"):
            yield file.stem, route, body.encode(), json.loads(answer.splitlines()[0])


ANSWERED = {name: (route, body, answer) for name, route, body, answer in answered()}


def test_there_are_recordings() -> None:
    assert len(ANSWERED) > 20


@pytest.mark.parametrize("name", ANSWERED)
def test_what_was_asked_is_what_a_real_server_took_it_for(name: str) -> None:
    route, body, answer = ANSWERED[name]
    found = read_request(route, route.path, body)
    assert found.readable
    assert is_json(body)
    assert found.model == answer.get("model", found.model)
    assert found.unloads is (answer.get("done_reason") == "unload")


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("json_case_model", "tiny-a"),
        ("json_dup_model", "tiny-a"),
        ("json_trailing_garbage", "tiny-a"),
        ("generate_keepalive_0_empty", "tiny-a"),
        ("chat_unload", "tiny-a"),
        ("model_as_name_field", None),
        ("v1_chat_null_model", None),
        ("generate_wrong_type", None),
    ],
)
def test_recorded_requests_name_these_models(name: str, model: str | None) -> None:
    request = recorded(name)["request"]
    found = asked(request["body"]["text"].encode(), request["path"])
    assert (found.model, found.readable) == (model, True)


@pytest.mark.parametrize("name", ["malformed_chat", "malformed_generate", "malformed_show", "malformed_v1_chat"])
def test_what_a_real_server_called_malformed_is_not_readable(name: str) -> None:
    request = recorded(name)["request"]
    body = request["body"]["text"].encode()
    assert asked(body, request["path"]) == ParsedRequest(readable=False)
    assert not is_json(body)


# --- Strictly ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        b"{}",
        b' \n{"a": [1, -0.5e3, true, null, "\\u00e4\\n"]} and more',
        b'{"a": "\xff"}',
        b'{"a": ' + b"1" * 10_000 + b"}",
        b'{"a": 1e999}',
        b"[" * 10_000 + b"]" * 10_000,
        b'"a"',
        b"5",
        b"[[1]]" * 20_000,
    ],
)
def test_json_is_told_as_go_reads_it(body: bytes) -> None:
    assert is_json(body)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b" ",
        b"{",
        b"nothing",
        b'{"a": NaN}',
        b"[Infinity]",
        b"-Infinity",
        b'{"a": 01}',
        b"{'a': 1}",
        b'{"a": 1,}',
        b'{"a": "\n"}',
        b'{"a": "\\x"}',
        b"[}",
        b"\xef\xbb\xbf{}",
        b"\x1f\x8b\x08\x00",
        b"\xff",
        b"[" * 10_001 + b"]" * 10_001,
        b'{"a":' * 10_001 + b"1" + b"}" * 10_001,
        b"[" * 500_000,
    ],
)
def test_what_go_cannot_read_is_no_json(body: bytes) -> None:
    assert not is_json(body)


def test_a_long_body_is_taken_for_json() -> None:
    assert is_json(b"[" * (MAX_STRICT + 1))


# --- Against a naive implementation -----------------------------------------------------------------------------------


class Members(list[tuple[str, Any]]):
    """An object's members in the order in which they were written, duplicates included."""


def naive(text: str) -> tuple[str | None, bool | None]:
    """The model and `stream` of a POST /api/show, with everything decoded."""
    strings, stream = {"model": "", "name": ""}, None
    for key, value in json.loads(text, object_pairs_hook=Members):
        key = key.lower()
        if key in strings and value is not None:
            strings[key] = value if isinstance(value, str) else ""
        if key == "stream":
            stream = value if isinstance(value, bool) else None
    model = strings["model"] or strings["name"] or None
    return model.encode("utf-8", "replace").decode() if model else None, stream


def written(value: Any, random: Random) -> str:
    """JSON in one of the many ways to write a value."""

    def space() -> str:
        return random.choice(["", "", " ", "\n\t", "\r\n" + " " * random.randrange(200)])

    def string(text: str) -> str:
        plain = json.dumps(text, ensure_ascii=random.random() < 0.5)
        if random.random() < 0.7:
            return plain
        units = [text.encode("utf-16-be", "surrogatepass")[at : at + 2].hex() for at in range(0, 2 * _units(text), 2)]
        return '"' + "".join(f"\\u{unit}" for unit in units) + '"'

    def of(value: Any) -> str:
        match value:
            case Members():
                inner = [f"{space()}{string(key)}{space()}:{space()}{of(item)}{space()}" for key, item in value]
                return "{" + (",".join(inner) or space()) + "}"
            case list():
                return "[" + (",".join(f"{space()}{of(item)}{space()}" for item in value) or space()) + "]"
            case str():
                return string(value)
            case _:
                return json.dumps(value)

    return space() + of(value)


def _units(text: str) -> int:
    return len(text.encode("utf-16-be", "surrogatepass")) // 2


CHARACTERS = st.one_of(st.sampled_from('"\\[]{},:/ \na'), st.characters())
KEYS = st.one_of(
    st.sampled_from(["model", "Model", "MODEL", "name", "naMe", "stream", "STREAM", "keep_alive", "a", ""]),
    st.text(CHARACTERS, max_size=80),
)
TEXTS = st.one_of(st.text(CHARACTERS, max_size=12), st.text(CHARACTERS, min_size=50).map(lambda text: text * 20))
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), TEXTS, TEXTS
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=12), st.lists(st.tuples(KEYS, inner), max_size=6).map(Members), st.just([0] * 500)
    ),
    max_leaves=20,
)
OBJECTS = st.lists(st.tuples(KEYS, VALUES), max_size=8).map(Members)
RANDOMS = st.integers(0, 2**32).map(Random)


@settings(derandomize=True, deadline=None, max_examples=120)
@given(OBJECTS, RANDOMS, st.sampled_from(["", "garbage", "{}", '"']))
def test_any_object_is_read_as_a_naive_reader_reads_it(value: Members, random: Random, rest: str) -> None:
    text = written(value, random)
    body = (text + rest).encode("utf-8", "replace")
    model, stream = naive(text.encode("utf-8", "replace").decode())
    assert asked(body, "/api/show") == ParsedRequest(model, stream=stream)
    assert is_json(body)


@settings(derandomize=True, deadline=None, max_examples=100)
@given(OBJECTS, RANDOMS, st.floats(0, 1))
def test_what_is_cut_short_is_not_readable_and_no_error(value: Members, random: Random, part: float) -> None:
    body = written(value, random).encode("utf-8", "replace")
    cut = body[: int(part * (len(body) - 1))]
    assert asked(cut) == ParsedRequest(readable=False)
    assert not is_json(cut)


@settings(derandomize=True, deadline=None, max_examples=300)
@given(st.binary(), st.lists(st.sampled_from([b'"', b"\\", b"[", b"]", b"{", b"}", b",", b":", b'"model"', b"1"])))
def test_no_body_is_an_error(noise: bytes, marks: list[bytes]) -> None:
    for body in (noise, b"".join(marks), b'{"model":' + b"".join(marks), b'{"x":[' + noise + b"".join(marks)):
        asked(body)
        is_json(body)


@settings(derandomize=True, deadline=None, max_examples=100)
@given(st.lists(st.sampled_from(["\\", "\\\\", '\\"', "x", "[", "}"])), st.sampled_from([1, 7, 40, 1000]))
def test_the_end_of_a_string_of_escapes_is_found(pieces: list[str], times: int) -> None:
    text = "".join(pieces) * times
    expected = len(json.dumps(text)) - len(text)  # each backslash and quote is written with one more
    assert expected == 2 + text.count("\\") + text.count('"')
    body = json.dumps({"x": [text, text], text: text, "model": "tiny-a"}).encode()
    assert asked(body) == ParsedRequest("tiny-a")


@settings(derandomize=True, deadline=None, max_examples=100)
@given(st.text(min_size=1))
def test_the_model_comes_as_it_is_spelled(name: str) -> None:
    assert model_of(json.dumps({"stream": False, "model": name}).encode()) == name


# --- Hostile bodies ---------------------------------------------------------------------------------------------------

M = 1_000_000


@pytest.mark.parametrize(
    ("value", "readable"),
    [
        (b"[" + b"0," * M + b"0]", True),
        (b"1" * M, True),
        (b'"' + b'\\"' * M + b'"', True),
        (b'"' + b"\\\\" * M + b'"', True),
        (b'"' + b'x\\\\\\"' * M + b'"', True),
        (b'"' + (b"x" * 300 + b'\\"') * 10_000 + b'"', True),
        (b'["' + b'x", "' * (M // 5) + b'"]', True),
        (b"[" * 9_999 + b"]" * 9_999, True),
        (b"[" * 10_000 + b"]" * 10_000, False),
        (b"[" * M, False),
        (b'{"a":' * M, False),
        (b'"' * M, False),
        (b'"' + b"\\" * M, False),
        (b"[" + b"[]," * M + b"0]", False),
        (b"[" + b'"\\"",' * M + b"0]", False),
    ],
)
def test_a_large_body_is_read_unless_it_has_more_structure_than_any_request(value: bytes, readable: bool) -> None:
    body = b'{"model": "tiny-a", "x": ' + value + b"}"
    assert asked(body) == ParsedRequest("tiny-a" if readable else None, readable=readable)


@pytest.mark.chaos
def test_an_object_with_endless_members_is_not_readable() -> None:
    assert not asked(b"{" + b'"a": 0, ' * M + b'"model": "tiny-a"}').readable
    assert not asked(b"{" + b'"\\u0061": 0, ' * M + b'"model": "tiny-a"}').readable


@pytest.mark.chaos
def test_a_conversation_of_ten_thousand_messages_is_readable() -> None:
    messages = [{"role": "user", "content": 'He said "no".\n' * 30, "images": ["A" * 100]}] * 10_000
    assert asked(json.dumps({"messages": messages, "model": "tiny-a"}).encode(), "/api/chat") == ParsedRequest("tiny-a")


# --- Forms ------------------------------------------------------------------------------------------------------------

FORM = "multipart/form-data; boundary=xyz"
FILE = (
    b'--xyz\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\nContent-Type: audio/wav\r\n\r\n%b\r\n'
)
FIELD = b'--xyz\r\nContent-Disposition: form-data; name="model"\r\n\r\ntiny-a\r\n'
END = b"--xyz--\r\n"


def form(body: bytes, content_type: str = FORM) -> ParsedRequest:
    return asked(body, "/v1/audio/transcriptions", content_type)


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (FIELD + END, FORM),
        (FIELD + FILE % b"RIFF" + END, FORM),
        (FILE % b"RIFF" + FIELD + END, FORM),
        (FILE % (bytes(range(256)) * amount(100_000, 1_000)) + FIELD + END, FORM),
        (FILE % b"\r\n--xy\r\n--\r\nxyz--xyz\r\n\r\n" + FIELD + END, FORM),
        (FILE % b"" + FIELD + END, FORM),
        (FIELD + FIELD.replace(b"tiny-a", b"second") + END, FORM),
        (b"preamble\r\n" + FIELD + END + b"epilogue", FORM),
        ((FIELD + END).replace(b"\r\n", b"\n"), FORM),
        (FIELD + END, 'Multipart/Form-Data; charset=utf-8; Boundary="xyz"'),
        (FIELD + END, 'multipart/form-data;boundary="x\\yz";'),
        (FIELD.replace(b' name="model"', b' x="; name=no"; NAME=model') + END, FORM),
        (FIELD.replace(b"\r\n\r\n", b"\r\nContent-Type: text/plain\r\n\r\n") + END, FORM),
        (FIELD.replace(b"\r\n\r\n", b"\r\nX: " + b"x" * 8000 + b"\r\n\r\n") + END, FORM),
        (FIELD.replace(b"Content", b"X: y\r\ncontent") + END, FORM),
        (FIELD.replace(b"--xyz", b"--xyz \t") + END, FORM),
        (b"--xyz\r\n\r\nno head\r\n" + FIELD + END, FORM),
    ],
)
def test_a_forms_model_is_found(body: bytes, content_type: str) -> None:
    assert form(body, content_type) == ParsedRequest("tiny-a")


@pytest.mark.parametrize(
    "body",
    [
        END,
        FILE % b"RIFF" + END,
        FIELD.replace(b"tiny-a", b"") + END,
        FIELD.replace(b'"model"', b'"model"; filename="model"') + END,
        FIELD.replace(b'name="model"', b'filename="; name=model"') + END,
        FIELD.replace(b'name="model"', b'x=""; name=model"') + END,
        FIELD.replace(b"Content-Disposition", b"Content-Position") + END,
        FILE % FIELD[5:] + END,
    ],
)
def test_a_form_need_not_name_a_model(body: bytes) -> None:
    assert form(body) == ParsedRequest()


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (b"", FORM),
        (b"", ""),
        (FIELD + END, ""),
        (FIELD + END, "multipart/form-data"),
        (FIELD + END, "multipart/form-data; boundary="),
        (FIELD + END, 'multipart/form-data; boundary="xyz'),
        (FIELD + END, "multipart/mixed; boundary=xyz"),
        (FIELD + END, "application/json"),
        (FIELD + END, "multipart/form-data; boundary=abc"),
        (FIELD, FORM),
        (FIELD[:-10], FORM),
        (FIELD[:30], FORM),
        (FIELD.replace(b"\r\n\r\n", b"\r\nX: " + b"x" * 9000 + b"\r\n\r\n") + END, FORM),
        (b'{"model": "tiny-a"}', FORM),
        ((FILE % b"RIFF").replace(b"\r\n\r\n", b"\r\n") + END, FORM),
        (FILE % b"" * 1_001 + FIELD + END, FORM),
    ],
)
def test_a_malformed_form_names_no_model_and_is_no_error(body: bytes, content_type: str) -> None:
    assert form(body, content_type) == ParsedRequest(readable=False)


@settings(derandomize=True, deadline=None, max_examples=150)
@given(
    st.lists(
        st.one_of(
            st.sampled_from(
                [b"--xyz", b"\r\n", b"\n", b"--", b"Content-Disposition: form-data", b'; name="model"', b'"']
            ),
            st.binary(max_size=5),
        )
    ),
    st.one_of(st.just(FORM), st.text()),
)
def test_no_form_is_an_error(pieces: list[bytes], content_type: str) -> None:
    form(b"".join(pieces), content_type)
    form(b"".join(pieces), "multipart/form-data" + content_type)


def test_a_body_of_many_small_values_is_not_built_to_check_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_scanning, "_STRICT", None)
    for unit in (b"{},", b"[],", b"1,", b'"",'):
        assert is_json(b"[" + unit * (2 * MAX_STRICT_VALUES) + b"1]")


@pytest.mark.parametrize("blank", [b" ", b"\n"])
@pytest.mark.chaos
def test_blanks_and_digits_without_an_end_are_not_matched_to_their_end(blank: bytes) -> None:
    for body in (
        b'{"model":"m"' + blank * 10_000_000 + b"}",
        b'{"x":1' + blank * 10_000_000 + b',"model":"m"}',
        b'{"x":' + b"1" * 10_000_000 + b',"model":"m"}',
        b'{"x":0.' + b"1" * 10_000_000 + b',"model":"m"}',
    ):
        assert not asked(body).readable
    assert asked(b'{"x":1' + blank * 1_000_000 + b',"model":"m"}').model == "m"
    assert asked(b'{"x":' + b"1" * 1_000_000 + b',"model":"m"}').model == "m"
