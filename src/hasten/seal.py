"""Tell machine code that this user made here from machine code that came from elsewhere.

Some targets ship compiled libraries, and loading those runs them. An artifact of such a target is sealed when it is
written: an HMAC-SHA256 of its manifest, which lists the hash of every file, under a key that only this user can read.
"""

import hashlib
import hmac
import os
import secrets
import stat
from pathlib import Path

from hasten.manifest import MANIFEST

SEAL = "seal"
TRUST_VARIABLE = "HASTEN_TRUST_CODE"
_KEY_BYTES = 32


def write(folder: Path) -> None:
    """Seal the artifact in `folder`; where no key can be kept it stays unsealed, like one from elsewhere."""
    if (key := _key(make=True)) is not None:
        for path in folder.rglob("*"):  # some users' files are born writable for their group
            path.chmod(path.stat().st_mode & ~(stat.S_IWGRP | stat.S_IWOTH))
        (folder / SEAL).write_text(_digest(folder, key))


def is_own(folder: Path) -> bool:
    """Whether this user sealed the artifact on this machine, its manifest is as it was then, and nobody else can write
    to it: what was checked could be another file by the time it is loaded.
    """
    path, key = folder / SEAL, _key(make=False)
    if key is None or not path.is_file() or path.stat().st_size != 2 * _KEY_BYTES:
        return False
    if any(_others_write(x) for x in (folder, *folder.rglob("*"))):
        return False
    return hmac.compare_digest(path.read_bytes(), _digest(folder, key).encode())


def _others_write(path: Path) -> bool:
    found = path.stat()
    return found.st_uid not in (0, os.geteuid()) or bool(found.st_mode & (stat.S_IWGRP | stat.S_IWOTH))


def trusted_by_environment() -> bool:
    """Whether the user declared every artifact trusted."""
    return os.environ.get(TRUST_VARIABLE) == "1"


def _digest(folder: Path, key: bytes) -> str:
    return hmac.new(key, (folder / MANIFEST).read_bytes(), hashlib.sha256).hexdigest()


def _key(make: bool) -> bytes | None:
    home = Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share")
    path = home / "hasten" / "seal.key"
    try:
        if make and not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            scratch = path.with_name(f".{path.name}.{os.getpid()}")
            with os.fdopen(os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                file.write(secrets.token_bytes(_KEY_BYTES))
            # Linking fails if another process was first, and then its key counts.
            try:
                os.link(scratch, path)
            except FileExistsError:
                pass
            finally:
                scratch.unlink()
        key = path.read_bytes()
    except OSError:
        return None
    return key if len(key) == _KEY_BYTES else None
