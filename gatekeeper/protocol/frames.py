"""The scanner: how far into a chunk of bytes is everything already decided?

The only compiled room. This file is plain Python and runs as it is; ``frames.pxd`` beside it
gives Cython the types, so the same source also runs at a few nanoseconds a frame. Strategy:

* No object per frame. The answer is an offset: everything before it may go out in one write.
* The fast lane knows only what needs no thought: heartbeats, content bodies, acknowledgements,
  and a ``basic.publish`` whose exchange (or exchange and routing key) this channel has been
  granted, taken together with its content header, because user-id and CC/BCC live there and
  after the method alone has gone out it could not be refused any more. A user-id that is the
  user's own name, and headers without CC and BCC, are seen to be harmless here.
* Whatever is odd (a state, a size, a flag, an unknown method) is not judged here. The scanner
  stops in front of it and ``session.py`` decides in readable Python.

# INVARIANT: bytes before the returned offset are complete frames, correctly terminated, legal
# in their channel's state, and authorised under the approvals of the channel as they stand.

Layouts: AMQP 0-9-1 section 4.2 (frames), 2.3.5.2 (content header).
"""

from __future__ import annotations

COMPILED = not __file__.endswith(".py")
"""Is this the compiled form?"""

# Why the scanner stopped (Lane.stop).
NEED_MORE = 0  # at the end, or in front of a unit that is not complete yet
SLOW = 1  # in front of a frame that the session must judge

# What a channel expects next (Channel.expect).
METHOD = 0
HEADER = 1
BODY = 2


class Channel:
    """What the scanner must know of one channel.

    mode: 0 while the channel is open and healthy; anything else leaves the fast lane.
    expect, remaining: content assembly; body bytes still to come.
    exchanges: approved for publishing whatever the routing key, raw names.
    keys: approved pairs, as raw bytes: exchange short string followed by routing key short
        string, length octets included (so that no two pairs share a spelling).
    last_exchange, last_key: the last hit, compared first.
    The sets are made when there is something to hold: most channels of most connections idle.
    """

    __slots__ = ("exchanges", "expect", "keys", "last_exchange", "last_key", "mode", "remaining")

    def __init__(self) -> None:
        self.mode = 0
        self.expect = METHOD
        self.remaining = 0
        self.exchanges: set[bytes] | None = None
        self.keys: set[bytes] | None = None
        self.last_exchange: bytes | None = None
        self.last_key: bytes | None = None

    def approve_exchange(self, name: bytes) -> bool:
        """False if it was approved already; so :meth:`approve_key`."""
        if self.exchanges is None:
            self.exchanges = set()
        known = name in self.exchanges
        self.exchanges.add(name)
        return not known

    def approve_key(self, pair: bytes) -> bool:
        if self.keys is None:
            self.keys = set()
        known = pair in self.keys
        self.keys.add(pair)
        return not known

    def forget(self) -> None:
        """Drop every approval (the policy has changed)."""
        self.exchanges = None
        self.keys = None
        self.last_exchange = None
        self.last_key = None


class Lane:
    """One connection's scanner state.

    channels: number to Channel.
    frame_max: largest payload that is accepted, in bytes. RabbitMQ tolerates a payload of
        exactly frame_max although the frame then is 8 bytes longer.
    body_max: largest content body that needs no thought, in bytes.
    username: a user-id of this value is harmless.
    stop: NEED_MORE or SLOW, after a scan.
    """

    __slots__ = ("body_max", "channels", "frame_max", "stop", "username")

    def __init__(self, frame_max: int, body_max: int, username: bytes) -> None:
        self.channels: dict[int, Channel] = {}
        self.frame_max = frame_max
        self.body_max = body_max
        self.username = username
        self.stop = NEED_MORE


