"""The SSH side of one simulated server: a listening port, a host key, and sessions that run probes and commands."""

from __future__ import annotations

import asyncio
import random
import socket
import time
from collections import deque
from collections.abc import Callable

from x2gofleet.errors import NotProven
from x2gofleet.extras import how_to_install
from x2gofleet_workers.probe.encoding import encode_notice, encode_refusal
from x2gofleet_workers.probe.frames import TO_PROBE, Frame, FrameDecoder
from x2gofleet_workers.probe.sections import ErrorCode
from x2gofleet_workers.simulator.answers import ProbeAnswers
from x2gofleet_workers.simulator.commands import Output, probe_start, run_command
from x2gofleet_workers.simulator.counters import Counters
from x2gofleet_workers.simulator.faults import Fault, FaultKind
from x2gofleet_workers.simulator.fleet import ServerModel
from x2gofleet_workers.simulator.users import Login

try:
    import asyncssh
except ImportError as exc:
    raise ImportError(f"the simulator needs asyncssh: {how_to_install('demo')}") from exc

_TURNS = 5
_BACKLOG = 256
_LOGIN_TIMEOUT_SECONDS = 60
_NOT_SSH = b"HTTP/1.1 400 Bad Request\r\nServer: not-an-ssh-server\r\nConnection: close\r\n\r\n"
_TARPIT_LINE_BYTES = 32
_STUCK = frozenset({FaultKind.HANG})
_BELOW_SSH = frozenset({FaultKind.TARPIT, FaultKind.NOT_SSH})
_BREAKS_CONNECTIONS = frozenset(
    {FaultKind.TARPIT, FaultKind.NOT_SSH, FaultKind.DEAD, FaultKind.AUTH, FaultKind.HOSTKEY}
)


def new_key() -> asyncssh.SSHKey:
    """Return a new ed25519 key pair."""
    return asyncssh.generate_private_key("ssh-ed25519", comment="x2gofleet simulator")


