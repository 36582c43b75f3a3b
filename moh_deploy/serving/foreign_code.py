"""Refuse bundles with native code of others, unless the user trusts it."""

from __future__ import annotations

from pathlib import Path

from moh_deploy import native
from moh_deploy.config.trust import require_trust
from moh_deploy.system.digest import sha256_of


def require_own_code(root: Path, *, trust_code: bool) -> None:
    """Refuse a bundle whose native code is not this installation's: opening it runs that code.

    Raises:
        ConfigError: It holds other libraries, and they are not trusted.
    """
    own = {sha256_of(library) for library in native.FOLDER.glob("*.so")}
    named: dict[str, object] = {
        str(entry.relative_to(root)): "native code of another installation"
        for entry in sorted(root.rglob("*"))
        if (entry.is_dir() and entry.is_symlink())  # what it leads to is not looked through
        or (entry.is_file() and _is_native(entry) and sha256_of(entry) not in own)
    }
    require_trust(str(root), named, "--trust-code", is_given=trust_code)


def _is_native(file: Path) -> bool:
    with file.open("rb") as opened:
        return opened.read(4) == b"\x7fELF"
