# Types for frames.py (Cython's augmenting declarations). The .py is the source of all logic.

cimport cython

ctypedef const unsigned char* p_uchar


cdef class Channel:
    cdef public int mode
    cdef public int expect
    cdef public long long remaining
    cdef public set exchanges
    cdef public set keys
    cdef public bytes last_exchange
    cdef public bytes last_key
    cpdef bint approve_exchange(self, bytes name)
    cpdef bint approve_key(self, bytes pair)
    cpdef forget(self)

cdef class Lane:
    cdef public dict channels
    cdef public long long frame_max
    cdef public long long body_max
    cdef public bytes username
    cdef public int stop

@cython.locals(n=Py_ssize_t, i=Py_ssize_t)
cdef bint _same(const unsigned char* raw, Py_ssize_t a, Py_ssize_t b, bytes name)

@cython.locals(n=cython.longlong)
cdef bint _harmless(const unsigned char* raw, Py_ssize_t p, Py_ssize_t end, unsigned int flags, bint keyed, bytes username)

@cython.locals(n=cython.longlong, tag=cython.uint)
cdef bint _no_routes(const unsigned char* raw, Py_ssize_t p, Py_ssize_t end)

@cython.locals(
    raw=p_uchar, frame_max=cython.longlong, number=cython.int, method_expected=cython.int, body_expected=cython.int, channel=Channel, size=cython.longlong,
    past=Py_ssize_t, kind=cython.uint, n=cython.int, p=Py_ssize_t, method=cython.uint,
    last=Py_ssize_t, a=Py_ssize_t, b=Py_ssize_t, c=Py_ssize_t, flags=cython.uint,
    h=Py_ssize_t, q=Py_ssize_t, body=cython.longlong, name=bytes, keyed=bint,
)
cpdef Py_ssize_t scan_client(Lane lane, bytearray buf, Py_ssize_t pos, Py_ssize_t end)

@cython.locals(
    raw=p_uchar, frame_max=cython.longlong, size=cython.longlong, past=Py_ssize_t, kind=cython.uint,
    p=Py_ssize_t, method=cython.uint,
)
cpdef Py_ssize_t scan_broker(Lane lane, bytearray buf, Py_ssize_t pos, Py_ssize_t end)
