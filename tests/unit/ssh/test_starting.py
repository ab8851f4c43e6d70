"""What is made of a login that ends before the probe greets, by what real shells and sudo say."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from x2gofleet_workers.ssh.command import NO_STATUS
from x2gofleet_workers.ssh.starting import login_ended

from x2gofleet.errors import CommandMissing, ConnectionLost, LoginEnded, NotPermitted, OutageError, PollError


@dataclass(frozen=True, slots=True)
class Ended:
    status: int
    stderr: bytes
    error: type[PollError]
    remedy: str = ""
    stdout: bytes = b""


PERL = "install perl on the server; x2goserver itself depends on it"
SUDO = "install sudo on the server"
PROBE = "install the probe on the server"
ENDS = {
    # As printed by the shells of Debian 12 for `exec perl -e '...'`, `exec sudo -n perl -e '...'`, `x2gofleet-probe`.
    "sh perl": Ended(127, b"sh: 1: exec: perl: not found\n", CommandMissing, PERL),
    "sh sudo": Ended(127, b"sh: 1: exec: sudo: not found\n", CommandMissing, SUDO),
    "sh probe": Ended(127, b"sh: 1: x2gofleet-probe: not found\n", CommandMissing, PROBE),
    "bash perl": Ended(127, b"bash: line 1: exec: perl: not found\n", CommandMissing, PERL),
    "bash probe": Ended(127, b"bash: line 1: x2gofleet-probe: command not found\n", CommandMissing, PROBE),
    "zsh perl": Ended(127, b"zsh:1: command not found: perl\n", CommandMissing, PERL),
    "ksh sudo": Ended(127, b"/usr/bin/ksh: exec: sudo: not found\n", CommandMissing, SUDO),
    "fish sudo": Ended(
        127,
        b"fish: Unknown command: sudo\nfish: \nexec sudo -n perl -e 'binmode STDIN'\n     ^~~^\n",
        CommandMissing,
        SUDO,
    ),
    "fish perl": Ended(127, b"fish: Unknown command: perl\nfish: \nexec perl -e '1'\n", CommandMissing, PERL),
    "csh perl": Ended(1, b"perl: Command not found.\n", CommandMissing, PERL),
    "tcsh probe": Ended(1, b"x2gofleet-probe: Command not found.\n", CommandMissing, PROBE),
    "sudo's perl": Ended(1, b"sudo: perl: command not found\n", CommandMissing, PERL),
    "a profile before it": Ended(127, b"quota: not found\nsh: 1: exec: perl: not found\n", CommandMissing),
    "127 alone": Ended(127, b"", CommandMissing, "install the probe, perl or sudo, whichever is not found"),
    "another language": Ended(127, b"sh: 1: exec: perl: nicht gefunden\n", CommandMissing, "install the probe, perl"),
    "not executable": Ended(126, b"bash: line 1: /usr/bin/perl: Permission denied\n", CommandMissing, PERL),
    "sudo password": Ended(1, b"sudo: a password is required\n", NotPermitted, "by sudo without a password"),
    "sudo terminal": Ended(
        1, b"sudo: a terminal is required to read the password; either use the -S option\n", NotPermitted
    ),
    "sudoers": Ended(1, b"bob is not in the sudoers file.\n", NotPermitted),
    "sudo not allowed": Ended(
        1, b"Sorry, user bob is not allowed to execute '/usr/bin/perl -e 1' as root on ts01.\n", NotPermitted
    ),
    "nologin": Ended(1, b"", NotPermitted, "a shell that runs commands", b"This account is currently not available.\n"),
    # What users of a server can bring about: too many processes, no memory, a full disk.
    "bash forks": Ended(254, b"bash: fork: retry: Resource temporarily unavailable\n", LoginEnded),
    "sh forks": Ended(2, b"sh: 0: Cannot fork\n", LoginEnded),
    "sudo forks": Ended(1, b"sudo: unable to fork: Resource temporarily unavailable\n", LoginEnded),
    "perl memory": Ended(1, b"Out of memory in perl:util:safesysmalloc\n", LoginEnded),
    "no memory": Ended(126, b"bash: line 1: /usr/bin/perl: Cannot allocate memory\n", LoginEnded),
    "a profile's words": Ended(1, b"/etc/profile.d/x.sh: foo: not found\n", LoginEnded),
    "status 0": Ended(0, b"", LoginEnded, "a shell that runs commands"),
    "false": Ended(1, b"", LoginEnded, "a shell that runs commands"),
    "killed": Ended(NO_STATUS, b"", ConnectionLost),
}


@pytest.mark.parametrize("name", ENDS)
def test_the_error_is_of_whoever_can_cause_it_and_says_what_to_do(name: str) -> None:
    ended = ENDS[name]
    error = login_ended("bob", status=ended.status, stdout=ended.stdout, stderr=ended.stderr)
    assert type(error) is ended.error
    assert ended.remedy in error.mend
    assert "\n" not in str(error)
    said = (ended.stderr or ended.stdout).split(b"\n")[0].decode()
    if isinstance(error, OutageError) and said:
        assert said in str(error)


def test_what_the_server_says_is_cleaned_and_cut() -> None:
    error = login_ended("bob", status=1, stdout=b"", stderr=b"\x1b[31mno\x07\nway" + b"x" * 5000)
    assert "no\ufffd way" in str(error)
    assert "\x1b" not in str(error)
    assert len(str(error)) < 500
