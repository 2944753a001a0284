"""``store.url``: where the store lives."""

from __future__ import annotations

from urllib.parse import unquote, urlsplit

from gatekeeper.errors import StoreError
from gatekeeper.store.sqlite import MEMORY


def sqlite_path(url: str) -> str:
    """The file that a ``store.url`` names. Raises StoreError; never repeats a password."""
    try:
        parts = urlsplit(url)
    except ValueError:
        raise StoreError("store.url: not a URL; write sqlite:///PATH") from None
    if parts.scheme in {"postgresql", "postgres"}:
        raise StoreError("store.url: postgresql:// is not supported yet; use sqlite:///PATH")
    if parts.scheme != "sqlite":
        raise StoreError(
            f"store.url: unknown scheme '{parts.scheme}'; write sqlite:///PATH, "
            "for example sqlite:///var/lib/gatekeeper/gatekeeper.db"
        )
    if parts.path == MEMORY:
        return MEMORY
    if parts.netloc or parts.query or parts.fragment or not parts.path.strip("/"):
        raise StoreError(
            "store.url: write sqlite:///PATH with three slashes and an absolute path, "
            "without host, query or fragment"
        )
    path = unquote(parts.path)
    if "\0" in path:
        raise StoreError("store.url: the path holds a NUL character; write sqlite:///PATH")
    # sqlite:////PATH, as SQLAlchemy writes an absolute path, is the same file.
    return "/" + path.lstrip("/") if path.startswith("//") else path
