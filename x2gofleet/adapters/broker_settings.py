"""broker_settings: what an operator can set for the x2gobroker adapter, from a TOML file and the environment."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Self

from x2gofleet.connection import DEFAULT_URL, redact_url
from x2gofleet.files import UnusableFile, load_toml, read_text_file
from x2gofleet.keys import DEFAULT_NAMESPACE, Keys

CONFIG_VARIABLE = "X2GOFLEET_BROKER_CONFIG"
_VARIABLES = {
    "redis_url": "X2GOFLEET_REDIS_URL",
    "namespace": "X2GOFLEET_NAMESPACE",
    "fallback": "X2GOFLEET_BROKER_FALLBACK",
    "live_seconds": "X2GOFLEET_BROKER_LIVE_SECONDS",
    "request_seconds": "X2GOFLEET_BROKER_REQUEST_SECONDS",
    "refresh_seconds": "X2GOFLEET_BROKER_REFRESH_SECONDS",
    "reserve_seconds": "X2GOFLEET_BROKER_RESERVE_SECONDS",
    "trust_polls": "X2GOFLEET_BROKER_TRUST_POLLS",
    "unknown_names": "X2GOFLEET_BROKER_UNKNOWN_NAMES",
}
_LONGEST_SECONDS = 3600.0


class SettingsError(ValueError):
    """A setting can't be used; says which, where it was set, and what would do."""


@dataclass(frozen=True, slots=True)
class BrokerSettings:
    """How the adapter answers.

    ``fallback``: ``live`` asks x2gobroker's agents for what is not cached, ``none`` gives the broker their answers of
    failure. ``live_seconds``: limit of one live call. ``request_seconds``: limit of all live calls of one request of a
    client. ``refresh_seconds``: how long a refresh after a suspend or
    terminate may take, in the background; 0 does without. ``reserve_seconds``: how long a chosen server counts a login
    that has no session yet; 0 reserves nothing. ``trust_polls``: whether the newest poll of a server stands for a port
    scan of it. ``unknown_names``: for a login without sessions in the cache that neither a listing nor this host's name
    service knows, ``ask`` asks an agent, ``cached`` says that there are none.
    """

    redis_url: str = DEFAULT_URL
    namespace: str = DEFAULT_NAMESPACE
    fallback: str = "live"
    live_seconds: float = 5.0
    request_seconds: float = 20.0
    refresh_seconds: float = 10.0
    reserve_seconds: float = 60.0
    trust_polls: bool = True
    unknown_names: str = "ask"

    @classmethod
    def read(cls, config: str | None = None, environ: Mapping[str, str] = os.environ) -> Self:
        """Return the settings of file ``config`` (or $X2GOFLEET_BROKER_CONFIG), overridden by the environment.

        Raises SettingsError for what can't be used.
        """
        settings = cls()
        path = config or environ.get(CONFIG_VARIABLE)
        if path:
            for name, value in _file(path).items():
                settings = settings._with(name, value, f"{path}: {name}")
        known = {*_VARIABLES.values(), CONFIG_VARIABLE}
        for variable in sorted(environ):
            if variable.startswith("X2GOFLEET_BROKER_") and variable not in known:
                raise SettingsError(f"{variable}: there is no such setting; there are {', '.join(sorted(known))}")
        for name, variable in _VARIABLES.items():
            if environ.get(variable):
                settings = settings._with(name, environ[variable], variable)
        return settings

    def _with(self, name: str, value: object, where: str) -> Self:
        change: dict[str, Any]
        default = {field.name: field.default for field in fields(self)}[name]
        if isinstance(default, bool):
            change = {name: _boolean(value, where)}
            return replace(self, **change)
        if isinstance(default, float):
            change = {name: _seconds(value, where, zero=name not in ("live_seconds", "request_seconds"))}
            return replace(self, **change)
        if not isinstance(value, str) or not value:
            # Whatever it is, a URL in it may have a password.
            shown = type(value).__name__ if name == "redis_url" else repr(value)
            raise SettingsError(f"{where}: expected a text, not {shown}")
        choice = {"fallback": ("live", "none"), "unknown_names": ("ask", "cached")}.get(name)
        if choice is not None and value not in choice:
            raise SettingsError(f"{where}: expected {' or '.join(choice)}, not {value!r}")
        if name == "namespace":
            try:
                Keys(value)
            except ValueError as exc:
                raise SettingsError(f"{where}: {exc}") from exc
        change = {name: value}
        return replace(self, **change)

    def __str__(self) -> str:
        """All settings in one line, without a password."""
        shown: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(self)}
        shown["redis_url"] = redact_url(self.redis_url)
        return ", ".join(f"{name}={value}" for name, value in shown.items())


def _file(path: str) -> dict[str, Any]:
    try:
        found = load_toml(read_text_file(path))
    except UnusableFile as exc:
        raise SettingsError(str(exc)) from None
    except ValueError as exc:
        # What is wrong with the syntax says where it is, and nothing of the text: that may hold a password.
        raise SettingsError(f"{path}: is no TOML: {exc}") from None
    unknown = sorted(set(found) - set(_VARIABLES))
    if unknown:
        raise SettingsError(f"{path}: there is no setting {unknown[0]!r}; there are {', '.join(_VARIABLES)}")
    return found


def _seconds(value: object, where: str, *, zero: bool) -> float:
    try:
        seconds = float(value) if isinstance(value, int | float | str) and not isinstance(value, bool) else -1.0
    except ValueError:
        seconds = -1.0
    if not (0 if zero else 0.1) <= seconds <= _LONGEST_SECONDS:
        raise SettingsError(
            f"{where}: expected seconds from {0 if zero else 0.1:g} to {_LONGEST_SECONDS:g}, not {value!r}"
        )
    return seconds


def _boolean(value: object, where: str) -> bool:
    text = str(value).lower()
    if text in ("1", "true", "yes", "on"):
        return True
    if text in ("0", "false", "no", "off"):
        return False
    raise SettingsError(f"{where}: expected true or false, not {value!r}")
