"""link, aiolink: deadlines, connections that are not reused with replies under way, pools, threads, forks."""

from __future__ import annotations

import asyncio
import gc
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from tests.clocks import WaitedClock
from tests.waiting import HANG_SECONDS, PATIENT
from x2gofleet.connection import async_link_from_url, client_from_url, link_from_url, link_of, unavailable
from x2gofleet.connection.failures import LinkFailed, LinkTimeout
from x2gofleet.errors import Unavailable

sys.path.insert(0, str(Path(__file__).parents[1]))
from links import KINDS, AnyLink, answering, full_backlog, listening, refusing, silent

HUGE = b"$1000000\r\n" + b"x" * 1000


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


class Echo:
    """A server that answers each ``ECHO text`` with the text; may answer late, once, or end the connection."""

    def __init__(self) -> None:
        self.connections = 0
        self.late = threading.Event()
        self.late.set()

    def __call__(self, peer: socket.socket) -> None:
        self.connections += 1
        buffer = b""
        while data := peer.recv(65_536):
            buffer += data
            while buffer.count(b"\r\n") >= 5:
                *parts, buffer = buffer.split(b"\r\n", 5)
                self.late.wait(HANG_SECONDS)
                peer.sendall(b"%b\r\n%b\r\n" % (parts[3], parts[4]))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[WaitedClock]:
    """The clock of links made in the test: it counts what they wait for in vain."""
    with WaitedClock().installed(monkeypatch) as installed:
        yield installed


@pytest.fixture
def echo() -> Iterator[tuple[Echo, int]]:
    server = Echo()
    with listening(server) as port:
        yield server, port
        server.late.set()


def test_replies_come_in_the_order_of_the_commands(kind: str, echo: tuple[Echo, int]) -> None:
    server, port = echo
    with AnyLink(kind, f"redis://127.0.0.1:{port}") as link:
        for _ in range(3):
            assert link.exchange([("ECHO", str(number)) for number in range(50)]) == [
                str(number).encode() for number in range(50)
            ]
        assert link.exchange([]) == []
        assert server.connections == 1, "a connection is used again"


def test_a_reply_that_comes_too_late_reaches_nobody(kind: str, echo: tuple[Echo, int], clock: WaitedClock) -> None:
    server, port = echo
    with AnyLink(kind, f"redis://127.0.0.1:{port}") as link:
        assert link.exchange([("ECHO", "a")]) == [b"a"]
        server.late.clear()
        with (
            clock.measured(0.1),
            pytest.raises(LinkTimeout, match=rf"127\.0\.0\.1:{port}: no time was left while waiting for a reply"),
        ):
            link.exchange([("ECHO", "late")], seconds=0.1)
        server.late.set()
        assert [link.exchange([("ECHO", str(n))]) for n in range(3)] == [[b"0"], [b"1"], [b"2"]]
        assert server.connections == 2


@pytest.mark.parametrize(("seconds", "waited"), [(0.3, 0.3), (None, 0.25 + 0.4)])
def test_bytes_that_drip_do_not_prolong_the_deadline(
    kind: str, seconds: float | None, waited: float, clock: WaitedClock
) -> None:
    clock.seconds_per_byte = 0.02
    with (
        listening(answering(HUGE)) as port,
        AnyLink(kind, f"redis://127.0.0.1:{port}", patient=False, command_timeout_seconds=0.4) as link,
        clock.measured(waited),
        pytest.raises(LinkTimeout),
    ):
        link.exchange([("GET", "a")], seconds=seconds)


def test_a_deadline_that_has_passed_sends_nothing(kind: str, echo: tuple[Echo, int]) -> None:
    server, port = echo
    with AnyLink(kind, f"redis://127.0.0.1:{port}") as link:
        with pytest.raises(LinkTimeout):
            link.exchange([("ECHO", "a")], seconds=-1)
        assert server.connections == 0


