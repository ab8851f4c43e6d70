"""SSH: one persistent, verified connection per target, and the probe's channels on it; the only import of paramiko."""

from x2gofleet_workers.ssh.channel import ProbeChannel
from x2gofleet_workers.ssh.client import SshClient
from x2gofleet_workers.ssh.connection import SshConnection
from x2gofleet_workers.ssh.deadlines import Deadline
from x2gofleet_workers.ssh.endpoint import Endpoint

__all__ = ["Deadline", "Endpoint", "ProbeChannel", "SshClient", "SshConnection"]
