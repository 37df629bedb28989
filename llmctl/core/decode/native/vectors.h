// Vectors of 16 floats in the compiler's own terms: AVX512, AVX2 and NEON alike.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512BF16__) && defined(__AVX512VNNI__)
#define FAST 1  // products of pairs of bf16 and of fours of bytes in one instruction
#else
#define FAST 0
#endif

constexpr int64_t LANES = 16;
constexpr int64_t PANEL = 32;  // rows of a matrix that lie interleaved; positions of a block of the cache

typedef float V __attribute__((vector_size(64)));
typedef int32_t I __attribute__((vector_size(64)));
typedef uint32_t U __attribute__((vector_size(64)));
typedef float Vu __attribute__((vector_size(64), aligned(4), may_alias));
typedef uint32_t Uu __attribute__((vector_size(64), aligned(4), may_alias));
typedef float H __attribute__((vector_size(32), aligned(4), may_alias));
typedef uint16_t Half __attribute__((vector_size(32), aligned(2), may_alias));

static inline V load(const float* p) { return *(const Vu*)p; }
static inline void store(float* p, V x) { *(Vu*)p = x; }
static inline V all(float x) { return V{} + x; }
static inline U words(const void* p) { return *(const Uu*)p; }
static inline V floats(U bits) { V x; memcpy(&x, &bits, sizeof x); return x; }
static inline U bits(V x) { U b; memcpy(&b, &x, sizeof b); return b; }
static inline V larger(V a, V b) { return a > b ? a : b; }
static inline V absolute(V x) { return floats(bits(x) & 0x7fffffffu); }

static inline float sum(V x) {
#if FAST
    return _mm512_reduce_add_ps((__m512)x);
#else
    float a[LANES];
    memcpy(a, &x, sizeof a);
    for (int half = LANES / 2; half; half /= 2)
        for (int i = 0; i < half; i++) a[i] += a[i + half];
    return a[0];
#endif
}

static inline float largest(V x) {
#if FAST
    return _mm512_reduce_max_ps((__m512)x);
#else
    float a[LANES];
    memcpy(a, &x, sizeof a);
    for (int half = LANES / 2; half; half /= 2)
        for (int i = 0; i < half; i++) a[i] = a[i] > a[i + half] ? a[i] : a[i + half];
    return a[0];
#endif
}

static inline V round_even(V x) {  // |x| < 2^22
    const float magic = 12582912.0f;  // 1.5 * 2^23: its last bit is 1
    return (x + magic) - magic;
}

// e^x within 2 units in the last place; below -87 zero; NaN stays.
static inline V exponential(V x) {
    V small = x < -87.0f ? all(-87.0f) : x;
    small = small > 88.0f ? all(88.0f) : small;
    V n = round_even(small * 1.44269504f);
    V r = small - n * 0.693359375f;
    r = r + n * 2.12194440e-4f;
    V p = all(1.9875691500e-4f);
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    I power = __builtin_convertvector(n, I);
    V y = p * floats((U)((power + 127) << 23));
    y = x < -87.0f ? V{} : y;
    return x != x ? x : y;
}

static inline V hyperbolic(V x) {  // tanh
    V e = exponential(-2.0f * absolute(x));
    V y = (1.0f - e) / (1.0f + e);
    V series = absolute(x) * (1.0f - x * x * 0.33333333f);  // of small x, where the difference loses digits
    y = absolute(x) < 0.01f ? series : y;
    return x < 0.0f ? -y : y;
}

// The error function within 1.5e-7. Source: Abramowitz and Stegun, formula 7.1.26.
static inline V error_function(V x) {
    V a = absolute(x), t = 1.0f / (1.0f + 0.3275911f * a);
    V p = ((((1.061405429f * t - 1.453152027f) * t + 1.421413741f) * t - 0.284496736f) * t + 0.254829592f) * t;
    V y = 1.0f - p * exponential(-a * a);
    return x < 0.0f ? -y : y;
}

enum Activation { SILU, GELU, GELU_TANH, RELU };

static inline V activated(V x, int64_t kind) {
    switch (kind) {
        case SILU: return x / (1.0f + exponential(-x));
        case GELU: return 0.5f * x * (1.0f + error_function(x * 0.70710678f));
        case GELU_TANH: return 0.5f * x * (1.0f + hyperbolic(0.79788456f * (x + 0.044715f * x * x * x)));
        default: return x < 0.0f ? V{} : x;
    }
}

static inline uint16_t to_bf16(float x) {
    uint32_t b;
    memcpy(&b, &x, 4);
    if ((b & 0x7fffffff) > 0x7f800000) return (b >> 16) | 0x40;  // NaN stays
    return (b + 0x7fff + ((b >> 16) & 1)) >> 16;
}

static inline float from_bf16(uint16_t x) {
    uint32_t b = (uint32_t)x << 16;
    float y;
    memcpy(&y, &b, 4);
    return y;
}

static inline float from_half(uint16_t h) {
    uint32_t sign = (uint32_t)(h >> 15) << 31, exponent = (h >> 10) & 31, fraction = h & 1023, b;
    if (exponent == 0) {
        float y = fraction * 5.9604644775390625e-8f;  // 2^-24
        return sign ? -y : y;
    }
    b = sign | (exponent == 31 ? 0x7f800000 : (exponent + 112) << 23) | fraction << 13;
    float y;
    memcpy(&y, &b, 4);
    return y;
}

static inline uint16_t to_half(float x) {
#if defined(__F16C__)
    return _cvtss_sh(x, _MM_FROUND_TO_NEAREST_INT);
#else
    uint32_t b;
    memcpy(&b, &x, 4);
    const uint32_t sign = b >> 16 & 0x8000, size = b & 0x7fffffff;
    if (size > 0x7f800000) return sign | 0x7e00;              // NaN stays
    if (size >= 0x477ff000) return sign | 0x7c00;             // 65520 and more
    if (size < 0x38800000) {                                  // less than 2^-14: steps of 2^-24
        float y;
        memcpy(&y, &size, 4);
        return sign | (uint16_t)lrintf(y * 16777216.0f);
    }
    return sign | (size - 0x38000000 + 0xfff + (size >> 13 & 1)) >> 13;
#endif
}

static inline V halves(const uint16_t* p) {  // 16 of float16
#if defined(__AVX512F__)
    return (V)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p));
#elif defined(__F16C__)
    H low = (H)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p));
    H high = (H)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)(p + 8)));
    V y;
    memcpy(&y, &low, 32);
    memcpy((char*)&y + 32, &high, 32);
    return y;
#else
    V y;
    for (int i = 0; i < LANES; i++) y[i] = from_half(p[i]);
    return y;
#endif
}

static inline V brains(const uint16_t* p) {  // 16 of bf16
    return floats(__builtin_convertvector(*(const Half*)p, U) << 16);
}
