from __future__ import annotations

import threading

import pytest

from tests.waiting import HANG_SECONDS
from x2gofleet.adapters.live_agent import QUIET_SECONDS, LiveAgents, Unanswered


class BrokerError(BaseException):
    """As the exceptions of x2gobroker: no Exception."""


def raise_it() -> None:
    raise BrokerError("no agent")


def test_an_answer_and_an_error_come_through() -> None:
    agents = LiveAgents(10)
    assert agents.call("ts01", lambda: (True, ["row"])) == (True, ["row"])
    with pytest.raises(BrokerError, match="no agent"):
        agents.call("ts01", raise_it)


def test_a_hung_agent_costs_its_limit_once_and_others_nothing() -> None:
    now, asked, end = [0.0], [], threading.Event()
    agents = LiveAgents(0.05, monotonic=lambda: now[0])

    def hang() -> bool:
        asked.append(1)
        return end.wait(30)

    with pytest.raises(Unanswered, match=r"ts03 did not answer within 0\.05 s"):
        agents.call("ts03", hang)
    with pytest.raises(Unanswered, match="ts03 is not asked"):
        agents.call("ts03", hang)
    agents.limit_seconds = HANG_SECONDS
    assert agents.call("ts01", lambda: 1) == 1
    now[0] = QUIET_SECONDS + 1
    with pytest.raises(Unanswered, match="not asked"):
        agents.call("ts03", hang)
    end.set()
    hung = agents._hung["ts03"].thread
    hung.join(HANG_SECONDS)
    now[0] = QUIET_SECONDS - 1
    with pytest.raises(Unanswered, match="not asked"):
        agents.call("ts03", hang)
    now[0] = QUIET_SECONDS + 1
    assert agents.call("ts03", hang) is True
    assert len(asked) == 2
