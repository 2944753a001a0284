# octets.py for the compiled scanner. Loads that need not be aligned go through memcpy.

cdef extern from *:
    """
    #include <stdint.h>
    #include <string.h>

    static inline uint32_t octets_long(const unsigned char *raw, Py_ssize_t p)
    {
        const unsigned char *q = raw + p; /* constant offsets: one load and a byte swap */
        return (uint32_t)q[0] << 24 | (uint32_t)q[1] << 16 | (uint32_t)q[2] << 8 | q[3];
    }

    static inline int octets_same(const unsigned char *raw, Py_ssize_t a, Py_ssize_t b,
                                  const unsigned char *other, Py_ssize_t at)
    {
        const unsigned char *p = raw + a, *q = other + at;
        Py_ssize_t n = b - a;
        uint64_t x, y;
        for (; n >= 8; n -= 8, p += 8, q += 8) {
            memcpy(&x, p, 8);
            memcpy(&y, q, 8);
            if (x != y)
                return 0;
        }
        for (; n > 0; n--, p++, q++)
            if (*p != *q)
                return 0;
        return 1;
    }

    /* Every octet must sway the low bits: names differ in their last ones. It need not withstand
       chosen names: see frames.Names. */
    static inline uint64_t octets_mix(uint64_t h, uint64_t x)
    {
        const uint64_t k = UINT64_C(0x9E3779B97F4A7C15);
        x *= k; /* a product's low bits know of low bits only, so its high ones are folded in */
        h = (h ^ x ^ x >> 32) * k;
        return h ^ h >> 29;
    }

    static inline Py_ssize_t octets_hash(const unsigned char *raw, Py_ssize_t a, Py_ssize_t b)
    {
        const unsigned char *p = raw + a;
        Py_ssize_t n = b - a;
        uint64_t h = (uint64_t)n, x;
        for (; n >= 8; n -= 8, p += 8) {
            memcpy(&x, p, 8);
            h = octets_mix(h, x);
        }
        if (n) {
            for (x = 0; n > 0; n--, p++)
                x = x << 8 | *p;
            h = octets_mix(h, x);
        }
        return (Py_ssize_t)(h & 0x7FFFFFFF);
    }

    static inline PyObject *octets_cut(const unsigned char *raw, Py_ssize_t a, Py_ssize_t b)
    {
        return PyBytes_FromStringAndSize((const char *)raw + a, b - a);
    }
    """
    unsigned int long_at "octets_long" (const unsigned char* raw, Py_ssize_t p) noexcept
    bint same "octets_same" (const unsigned char* raw, Py_ssize_t a, Py_ssize_t b, const unsigned char* other, Py_ssize_t at) noexcept
    Py_ssize_t hash_of "octets_hash" (const unsigned char* raw, Py_ssize_t a, Py_ssize_t b) noexcept
    bytes cut "octets_cut" (const unsigned char* raw, Py_ssize_t a, Py_ssize_t b)
