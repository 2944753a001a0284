# Types for frames.py (Cython's augmenting declarations). The .py is the source of all logic.

cimport cython
from gatekeeper.protocol cimport octets

ctypedef const unsigned char* p_uchar


@cython.final
cdef class Names:
    cdef public Py_ssize_t count
    cdef public bytearray arena
    cdef public bytearray places
    cpdef _clear(self)
    @cython.locals(places=p_uchar, arena=p_uchar, mask=Py_ssize_t, at=Py_ssize_t, p=Py_ssize_t, left=cython.int)
    cpdef bint find(self, const unsigned char* raw, Py_ssize_t a, Py_ssize_t b) noexcept
    cpdef bint add(self, bytes name)
    @cython.locals(old=bytearray, p=Py_ssize_t, past=Py_ssize_t)
    cdef bint _double(self) except -1
    @cython.locals(mask=Py_ssize_t, at=Py_ssize_t, left=cython.int)
    cdef bint _place(self, bytes entry) except -1

cdef class Channel:
    cdef public int mode
    cdef public int expect
    cdef public long long remaining
    cdef public Names exchanges
    cdef public Names keys
    cdef public bytes prefixes
    cdef public Names methods
    cdef public bytes unit
    cdef public Py_ssize_t gap
    cdef public Py_ssize_t named
    cdef public bytes queue
    cpdef bint approve_exchange(self, bytes name)
    cpdef bint approve_key(self, bytes pair)
    cpdef bint approve_prefix(self, bytes exchange, bytes prefix)
    cpdef bint approve_method(self, bytes payload)
    cpdef forget(self)

cdef class Lane:
    cdef public dict channels
    cdef public long long frame_max
    cdef public long long body_max
    cdef public bytes username
    cdef public int stop
    cdef public bytes exchange
    cdef public bytes key

@cython.locals(p=Py_ssize_t, q=Py_ssize_t, past=Py_ssize_t)
cdef bint _begins(
    const unsigned char* prefixes, Py_ssize_t n, const unsigned char* raw, Py_ssize_t a,
    Py_ssize_t b, Py_ssize_t k, Py_ssize_t c,
) noexcept

@cython.locals(flags=cython.uint, n=cython.longlong, name=bytes)
cdef bint _harmless(
    Lane lane, Channel channel, bint strict, const unsigned char* raw, Py_ssize_t p, Py_ssize_t end,
    Py_ssize_t a, Py_ssize_t b,
)

@cython.locals(n=cython.longlong, tag=cython.uint, routes=bint)
cdef bint _routes(
    Lane lane, Channel channel, bint strict, const unsigned char* raw, Py_ssize_t p, Py_ssize_t end,
    Py_ssize_t a, Py_ssize_t b,
)

@cython.locals(n=cython.longlong, pair=bytes)
cdef bint _approved(
    Lane lane, Channel channel, const unsigned char* raw, Py_ssize_t p, Py_ssize_t end,
    Py_ssize_t a, Py_ssize_t b,
)

@cython.locals(
    raw=p_uchar, frame_max=cython.longlong, number=cython.int, method_expected=cython.int,
    body_expected=cython.int, channel=Channel, size=cython.longlong, past=Py_ssize_t,
    kind=cython.uint, n=cython.int, p=Py_ssize_t, method=cython.uint, last=Py_ssize_t,
    a=Py_ssize_t, b=Py_ssize_t, c=Py_ssize_t, flags=cython.uint, h=Py_ssize_t, q=Py_ssize_t,
    body=cython.longlong, keyed=bint, asked=bint, fresh=bint, unit=bytes, known=p_uchar,
    length=Py_ssize_t, gap=Py_ssize_t, longest=Py_ssize_t,
)
cpdef Py_ssize_t scan_client(Lane lane, bytearray buf, Py_ssize_t pos, Py_ssize_t end)

@cython.locals(
    raw=p_uchar, frame_max=cython.longlong, size=cython.longlong, past=Py_ssize_t,
    kind=cython.uint, method=cython.uint, n=cython.int, channel=Channel, p=Py_ssize_t,
)
cpdef Py_ssize_t scan_broker(Lane lane, bytearray buf, Py_ssize_t pos, Py_ssize_t end)
