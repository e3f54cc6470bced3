from __future__ import annotations

import asyncio
import json
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from typing import Any

import pytest

from agent_reporter.http import Answer, CallError
from agent_reporter.limits import MAX_BODY_BYTES, MAX_MODELS
from agent_reporter.push import Reporter, backoff, encode
from agent_reporter.wire import AgentMetrics, ModelEntry

A = "http://10.0.0.1:8080"
B = "http://10.0.0.2:8080"
SECRET = "s3cret-token"
REFUSED = (401, {"error": f"not {SECRET}"})


def metrics(**fields: Any) -> AgentMetrics:
    return AgentMetrics(cpu_usage=1, memory_usage=2, active_requests=0, timestamp=datetime.now(UTC), **fields)


async def collect() -> AgentMetrics:
    return metrics()


class Fleet:
    """Balancers that answer as told. A rule is an answer, an exception, or None for the usual answer."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str]] = []
        self.paths: list[str] = []
        self.bodies: list[Any] = []
        self.rule: Callable[[str, str], Any] = lambda _balancer, _what: None

    def count(self, balancer: str, what: str) -> int:
        return self.calls.count((balancer, what))

    async def __call__(
        self,
        method: str,
        url: str,
        *,
        timeout: float,  # noqa: ASYNC109
        limit: int,
        content: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        await asyncio.sleep(0)
        balancer, _, path = url.partition("/api/")
        what = path.rpartition("/")[2].replace("agents", "register")
        self.paths.append(path)
        self.calls.append((balancer, what))
        self.bodies.append(json.loads(content or b"null"))
        assert (headers or {})["Authorization"] == f"Bearer {SECRET}"
        answer = self.rule(balancer, what)
        if isinstance(answer, Exception):
            raise answer
        if isinstance(answer, asyncio.Event):
            await answer.wait()
            answer = None
        usual: dict[str, tuple[int, Any]] = {
            "register": (201, {"id": "a1", "name": "demo-1", "url": "http://10.0.0.9:11434"}),
            "metrics": (204, None),
            "drain": (200, {}),
        }
        if isinstance(answer, Answer):
            return answer
        status, body = answer or usual[what]
        return Answer(status, b"" if body is None else json.dumps(body).encode())


class FakeTime:
    """A clock that sleeping moves, and no waiting."""

    def __init__(self) -> None:
        self.now = 0.0
        self.sleeps: Counter[float] = Counter()

    def clock(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.sleeps[seconds] += 1
        self.now += seconds
        await asyncio.sleep(0)


def reporter(fleet: Fleet, *balancers: str, **other: Any) -> Reporter:
    time = other.pop("time", FakeTime())
    given: dict[str, Any] = {
        "balancers": balancers or (A,),
        "token": SECRET,
        "name": "demo-1",
        "collect": collect,
        "interval": 7.0,
        "clock": time.clock,
        "sleep": time.sleep,
        "rand": lambda: 0.0,
        "call": fleet,
    }
    return Reporter(**(given | other))


async def until(condition: Callable[[], object]) -> None:
    while not condition():  # noqa: ASYNC110  # anything may make it true
        await asyncio.sleep(0)


def run_until(made: Reporter, condition: Callable[[], object], *, eager: bool = False) -> None:
    """Run the reporter until `condition` holds, then stop it."""

    async def run() -> None:
        if eager:
            asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)
        async with asyncio.timeout(60):
            running = asyncio.create_task(made.run())
            await until(lambda: running.done() or condition())
            assert not running.done()
            made.stop()
            await running

    asyncio.run(run())


@pytest.fixture(autouse=True)
def _info(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "agent_reporter")


@pytest.mark.parametrize("eager", [False, True])
def test_it_registers_then_reports_each_interval_then_drains(eager: bool) -> None:
    fleet = Fleet()
    time = FakeTime()
    made = reporter(fleet, advertise="http://10.0.0.9:11434", time=time)
    run_until(made, lambda: fleet.count(A, "metrics") >= 3, eager=eager)
    assert fleet.calls[:3] == [(A, "register"), (A, "metrics"), (A, "metrics")]
    instance = fleet.bodies[0].pop("instance")
    assert len(instance) == 16
    assert fleet.bodies[0] == {"name": "demo-1", "url": "http://10.0.0.9:11434", "port": 11434}
    assert fleet.calls[-1] == (A, "drain")
    assert fleet.bodies[-1] == {"until": "registration"}
    assert set(time.sleeps) == {7.0}
    assert repr(made) == "<Reporter demo-1: 1 of 1 balancers>"


def test_what_the_balancer_says_of_reaching_the_host_is_logged_once_a_change(caplog: pytest.LogCaptureFixture) -> None:
    fleet = Fleet()
    reason = f"cannot connect: refused; start Ollama with OLLAMA_HOST=0.0.0.0\x1b[2J {SECRET}"

    def rule(_: str, what: str) -> Answer | None:
        told = what == "metrics" and 2 <= fleet.count(A, "metrics") <= 4
        return Answer(204, b"", ((b"x-balancer-reachable", f"no; {reason}".encode()),)) if told else None

    fleet.rule = rule
    run_until(reporter(fleet), lambda: fleet.count(A, "metrics") >= 7)
    lines = [(r.levelname, r.message) for r in caplog.records if "reach" in r.message]
    assert lines == [
        (
            "WARNING",
            f"balancer {A} cannot reach this host's Ollama and sends it nothing: cannot connect: refused; start Ollama "
            "with OLLAMA_HOST=0.0.0.0?[2J [token]",
        ),
        ("INFO", f"balancer {A} reaches this host's Ollama again"),
    ]


def test_once_says_as_well_that_the_balancer_cannot_reach_the_host(caplog: pytest.LogCaptureFixture) -> None:
    fleet = Fleet()
    fleet.rule = lambda _, what: (
        Answer(204, b"", ((b"x-balancer-reachable", b"no; a firewall"),)) if what == "metrics" else None
    )
    assert asyncio.run(reporter(fleet).once())
    assert "sends it nothing: a firewall" in caplog.text


def test_all_balancers_share_one_collection_per_interval() -> None:
    fleet = Fleet()
    made = 0

    async def counted() -> AgentMetrics:
        nonlocal made
        made += 1
        return metrics(ollama_version=str(made))

    run_until(
        reporter(fleet, A, B, collect=counted), lambda: min(fleet.count(A, "metrics"), fleet.count(B, "metrics")) > 2
    )
    versions = [
        {
            body["ollama_version"]
            for (to, what), body in zip(fleet.calls, fleet.bodies, strict=True)
            if (to, what) == (x, "metrics")
        }
        for x in (A, B)
    ]
    # A collection for each would give each versions of its own.
    assert versions[0] & versions[1]


def test_a_forgotten_agent_registers_anew_at_once(caplog: pytest.LogCaptureFixture) -> None:
    fleet = Fleet()
    time = FakeTime()
    fleet.rule = lambda _to, what: (404, {}) if what == "metrics" and fleet.count(A, "metrics") == 2 else None
    run_until(reporter(fleet, time=time), lambda: fleet.count(A, "metrics") >= 4)
    assert fleet.calls[:5] == [(A, x) for x in ("register", "metrics", "metrics", "register", "metrics")]
    assert set(time.sleeps) == {7.0}
    assert "registering again" in caplog.text


def test_a_balancer_that_registers_and_forgets_in_turn_is_asked_ever_less_often() -> None:
    fleet = Fleet()
    time = FakeTime()
    fleet.rule = lambda _to, what: (404, {}) if what == "metrics" else None
    run_until(reporter(fleet, time=time), lambda: fleet.count(A, "register") >= 8)
    assert {0.5, 1.0, 2.0, 4.0, 5.0} <= set(time.sleeps)


def test_a_balancer_that_is_away_is_tried_again_and_holds_up_no_other(caplog: pytest.LogCaptureFixture) -> None:
    fleet = Fleet()
    fleet.rule = lambda to, _: CallError("refused") if to == A and fleet.count(A, "register") < 6 else None
    run_until(reporter(fleet, A, B), lambda: fleet.count(A, "metrics") >= 2 and fleet.count(B, "metrics") >= 2)
    assert [r.message[:40] for r in caplog.records if A in r.message and r.levelno > logging.INFO] == [
        f"balancer {A} does not answer"[:40]
    ]
    assert f"reporting every 7 s to balancer {A} as demo-1 (http://10.0.0.9:11434)" in caplog.text
    assert sum("reporting every" in record.message for record in caplog.records) == 2


def test_a_balancer_that_never_answers_holds_up_no_other() -> None:
    fleet = Fleet()

    async def run() -> None:
        hang = asyncio.Event()
        fleet.rule = lambda to, _: hang if to == A else None
        made = reporter(fleet, A, B)
        running = asyncio.create_task(made.run())
        await until(lambda: fleet.count(B, "metrics") >= 3)
        made.stop()
        await running

    asyncio.run(asyncio.wait_for(run(), 60))
    assert fleet.count(A, "register") == 1
    assert (A, "drain") not in fleet.calls
    assert (B, "drain") in fleet.calls


def test_a_refused_token_is_said_once_with_its_source_and_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    fleet = Fleet()
    fleet.rule = lambda _to, _what: REFUSED if fleet.count(A, "register") < 4 else None
    run_until(reporter(fleet, token_source="$SOME_TOKEN"), lambda: fleet.count(A, "metrics"))
    warnings = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 1
    assert "refused the token (401): check $SOME_TOKEN" in warnings[0]
    assert SECRET not in caplog.text


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ((400, {"error": f"name \x1b[31m {SECRET}"}), "answered the registration with status 400: name ?[31m [token]"),
        ((409, {"error": "give this one --name"}), "answered the registration with status 409: give this one --name"),
        ((500, None), "answered the registration with status 500"),
        ((302, {}), "answered the registration with status 302"),
        ((200, None), "with no JSON: is it a balancer?"),
        ((200, ["a1"]), "with wrong fields"),
        ((200, {"id": 7, "name": "x"}), "with wrong fields"),
        ((200, {"id": "..", "name": "x"}), "with wrong fields"),
        ((200, {"id": "x" * 300, "name": "x"}), "with wrong fields"),
    ],
)
def test_an_answer_that_is_wrong_is_told_and_goes_no_further(
    answer: tuple[int, Any], said: str, caplog: pytest.LogCaptureFixture
) -> None:
    fleet = Fleet()
    fleet.rule = lambda _to, _what: answer
    assert not asyncio.run(reporter(fleet).once())
    assert said in caplog.text
    assert SECRET not in caplog.text
    assert fleet.calls == [(A, "register")]


def test_an_id_stays_one_part_of_the_path() -> None:
    fleet = Fleet()
    fleet.rule = lambda _to, what: (200, {"id": "../../x?y#z", "name": "n"}) if what == "register" else None
    assert asyncio.run(reporter(fleet).once())
    assert fleet.paths[1] == "agents/..%2F..%2Fx%3Fy%23z/metrics"


def test_once_is_true_only_if_all_balancers_took_the_report() -> None:
    fleet = Fleet()
    assert asyncio.run(reporter(fleet, A, B).once())
    fleet.rule = lambda to, what: (400, {"error": "cpu_usage"}) if (to, what) == (B, "metrics") else None
    assert not asyncio.run(reporter(fleet, A, B).once())


def test_a_report_that_cannot_be_made_is_said_once_and_the_next_one_is_sent(caplog: pytest.LogCaptureFixture) -> None:
    fleet = Fleet()
    tries = 0

    async def flaky() -> AgentMetrics:
        nonlocal tries
        tries += 1
        if tries < 4:
            raise RuntimeError("no counters")
        return metrics()

    run_until(reporter(fleet, collect=flaky), lambda: fleet.count(A, "metrics"))
    assert caplog.text.count("could not make a report") == 1
    assert "reports can be made again" in caplog.text


def test_an_old_report_is_not_sent_in_place_of_one_that_cannot_be_made() -> None:
    fleet = Fleet()
    tries = 0

    async def breaks() -> AgentMetrics:
        nonlocal tries
        tries += 1
        if tries > 1:
            raise RuntimeError("no counters")
        return metrics()

    fleet.rule = lambda _to, what: CallError("away") if what == "register" and tries < 5 else None
    run_until(reporter(fleet, collect=breaks), lambda: tries > 20 and fleet.count(A, "register") > 2)
    assert fleet.count(A, "metrics") == 0


def test_a_token_that_cannot_stand_in_a_header_is_refused_without_being_repeated() -> None:
    with pytest.raises(ValueError, match="printable ASCII") as caught:
        reporter(Fleet(), token=f"{SECRET}\nX-Evil: 1")
    assert SECRET not in str(caught.value)


def test_stopping_before_anything_was_registered_drains_nothing() -> None:
    fleet = Fleet()
    fleet.rule = lambda _to, _what: CallError("away")
    run_until(reporter(fleet), lambda: fleet.calls)
    assert {what for _, what in fleet.calls} == {"register"}


def test_a_drain_that_fails_does_not_keep_it_from_stopping(caplog: pytest.LogCaptureFixture) -> None:
    fleet = Fleet()
    fleet.rule = lambda to, what: CallError("gone") if (to, what) == (A, "drain") else None
    run_until(reporter(fleet, A, B), lambda: fleet.count(A, "metrics") and fleet.count(B, "metrics"))
    assert f"not drained: balancer {A}" in caplog.text
    assert f"drained at balancer {B}" in caplog.text


def test_a_drain_that_hangs_is_left(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr("agent_reporter.push.DRAIN_TIMEOUT", 0.05)
    fleet = Fleet()

    def rule(_to: str, what: str) -> Any:
        return asyncio.Event() if what == "drain" else None

    fleet.rule = rule
    run_until(reporter(fleet), lambda: fleet.count(A, "metrics"))
    assert "not drained: balancer http://10.0.0.1:8080 took longer than 0.05 s" in caplog.text


@pytest.mark.parametrize("eager", [False, True])
def test_being_cancelled_ends_all_tasks_without_draining(eager: bool) -> None:
    fleet = Fleet()

    async def run() -> int:
        if eager:
            asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)
        running = asyncio.create_task(reporter(fleet).run())
        await until(lambda: fleet.count(A, "metrics"))
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        return len(asyncio.all_tasks())

    assert asyncio.run(asyncio.wait_for(run(), 60)) <= 2
    assert (A, "drain") not in fleet.calls


def test_collecting_keeps_its_rhythm_however_long_it_takes() -> None:
    fleet = Fleet()
    time = FakeTime()

    async def slow() -> AgentMetrics:
        time.now += 2
        return metrics()

    run_until(reporter(fleet, collect=slow, time=time), lambda: fleet.count(A, "metrics") >= 4)
    assert set(time.sleeps) == {5.0}


def test_backoff_doubles_to_a_bound_and_leaves_half_to_chance() -> None:
    assert [backoff(failures, 0.0) for failures in (1, 2, 3, 4, 5, 6, 1000)] == [0.25, 0.5, 1, 2, 4, 5, 5]
    assert backoff(1, 0.99) == pytest.approx(0.5, abs=0.01)
    assert backoff(1000, 0.99) < 10


class TestEncoding:
    def test_a_report_is_sent_as_it_is_without_what_is_not_known(self) -> None:
        sent = json.loads(encode(metrics(models=[ModelEntry.model_validate({"name": "a", "size": 1})])))
        assert sent["models"] == [{"name": "a", "size": 1}]
        assert set(sent) == {"cpu_usage", "memory_usage", "active_requests", "timestamp", "models"}

    def test_a_report_too_long_for_a_balancer_keeps_the_models_names(self) -> None:
        models = [ModelEntry.model_validate({"name": f"model-{n}", "details": "x" * 1000}) for n in range(2000)]
        sent = encode(metrics(models=models))
        assert len(sent) <= MAX_BODY_BYTES
        assert json.loads(sent)["models"][1999] == {"name": "model-1999"}

    def test_names_too_long_for_a_balancer_are_left_out(self) -> None:
        models = [ModelEntry(name="x" * 512)] * MAX_MODELS
        sent = AgentMetrics.model_validate_json(encode(metrics(models=models, loaded_models=models[:1])))
        assert sent.models is None
        assert sent.loaded_models == models[:1]


def test_it_works_over_real_sockets_under_an_eager_task_factory() -> None:
    """As inside mitmproxy's loop."""
    served: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        served.append(head.split(b" ")[1])
        body = b'{"id": "a1", "name": "demo-1"}'
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s" % (len(body), body))
        await writer.drain()
        writer.close()

    async def run(start: Callable[..., Awaitable[asyncio.Server]]) -> None:
        asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)
        async with await start(serve, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            made = Reporter(
                balancers=[f"http://localhost:{port}"], token="t", name="demo-1", interval=0.01, collect=collect
            )
            running = asyncio.create_task(made.run())
            await until(lambda: len(served) >= 4)
            made.stop()
            await running

    asyncio.run(asyncio.wait_for(run(asyncio.start_server), 60))
    assert served[:3] == [b"/api/agents", b"/api/agents/a1/metrics", b"/api/agents/a1/metrics"]
    assert served[-1] == b"/api/agents/a1/drain"
