"""The scanner: how far into a chunk of bytes is everything already decided?

The only compiled room. This file is plain Python and runs as it is; ``frames.pxd`` beside it
gives Cython the types, so the same source also runs at a few nanoseconds a frame. Strategy:

* No object per frame. The answer is an offset: everything before it may go out in one write.
* The fast lane knows only what needs no thought: heartbeats, content bodies, acknowledgements,
  methods that were granted octet by octet, and a ``basic.publish`` whose exchange (or exchange and
  routing keys) this channel has been granted, taken together with its content header, because
  user-id and CC/BCC live there and after the method alone has gone out it could not be refused any
  more. A user-id that is the user's own name is seen to be harmless here.
* A publish that repeats the last one, but for the body, passes by comparison with it.
* A publish that lacks nothing but one grant is not taken apart elsewhere: the session is asked for
  the grant (``ASK``), remembers it here, and has the same octets scanned again.
* Whatever is odd (a state, a size, a flag, an unknown method) is not judged here. The scanner
  stops in front of it and ``session.py`` decides in readable Python.

# INVARIANT: bytes before the returned offset are complete frames, correctly terminated, legal
# in their channel's state, and authorised under the approvals of the channel as they stand.

Longer than other files: what is compiled together calls itself without Python in between.
Layouts: AMQP 0-9-1 section 4.2 (frames), 2.3.5.2 (content header).
"""

from __future__ import annotations

from gatekeeper.protocol import octets

COMPILED = not __file__.endswith(".py")
"""Is this the compiled form?"""

# Why the scanner stopped (Lane.stop).
NEED_MORE = 0  # at the end, or in front of a unit that is not complete yet
SLOW = 1  # in front of a frame that the session must judge
ASK = 2  # in front of a publish that passes if Lane.exchange may be written to with Lane.key

# What a channel expects next (Channel.expect).
METHOD = 0
HEADER = 1
BODY = 2

MAX_PREFIXES = 1024
"""Octets of approved prefixes on one channel: they are gone through one by one."""

MAX_UNIT = 1024
"""Octets of a publish's method and header that are worth keeping for comparison: every channel
keeps one, and a header may be as long as a frame."""


class Names:
    """A set of byte strings, which is asked with a stretch of the buffer: no object is made.

    The names lie one behind the other in ``arena``, each after its length in two octets: ten
    thousand of them must stay in the processor's cache while megabytes of messages pass. A place
    (four octets of ``places``) holds the offset of a name, 0 where it is free. A name stands in
    one of the 32 places from that which its hash tells. If all are taken, all names are forgotten:
    what is forgotten is only asked again, so that names which a client has chosen to collide cost
    it no more than new ones do. Whoever adds keeps count.

    # INVARIANT: a name is found only if all of its bytes are there, never by its hash.
    """

    __slots__ = ("arena", "count", "places")

    def __init__(self) -> None:
        self._clear()

    def __len__(self) -> int:
        return self.count

    def _clear(self) -> None:
        self.count = 0
        self.arena = bytearray(2)  # so that no name is at 0
        self.places = bytearray(32 * 4)

    def find(self, raw: octets.Octets, a: int, b: int) -> bool:
        """Is ``raw[a:b]`` one of them?"""
        places, arena = self.places, self.arena  # compiled: pointers
        mask = (len(self.places) >> 2) - 1
        at = octets.hash_of(raw, a, b) & mask
        left = 32
        while left:
            p = octets.long_at(places, at << 2)
            if p == 0:
                return False
            if (arena[p] << 8) | arena[p + 1] == b - a and octets.same(raw, a, b, arena, p + 2):
                return True
            at = (at + 1) & mask
            left -= 1
        return False

    def add(self, name: bytes) -> bool:
        """False if it was there already. name: at most 65,535 octets."""
        if self.find(name, 0, len(name)):
            return False
        entry = len(name).to_bytes(2, "big") + name
        crowded = (self.count + 1) * 16 > len(self.places)  # a quarter of the places
        if (crowded and not self._double()) or not self._place(entry):
            self._clear()
            self._place(entry)
        return True

    def _double(self) -> bool:
        """Make room for twice as many; False where one of them would have no place."""
        old = self.arena
        self.arena = bytearray(2)
        self.places = bytearray(2 * len(self.places))
        self.count = 0
        p = 2
        while p < len(old):
            past = p + 2 + ((old[p] << 8) | old[p + 1])
            if not self._place(bytes(old[p:past])):
                return False
            p = past
        return True

    def _place(self, entry: bytes) -> bool:
        """entry: a name after its length. False where it has no place."""
        mask = (len(self.places) >> 2) - 1
        at = octets.hash_of(entry, 2, len(entry)) & mask
        left = 32
        while left and octets.long_at(self.places, at << 2):
            at = (at + 1) & mask
            left -= 1
        if not left:
            return False
        self.places[at << 2 : (at + 1) << 2] = len(self.arena).to_bytes(4, "big")
        self.arena += entry
        self.count += 1
        return True


