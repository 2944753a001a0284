"""Any bytes from a client: known events, bounded memory, one end, wherever they are cut."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from gatekeeper.errors import ReplyCode
from gatekeeper.protocol import wire
from gatekeeper.protocol.events import (
    Closed,
    Fail,
    Login,
    Open,
    State,
    Tuned,
)
from gatekeeper.protocol.handshake import BUFFER_LIMIT
from tests.protocol.client_side import (
    BAD_END,
    CLOSE,
    CLOSE_OK,
    ERRORS,
    HEADER,
    HEARTBEAT,
    LEGAL,
    TUNE_OK,
    at,
    feed_by_bytes,
    feed_whole,
    open_vhost,
    start_ok,
)

# --- Any bytes ------------------------------------------------------------------------------

pieces = st.one_of(
    st.sampled_from(
        [
            HEADER,
            start_ok(),
            start_ok(b""),
            start_ok(mechanism=b"RABBIT-CR-DEMO"),
            wire.method(0, 10, 21, wire.longstr(b"My password is x")),
            TUNE_OK,
            open_vhost(),
            CLOSE,
            CLOSE_OK,
            HEARTBEAT,
            BAD_END,
            *(data for data, *_ in ERRORS.values()),
        ]
    ),
    st.binary(max_size=12),
    st.builds(
        wire.frame,
        st.sampled_from([1, 1, 1, 2, 3, 8]),
        st.sampled_from([0, 0, 0, 1]),
        st.binary(max_size=40),
    ),
    st.builds(
        lambda ids, args: wire.method(0, *ids, args),
        st.sampled_from([*LEGAL.values(), (10, 50), (10, 51)]),
        st.binary(max_size=40),
    ),
)
ORDER = [State.PRE_INIT, State.STARTING, State.SECURING, State.TUNING, State.OPENING]


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(ORDER),
    st.lists(pieces, max_size=8),
    st.lists(st.integers(1, 30), max_size=10),
    st.booleans(),
    st.booleans(),
)
def test_any_bytes(
    state: State, script: list[bytes], cuts: list[int], login: bool, vhost: bool
) -> None:
    """Whatever arrives: known events, states that only go forward, bounded memory, one end."""
    machine = at(state)
    data = b"".join(script)
    chunks = []
    for cut in [*cuts, len(data) + 1]:
        chunks.append(data[:cut])
        data = data[cut:]
    ends = 0
    rank = 0
    for chunk in chunks:
        if machine.state is State.RUNNING:
            break
        machine.feed(chunk)
        while (event := machine.next_event()) is not None:
            assert not (ends and isinstance(event, Login | Open | Tuned))
            if isinstance(event, Login):
                outcome = machine.accept_login() if login else machine.refuse_login("no")
                ends += isinstance(outcome, Fail)
            elif isinstance(event, Open):
                answer = (
                    machine.accept_open()
                    if vhost
                    else machine.refuse_open(ReplyCode.NOT_ALLOWED, b"no")
                )
                ends += isinstance(answer, Fail)
            elif isinstance(event, Fail | Closed):
                ends += 1
            if machine.state in ORDER:
                assert ORDER.index(machine.state) >= rank
                rank = ORDER.index(machine.state)
        assert len(machine._buffer) <= BUFFER_LIMIT
    assert ends <= 2
    if ends == 2:
        assert not machine.wants_data


@settings(max_examples=200, deadline=None)
@given(st.lists(pieces, max_size=6), st.sampled_from(ORDER))
def test_cutting_makes_no_difference(script: list[bytes], state: State) -> None:
    data = b"".join(script)
    assert feed_whole(at(state), data) == feed_by_bytes(at(state), data)