class SimulatedServer:
    """One simulated X2Go server; its methods belong to the event loop's thread.

    :param address: IP address to listen on.
    :param port: TCP port; 0 takes a free one, which it keeps for its life.
    :param client_key: the public key that every login has.
    :param on_poll: told of +1 when a poll begins and -1 when it is answered or given up.
    """

    def __init__(
        self,
        *,
        model: ServerModel,
        address: str,
        port: int,
        client_key: asyncssh.SSHKey,
        clock: Callable[[], float],
        on_poll: Callable[[int], None],
    ) -> None:
        self.model, self.address, self.port, self.clock = model, address, port, clock
        self.counters = Counters()
        self.draw = random.Random(f"{model.server_id}:garbage")
        self.fault: Fault | None = None
        self.host_key = new_key()
        self._client_key = client_key.public_data
        self._on_poll = on_poll
        self._other_host_key: asyncssh.SSHKey | None = None
        self._socket: socket.socket | None = None
        self._listener: asyncssh.SSHAcceptor | asyncio.Server | None = None
        self._connections: set[asyncssh.SSHServerConnection] = set()
        self._transports: set[asyncio.Transport] = set()
        self._probes: set[_ExecSession] = set()

    @property
    def server_id(self) -> str:
        """The server's id and host name."""
        return self.model.server_id

    async def start(self) -> None:
        """Begin to listen; OSError where the port is taken."""
        self._bind(listening=True)
        await self._listen()

    async def stop(self) -> None:
        """Stop listening and end every connection."""
        self._unlisten()
        # What was accepted a moment ago becomes a connection in the next turns of the event loop.
        for _ in range(_TURNS):
            await asyncio.sleep(0)
        connections = self._break_connections()
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        await asyncio.gather(*(connection.wait_closed() for connection in connections))

    async def set_fault(self, fault: Fault | str | None) -> None:
        """Break the server in one way, or repair it with None; ValueError where the text names no fault.

        Faults below the probe (tarpit, not-ssh, dead, auth, hostkey) also end the connections there are.
        """
        wanted = Fault.parse(fault) if isinstance(fault, str) else fault
        self._unlisten()
        was, self.fault = self.fault, wanted
        if any(each is not None and each.kind in _BREAKS_CONNECTIONS for each in (was, wanted)):
            self._break_connections()
        is_dead, was_dead = (each is not None and each.kind is FaultKind.DEAD for each in (wanted, was))
        if is_dead != was_dead:
            self._bind(listening=not is_dead)
        if not is_dead:
            await self._listen()

    def break_connections(self) -> None:
        """End the connections there are, as a network does that forgets them; new ones are accepted."""
        self._break_connections()

    def kill_probes(self) -> None:
        """End the probes that run, as SIGKILL does; connections stay."""
        for probe in list(self._probes):
            probe.kill()

    def probe_started(self, probe: _ExecSession) -> None:
        """Note a probe that runs."""
        self._probes.add(probe)

    def probe_ended(self, probe: _ExecSession) -> None:
        """Note the end of a channel."""
        self._probes.discard(probe)

    def is_allowed(self, key: asyncssh.SSHKey) -> bool:
        """True where ``key`` opens a login now."""
        refused = self.fault is not None and self.fault.kind is FaultKind.AUTH
        return not refused and key.public_data == self._client_key

    def count_poll(self, step: int) -> None:
        """Count a poll that begins (+1) or is over (-1)."""
        counters = self.counters
        counters.running_polls += step
        if step > 0:
            counters.polls += 1
            counters.poll_times.append(time.monotonic())
            counters.peak_concurrent_polls = max(counters.peak_concurrent_polls, counters.running_polls)
        self._on_poll(step)

    def connected(self, connection: asyncssh.SSHServerConnection) -> None:
        """Note a new SSH connection."""
        self._connections.add(connection)
        self._count_connection(1)

    def disconnected(self, connection: asyncssh.SSHServerConnection) -> None:
        """Note the end of an SSH connection."""
        if connection in self._connections:
            self._connections.remove(connection)
            self._count_connection(-1)

    def transport_opened(self, transport: asyncio.Transport) -> None:
        """Note a new connection that never gets to SSH; end it where the server has stopped."""
        if self._socket is None:
            transport.abort()
        self._transports.add(transport)
        self._count_connection(1)

    def transport_closed(self, transport: asyncio.Transport) -> None:
        """Note the end of a connection that never got to SSH."""
        if transport in self._transports:
            self._transports.remove(transport)
            self._count_connection(-1)

    def _count_connection(self, step: int) -> None:
        self.counters.open_connections += step
        self.counters.connections += max(step, 0)

    def _bind(self, *, listening: bool) -> None:
        """Hold the port: a socket that is bound and does not listen refuses connections and keeps the number."""
        if self._socket is not None:
            self._socket.close()
        bound = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        try:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind((self.address, self.port))
            if listening:
                bound.listen(_BACKLOG)
        except OSError:
            bound.close()
            raise
        bound.setblocking(False)
        self.port = bound.getsockname()[1]
        self._socket = bound

    async def _listen(self) -> None:
        assert self._socket is not None
        # Each acceptor gets a duplicate, so that changing what answers never closes the port in between.
        duplicate = self._socket.dup()
        try:
            if self.fault is not None and self.fault.kind in _BELOW_SSH:
                loop = asyncio.get_running_loop()
                self._listener = await loop.create_server(lambda: _BelowSsh(self), sock=duplicate, backlog=_BACKLOG)
            else:
                self._listener = await self._listen_ssh(duplicate)
        except BaseException:
            duplicate.close()
            raise

    async def _listen_ssh(self, listening: socket.socket) -> asyncssh.SSHAcceptor:
        host_key = self.host_key
        if self.fault is not None and self.fault.kind is FaultKind.HOSTKEY:
            if self._other_host_key is None:
                self._other_host_key = new_key()
            host_key = self._other_host_key
        return await asyncssh.listen(
            sock=listening,
            backlog=_BACKLOG,
            config=None,
            server_factory=lambda: _SshServer(self),
            server_host_keys=[host_key],
            public_key_auth=True,
            password_auth=False,
            kbdint_auth=False,
            host_based_auth=False,
            gss_host=None,
            gss_kex=False,
            gss_auth=False,
            allow_pty=False,
            agent_forwarding=False,
            x11_forwarding=False,
            line_editor=False,
            compression_algs=None,
            login_timeout=_LOGIN_TIMEOUT_SECONDS,
        )

    def _unlisten(self) -> None:
        if self._listener is not None:
            self._listener.close()
            self._listener = None

    def _break_connections(self) -> list[asyncssh.SSHServerConnection]:
        connections = list(self._connections)
        for connection in connections:
            connection.abort()
        for transport in list(self._transports):
            transport.abort()
        return connections


