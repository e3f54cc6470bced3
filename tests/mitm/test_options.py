from __future__ import annotations

from types import SimpleNamespace

import pytest

from ollama_balancer.core.address import Address
from ollama_balancer.core.policies import POLICIES
from ollama_balancer.gateway.memory_budget import machine_memory
from ollama_balancer.settings import options
from ollama_balancer.settings.option_values import static_agents

DEFAULTS: dict[str, object] = {
    "balancer_mode": "metrics",
    "balancer_agents": [],
    "balancer_config": "",
    "balancer_token": "",
    "balancer_demo": 0,
    "balancer_stale_after": 30,
    "balancer_connect_timeout": 5,
    "balancer_response_timeout": 600,
    "balancer_stream_idle_timeout": 120,
    "balancer_retries": 2,
    "balancer_preload": True,
    "balancer_slots": 0,
    "balancer_queue_size": 1000,
    "balancer_queue_timeout": 300,
    "balancer_stop_timeout": 30,
    "balancer_keep_flows": 1000,
    "balancer_body_limit": "4m",
    "balancer_show_control": False,
    "balancer_announce": False,
    "balancer_relay": True,
    "balancer_relay_selector": True,
    "balancer_lean": True,
    "balancer_access": "auto",
    "balancer_access_log": "",
    "balancer_store": "",
    "balancer_store_days": 7,
    "balancer_store_size": "10g",
    "balancer_trusted_proxies": [],
    "balancer_origins": [],
    "balancer_hosts": [],
    "balancer_allow_from": [],
    "balancer_memory": "512m",
    "stream_large_bodies": None,
}


def read(**changes: object) -> options.Settings:
    return options.read(SimpleNamespace(**(DEFAULTS | changes)))


def test_the_defaults_are_accepted() -> None:
    assert read() == options.Settings(
        mode="metrics",
        agents=(),
        config="",
        token="",
        access="auto",
        trusted_proxies=(),
        demo=0,
        stale_after=30,
        connect_timeout=5,
        response_timeout=600,
        stream_idle_timeout=120,
        retries=2,
        preload=True,
        slots=0,
        queue_size=1000,
        queue_timeout=300,
        stop_timeout=30,
        keep_flows=1000,
        body_limit=4 * 1024**2,
        show_control=False,
        announce=False,
        relay=True,
        relay_selector=True,
        lean=True,
        origins=(),
        hosts=(),
        allow_from=(),
        memory=512 * 1024**2,
        access_log="",
        store="",
        store_days=7,
        store_size=10 * 1024**3,
    )


@pytest.mark.parametrize("mode", POLICIES)
def test_every_policy_is_a_mode(mode: str) -> None:
    assert read(balancer_mode=mode).mode == mode


@pytest.mark.parametrize("mode", ["", "fastest", "METRICS", "metrics ", "x" * 1000])
def test_an_unknown_mode_is_refused_with_a_list_of_the_modes(mode: str) -> None:
    with pytest.raises(ValueError, match="balancer_mode") as refused:
        read(balancer_mode=mode)
    assert ", ".join(POLICIES) in str(refused.value)
    assert len(str(refused.value)) < 300


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [
        ("balancer_demo", 0, 100),
        ("balancer_stale_after", 1, 86_400),
        ("balancer_connect_timeout", 1, 3600),
        ("balancer_response_timeout", 1, 86_400),
        ("balancer_stream_idle_timeout", 1, 86_400),
        ("balancer_retries", 0, 100),
        ("balancer_slots", 0, 10_000),
        ("balancer_queue_size", 0, 100_000),
        ("balancer_queue_timeout", 1, 86_400),
        ("balancer_stop_timeout", 0, 86_400),
        ("balancer_keep_flows", 0, 1_000_000),
    ],
)
def test_a_number_out_of_range_is_refused_with_the_range(name: str, low: int, high: int) -> None:
    for value in (low, high):
        assert getattr(read(**{name: value}), name.removeprefix("balancer_")) == value
    for bad in (low - 1, high + 1, -1, 10**30, "5", None):
        with pytest.raises(ValueError, match=rf"^{name}: .* from {low} to {high}$"):
            read(**{name: bad})


@pytest.mark.parametrize(
    ("size", "count"), [("0", 0), ("500", 500), (" 64K ", 65_536), ("4m", 4_194_304), ("1g", 2**30)]
)
def test_a_size_is_in_bytes_or_has_a_unit(size: str, count: int) -> None:
    assert read(balancer_body_limit=size).body_limit == count


@pytest.mark.parametrize("size", ["", "m", "-1", "2g", "4 MiB", "x" * 1000, None])
def test_what_is_no_size_is_refused_with_what_is_accepted(size: object) -> None:
    with pytest.raises(ValueError, match=r"^balancer_body_limit: .* such as 500k or 4m$") as refused:
        read(balancer_body_limit=size)
    assert len(str(refused.value)) < 200


def test_stream_large_bodies_is_refused_with_a_reason() -> None:
    with pytest.raises(ValueError, match=r"^stream_large_bodies .* whole request"):
        read(stream_large_bodies="1m")


