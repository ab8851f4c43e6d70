from __future__ import annotations

from pathlib import Path

import pytest

from x2gofleet.adapters.broker_settings import BrokerSettings, SettingsError


def test_defaults_file_and_environment_in_this_order(tmp_path: Path) -> None:
    assert BrokerSettings.read(environ={}) == BrokerSettings()
    config = tmp_path / "broker.toml"
    config.write_text('redis_url = "redis://10.0.0.9/1"\nlive_seconds = 3\ntrust_polls = false\nreserve_seconds = 0\n')
    environ = {"X2GOFLEET_BROKER_LIVE_SECONDS": "2.5", "X2GOFLEET_BROKER_FALLBACK": "none", "X2GOFLEET_NAMESPACE": "n1"}
    expected = BrokerSettings(
        redis_url="redis://10.0.0.9/1",
        namespace="n1",
        fallback="none",
        live_seconds=2.5,
        reserve_seconds=0.0,
        trust_polls=False,
    )
    assert BrokerSettings.read(str(config), environ) == expected
    assert BrokerSettings.read(None, {**environ, "X2GOFLEET_BROKER_CONFIG": str(config)}) == expected


def test_no_password_is_shown() -> None:
    shown = str(BrokerSettings(redis_url="rediss://broker:s3cret@redis.example.org/0"))
    assert "s3cret" not in shown
    assert "namespace=x2gofleet, fallback=live, live_seconds=5.0, request_seconds=20.0" in shown
    assert shown.endswith("unknown_names=ask")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("live_secs = 3", "there is no setting 'live_secs'"),
        ("live_seconds = 0", "live_seconds: expected seconds from 0.1 to 3600, not 0"),
        ("live_seconds = true", "expected seconds"),
        ("request_seconds = 0", "request_seconds: expected seconds from 0.1 to 3600, not 0"),
        ("refresh_seconds = -1", "expected seconds from 0 to 3600"),
        ('fallback = "maybe"', "expected live or none, not 'maybe'"),
        ('unknown_names = "maybe"', "expected ask or cached, not 'maybe'"),
        ("fallback = 1", "expected a text, not 1"),
        ('trust_polls = "perhaps"', "expected true or false"),
        ('namespace = "a b"', "is no namespace"),
        ("fallback", "is no TOML"),
    ],
)
def test_a_wrong_setting_says_where_and_what_would_do(tmp_path: Path, text: str, said: str) -> None:
    config = tmp_path / "broker.toml"
    config.write_text(text)
    with pytest.raises(SettingsError) as caught:
        BrokerSettings.read(str(config), {})
    assert str(caught.value).startswith(f"{config}: ")
    assert said in str(caught.value)


def test_an_unknown_variable_is_no_setting() -> None:
    with pytest.raises(
        SettingsError, match=r"X2GOFLEET_BROKER_FALBACK: there is no such setting; there are X2GOFLEET_"
    ):
        BrokerSettings.read(environ={"X2GOFLEET_BROKER_FALBACK": "none"})
    with pytest.raises(SettingsError, match="/nowhere/x: there is no such file"):
        BrokerSettings.read("/nowhere/x", {})
