"""broker_config: x2gobroker's configuration, read as it is but each section once, not some dozen times a login.

With agents that answer at once, most of a login is spent on turning the same INI values into the same Python values
again. X2GoBroker and its X2GoBrokerConfigFile are made anew for each request: they remember what they have read.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

_REMEMBERED = "_x2gofleet_remembered"

Values = dict[str, Any]


def _copy(values: Values) -> Values:
    return {name: list(value) if isinstance(value, list) else value for name, value in values.items()}


def remembering_section(original: Callable[[Any, str], Values]) -> Callable[[Any, str], Values]:
    """Stand in for ``X2GoBrokerConfigFile.get_section`` or ``X2GoBroker.get_profile``; each caller gets a copy."""

    def get_section(config: Any, section: str) -> Values:
        known: dict[str | None, Values] = vars(config).setdefault(_REMEMBERED, {})
        if section not in known:
            known[section] = original(config, section)
        return _copy(known[section])

    return get_section


def remembering_defaults(original: Callable[[Any], Values]) -> Callable[[Any], Values]:
    """Stand in for ``get_defaults``, or ``X2GoBroker.get_acl_defaults``; each caller gets its own copy."""

    def get_defaults(config: Any) -> Values:
        known: dict[str | None, Values] = vars(config).setdefault(_REMEMBERED, {})
        if None not in known:
            known[None] = original(config)
        return _copy(known[None])

    return get_defaults


def forgetting(original: Callable[..., Any]) -> Callable[..., Any]:
    """Stand in for a method of X2GoBrokerConfigFile that changes values."""

    def change(config: Any, *args: Any, **kwargs: Any) -> Any:
        vars(config).pop(_REMEMBERED, None)
        return original(config, *args, **kwargs)

    return change
