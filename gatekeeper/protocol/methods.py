"""Every method of AMQP 0-9-1 with RabbitMQ's extensions: ids, name, content, who may send it.

Names are the specification's (``connection.start-ok``). RabbitMQ prints them as Erlang atoms
(``connection.start_ok``), hence ``Method.atom``, which is what its log lines show.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final


@dataclass(frozen=True, slots=True)
class Method:
    """from_client, from_server: the peers that may send it. has_content: header and body follow."""

    class_id: int
    method_id: int
    name: str
    from_client: bool
    from_server: bool
    has_content: bool

    @property
    def atom(self) -> str:
        """The name as RabbitMQ logs it, e.g. ``basic.get`` and ``connection.tune_ok``."""
        return self.name.replace("-", "_")


# Class -> methods: "id name senders". Senders: c is the client, s the server, and + says that
# content follows.
_CLASSES: Final = {
    (10, "connection"): (
        "10 start s, 11 start-ok c, 20 secure s, 21 secure-ok c, 30 tune s, 31 tune-ok c,"
        "40 open c, 41 open-ok s, 50 close cs, 51 close-ok cs, 60 blocked s, 61 unblocked s,"
        "70 update-secret c, 71 update-secret-ok s"
    ),
    (20, "channel"): (
        "10 open c, 11 open-ok s, 20 flow cs, 21 flow-ok cs, 40 close cs, 41 close-ok cs"
    ),
    (30, "access"): "10 request c, 11 request-ok s",
    (40, "exchange"): (
        "10 declare c, 11 declare-ok s, 20 delete c, 21 delete-ok s,"
        "30 bind c, 31 bind-ok s, 40 unbind c, 51 unbind-ok s"
    ),
    (50, "queue"): (
        "10 declare c, 11 declare-ok s, 20 bind c, 21 bind-ok s, 30 purge c, 31 purge-ok s,"
        "40 delete c, 41 delete-ok s, 50 unbind c, 51 unbind-ok s"
    ),
    (60, "basic"): (
        "10 qos c, 11 qos-ok s, 20 consume c, 21 consume-ok s, 30 cancel cs, 31 cancel-ok cs,"
        "40 publish c+, 50 return s+, 60 deliver s+, 70 get c, 71 get-ok s+, 72 get-empty s,"
        "80 ack cs, 90 reject c, 100 recover-async c, 110 recover c, 111 recover-ok s,"
        "120 nack cs, 200 credit c, 201 credit-ok s, 202 credit-drained s"
    ),
    (85, "confirm"): "10 select c, 11 select-ok s",
    (90, "tx"): (
        "10 select c, 11 select-ok s, 20 commit c, 21 commit-ok s, 30 rollback c, 31 rollback-ok s"
    ),
}


def _read(classes: Mapping[tuple[int, str], str]) -> dict[tuple[int, int], Method]:
    methods = {}
    for (class_id, class_name), rows in classes.items():
        for row in rows.split(","):
            number, name, senders = row.split()
            methods[class_id, int(number)] = Method(
                class_id=class_id,
                method_id=int(number),
                name=f"{class_name}.{name}",
                from_client="c" in senders,
                from_server="s" in senders,
                has_content="+" in senders,
            )
    return methods


METHODS: Final[Mapping[tuple[int, int], Method]] = MappingProxyType(_read(_CLASSES))
"""(class id, method id) -> Method."""

BY_NAME: Final[Mapping[str, Method]] = MappingProxyType({m.name: m for m in METHODS.values()})


def method_name(class_id: int, method_id: int) -> str:
    """The specification's name, ``class.method`` in numbers for an unknown method."""
    method = METHODS.get((class_id, method_id))
    return method.name if method else f"{class_id}.{method_id}"


def method_atom(class_id: int, method_id: int) -> str:
    """The name as RabbitMQ logs it, ``none`` where no method is at fault (0, 0)."""
    if class_id == method_id == 0:
        return "none"
    return method_name(class_id, method_id).replace("-", "_")
