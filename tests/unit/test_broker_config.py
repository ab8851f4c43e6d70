from __future__ import annotations

from typing import Any

from x2gofleet.adapters.broker_config import forgetting, remembering_defaults, remembering_section


class Config:
    """As X2GoBrokerConfigFile, as far as it is wrapped; counts what it reads."""

    def __init__(self) -> None:
        self.values = {"mate": {"host": ["ts01"], "name": "mate"}}
        self.read = 0

    def get_section(self, section: str) -> dict[str, Any]:
        self.read += 1
        return dict(self.values[section])

    def get_defaults(self) -> dict[str, Any]:
        self.read += 1
        return {"user": "alice", "applications": ["TERMINAL"]}

    def update_value(self, section: str, key: str, value: object) -> None:
        self.values[section][key] = value  # type: ignore[assignment]


def test_a_section_is_read_once_and_each_caller_has_a_copy() -> None:
    get_section, get_defaults = remembering_section(Config.get_section), remembering_defaults(Config.get_defaults)
    config = Config()
    first = get_section(config, "mate")
    first["host"].append("ts02")
    first["name"] = "changed"
    assert get_section(config, "mate") == {"host": ["ts01"], "name": "mate"}
    get_defaults(config)["applications"].clear()
    assert get_defaults(config) == {"user": "alice", "applications": ["TERMINAL"]}
    assert config.read == 2
    assert get_section(Config(), "mate") == {"host": ["ts01"], "name": "mate"}


def test_a_change_is_seen() -> None:
    get_section, update_value = remembering_section(Config.get_section), forgetting(Config.update_value)
    config = Config()
    get_section(config, "mate")
    update_value(config, "mate", "name", "other")
    assert get_section(config, "mate")["name"] == "other"
