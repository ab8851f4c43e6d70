"""answers: takes in the sections of one answer: proves each, has it written, and notes what came of it."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from x2gofleet.errors import CacheUnavailable, HostNameShared, PollError
from x2gofleet.keys import target_id
from x2gofleet.kinds import Kind
from x2gofleet.store import Outcome
from x2gofleet_workers.polling.context import PollContext, PollMoment
from x2gofleet_workers.polling.reports import PollReport
from x2gofleet_workers.polling.sections import is_of_users, prove
from x2gofleet_workers.polling.writer import SnapshotWriter
from x2gofleet_workers.probe.protocol import Section
from x2gofleet_workers.ssh import ProbeChannel

log = logging.getLogger(__name__)


class AnswerResults:
    """What came of one answer.

    ``failures``: what could not be believed, by kind. ``again``: kinds of which Redis does not hold what this worker
    means. ``lost``: whether the lease proved to be lost. ``unwritten``: that Redis could not be reached, if so.
    ``broken``: why the answer did not come to its end, if so; ``answered`` are the kinds that came before.
    """

    def __init__(
        self,
        context: PollContext,
        writer: SnapshotWriter,
        moment: PollMoment,
        report: PollReport,
        *,
        users: Iterable[str] = (),
    ) -> None:
        self._context, self._writer, self._moment, self._report = context, writer, moment, report
        self._waiting_users = list(users)
        self.failures: dict[Kind, PollError] = {}
        self.again: list[Kind] = []
        self.lost = False
        self.unwritten: CacheUnavailable | None = None
        self.broken: PollError | None = None
        self.answered: set[Kind] = set()

    def take(self, section: Section, channel: ProbeChannel) -> None:
        """Prove a section and have it written. Never raises for what the server or Redis does."""
        kind, metrics = Kind(section.kind.value), self._context.metrics
        name = self._name_of(kind)
        if not (self._waiting_users and is_of_users(self._context.target, kind)):
            self.answered.add(kind)
        if self.unwritten is not None:
            # The rest of the answer is read all the same, so that the probe can be used again.
            metrics.polled(kind, "unwritten")
            return
        try:
            outcome = self._write(section, kind, name, channel)
        except PollError as exc:
            self._failed(kind, name, exc)
        except CacheUnavailable as exc:
            self.unwritten = exc
            metrics.polled(kind, "unwritten")
        else:
            self._note(section, kind, name, outcome)

    def _name_of(self, kind: Kind) -> str:
        target = self._context.target
        if is_of_users(target, kind):
            return target_id(target.server, self._waiting_users.pop(0))
        return target.id

    def _write(self, section: Section, kind: Kind, name: str, channel: ProbeChannel) -> Outcome:
        context = self._context
        if kind is Kind.SESSIONS:
            context.reference.require_agreement()
        elif kind is Kind.MOUNTS:
            context.host_names.require_none_known()
        if section.same:
            self._require_sole_host_name(section)
            return self._writer.confirm(self._moment, section.signature)
        duration_ms = int((context.monotonic() - self._moment.started) * 1000)
        if kind is Kind.SESSIONS:
            context.counters.full_listings += 1
            context.metrics.listed()
        recorded_host = self._writer.recorded_host_name() if kind is Kind.SESSIONS else ""
        proven = prove(context.target, section, channel, recorded_host=recorded_host)
        if kind is Kind.SESSIONS:
            self._require_sole_host_name(section)
        return self._writer.store(
            self._moment,
            name,
            kind,
            proven,
            duration_ms=duration_ms,
            signature=section.signature,
            host_name=section.host if section.records or not section.others else "",
        )

    def _require_sole_host_name(self, section: Section) -> None:
        if self._context.target.scope != "server":
            return
        try:
            self._context.host_names.require_sole(section)
        except HostNameShared:
            # What was stored before the other server was found may hold rows of it.
            self._writer.discard_listings(self._moment.lease)
            raise

    def _failed(self, kind: Kind, name: str, exc: PollError) -> None:
        if name == self._context.target.id:
            self.failures.setdefault(kind, exc)
            return
        # One user's desktops, by a command in that user's name: no failure of the others' or of the server.
        self._context.metrics.polled(kind, "failed")
        self._report.errors.setdefault(kind, f"{name}: {exc}")
        log.info("%s: %s: %s", name, type(exc).__name__, exc)

    def _note(self, section: Section, kind: Kind, name: str, outcome: Outcome) -> None:
        context = self._context
        if outcome is Outcome.STORED:
            self._report.stored.append((name, kind))
            context.metrics.polled(kind, "confirmed" if section.same else "stored")
            if name == context.target.id:
                context.progress.good_at[kind] = self._moment.started
            return
        context.metrics.polled(kind, "refused")
        context.metrics.write_refused(outcome)
        if outcome is Outcome.ABSENT:
            self.again.append(kind)
            return
        context.counters.refused_writes += 1
        if outcome is Outcome.LOST:
            self.lost = True
            self.again.append(kind)
        else:
            self._report.errors[kind] = f"the write was refused: {outcome.value}"