class Channel:
    """What the scanner must know of one channel.

    mode: 0 while the channel is open and healthy; anything else leaves the fast lane.
    expect, remaining: content assembly; body bytes still to come.
    exchanges: approved for publishing whatever the routing key, raw names.
    keys: approved pairs, as raw bytes: exchange short string followed by routing key short
        string, length octets included (so that no two pairs share a spelling).
    prefixes: for some exchanges, how an approved routing key begins: pairs of short strings.
    methods: approved payloads of other methods, which need nothing but permission.
    unit, gap: method and header frame of a publish that has passed, and where in them the low
        half of the body size stands: its like, whatever the body size, passes by comparison.
    named, queue: answers to queue.declare that the session need not see, before any that it must;
        unless the last of them tells of another queue.
    The sets are made when there is something to hold: most channels of most connections idle.
    """

    __slots__ = (
        "exchanges", "expect", "gap", "keys", "methods", "mode", "named", "prefixes", "queue",
        "remaining", "unit",
    )  # fmt: skip

    def __init__(self) -> None:
        self.mode = 0
        self.expect = METHOD
        self.remaining = 0
        self.exchanges: Names | None = None
        self.keys: Names | None = None
        self.prefixes = b""
        self.methods: Names | None = None
        self.unit: bytes | None = None
        self.gap = 0
        self.named = 0
        self.queue = b""

    def approve_exchange(self, name: bytes) -> bool:
        """False if it was approved already; so the other two."""
        if self.exchanges is None:
            self.exchanges = Names()
        return self.exchanges.add(name)

    def approve_key(self, pair: bytes) -> bool:
        if self.keys is None:
            self.keys = Names()
        return self.keys.add(pair)

    def approve_prefix(self, exchange: bytes, prefix: bytes) -> bool:
        """False if there is no room for it. Both: at most 255 octets."""
        pair = bytes([len(exchange)]) + exchange + bytes([len(prefix)]) + prefix
        if len(self.prefixes) + len(pair) > MAX_PREFIXES:
            return False
        self.prefixes += pair
        return True

    def approve_method(self, payload: bytes) -> bool:
        if self.methods is None:
            self.methods = Names()
        return self.methods.add(payload)

    def forget(self) -> None:
        """Drop every approval (the policy has changed)."""
        self.exchanges = self.keys = self.methods = None
        self.prefixes = b""
        self.unit = None


class Lane:
    """One connection's scanner state.

    channels: number to Channel.
    frame_max: largest payload that is accepted, in bytes. RabbitMQ tolerates a payload of
        exactly frame_max although the frame then is 8 bytes longer.
    body_max: largest content body that needs no thought, in bytes.
    username: a user-id of this value is harmless; None: any is.
    stop: NEED_MORE, SLOW or ASK, after a scan.
    exchange, key: what is asked after ASK.
    """

    __slots__ = ("body_max", "channels", "exchange", "frame_max", "key", "stop", "username")

    def __init__(self, frame_max: int, body_max: int, username: bytes | None) -> None:
        self.channels: dict[int, Channel] = {}
        self.frame_max = frame_max
        self.body_max = body_max
        self.username = username
        self.stop = NEED_MORE
        self.exchange = b""
        self.key = b""


