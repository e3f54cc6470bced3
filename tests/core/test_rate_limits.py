"""Limits of keys, on a clock that is set by hand."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ollama_balancer.core.access import Key, Limits
from ollama_balancer.core.rate_limits import DAY, Exceeded, RateLimiter, Use

from .fakes import Clock


class Wall(Clock):
    """Begins an hour before midnight UTC."""

    def __init__(self) -> None:
        super().__init__(20_000 * DAY - 3600)


def limited(**limits: int) -> tuple[RateLimiter, Key, Clock, Wall]:
    clock, wall = Clock(), Wall()
    return RateLimiter(clock, wall), Key("alice", limits=Limits(**limits)), clock, wall


def use(limiter: RateLimiter, key: Key, tokens: int = 0) -> Use:
    used = limiter.begin(key, tokens)
    assert isinstance(used, Use)
    return used


def exceeded(limiter: RateLimiter, key: Key, tokens: int = 0) -> Exceeded:
    refused = limiter.begin(key, tokens)
    assert isinstance(refused, Exceeded)
    return refused


def test_as_many_as_a_minute_allows_come_at_once_and_then_at_its_pace() -> None:
    limiter, key, clock, _ = limited(requests_per_minute=30)
    for _ in range(30):
        use(limiter, key)
    refused = exceeded(limiter, key)
    assert (refused.limit, refused.allowed, round(refused.seconds, 6)) == ("rpm", 30, 2.0)
    clock.now += 1.9
    exceeded(limiter, key)
    clock.now += 0.2
    use(limiter, key)
    exceeded(limiter, key)


def test_a_refused_request_uses_nothing() -> None:
    limiter, key, _, _ = limited(requests_per_minute=2, tokens_per_minute=100)
    use(limiter, key, 100)
    before = limiter.remaining(key)
    for _ in range(5):
        assert exceeded(limiter, key, 50).limit == "tpm"
    assert (limiter.remaining(key), limiter.running("alice")) == (before, 1)


def test_tokens_are_settled_by_what_was_used() -> None:
    limiter, key, _, _ = limited(tokens_per_minute=1000)
    used = use(limiter, key, 600)
    limiter.end(used, 100)
    assert limiter.remaining(key)[0].remaining == 900
    limiter.end(used, 900)
    assert limiter.remaining(key)[0].remaining == 900, "once"


def test_more_than_was_reserved_is_paid_back_before_the_next_one() -> None:
    limiter, key, clock, _ = limited(tokens_per_minute=600)
    limiter.end(use(limiter, key, 10), 1200)
    assert round(exceeded(limiter, key, 1).seconds) == 60
    clock.now += 61
    use(limiter, key, 1)


def test_a_request_larger_than_a_minutes_tokens_passes_when_all_are_there() -> None:
    limiter, key, clock, _ = limited(tokens_per_minute=100)
    use(limiter, key, 5000)
    exceeded(limiter, key, 1)
    clock.now += 50 * 60 + 1
    use(limiter, key, 1)


def test_a_day_ends_at_midnight_utc() -> None:
    limiter, key, _, wall = limited(tokens_per_day=1000)
    used = use(limiter, key, 1000)
    refused = exceeded(limiter, key, 1)
    assert (refused.limit, refused.seconds) == ("tokens-per-day", 3600.0)
    wall.now += 3600
    use(limiter, key, 400)
    limiter.end(used, 5000)
    assert limiter.remaining(key)[0].remaining == 600, "yesterday's request is not today's"


def test_a_clock_that_is_set_back_over_midnight_gives_no_new_day() -> None:
    limiter, key, _, wall = limited(tokens_per_day=1000)
    wall.now += 3600
    use(limiter, key, 1000)
    wall.now -= 3600
    exceeded(limiter, key, 1)


def test_what_was_used_before_the_start_counts() -> None:
    limiter, key, _, _ = limited(tokens_per_day=1000)
    limiter.used_today = lambda name: 1000
    assert exceeded(limiter, key, 1).limit == "tokens-per-day"


def test_so_many_requests_run_at_once() -> None:
    limiter, key, _, _ = limited(parallel=2)
    first, _ = use(limiter, key), use(limiter, key)
    assert exceeded(limiter, key).limit == "parallel"
    limiter.end(first, 0)
    use(limiter, key)


def test_a_changed_limit_keeps_what_was_used() -> None:
    limiter, key, _, _ = limited(requests_per_minute=10)
    for _ in range(8):
        use(limiter, key)
    raised = Key("alice", limits=Limits(requests_per_minute=20))
    use(limiter, raised)
    assert limiter.remaining(raised)[0].remaining == 20 - 9
    lowered = Key("alice", limits=Limits(requests_per_minute=5))
    assert exceeded(limiter, lowered).limit == "rpm"


def test_an_answer_to_a_request_from_before_a_change_gives_no_limit_back() -> None:
    limiter, key, _, _ = limited(requests_per_minute=1)
    before = Key("alice", limits=Limits(tokens_per_minute=100))
    use(limiter, key)
    limiter.remaining(before)
    assert exceeded(limiter, key).limit == "rpm"


def test_keys_do_not_share_limits_and_what_is_gone_is_forgotten() -> None:
    limiter, key, _, _ = limited(requests_per_minute=1)
    running = use(limiter, key)
    use(limiter, Key("bob", limits=Limits(requests_per_minute=1)))
    limiter.keep(set())
    assert limiter.running("alice") == 1, "its request still runs"
    limiter.end(running, 0)
    limiter.keep(set())
    use(limiter, key)


@given(st.lists(st.tuples(st.floats(0, 20), st.integers(0, 400), st.integers(0, 400)), max_size=60))
def test_no_minute_has_more_than_twice_its_tokens_reserved(steps: list[tuple[float, int, int]]) -> None:
    """A full bucket at once, and what is refilled in the minute; requests that are larger than all of it come alone."""
    limiter, key, clock, _ = limited(tokens_per_minute=400)
    taken: list[tuple[float, int]] = []
    for pause, tokens, _ in steps:
        clock.now += pause
        if isinstance(limiter.begin(key, tokens), Use):
            taken.append((clock.now, tokens))
    for start, _ in taken:
        assert sum(tokens for at, tokens in taken if start <= at <= start + 60) <= 800 + 1e-6
