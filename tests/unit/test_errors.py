"""The error tree: as drawn, and every error says what it has to."""

from __future__ import annotations

import inspect
import pickle
import re

import pytest

from x2gofleet import errors
from x2gofleet.errors import FleetError, InventoryError, PollError, RefreshFailed, UnknownProfile


def drawn() -> dict[str, str | None]:
    """Return name -> name of its parent, as the module's docstring draws it."""
    found: dict[str, str | None] = {}
    path: list[str] = []
    for line in inspect.getdoc(errors).splitlines()[2:]:  # type: ignore[union-attr]
        branch = re.match(r"((?:[│ ]   )*(?:[├└]── )?)([A-Z]\w+)", line)
        assert branch, f"not a branch of the tree: {line!r}"
        depth = len(branch[1]) // 4
        path[depth:] = [branch[2]]
        found[branch[2]] = path[depth - 1] if depth else None
    return found


def test_the_tree_is_as_drawn() -> None:
    classes = {
        name: value
        for name, value in vars(errors).items()
        if inspect.isclass(value) and issubclass(value, Exception) and value.__module__ == errors.__name__
    }
    real = {
        name: next((base.__name__ for base in value.__bases__ if issubclass(base, FleetError)), None)
        for name, value in classes.items()
    }
    assert drawn() == real
    assert len(real) > 20


def test_the_root_is_an_ordinary_exception() -> None:
    assert FleetError.__bases__ == (Exception,)


def test_every_error_says_what_it_is() -> None:
    for name, value in vars(errors).items():
        if inspect.isclass(value) and issubclass(value, FleetError):
            assert (value.__doc__ or "").strip(), name


def test_it_imports_nothing_of_the_package_but_what_cleans_texts() -> None:
    code = re.sub(r'""".*?"""', "", inspect.getsource(errors), flags=re.DOTALL)
    assert re.findall(r".*x2gofleet.*", code) == ["from x2gofleet.text import clean, escaped, shortened"]


def test_an_unknown_profile_names_the_known_ones() -> None:
    error = UnknownProfile("mte", ("mate", "xfce"))
    assert str(error) == "unknown profile 'mte'; known profiles: mate, xfce"
    assert (error.profile_name, error.known) == ("mte", ("mate", "xfce"))
    assert isinstance(error, LookupError)
    assert "no worker has published an inventory yet" in str(UnknownProfile("mate"))


def test_a_failed_refresh_tells_of_each_server() -> None:
    given = {"ts02": "no answer", "ts01": "refused"}
    error = RefreshFailed(given, ("a snapshot",))
    given.clear()
    assert str(error) == "refresh failed for 2 server(s): ts01: refused; ts02: no answer"
    assert error.errors == {"ts02": "no answer", "ts01": "refused"}
    assert error.partial == ("a snapshot",)
    assert str(RefreshFailed({"a": "b"}, what="delete")) == "delete failed for 1 server(s): a: b"


def test_an_inventory_error_says_where_and_what_to_do() -> None:
    error = InventoryError("fleet.toml", "70000 is no port", line=7, key="servers.ts01.port", mend="use 1 to 65535")
    assert str(error) == "fleet.toml:7: servers.ts01.port: 70000 is no port. use 1 to 65535"
    assert str(InventoryError("fleet.toml", "there is no such file")) == "fleet.toml: there is no such file"


def test_a_poll_error_says_the_mend_where_one_is_known() -> None:
    assert str(PollError("refused", mend="add the key")) == "refused. add the key"
    assert str(PollError("refused")) == "refused"


@pytest.mark.parametrize(
    "error",
    [
        errors.CacheUnavailable("gone"),
        errors.SnapshotCorrupt("no field"),
        UnknownProfile("mte", ("mate",)),
        RefreshFailed({"ts01": "refused"}, (), what="delete"),
        InventoryError("fleet.toml", "no", line=3, key="a", mend="b"),
        errors.Unreachable("no", mend="do"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_errors_survive_a_process_boundary(error: FleetError) -> None:
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert str(again) == str(error)
    assert vars(again) == vars(error)
