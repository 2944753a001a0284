"""Names that brokers invent, made comparable: numbered in the order in which they appear."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

# Where a session refers to a generated queue that it does not have: no queue has this name, and
# patterns that match generated names match it.
NO_QUEUE = b"amq.gen-none"
UNSEEN = b"<unseen>"

_INVENTED = re.compile(
    rb"amq\.gen-[\w-]{22}|amq\.ctag-[\w-]{22}|amq\.rabbitmq\.reply-to\.[\w+/=.-]{8,}"
)
_KINDS = {b"amq.g": b"gen", b"amq.c": b"ctag", b"amq.r": b"reply"}


class Names:
    """One side's invented names in one session."""

    def __init__(self) -> None:
        self._shown: dict[bytes, bytes] = {}
        self._queues: list[bytes] = []

    def queue(self, index: int) -> bytes:
        """The real name of the n-th generated queue."""
        return self._queues[index] if index < len(self._queues) else NO_QUEUE

    def heard(self, value: Any) -> Any:
        """A comparable, printable form of what a client heard; new names get their numbers."""
        return self._plain(value, learn=True)

    def listed(self, value: Any) -> Any:
        """The same for a listing, whose order says nothing: new names stay without a number."""
        return self._plain(value, learn=False)

    def _plain(self, value: Any, *, learn: bool) -> Any:
        match value:
            case bytes():
                return _INVENTED.sub(lambda found: self._number(found[0], learn=learn), value)
            case Mapping():
                # An x-death entry holds the time.
                pairs = [
                    (key, self._plain(item, learn=learn))
                    for key, item in value.items()
                    if not (key == b"time" and b"reason" in value)
                ]
                return tuple(sorted(pairs, key=repr))
            case list() | tuple():
                return tuple(self._plain(item, learn=learn) for item in value)
        return value

    def _number(self, name: bytes, *, learn: bool) -> bytes:
        if name not in self._shown:
            if not learn:
                return UNSEEN
            kind = _KINDS[name[:5]]
            count = sum(shown.startswith(b"<" + kind) for shown in self._shown.values())
            self._shown[name] = b"<%s %d>" % (kind, count)
            if kind == b"gen":
                self._queues.append(name)
        return self._shown[name]