def scan_client(lane: Lane, buf: bytearray, pos: int, end: int) -> int:
    """Walk client frames in ``buf[pos:end]``; answer where the decided bytes end.

    Sets ``lane.stop`` and updates content state of the channels it passes.
    """
    raw = buf  # compiled: a pointer, so that a slice of it is bytes at once
    frame_max = lane.frame_max
    method_expected, body_expected = METHOD, BODY  # compiled: C integers
    number = -1
    channel = None
    lane.stop = SLOW
    while True:
        if end - pos < 7:
            lane.stop = NEED_MORE
            return pos
        size = raw[pos + 3]  # alone: compiled, an octet shifted by 24 would be a negative int
        size = (size << 24) | (raw[pos + 4] << 16) | (raw[pos + 5] << 8) | raw[pos + 6]
        if size > frame_max:
            return pos
        past = pos + size + 8
        if past > end:
            lane.stop = NEED_MORE
            return pos
        if raw[past - 1] != 0xCE:
            return pos
        kind = raw[pos]
        n = (raw[pos + 1] << 8) | raw[pos + 2]
        if kind == 8:
            if n != 0 or size != 0:
                return pos
            pos = past
            continue
        if n != number:
            if n not in lane.channels:
                return pos
            channel = lane.channels[n]
            number = n
        if channel is None or channel.mode != 0:
            return pos
        if kind == 3:
            if channel.expect != body_expected or size > channel.remaining:
                return pos
            channel.remaining -= size
            if channel.remaining == 0:
                channel.expect = method_expected
            pos = past
            continue
        if kind != 1 or channel.expect != method_expected or size < 4:
            return pos
        p = pos + 7
        if raw[p] != 0 or raw[p + 1] != 60 or raw[p + 2] != 0:
            return pos
        method = raw[p + 3]
        if method == 80 or method == 90 or method == 120:  # noqa: PLR1714 - a set is slower
            # ack, reject, nack: delivery tag and one octet of bits; no permission is asked.
            if size != 13:
                return pos
            pos = past
            continue
        if method != 40 or size < 9:
            return pos
        # basic.publish: ticket (2), exchange, routing key, bits (1).
        last = past - 2  # the octet of bits: the last one of the payload
        a = p + 7
        b = a + raw[a - 1]
        if b >= last:
            return pos
        c = b + 1 + raw[b]
        if c != last or raw[last] & 2:
            return pos
        keyed = False
        if not _same(raw, a, b, channel.last_exchange):
            if not _same(raw, a - 1, c, channel.last_key):
                name = b"" + raw[a:b]  # bytes in either form; compiled, without a call
                if channel.exchanges is not None and name in channel.exchanges:
                    channel.last_exchange = name
                else:
                    if channel.keys is None:
                        return pos
                    name = b"" + raw[a - 1 : c]
                    if name not in channel.keys:
                        return pos
                    channel.last_key = name
                    keyed = True
            else:
                keyed = True
        # The content header must follow: the two are released together or not at all.
        h = past
        if end - h < 7:
            lane.stop = NEED_MORE
            return pos
        if raw[h] != 2 or raw[h + 1] != raw[pos + 1] or raw[h + 2] != raw[pos + 2]:
            return pos
        size = raw[h + 3]
        size = (size << 24) | (raw[h + 4] << 16) | (raw[h + 5] << 8) | raw[h + 6]
        if size < 14 or size > frame_max:
            return pos
        past = h + size + 8
        if past > end:
            lane.stop = NEED_MORE
            return pos
        if raw[past - 1] != 0xCE:
            return pos
        q = h + 7
        if raw[q] != 0 or raw[q + 1] != 60 or raw[q + 2] != 0 or raw[q + 3] != 0:
            return pos
        if raw[q + 4] | raw[q + 5] | raw[q + 6] | raw[q + 7]:
            return pos
        body = raw[q + 8]
        body = (body << 24) | (raw[q + 9] << 16) | (raw[q + 10] << 8) | raw[q + 11]
        if body > lane.body_max:
            return pos
        flags = (raw[q + 12] << 8) | raw[q + 13]
        if flags & 3:
            return pos  # bits that RabbitMQ ignores, and that must not go out
        if (flags & 0x10 or (keyed and flags & 0x2000)) and not _harmless(
            raw, q + 14, past - 1, flags, keyed, lane.username
        ):
            return pos
        if body:
            channel.remaining = body
            channel.expect = body_expected
        pos = past


def _same(raw: bytearray, a: int, b: int, name: bytes | None) -> bool:
    """Is ``raw[a:b]`` this name? (Compiled, a loop is cheaper than a slice.)"""
    if name is None:
        return False
    n = b - a
    if n != len(name):
        return False
    i = 0
    while i < n:
        if raw[a + i] != name[i]:
            return False
        i += 1
    return True