def test_an_unusable_token_is_refused_without_being_shown() -> None:
    with pytest.raises(ValueError, match=r"^balancer_token: .* 8 to 512") as refused:
        read(balancer_token="secret")
    assert "secret" not in str(refused.value)
    assert read(balancer_token="secret-secret").token == "secret-secret"


def test_static_agents_have_a_name_or_are_called_by_their_address() -> None:
    assert static_agents(["gpu-1=http://10.0.0.1:8000", "http://10.0.0.2", "http://[::1]:11434/"]) == (
        ("gpu-1", Address("10.0.0.1", 8000)),
        ("10.0.0.2:11434", Address("10.0.0.2", 11434)),
        ("[::1]:11434", Address("::1", 11434)),
    )


@pytest.mark.parametrize(
    "entries",
    [
        ["a=http://10.0.0.1", "http://10.0.0.2"],
        ["a=http://10.0.0.1,http://10.0.0.2"],
        [" a=http://10.0.0.1 , http://10.0.0.2,"],
        ["", "a=http://10.0.0.1", "http://10.0.0.2"],
    ],
)
def test_several_agents_may_come_in_one_value(entries: list[str]) -> None:
    assert [name for name, _ in static_agents(entries)] == ["a", "10.0.0.2:11434"]


@pytest.mark.parametrize(
    "entry",
    [
        "10.0.0.1:11434",
        "gpu-1",
        "gpu-1=10.0.0.1:11434",
        "=http://10.0.0.1",
        "a/b=http://10.0.0.1",
        "a b=http://10.0.0.1",
        "-a=http://10.0.0.1",
        "a\n=http://10.0.0.1",
        "x" * 65 + "=http://10.0.0.1",
        "a=https://10.0.0.1",
        "a=http://10.0.0.1:0",
        "a=http://10.0.0.1:99999",
        "a=http://10.0.0.1/v1",
        "a=http://user:pass@10.0.0.1",
        "http://10.0.0.1 http://10.0.0.2",
    ],
)
def test_what_is_no_agent_is_refused_with_what_is_accepted(entry: str) -> None:
    with pytest.raises(ValueError, match=r"^balancer_agents: ") as refused:
        read(balancer_agents=["ok=http://10.0.0.9", entry])
    assert str(refused.value).endswith("; it takes http://host:port or name=http://host:port")


@pytest.mark.parametrize(
    "entries", [["a=http://10.0.0.1", "a=http://10.0.0.2"], ["http://10.0.0.1", "http://10.0.0.1:11434"]]
)
def test_two_agents_of_one_name_are_refused(entries: list[str]) -> None:
    with pytest.raises(ValueError, match="two agents called"):
        read(balancer_agents=entries)


def test_origins_may_be_several_in_one_entry_and_are_compared_without_case() -> None:
    assert read(balancer_origins=["https://A.test, http://*.b.test:3000", "*"]).origins == (
        "https://a.test",
        "http://*.b.test:3000",
        "*",
    )


@pytest.mark.parametrize("entry", ["a.test", "https://a.test/path", "https://", "https://a test", "https://a?"])
def test_what_is_no_origin_is_refused_with_what_is_accepted(entry: str) -> None:
    with pytest.raises(ValueError, match=r"balancer_origins: .* it takes scheme://host"):
        read(balancer_origins=[entry])


def test_networks_that_may_connect_may_be_several_in_one_entry() -> None:
    entries = ["203.0.113.7, 198.51.100.9/24", "2001:db8::1"]
    assert [str(network) for network in read(balancer_allow_from=entries).allow_from] == [
        "203.0.113.7/32",
        "198.51.100.0/24",
        "2001:db8::1/128",
    ]
    assert [str(network) for network in read(balancer_allow_from=["*"]).allow_from] == ["0.0.0.0/0", "::/0"]


@pytest.mark.parametrize(
    "entry", ["office", "1.2.3", "1.2.3.4/33", "1.2.3.4-1.2.3.9", "fe80::1%eth0/64", "http://1.2.3.4", "**"]
)
def test_what_is_no_network_is_refused_with_what_is_accepted(entry: str) -> None:
    with pytest.raises(ValueError, match=r"balancer_allow_from: .* it takes addresses and networks"):
        read(balancer_allow_from=["10.0.0.0/8", entry])


@pytest.mark.parametrize(("value", "size"), [("1m", 1024**2), (" 4G ", 4 * 1024**3), ("1t", 1024**4)])
def test_the_memory_is_a_size(value: str, size: int) -> None:
    assert read(balancer_memory=value).memory == size


def test_a_quarter_of_the_machines_memory_is_taken_by_default() -> None:
    assert read(balancer_memory="").memory == max(machine_memory() // 4, 1024**2)


@pytest.mark.parametrize("value", ["0", "1023k", "2t", "-1", "much", "25%", "x" * 1000])
def test_no_other_memory_is_accepted(value: str) -> None:
    with pytest.raises(ValueError, match=r"balancer_memory.*such as 512m or 4g") as refused:
        read(balancer_memory=value)
    assert len(str(refused.value)) < 200