def test_a_login_that_hangs_ends_with_the_deadline(kind: str, clock: WaitedClock) -> None:
    with listening(silent) as port, AnyLink(kind, f"redis://:s3cret@127.0.0.1:{port}/1", patient=False) as link:
        with clock.measured(0.2), pytest.raises(LinkTimeout, match="while logging in") as caught:
            link.exchange([("GET", "a")], seconds=0.2)
        assert "s3cret" not in str(caught.value)


def test_a_connection_that_the_server_ended_is_replaced_unnoticed(kind: str) -> None:
    served: list[int] = []

    def once(peer: socket.socket) -> None:
        peer.recv(4096)
        served.append(1)
        peer.sendall(b"+OK\r\n")
        peer.shutdown(socket.SHUT_RDWR)

    with listening(once) as port, AnyLink(kind, f"redis://127.0.0.1:{port}") as link:
        for number in range(3):
            assert link.exchange([("PING",)]) == [b"OK"]
            assert len(served) == number + 1
            time.sleep(0.02)


@pytest.mark.parametrize(
    ("reply", "kept"), [(b"-READONLY x\r\n", False), (b"-LOADING x\r\n", False), (b"-NOPERM x\r\n", True)]
)
def test_an_error_of_the_server_itself_drops_the_connection(kind: str, reply: bytes, kept: bool) -> None:
    connections: list[int] = []

    def refuse(peer: socket.socket) -> None:
        connections.append(1)
        while peer.recv(4096):
            peer.sendall(b":1\r\n" + reply)

    with listening(refuse) as port, AnyLink(kind, f"redis://127.0.0.1:{port}") as link:
        for _ in range(2):
            with pytest.raises(redis.exceptions.RedisError, match="x"):
                link.exchange([("GET", "a"), ("SET", "a", 1)])
        assert len(connections) == (1 if kept else 2)


def test_who_is_no_redis_is_told_so(kind: str) -> None:
    def web(peer: socket.socket) -> None:
        peer.recv(4096)
        peer.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    with listening(web) as port, AnyLink(kind, f"redis://127.0.0.1:{port}") as link:
        with pytest.raises(redis.exceptions.InvalidResponse) as caught:
            link.exchange([("GET", "a")])
        assert "what answers there is no Redis" in str(unavailable(caught.value, "asking Redis"))


def test_nothing_listening_is_told_at_once(kind: str, tmp_path: Path, clock: WaitedClock) -> None:
    with refusing() as port:
        for url, place in (
            (f"redis://127.0.0.1:{port}", rf"127\.0\.0\.1:{port}: Connection refused while connecting"),
            (f"unix://{tmp_path}/no.sock", r"no\.sock: No such file or directory while connecting"),
        ):
            with AnyLink(kind, url, patient=False) as link:
                with clock.measured(0), pytest.raises(LinkFailed, match=place) as caught:
                    link.exchange([("GET", "a")])
                assert unavailable(caught.value, "asking").reason is Unavailable.UNREACHABLE


def test_a_full_backlog_ends_with_the_time_for_connecting(kind: str, clock: WaitedClock) -> None:
    with (
        full_backlog() as port,
        AnyLink(kind, f"redis://127.0.0.1:{port}", patient=False) as link,
        clock.measured(0.25),
        pytest.raises(LinkTimeout, match="while connecting"),
    ):
        link.exchange([("GET", "a")])


def test_a_limit_of_connections_is_waited_at(echo: tuple[Echo, int]) -> None:
    server, port = echo
    link = link_from_url(f"redis://127.0.0.1:{port}", max_connections=1, **PATIENT)
    server.late.clear()
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.extend(link.exchange([("ECHO", "a")])))
    thread.start()
    while not server.connections:
        time.sleep(0.001)
    with pytest.raises(LinkTimeout, match="all 1 connections are in use"):
        link.exchange([("ECHO", "b")], deadline=time.monotonic() + 0.1)
    server.late.set()
    thread.join(HANG_SECONDS)
    assert found == [b"a"]
    assert link.exchange([("ECHO", "c")]) == [b"c"]
    assert server.connections == 1
    link.close()


