from __future__ import annotations

import base64

import pytest
from mitmproxy import http
from mitmproxy.test import tflow, tutils

from ollama_balancer.core.access import Key
from ollama_balancer.core.priority import Priority
from ollama_balancer.gateway.callers import Caller, read_caller
from ollama_balancer.mitm.flows import extract_caller
from ollama_balancer.mitm.headers import request_to_agent
from ollama_balancer.storage.token import Token

TOKEN = Token("the-balancers-token")


def flow_with(*fields: tuple[bytes, bytes]) -> http.HTTPFlow:
    flow = tflow.tflow(req=tutils.treq(path=b"/api/chat"))
    flow.request.headers = http.Headers([(b"Accept", b"*/*"), *fields])
    return flow


def take(flow: http.HTTPFlow, salt: bytes = b"salt") -> Caller:
    return extract_caller(flow, TOKEN, salt)


@pytest.mark.parametrize(
    "name",
    [
        "Authorization",
        "X-API-Key",
        "api-key",
        "X-Auth-Token",
        "CF-Access-Client-Secret",
        "X-Goog-Api-Key",
        "x-password",
        "X-Auth",
        "X-Access-Key",
        "Ocp-Apim-Subscription-Key",
    ],
)
def test_credentials_leave_the_flow_and_reach_the_agent_as_they_were(name: str) -> None:
    flow = flow_with((name.encode(), b"planted"))
    caller = take(flow)
    assert flow.request.headers.fields == ((b"Accept", b"*/*"),)
    assert (name.encode(), b"planted") in request_to_agent(flow.request, None, caller.credentials).headers.fields


@pytest.mark.parametrize("name", ["Cookie", "Proxy-Authorization", "Proxy-Token", "Set-Cookie"])
def test_cookies_and_what_is_for_a_proxy_go_no_further(name: str) -> None:
    flow = flow_with((name.encode(), b"planted"))
    caller = take(flow)
    assert b"planted" not in b"".join(value for _, value in flow.request.headers.fields)
    assert caller.credentials == ()


@pytest.mark.parametrize(
    ("field", "authorized"),
    [
        ((b"authorization", b"Bearer the-balancers-token"), True),
        ((b"Authorization", b"bearer   the-balancers-token"), True),
        ((b"authorization", b"Basic the-balancers-token"), False),
        ((b"authorization", b"the-balancers-token"), False),
        ((b"x-api-key", b"the-balancers-token"), False),
        ((b"proxy-authorization", b"Bearer the-balancers-token"), False),
        ((b"Authorization", b'Bearer "the-balancers-token"'), False),
        ((b"Authorization", b"Bearerthe-balancers-token"), False),
        ((b"authorization", b"Basic dXNlcjp0aGUtYmFsYW5jZXJzLXRva2Vu"), False),
        ((b"X-Note", b"x=the-balancers-token;"), False),
        ((b"user-agent", b"the-balancers-token"), False),
        ((b"the-balancers-token", b"1"), False),
    ],
)
def test_the_balancers_token_goes_to_no_agent_whether_it_is_presented_well_or_not(
    field: tuple[bytes, bytes], authorized: bool
) -> None:
    flow = flow_with(field)
    caller = take(flow)
    assert (caller.authorized, caller.credentials) == (authorized, ())
    assert "the-balancers-token" not in str(flow.get_state())


def test_a_header_that_a_person_has_set_in_the_flow_is_the_one_that_is_sent() -> None:
    flow = flow_with((b"Authorization", b"Bearer planted"))
    caller = take(flow)
    flow.request.headers["authorization"] = "Bearer edited"
    sent = request_to_agent(flow.request, None, caller.credentials).headers
    assert sent.get_all("authorization") == ["Bearer edited"]


def test_clients_are_told_apart_by_their_keys_which_their_names_do_not_tell() -> None:
    names = [take(flow_with((b"authorization", key))).name for key in (b"Bearer one", b"Bearer two", b"Bearer one")]
    assert names[0] == names[2] != names[1]
    assert all(name.startswith("key ") and "one" not in name for name in names)
    assert take(flow_with((b"authorization", b"Bearer one")), b"another salt").name != names[0]
    assert take(flow_with()).name == "127.0.0.1"


def take_from(address: str, key: bytes = b"") -> Caller:
    flow = flow_with(*([(b"authorization", key)] if key else []))
    flow.client_conn.peername = (address, 1234)
    return take(flow)