class _SshServer(asyncssh.SSHServer):
    """One SSH connection: public-key logins of any name, and exec alone."""

    def __init__(self, server: SimulatedServer) -> None:
        self._server = server
        self._connection: asyncssh.SSHServerConnection | None = None
        self._username = ""

    def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
        self._connection = conn
        self._server.connected(conn)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._connection is not None:
            self._server.disconnected(self._connection)

    def begin_auth(self, username: str) -> bool:
        self._username = username
        return True

    def public_key_auth_supported(self) -> bool:
        return True

    def validate_public_key(self, username: str, key: asyncssh.SSHKey) -> bool:
        return self._server.is_allowed(key)

    def session_requested(
        self,
    ) -> tuple[asyncssh.SSHServerChannel[bytes], asyncssh.SSHServerSession[bytes]]:
        assert self._connection is not None
        channel = self._connection.create_server_channel(encoding=None)
        return channel, _ExecSession(self._server, Login.named(self._username))


class _ExecSession(asyncssh.SSHServerSession[bytes]):
    """One channel: a probe that answers requests in their order and sends notices, or a single command."""

    def __init__(self, server: SimulatedServer, login: Login) -> None:
        self._server, self._login = server, login
        self._channel: asyncssh.SSHServerChannel[bytes] | None = None
        self._command = ""
        self._probe: ProbeAnswers | None = None
        self._needs_text = False
        self._frames = FrameDecoder(TO_PROBE)
        self._waiting: deque[Frame] = deque()
        self._is_busy = self._is_poll_running = self._is_at_end = False
        self._timer: asyncio.TimerHandle | None = None
        self._notice: asyncio.Handle | None = None

    def connection_made(self, chan: asyncssh.SSHServerChannel[bytes]) -> None:
        self._channel = chan

    def connection_lost(self, exc: Exception | None) -> None:
        self._channel = None
        self._server.probe_ended(self)
        if self._timer is not None:
            self._timer.cancel()
        self._stop_watching()
        self._poll_over()

    def exec_requested(self, command: str) -> bool:
        self._command = command
        return True

    def session_started(self) -> None:
        server = self._server
        start = probe_start(self._command, self._login)
        if start is None:
            server.counters.commands += 1
            self._run_command()
            return
        if isinstance(start, Output):
            self._print_and_exit(start)
            return
        server.counters.probe_channels += 1
        server.probe_started(self)
        self._probe = ProbeAnswers(
            model=server.model, login=start.login, counters=server.counters, clock=server.clock, draw=server.draw
        )
        self._needs_text = start.needs_text
        if not self._needs_text:
            self._write(self._probe.hello(server.fault))

    def kill(self) -> None:
        """End as a process that got SIGKILL."""
        if self._channel is not None:
            self._channel.exit_with_signal("KILL")

    def data_received(self, data: bytes, datatype: asyncssh.DataType) -> None:
        if self._probe is None:
            return
        self._server.counters.bytes_received += len(data)
        self._frames.feed(data)
        try:
            while (frame := self._frames.next_frame()) is not None:
                self._take(self._probe, frame)
        except NotProven:
            self._answer_next()
            self._probe = None
            self._waiting.clear()
            self._write(encode_refusal(ErrorCode.REQUEST, "not a frame, or too long"))
            self._exit(0)
            return
        self._answer_next()

    def _take(self, probe: ProbeAnswers, frame: Frame) -> None:
        if frame.type == "Q" and not self._needs_text:
            self._waiting.append(frame)
        elif self._needs_text and frame.type == "S":
            self._needs_text = False
            self._write(probe.hello(self._server.fault))
        elif self._needs_text:
            # The loader takes whatever comes first for the text of the probe.
            self._print_and_exit(Output(stderr=b"syntax error at (eval 1) line 1\n", exit_status=255))

    def eof_received(self) -> bool:
        self._is_at_end = True
        if self._probe is not None and not self._is_busy:
            self._exit(3 if self._needs_text else 0)
        return True

    def _answer_next(self) -> None:
        while self._waiting and not self._is_busy and self._channel is not None:
            frame = self._waiting.popleft()
            fault = self._server.fault
            self._stop_watching()
            self._server.count_poll(1)
            self._is_poll_running = True
            if fault is None:
                self._answer(frame, None)
            elif fault.kind in _STUCK:
                self._is_busy = True
            elif fault.kind is FaultKind.SLOW:
                self._is_busy = True
                loop = asyncio.get_running_loop()
                self._timer = loop.call_later(fault.seconds, self._answer_late, frame)
            else:
                self._answer(frame, fault)

    def _answer(self, frame: Frame, fault: Fault | None) -> None:
        if self._probe is not None:
            self._write(self._probe.answer(frame.request, frame.payload, fault))
            if self._probe.watching:
                self._server.model.watch(self._changed)
        self._poll_over()

    def _answer_late(self, frame: Frame) -> None:
        self._is_busy = False
        self._answer(frame, None)
        self._answer_next()
        if self._is_at_end and not self._is_busy:
            self._exit(0)

    def _changed(self) -> None:
        # Once the change is made as a whole.
        if self._notice is None:
            self._notice = asyncio.get_running_loop().call_soon(self._send_notice)

    def _send_notice(self) -> None:
        self._stop_watching()
        fault = self._server.fault
        if fault is None or fault.kind not in _STUCK:
            self._server.counters.notices += 1
            self._write(encode_notice())

    def _stop_watching(self) -> None:
        self._server.model.unwatch(self._changed)
        if self._notice is not None:
            self._notice.cancel()
            self._notice = None

    def _poll_over(self) -> None:
        if self._is_poll_running:
            self._is_poll_running = False
            self._server.count_poll(-1)

    def _run_command(self) -> None:
        server = self._server
        fault = server.fault
        if fault is not None and fault.kind in _STUCK:
            return
        if fault is not None and fault.kind is FaultKind.GARBAGE:
            self._print_and_exit(Output(server.draw.randbytes(512)))
            return
        if fault is not None and fault.kind is FaultKind.EMPTY:
            self._print_and_exit(Output())
            return
        if fault is not None and fault.kind is FaultKind.SLOW:
            self._timer = asyncio.get_running_loop().call_later(fault.seconds, self._print_command)
            return
        self._print_command()

    def _print_command(self) -> None:
        server = self._server
        self._print_and_exit(run_command(self._command, self._login, server.model, server.clock()))

    def _print_and_exit(self, output: Output) -> None:
        if self._channel is None:
            return
        self._write(output.stdout)
        self._channel.write_stderr(output.stderr)
        self._exit(output.exit_status)

    def _write(self, data: bytes) -> None:
        if self._channel is not None:
            self._channel.write(data)
            self._server.counters.bytes_sent += len(data)

    def _exit(self, status: int) -> None:
        if self._channel is not None:
            self._channel.exit(status)


class _BelowSsh(asyncio.Protocol):
    """A connection that never gets to SSH: a tarpit, or a server of another protocol."""

    def __init__(self, server: SimulatedServer) -> None:
        self._server = server
        self._is_tarpit = server.fault is not None and server.fault.kind is FaultKind.TARPIT
        self._seconds = server.fault.seconds if server.fault is not None else 0.0
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._dripped = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._server.transport_opened(transport)
        if not self._is_tarpit:
            transport.write(_NOT_SSH)
        elif self._seconds:
            self._drip()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._transport is not None:
            self._server.transport_closed(self._transport)

    def data_received(self, data: bytes) -> None:
        # Closed only now: a close with the client's banner unread would reset the connection and lose the answer.
        if self._transport is not None and not self._is_tarpit:
            self._transport.close()

    def _drip(self) -> None:
        assert self._transport is not None
        self._dripped += 1
        self._transport.write(b"\n" if self._dripped % _TARPIT_LINE_BYTES == 0 else b"x")
        self._timer = asyncio.get_running_loop().call_later(self._seconds, self._drip)
