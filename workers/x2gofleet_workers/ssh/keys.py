"""keys: the private key of a login, read from its file at each connection."""

from __future__ import annotations

import paramiko

from x2gofleet.errors import SetupError
from x2gofleet_workers.ssh.faults import describe


def load_key(path: str) -> paramiko.PKey:
    """Return the private key in a file; raises SetupError that says what is wrong with it."""
    try:
        return paramiko.PKey.from_path(path)
    except FileNotFoundError:
        raise SetupError(f"the key file {path} does not exist", mend="correct key_file in fleet.toml") from None
    except OSError as exc:
        raise SetupError(f"the key file {path} can't be read: {exc.strerror}") from exc
    except paramiko.PasswordRequiredException as exc:
        raise _encrypted(path) from exc
    except (paramiko.SSHException, ValueError, TypeError) as exc:
        # paramiko 3.4 loses this in a later attempt to read the file as another format.
        if "password" in f"{exc} {exc.__context__}":
            raise _encrypted(path) from exc
        raise SetupError(f"the key file {path} is no private SSH key: {describe(exc)}") from exc
    except Exception as exc:
        raise SetupError(f"the key file {path} can't be used: {type(exc).__name__}: {describe(exc)}") from exc


def _encrypted(path: str) -> SetupError:
    return SetupError(
        f"the key file {path} is encrypted", mend="use a key without a passphrase: ssh-keygen -t ed25519 -N ''"
    )
