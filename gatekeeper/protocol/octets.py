"""What the scanner does with octets that it must not make an object for.

``octets.pxd`` has the same four in C, which is what the compiled scanner calls: there ``raw`` is a
pointer and nothing is allocated but by :func:`cut`. Offsets are not checked in either form.
"""

from __future__ import annotations

Octets = bytes | bytearray


def long_at(raw: Octets, p: int) -> int:
    """The four octets at ``p`` as a number."""
    return (raw[p] << 24) | (raw[p + 1] << 16) | (raw[p + 2] << 8) | raw[p + 3]


def same(raw: Octets, a: int, b: int, other: Octets, at: int) -> bool:
    """Are the octets ``raw[a:b]`` those that stand in ``other`` at ``at``?"""
    return raw[a:b] == other[at : at + b - a]


def cut(raw: Octets, a: int, b: int) -> bytes:
    return bytes(raw[a:b])


def hash_of(raw: Octets, a: int, b: int) -> int:
    """A number for looking ``raw[a:b]`` up, not negative; the two forms give different ones."""
    return hash(bytes(raw[a:b])) & 0x7FFFFFFF