def test_keys_that_nobody_gave_out_share_the_turns_of_their_address() -> None:
    callers = [take_from("10.0.0.1", b"Bearer %d" % n) for n in range(3)] + [take_from("10.0.0.1")]
    assert {caller.fairness_key[0] for caller in callers if caller.fairness_key} == {"10.0.0.1"}
    assert len({caller.fairness_key for caller in callers}) == 4
    assert take_from("10.0.0.2").fairness_key == ("10.0.0.2", "")


@pytest.mark.parametrize("key", [b"", b"Bearer one"])
def test_the_addresses_of_an_ipv6_network_share_its_turns_and_keys_buy_none_there(key: bytes) -> None:
    first, second = take_from("2001:db8::1", key), take_from("2001:db8::2", b"Bearer two")
    assert first.fairness_key == ("2001:db8::/64", "2001:db8::1")
    assert second.fairness_key == ("2001:db8::/64", "2001:db8::2")
    assert take_from("2001:db8:0:1::1").fairness_key == ("2001:db8:0:1::/64", "2001:db8:0:1::1")
    assert take_from("fe80::1%eth0").fairness_key == ("fe80::/64", "fe80::1%eth0")


def test_an_ipv4_client_is_told_by_its_address_also_where_the_socket_is_of_ipv6() -> None:
    assert take_from("::ffff:10.0.0.1").fairness_key == take_from("10.0.0.1").fairness_key
    assert take_from("::ffff:10.0.0.2").fairness_key != take_from("10.0.0.1").fairness_key


def test_the_password_of_mitmproxys_own_proxyauth_is_not_in_the_flow() -> None:
    flow = flow_with()
    flow.metadata["proxyauth"] = ("anna", "planted")
    take(flow)
    assert flow.metadata["proxyauth"] == ("anna", "")


def test_no_name_or_value_of_bytes_is_an_error() -> None:
    flow = flow_with((b"authorization", b"Bearer \xff\xfe"), (b"x-token\xff", b"\x00"))
    caller = take(flow)
    assert len(caller.credentials) == 2
    assert caller.name.startswith("key ")


def test_a_target_that_a_person_has_set_in_the_flow_is_the_one_that_is_sent() -> None:
    flow = flow_with()
    flow.request.path = "/api/chat?api_key=planted"
    caller = take(flow)
    assert flow.request.path == "/api/chat?api_key=***"
    assert request_to_agent(flow.request, target=caller.target).path == "/api/chat?api_key=planted"
    flow.request.path = "/api/chat?api_key=edited"
    assert request_to_agent(flow.request, target=caller.target).path == "/api/chat?api_key=edited"


@pytest.mark.parametrize(
    ("field", "wrong"),
    [
        ((b"authorization", b"Bearer another-token"), True),
        ((b"authorization", b"Bearer the-balancers-token"), False),
        ((b"x-api-key", b"another-token"), False),
        ((b"accept-language", b"en"), False),
    ],
)
def test_a_token_that_is_not_the_balancers_is_a_wrong_one(field: tuple[bytes, bytes], wrong: bool) -> None:
    assert take(flow_with(field)).has_wrong_token is wrong


@pytest.mark.parametrize("name", ["X-Author", "Authority", "Idempotency-Key", "User-Agent", "X-Request-Id"])
def test_other_headers_stay_in_the_flow(name: str) -> None:
    flow = flow_with((name.encode(), b"value"))
    assert take(flow).credentials == ()
    assert flow.request.headers[name] == "value"


def test_who_has_a_key_has_turns_of_its_own_wherever_it_is_and_its_name_is_shown() -> None:
    key, secret = Key("alice", priority=Priority.BATCH), "ob_" + "A" * 43
    for header, value in (
        (b"authorization", f"Bearer {secret}"),
        (b"x-api-key", secret),
        (b"authorization", "Basic " + base64.b64encode(f"any:{secret}".encode()).decode()),
        (b"authorization", "basic\t" + base64.b64encode(f"any:{secret}".encode()).decode()),
    ):
        for address in ("10.0.0.1", "2001:db8::1"):
            caller, kept, _ = read_caller(
                ((header, value.encode()),),
                b"/api/chat",
                Token("the-balancers-token"),
                b"salt",
                client_id="c",
                address=address,
                find_key=lambda found: key if found == secret.encode() else None,
            )
            assert (caller.name, caller.key, caller.priority) == ("alice", key, Priority.BATCH)
            assert caller.fairness_key == ("key alice", address)
            assert (kept, caller.credentials) == ((), ())