def scan_client(lane: Lane, buf: bytearray, pos: int, end: int) -> int:
    """Walk client frames in ``buf[pos:end]``; answer where the decided bytes end.

    Sets ``lane.stop`` and updates content state of the channels it passes.
    """
    raw = buf  # compiled: a pointer, so that a slice of it is bytes at once
    frame_max = lane.frame_max
    method_expected, body_expected = METHOD, BODY  # compiled: C integers
    number = -1
    channel = None
    fresh = True
    unit = known = b""  # compiled: known points to the octets of unit
    length = gap = 0
    longest = MAX_UNIT
    lane.stop = SLOW
    while True:
        if length and channel is not None and channel.expect == method_expected:
            # The same publish again? Only the body size may differ (within 32 bits).
            h = pos + gap
            past = pos + length
            if (
                past <= end
                and octets.same(raw, pos, h, known, 0)
                and octets.same(raw, h + 4, past, known, gap + 4)
            ):
                body = octets.long_at(raw, h)
                if body > lane.body_max:
                    return pos
                pos = past
                if not body:
                    continue
                past = pos + body + 8
                if (
                    past <= end
                    and octets.long_at(raw, pos + 3) == body
                    and body <= frame_max
                    and raw[pos] == 3
                    and (raw[pos + 1] << 8) | raw[pos + 2] == number
                    and raw[past - 1] == 0xCE
                ):
                    pos = past
                    continue
                channel.remaining = body
                channel.expect = body_expected
        if end - pos < 7:
            lane.stop = NEED_MORE
            return pos
        size = octets.long_at(raw, pos + 3)
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
            length = 0
            if channel.mode == 0 and channel.unit is not None:
                unit = known = channel.unit
                length = len(unit)
                gap = channel.gap
                if channel.expect == method_expected and kind == 1:
                    continue
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
        method = octets.long_at(raw, p)
        if method != 0x3C0028:  # basic.publish
            if method == 0x3C0050 or method == 0x3C005A or method == 0x3C0078:  # noqa: PLR1714 - a set is slower
                # ack, reject, nack: delivery tag and one octet of bits; no permission is asked.
                if size != 13:
                    return pos
            elif channel.methods is None or not channel.methods.find(raw, p, past - 1):
                return pos
            pos = past
            continue
        if size < 9:
            return pos
        # Ticket (2), exchange, routing key, bits (1).
        last = past - 2  # the octet of bits: the last one of the payload
        a = p + 7
        b = a + raw[a - 1]
        if b >= last:
            return pos
        c = b + 1 + raw[b]
        if c != last or raw[last] & 2:
            return pos
        # The content header must follow: the two are released together or not at all.
        h = past
        if end - h < 7:
            lane.stop = NEED_MORE
            return pos
        if raw[h] != 2 or raw[h + 1] != raw[pos + 1] or raw[h + 2] != raw[pos + 2]:
            return pos
        size = octets.long_at(raw, h + 3)
        if size < 14 or size > frame_max:
            return pos
        past = h + size + 8
        if past > end:
            lane.stop = NEED_MORE
            return pos
        if raw[past - 1] != 0xCE:
            return pos
        q = h + 7
        # Class 60, weight 0; the high half of the body size.
        if octets.long_at(raw, q) != 60 << 16 or octets.long_at(raw, q + 4):
            return pos
        body = octets.long_at(raw, q + 8)
        if body > lane.body_max:
            return pos
        flags = (raw[q + 12] << 8) | raw[q + 13]
        if flags & 3:
            return pos  # bits that RabbitMQ ignores, and that must not go out
        keyed = False
        asked = False
        if channel.exchanges is None or not channel.exchanges.find(raw, a, b):
            keyed = True
            asked = not _begins(channel.prefixes, len(channel.prefixes), raw, a, b, b + 1, c) and (
                channel.keys is None or not channel.keys.find(raw, a - 1, c)
            )
        if (asked or flags & 0x10 or (keyed and flags & 0x2000)) and not _harmless(
            lane, channel if keyed else None, asked, raw, q + 12, past - 1, a - 1, b
        ):
            return pos
        if asked:
            lane.exchange = octets.cut(raw, a, b)
            lane.key = octets.cut(raw, b + 1, c)
            lane.stop = ASK
            return pos
        if fresh and past - pos <= longest:
            # Once a scan at most, so that messages which all differ do not pay for it.
            fresh = False
            unit = known = octets.cut(raw, pos, past)
            gap = q + 8 - pos
            length = past - pos
            channel.unit = unit
            channel.gap = gap
        if body:
            channel.remaining = body
            channel.expect = body_expected
        pos = past


def _begins(
    prefixes: octets.Octets, n: int, raw: octets.Octets, a: int, b: int, k: int, c: int
) -> bool:
    """Does ``raw[k:c]``, a routing key for the exchange ``raw[a:b]``, begin as approved?"""
    p = 0
    while p < n:
        q = p + 1 + prefixes[p]
        past = q + 1 + prefixes[q]
        if (
            prefixes[p] == b - a
            and prefixes[q] <= c - k
            and octets.same(raw, a, b, prefixes, p + 1)
            and octets.same(prefixes, q + 1, past, raw, k)
        ):
            return True
        p = past
    return False