def _harmless(raw: bytearray, p: int, end: int, flags: int, keyed: bool, username: bytes) -> bool:
    """Do the properties in ``raw[p:end]`` hold nothing to judge?

    True: the user-id, if any, is ``username``; where ``keyed`` (a topic rule looks at routing
    keys) the headers, if any, hold neither CC nor BCC. Whatever is odd is not harmless.
    """
    if flags & 0x8000:  # content-type
        if p >= end:
            return False
        p += raw[p] + 1
    if flags & 0x4000:  # content-encoding
        if p >= end:
            return False
        p += raw[p] + 1
    if flags & 0x2000:  # headers
        if end - p < 4:
            return False
        n = raw[p]
        n = (n << 24) | (raw[p + 1] << 16) | (raw[p + 2] << 8) | raw[p + 3]
        p += 4
        if n > end - p or (keyed and not _no_routes(raw, p, p + n)):
            return False
        p += n
    if flags & 0x1000:  # delivery-mode
        p += 1
    if flags & 0x0800:  # priority
        p += 1
    if flags & 0x0400:  # correlation-id
        if p >= end:
            return False
        p += raw[p] + 1
    if flags & 0x0200:  # reply-to
        if p >= end:
            return False
        p += raw[p] + 1
    if flags & 0x0100:  # expiration
        if p >= end:
            return False
        p += raw[p] + 1
    if flags & 0x0080:  # message-id
        if p >= end:
            return False
        p += raw[p] + 1
    if flags & 0x0040:  # timestamp
        p += 8
    if flags & 0x0020:  # type
        if p >= end:
            return False
        p += raw[p] + 1
    if flags & 0x0010:  # user-id
        if p >= end or p + 1 + raw[p] > end:
            return False
        return _same(raw, p + 1, p + 1 + raw[p], username)
    return p <= end


def _no_routes(raw: bytearray, p: int, end: int) -> bool:
    """Does the table in ``raw[p:end]`` have neither a key CC nor a key BCC? Odd: no."""
    while p < end:
        n = raw[p]
        p += 1
        if end - p < n + 1:
            return False
        # Both names end in CC: a name that does not is none of them.
        if (n == 2 or (n == 3 and raw[p] == 66)) and raw[p + n - 1] == 67 and raw[p + n - 2] == 67:
            return False
        p += n
        tag = raw[p]
        p += 1
        if tag == 83 or tag == 120 or tag == 70 or tag == 65:  # S x F A  # noqa: PLR1714
            if end - p < 4:
                return False
            n = raw[p]
            n = (n << 24) | (raw[p + 1] << 16) | (raw[p + 2] << 8) | raw[p + 3]
            p += 4
            if n > end - p:
                return False
            p += n
        elif tag == 116 or tag == 98 or tag == 66:  # t b B  # noqa: PLR1714
            p += 1
        elif tag == 73 or tag == 105 or tag == 102:  # I i f  # noqa: PLR1714
            p += 4
        elif tag == 108 or tag == 76 or tag == 84 or tag == 100:  # l L T d  # noqa: PLR1714
            p += 8
        elif tag == 115 or tag == 117:  # s u  # noqa: PLR1714
            p += 2
        elif tag == 68:  # D
            p += 5
        elif tag != 86:  # V
            return False
    return p == end


def scan_broker(lane: Lane, buf: bytearray, pos: int, end: int) -> int:
    """Walk broker frames in ``buf[pos:end]``; answer where the bytes to pass on end.

    Deliveries, returns, get replies, confirms, content and heartbeats pass; every other method
    is the session's. Sets ``lane.stop``.
    """
    raw = buf
    frame_max = lane.frame_max
    lane.stop = SLOW
    while True:
        if end - pos < 7:
            lane.stop = NEED_MORE
            return pos
        size = raw[pos + 3]  # alone: compiled, an octet shifted by 24 would be a negative int
        size = (size << 24) | (raw[pos + 4] << 16) | (raw[pos + 5] << 8) | raw[pos + 6]
        if size > frame_max:
            return pos
        past = pos + size + 8
        if past > end:
            lane.stop = NEED_MORE
            return pos
        if raw[past - 1] != 0xCE:
            return pos
        kind = raw[pos]
        if kind == 1:
            p = pos + 7
            if size < 4 or raw[p] != 0 or raw[p + 1] != 60 or raw[p + 2] != 0:
                return pos
            method = raw[p + 3]
            # deliver, ack, nack, return, get-ok, get-empty
            if (
                method != 60  # noqa: PLR1714 - a set is slower
                and method != 80
                and method != 120
                and method != 50
                and method != 71
                and method != 72
            ):
                return pos
        elif kind != 2 and kind != 3 and kind != 8:  # noqa: PLR1714
            return pos
        pos = past
