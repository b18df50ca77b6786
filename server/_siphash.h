/* SipHash-2-4 (Aumasson and Bernstein, 2012) for server cookies (RFC 9018): 8 bytes, little-endian. */
#ifndef STANDOFF_SIPHASH_H
#define STANDOFF_SIPHASH_H

#include <stddef.h>
#include <stdint.h>

#define SIP_ROTATE(x, b) (((x) << (b)) | ((x) >> (64 - (b))))
#define SIP_ROUND                                                       \
    do {                                                                \
        v0 += v1; v2 += v3;                                             \
        v1 = SIP_ROTATE(v1, 13) ^ v0; v3 = SIP_ROTATE(v3, 16) ^ v2;     \
        v0 = SIP_ROTATE(v0, 32);                                        \
        v2 += v1; v0 += v3;                                             \
        v1 = SIP_ROTATE(v1, 17) ^ v2; v3 = SIP_ROTATE(v3, 21) ^ v0;     \
        v2 = SIP_ROTATE(v2, 32);                                        \
    } while (0)

static inline uint64_t sip_load(const uint8_t *p, size_t n)
{
    uint64_t w = 0;
    for (size_t i = 0; i < n; i++)
        w |= (uint64_t)p[i] << (8 * i);
    return w;
}

static inline void siphash24(const uint8_t *key, const uint8_t *data, size_t length, uint8_t *out)
{
    const uint64_t k0 = sip_load(key, 8), k1 = sip_load(key + 8, 8);
    uint64_t v0 = k0 ^ UINT64_C(0x736F6D6570736575), v1 = k1 ^ UINT64_C(0x646F72616E646F6D);
    uint64_t v2 = k0 ^ UINT64_C(0x6C7967656E657261), v3 = k1 ^ UINT64_C(0x7465646279746573);
    size_t left = length;
    for (;;) {
        uint64_t w = left >= 8 ? sip_load(data, 8) : sip_load(data, left) | (uint64_t)length << 56;
        v3 ^= w;
        SIP_ROUND; SIP_ROUND;
        v0 ^= w;
        if (left < 8)
            break;
        data += 8;
        left -= 8;
    }
    v2 ^= 0xFF;
    SIP_ROUND; SIP_ROUND; SIP_ROUND; SIP_ROUND;
    const uint64_t h = v0 ^ v1 ^ v2 ^ v3;
    for (int i = 0; i < 8; i++)
        out[i] = (uint8_t)(h >> (8 * i));
}

#endif
