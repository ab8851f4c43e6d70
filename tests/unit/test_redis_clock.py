"""RedisClock: never later than the clock of Redis, however late its replies are taken in."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from x2gofleet.store import RedisClock


class World:
    """A Redis with a clock, and a worker's monotonic clock that runs at another offset."""

    def __init__(self, offset: float) -> None:
        self.seconds = 0.0
        self._offset = offset

    def monotonic(self) -> float:
        return self.seconds + self._offset

    def redis_ms(self) -> int:
        return 1_763_800_000_000 + int(self.seconds * 1000)


def test_there_is_no_time_before_the_first_reply() -> None:
    assert RedisClock(lambda: 5.0).now_ms() is None


def test_it_goes_on_by_itself() -> None:
    world = World(0.0)
    clock = RedisClock(world.monotonic)
    clock.set(world.redis_ms())
    world.seconds += 2.5
    assert clock.now_ms() == world.redis_ms()


STEPS = st.lists(
    st.tuples(st.floats(0, 100, allow_nan=False), st.floats(0, 30, allow_nan=False), st.booleans()), max_size=20
)


@given(st.floats(-1e6, 1e6, allow_nan=False), STEPS)
def test_it_is_a_lower_bound(offset: float, steps: list[tuple[float, float, bool]]) -> None:
    world = World(offset)
    clock = RedisClock(world.monotonic)
    for passes, reply_takes, asks in steps:
        world.seconds += passes
        if asks:
            told = world.redis_ms()
            # Between the reply's sending and its being taken in: the network, or a worker that is stopped.
            world.seconds += reply_takes
            clock.set(told)
        now = clock.now_ms()
        assert now is None or now <= world.redis_ms() + 1, "1 ms: the floats of this test"


def test_a_late_reply_makes_it_slow_never_fast() -> None:
    world = World(0.0)
    clock = RedisClock(world.monotonic)
    clock.set(world.redis_ms())
    told = world.redis_ms()
    world.seconds += 20.0
    clock.set(told)
    assert clock.now_ms() == world.redis_ms() - 20_000


def test_it_follows_a_redis_whose_clock_was_set_back() -> None:
    world = World(0.0)
    clock = RedisClock(world.monotonic)
    clock.set(world.redis_ms() + 3_600_000)
    clock.set(world.redis_ms())
    assert clock.now_ms() == world.redis_ms()