def test_a_limit_of_connections_is_waited_at_in_asyncio(echo: tuple[Echo, int]) -> None:
    server, port = echo

    async def main() -> None:
        link = async_link_from_url(f"redis://127.0.0.1:{port}", max_connections=2, **PATIENT)
        found = await asyncio.gather(*(link.exchange([("ECHO", str(n))]) for n in range(40)))
        assert found == [[str(n).encode()] for n in range(40)]
        assert server.connections <= 2
        await link.aclose()

    asyncio.run(main())


def test_threads_never_get_each_others_replies(echo: tuple[Echo, int]) -> None:
    _, port = echo
    link = link_from_url(f"redis://127.0.0.1:{port}", **PATIENT)
    wrong: list[Any] = []

    def ask(name: str) -> None:
        for number in range(200):
            said = f"{name}-{number}"
            if link.exchange([("ECHO", said)]) != [said.encode()]:
                wrong.append(said)

    threads = [threading.Thread(target=ask, args=(str(name),)) for name in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    link.close()


def test_a_cancelled_exchange_leaves_no_reply_to_the_next(echo: tuple[Echo, int]) -> None:
    server, port = echo

    async def main() -> None:
        link = async_link_from_url(f"redis://127.0.0.1:{port}", **PATIENT)
        assert await link.exchange([("ECHO", "a")]) == [b"a"]
        for number in range(5):
            server.late.clear()
            task = asyncio.create_task(link.exchange([("ECHO", f"cancelled {number}")]))
            await asyncio.sleep(0.01)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            server.late.set()
            assert await link.exchange([("ECHO", str(number))]) == [str(number).encode()]
        await link.aclose()

    asyncio.run(main())


@pytest.mark.filterwarnings("ignore:unclosed transport:ResourceWarning")
def test_one_event_loop_after_another(echo: tuple[Echo, int]) -> None:
    server, port = echo
    link = async_link_from_url(f"redis://127.0.0.1:{port}", **PATIENT)

    async def ask() -> list[Any]:
        return await link.exchange([("ECHO", "a")])

    assert [asyncio.run(ask()) for _ in range(3)] == [[b"a"]] * 3
    assert server.connections == 3
    asyncio.run(link.aclose())
    # asyncio warns of each transport of a loop that was closed before it, when it is collected.
    gc.collect()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_child_has_connections_of_its_own(kind: str, echo: tuple[Echo, int]) -> None:
    server, port = echo
    with AnyLink(kind, f"redis://127.0.0.1:{port}", max_connections=2) as link:
        assert link.exchange([("ECHO", "a")]) == [b"a"]
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                with AnyLink(kind, f"redis://127.0.0.1:{port}") as own:
                    own.link.after_fork()
                    own.link, mine = link.link, own.link
                    os.write(writing, own.exchange([("ECHO", "child")])[0])
                    own.link = mine
            except BaseException as exc:
                os.write(writing, repr(exc).encode())
            os._exit(0)
        os.waitpid(child, 0)
        assert os.read(reading, 1000) == b"child"
        os.close(reading)
        os.close(writing)
        assert link.exchange([("ECHO", "parent")]) == [b"parent"]
        assert server.connections == 2, "the parent keeps its connection, the child made one"


def test_closing_does_not_hurt_who_is_in_the_middle(echo: tuple[Echo, int]) -> None:
    server, port = echo
    link = link_from_url(f"redis://127.0.0.1:{port}", **PATIENT)
    server.late.clear()
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.extend(link.exchange([("ECHO", "a")])))
    thread.start()
    while not server.connections:
        time.sleep(0.001)
    link.close()
    server.late.set()
    thread.join(HANG_SECONDS)
    assert found == [b"a"]
    assert link.exchange([("ECHO", "b")]) == [b"b"]
    assert server.connections == 2, "the connection that was in use was closed after its reply"
    link.close()


def test_a_client_is_a_link(echo: tuple[Echo, int]) -> None:
    _, port = echo
    with client_from_url(f"redis://127.0.0.1:{port}", **PATIENT) as client:
        link = link_of(client)
        assert link_of(link) is link
        with pytest.raises(redis.exceptions.TimeoutError):
            link.exchange([("ECHO", "a")], deadline=time.monotonic() - 1)