def _harmless(
    lane: Lane,
    channel: Channel | None,
    strict: bool,
    raw: bytearray,
    p: int,
    end: int,
    a: int,
    b: int,
) -> bool:
    """Do flags and properties in ``raw[p:end]`` hold nothing to judge? Whatever is odd: no.

    True: the user-id, if any, is ``lane.username``; where a topic rule looks at routing keys
    (``channel``), those in the headers CC and BCC, if any, are approved for the exchange, a short
    string in ``raw[a:b]``. strict: not yet granted, so routing keys do not count yet; but what
    the broker could not read is odd then also where it is nested.
    """
    flags = (raw[p] << 8) | raw[p + 1]
    p += 2
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
        n = octets.long_at(raw, p)
        p += 4
        if n > end - p:
            return False
        if (strict or channel is not None) and not _routes(
            lane, None if strict else channel, strict, raw, p, p + n, a, b
        ):
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
        name = lane.username
        if name is not None and (
            len(name) != raw[p] or not octets.same(raw, p + 1, p + 1 + raw[p], name, 0)
        ):
            return False
        p += raw[p] + 1
    if flags & 0x0008:  # app-id
        if p >= end:
            return False
        p += raw[p] + 1
    if flags & 0x0004:  # cluster-id
        if p >= end:
            return False
        p += raw[p] + 1
    return p == end


def _routes(
    lane: Lane,
    channel: Channel | None,
    strict: bool,
    raw: bytearray,
    p: int,
    end: int,
    a: int,
    b: int,
) -> bool:
    """Are the routing keys in the table in ``raw[p:end]`` approved? See :func:`_harmless`.

    Where the broker takes the first of two keys CC, here both count.
    """
    while p < end:
        n = raw[p]
        p += 1
        if end - p < n + 1:
            return False
        # Both names end in CC: a name that does not is none of them.
        routes = n == 2 or (n == 3 and raw[p] == 66)
        routes = routes and raw[p + n - 1] == 67 and raw[p + n - 2] == 67
        p += n
        tag = raw[p]
        p += 1
        if routes:
            if tag != 65:
                return False
        elif strict and (tag == 70 or tag == 65 or tag == 102 or tag == 100):  # noqa: PLR1714
            return False  # F A; f d, which may be no number
        if tag == 83 or tag == 120 or tag == 70 or tag == 65:  # S x F A  # noqa: PLR1714
            if end - p < 4:
                return False
            n = octets.long_at(raw, p)
            p += 4
            if n > end - p:
                return False
            if routes and not _approved(lane, channel, raw, p, p + n, a, b):
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


def _approved(
    lane: Lane, channel: Channel | None, raw: bytearray, p: int, end: int, a: int, b: int
) -> bool:
    """Does the array in ``raw[p:end]`` hold nothing but routing keys, approved on ``channel``?

    If one is not there, and all else is as it should be so far, the session is asked for it.
    """
    while p < end:
        if end - p < 5 or raw[p] != 83:  # S
            return False
        n = octets.long_at(raw, p + 1)
        if n > 255 or n > end - p - 5:
            return False
        # The last octet of the length and what follows are the key as a short string.
        if channel is not None and not _begins(
            channel.prefixes, len(channel.prefixes), raw, a + 1, b, p + 5, p + 5 + n
        ):
            pair = octets.cut(raw, a, b) + octets.cut(raw, p + 4, p + 5 + n)
            if channel.keys is None or not channel.keys.find(pair, 0, len(pair)):
                lane.exchange = octets.cut(raw, a + 1, b)
                lane.key = octets.cut(raw, p + 5, p + 5 + n)
                lane.stop = ASK
                return False
        p += n + 5
    return True


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
        size = octets.long_at(raw, pos + 3)
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
            if size < 4:
                return pos
            method = octets.long_at(raw, pos + 7)
            # deliver, ack, nack, return, get-ok, get-empty
            if (
                method != 0x3C003C  # noqa: PLR1714 - a set is slower
                and method != 0x3C0050
                and method != 0x3C0078
                and method != 0x3C0032
                and method != 0x3C0047
                and method != 0x3C0048
            ):
                if method != 0x32000B:  # queue.declare-ok
                    return pos
                n = (raw[pos + 1] << 8) | raw[pos + 2]
                if n not in lane.channels:
                    return pos
                channel = lane.channels[n]
                p = pos + 11  # the name; two counts of four octets follow
                if not channel.named or size < 13 or size != raw[p] + 13:
                    return pos
                if channel.named == 1 and (
                    len(channel.queue) != raw[p]
                    or not octets.same(raw, p + 1, past - 9, channel.queue, 0)
                ):
                    return pos
                channel.named -= 1
        elif kind != 2 and kind != 3 and kind != 8:  # noqa: PLR1714
            return pos
        pos = past
