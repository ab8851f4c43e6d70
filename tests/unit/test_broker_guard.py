from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

import pytest

from x2gofleet.adapters.broker_guard import AS_IT_IS, ENDS, Guard, OnFailure, RequestFailed, give, reason_of
from x2gofleet.adapters.live_agent import AgentError


class BrokerError(BaseException):
    """Like the exceptions of x2gobroker, not an Exception."""


FAULTS: list[BaseException] = [
    BrokerError("no agent"),
    AgentError("the agent of ts01 failed"),
    OSError("refused"),
    TimeoutError(),
    ValueError("x"),
]


def raising(error: BaseException) -> Callable[..., None]:
    def function(*args: object, **kwargs: object) -> None:
        raise error

    return function


@pytest.fixture
def guard() -> Guard:
    return Guard(logging.getLogger("broker"))


def test_passes_arguments_and_value(guard: Guard) -> None:
    assert guard.wrap("add", lambda a, *, b: a + b, OnFailure())(1, b=2) == 3


@pytest.mark.parametrize("error", FAULTS, ids=repr)
def test_gives_an_answer_made_from_the_arguments(
    guard: Guard, error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    wrapped = guard.wrap("suspend_session", raising(error), OnFailure(lambda name, *, port: [name, port]))
    assert wrapped("bob", port=22) == ["bob", 22]
    assert [record.getMessage() for record in caplog.records] == [f"x2gofleet: suspend_session: {reason_of(error)}"]


def test_gives_a_new_answer_to_each_call(guard: Guard) -> None:
    wrapped = guard.wrap("get_all_remote_agents", raising(BrokerError()), give(list))
    assert wrapped() == wrapped() == []
    assert wrapped() is not wrapped()


@pytest.mark.parametrize("error", FAULTS, ids=repr)
def test_raises_what_the_caller_handles(guard: Guard, error: BaseException) -> None:
    with pytest.raises(BrokerError) as caught:
        guard.wrap("ping", raising(error), OnFailure(error=BrokerError))()
    assert str(caught.value) == reason_of(error)
    with pytest.raises(RequestFailed):
        guard.wrap("list_profiles", raising(error), OnFailure())()


@pytest.mark.parametrize("error", FAULTS, ids=repr)
def test_passes_the_exceptions_that_its_caller_wants(guard: Guard, error: BaseException) -> None:
    with pytest.raises(type(error)):
        guard.wrap("get_section", raising(error), AS_IT_IS)()
    wrapped = guard.wrap("select_session", raising(error), give(dict, passes=(Exception,)))
    if isinstance(error, Exception):
        with pytest.raises(type(error)):
            wrapped()
    else:
        assert wrapped() == {}


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("failure", [OnFailure(), OnFailure(error=BrokerError), give(dict), AS_IT_IS])
def test_the_end_of_a_program_a_generator_or_a_task_is_no_failure(
    guard: Guard, failure: OnFailure, end: type[BaseException]
) -> None:
    with pytest.raises(end):
        guard.wrap("ping", raising(end()), failure)()


def test_a_task_can_be_cancelled_and_a_generator_closed(guard: Guard) -> None:
    ended = []

    def lines() -> object:
        try:
            yield 1
        except GeneratorExit:
            ended.append("generator")
            raise

    generator = lines()
    assert guard.wrap("next", next, give(int))(generator) == 1  # type: ignore[arg-type]
    guard.wrap("close", generator.close, give(int))()  # type: ignore[attr-defined]

    async def cancelled() -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await asyncio.sleep(30)

    with pytest.raises(asyncio.CancelledError):
        guard.wrap("run", asyncio.run, give(int))(cancelled())
    assert ended == ["generator"]


def test_a_reason_is_one_short_line() -> None:
    assert reason_of(ValueError("a\nb\x1b[31m" + "c" * 1000)) == "ValueError: a b\ufffd[31m" + "c" * 279 + "…"


def test_only_faults_of_this_program_are_logged_with_their_traceback(
    guard: Guard, caplog: pytest.LogCaptureFixture
) -> None:
    for error in FAULTS:
        guard.wrap("ping", raising(error), give(int))()
    traced = [record.exc_info is not None for record in caplog.records]
    assert traced == [isinstance(error, Exception) and not isinstance(error, AgentError) for error in FAULTS]
