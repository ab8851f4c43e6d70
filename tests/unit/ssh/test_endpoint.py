"""An address as messages and known_hosts files write it."""

from __future__ import annotations

import pytest
from x2gofleet_workers.ssh import Endpoint


@pytest.mark.parametrize(
    ("host", "port", "known_name"),
    [
        ("ts01", 22, "ts01"),
        ("ts01", 2222, "[ts01]:2222"),
        ("2001:db8::1", 22, "2001:db8::1"),
        ("2001:db8::1", 2222, "[2001:db8::1]:2222"),
    ],
)
def test_names(host: str, port: int, known_name: str) -> None:
    endpoint = Endpoint(host, port, "root", "id", "known_hosts")
    assert endpoint.known_name == known_name
    assert endpoint.address == f"{host} port {port}"
