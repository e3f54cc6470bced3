from __future__ import annotations

import pytest

from ollama_balancer.gateway.masking import mask_target
from ollama_balancer.storage.token import Token

TOKEN = Token("the-balancers-token")


@pytest.mark.parametrize(
    ("target", "shown"),
    [
        (b"/api/chat?api_key=one", b"/api/chat?api_key=***"),
        (b"/a?x=1&API-KEY=one&y=2", b"/a?x=1&API-KEY=***&y=2"),
        (b"/a?key=one;token=two", b"/a?key=***;token=***"),
        (b"/a?api%5fkey=one", b"/a?api%5fkey=***"),
        (b"/a?subscription-key=one&sig=two&access_token=", b"/a?subscription-key=***&sig=***&access_token="),
        (b"/a?authorization=Bearer%20one", b"/a?authorization=***"),
        (b"/a?password=a=b", b"/a?password=***"),
    ],
)
def test_secrets_are_masked_and_the_agent_gets_them(target: bytes, shown: bytes) -> None:
    assert mask_target(target, TOKEN) == (shown, target)


@pytest.mark.parametrize(
    "target", [b"/", b"/api/show?model=x", b"/a?author=me&max_tokens=5&keyword=x&monkey=y", b"/a?key", b"/a??=&&;"]
)
def test_what_is_no_secret_is_left(target: bytes) -> None:
    assert mask_target(target, TOKEN) == (target, None)


@pytest.mark.parametrize(
    ("target", "shown", "given"),
    [
        (b"/a?x=the-balancers-token&y=1", b"/a?x=***&y=1", None),
        (b"/a?x=th%65-balancers-token", b"/a?x=***", None),
        (b"/v1/the-balancers-token/x", b"/v1/***/x", None),
        (b"/a?api_key=the-balancers-token&token=one", b"/a?api_key=***&token=***", b"/a?api_key=***&token=one"),
    ],
)
def test_the_balancers_token_goes_nowhere(target: bytes, shown: bytes, given: bytes | None) -> None:
    assert mask_target(target, TOKEN) == (shown, given)


def test_a_token_with_separators_in_it_goes_nowhere() -> None:
    token = Token("a/token?with=all;of&them")
    for target in (b"/x/" + token.value.encode(), b"/?q=" + token.value.encode().replace(b"=", b"%3D")):
        assert mask_target(target, token) == (b"/***", None)
