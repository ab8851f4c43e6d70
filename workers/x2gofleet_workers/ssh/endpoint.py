"""endpoint: where and as whom to log in."""

from __future__ import annotations

from dataclasses import dataclass

DEFAULT_PORT = 22


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One SSH login: an address, a user, and the files with its key and with the host keys to trust."""

    host: str
    port: int
    user: str
    key_file: str
    known_hosts: str

    @property
    def address(self) -> str:
        """The address, for messages."""
        return f"{self.host} port {self.port}"

    @property
    def known_name(self) -> str:
        """The address as known_hosts files write it."""
        return self.host if self.port == DEFAULT_PORT else f"[{self.host}]:{self.port}"
