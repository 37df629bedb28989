// Products of packed matrices with tokens, 32 outputs and a few tokens at a time.
//
// A matrix lies in panels of 32 rows. Within a panel, columns follow one another in steps of as many as one word of 32
// bits holds, and the words of the 32 rows lie side by side: so a panel is one stream in memory, a vector holds 16
// rows, and no sum goes across a vector. Steps: one column of float32 or (by halves of words) float16, two of bf16,
// four of bytes, eight of four bits (byte j of a word holds columns j and j + 4).
//
// Whole numbers are held without a sign, 8 and 128 too large; what activations sum to is taken off again.
//
// Most of bf16's high bytes, a sign and the upper seven bits of an exponent, are of a few kinds: BRIEF holds its low
// bytes as they are, and four bits for each high one, the number of its kind. Each panel has a table of its kinds: 0,
// and the seven that are most frequent in it, with both signs. A weight of another kind is held as 0 and once more by
// itself, so that nothing is lost. A step is four columns: 128 low bytes, and 64 of four bits, in the order in which
// they unpack to two steps of bf16.
#pragma once
#include "vectors.h"

enum Kind { F32, BF16, F16, INT8, INT4, BRIEF };

struct Rare {
    uint32_t place;  // in a panel: 32 columns' number and row
    uint32_t bits;   // as a float's
};

struct Matrix {
    int64_t kind, rows, columns, group;  // columns: with padding; group: columns that share a scale
    const char* codes;
    const char* scale;    // [panel][group][32], of INT8 and INT4
    int64_t scale_kind;   // F32, BF16 or F16
    const uint8_t* zero;  // [panel][group][32], code of 0, signs taken off; null: 8 or 128
    const float* bias;    // [rows], or null
    int64_t flat;         // rows lie one after another, not in panels: a table of vectors, no factor
    const uint8_t* table;  // [panel][16], of BRIEF
    const Rare* rare;      // of BRIEF, panel by panel
    const int64_t* begin;  // [panel + 1], the first of each panel
};

static inline int64_t panels(const Matrix& w) { return (w.rows + PANEL - 1) / PANEL; }
static inline int64_t bytes_of(int64_t kind, int64_t columns) {  // of a panel
    static const int64_t held[] = {32, 16, 16, 8, 4, 12};
    return columns * PANEL * held[kind] / 8;
}

// Where a step of BRIEF holds the low byte of a column's row; its four bits are those of byte 128 + where % 64.
static inline int64_t brief_place(int64_t column, int64_t row) {
    const int64_t word = 2 * (row % LANES) + column % 2;
    return column % 4 / 2 * 64 + word / 8 * 16 + row / LANES * 8 + word % 8;
}

static inline uint16_t brief_weight(const Matrix& w, int64_t at, int64_t column, int64_t row) {
    const uint8_t* step = (const uint8_t*)w.codes + at * bytes_of(BRIEF, w.columns) + column / 4 * 192;
    const int64_t place = brief_place(column, row);
    const int64_t code = step[128 + place % 64] >> place / 64 * 4 & 15;
    return step[place] | w.table[at * 16 + code] << 8;
}

// How the tokens are given that a kind of matrix multiplies. BYTES: numbers of 16 bits, all of a token's in the same
// unit. SPANS: numbers of 8 bits, each 32 or 16 that follow one another in a unit of their own, in half the arithmetic.
// Beside weights of four bits that loses little: of small trained decoders the KL to the exact product of those
// weights is 3.8e-5 nats a token, where four bits in groups of 32 themselves cost 5.5e-3.
enum Form { FLOATS, PAIRS, BYTES, SPANS };
static inline Form form_of(int64_t kind) {  // of floats
    return FAST && (kind == BF16 || kind == BRIEF) ? PAIRS : FLOATS;
}

static inline Form form_of(const Matrix& w) {
    return FAST && w.kind == INT8 ? BYTES : FAST && w.kind == INT4 ? SPANS : form_of(w.kind);
}

// Tokens as a product takes them. A token is one or two rows of numbers (parts): as bf16 what is nearest and what that
// leaves, as BYTES the high and the low one, as SPANS one.
struct Tokens {
    const char* rows;
    int64_t stride;       // bytes from part to part
    int64_t parts;
    const float* unit;    // what 1 stands for, of each token; SPANS: [group]
    const int32_t* sums;  // [part][group]
    int64_t groups;       // of columns that are summed: BYTES: those that share a scale; SPANS: those that share a unit
};

static inline int64_t parts_of(Form form, int64_t parts) {  // parts: of bf16
    return form == PAIRS ? parts : form == BYTES ? 2 : 1;
}

// Columns that are summed together.
static inline int64_t group_of(Form form, const Matrix& w) {
    return form == BYTES ? w.group : form == SPANS ? (w.group % 32 ? 16 : 32) : w.columns;
}

constexpr int MOST = 12;  // parts that are multiplied at once: 24 sums, 32 registers

#if FAST
// Have what comes later in a panel's stream fetched. Several tokens keep a core too busy to look so far ahead by
// itself: 32 meet a matrix in memory in 0.75 to 0.95 of the time. One does not.
template <int M>
static inline void ahead(const char* panel, int bytes) {
    constexpr int far = 8192;
    if constexpr (M >= 4)
        for (int i = 0; i < bytes; i += 64) _mm_prefetch(panel + far + i, _MM_HINT_T0);
}

struct Four {  // a step of BRIEF as two of bf16
    __m512i low[2], high[2];
    Four(const char* step, __m512i table) {
        const __m512i nibble = _mm512_set1_epi8(15), codes = _mm512_loadu_si512(step + 128);
#pragma GCC unroll 2
        for (int i = 0; i < 2; i++) {
            const __m512i code = _mm512_and_si512(i ? _mm512_srli_epi16(codes, 4) : codes, nibble);
            const __m512i bytes = _mm512_loadu_si512(step + 64 * i), kinds = _mm512_shuffle_epi8(table, code);
            low[i] = _mm512_unpacklo_epi8(bytes, kinds), high[i] = _mm512_unpackhi_epi8(bytes, kinds);
        }
    }
};

template <int KIND, int M>
static void by_pairs(const Matrix& w, int64_t at, const Tokens& x, int64_t first, float (*out)[PANEL]) {
    __m512 a[M], b[M];
#pragma GCC unroll 12
    for (int m = 0; m < M; m++) a[m] = b[m] = _mm512_setzero_ps();
    const char *panel = w.codes + at * bytes_of(KIND, w.columns), *rows = x.rows + first * x.stride;
    auto add = [&](__m512i low, __m512i high, int64_t i) {
#pragma GCC unroll 12
        for (int m = 0; m < M; m++) {
            __m512bh pair = (__m512bh)_mm512_set1_epi32(*(const int32_t*)(rows + m * x.stride + 4 * i));
            a[m] = _mm512_dpbf16_ps(a[m], (__m512bh)low, pair);
            b[m] = _mm512_dpbf16_ps(b[m], (__m512bh)high, pair);
        }
    };
    if constexpr (KIND == BRIEF) {
        const __m512i table = _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i*)(w.table + at * 16)));
        for (int64_t i = 0; i < w.columns / 2; i += 2, panel += 192) {
            ahead<M>(panel, 192);
            const Four four(panel, table);
            add(four.low[0], four.high[0], i);
            add(four.low[1], four.high[1], i + 1);
        }
    } else {
        for (int64_t i = 0; i < w.columns / 2; i++, panel += 128) {
            ahead<M>(panel, 128);
            add(_mm512_loadu_si512(panel), _mm512_loadu_si512(panel + 64), i);
        }
    }
#pragma GCC unroll 12
    for (int m = 0; m < M; m++) {
        _mm512_storeu_ps(out[m], a[m]);
        _mm512_storeu_ps(out[m] + LANES, b[m]);
    }
}

static inline V sixteen(const char* scale, int64_t kind, int64_t place) {
    if (kind == F32) return load((const float*)scale + place);
    return kind == BF16 ? brains((const uint16_t*)scale + place) : halves((const uint16_t*)scale + place);
}

static inline __m512i zeros(const Matrix& w, int64_t place) {
    return _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)(w.zero + place)));
}

// Sums of products of whole numbers, of M rows with some columns of a panel of bytes; apart from what is done with
// them, since the compiler then leaves them in registers.
template <int M>
static void dots(const char* panel, int64_t columns, const char* rows, int64_t stride, int32_t (*out)[PANEL]) {
    __m512i a[M], b[M];
#pragma GCC unroll 12
    for (int m = 0; m < M; m++) a[m] = b[m] = _mm512_setzero_si512();
    for (int64_t i = 0; i < columns; i += 4, panel += 128) {
        ahead<M / 2>(panel, 128);
        const __m512i low = _mm512_loadu_si512(panel), high = _mm512_loadu_si512(panel + 64);
#pragma GCC unroll 12
        for (int m = 0; m < M; m++) {
            const __m512i four = _mm512_set1_epi32(*(const int32_t*)(rows + m * stride + i));
            a[m] = _mm512_dpbusd_epi32(a[m], low, four);
            b[m] = _mm512_dpbusd_epi32(b[m], high, four);
        }
    }
#pragma GCC unroll 12
    for (int m = 0; m < M; m++) {
        _mm512_store_si512(out[m], a[m]);
        _mm512_store_si512(out[m] + LANES, b[m]);
    }
}

// M tokens of BYTES. What is rounded is told step by step, so that any number of tokens gives each the very same sums.
template <bool ZEROS, int M>
static void by_bytes(const Matrix& w, int64_t at, const Tokens& x, int64_t first, float (*out)[PANEL]) {
    const char *panel = w.codes + at * bytes_of(INT8, w.columns), *rows = x.rows + 2 * first * x.stride;
    const int32_t* sums = x.sums + 2 * first * x.groups;
    alignas(64) int32_t made[2 * M][PANEL];
    for (int64_t g = 0; g < x.groups; g++, sums++, rows += w.group) {
        dots<2 * M>(panel + g * bytes_of(INT8, w.group), w.group, rows, x.stride, made);
        for (int64_t side = 0; side < PANEL; side += LANES) {
            const int64_t lane = (at * x.groups + g) * PANEL + side;
            const __m512 scale = (__m512)sixteen(w.scale, w.scale_kind, lane);
            const __m512i zero = ZEROS ? zeros(w, lane) : _mm512_setzero_si512();
            auto part = [&](int m) {
                const __m512i sum = _mm512_set1_epi32(sums[m * x.groups]);
                const __m512i less = ZEROS ? _mm512_mullo_epi32(sum, zero) : _mm512_slli_epi32(sum, 7);
                return _mm512_cvtepi32_ps(_mm512_sub_epi32(_mm512_load_si512(made[m] + side), less));
            };
            for (int m = 0; m < M; m++) {
                const __m512 whole = _mm512_fmadd_ps(_mm512_set1_ps(256), part(2 * m), part(2 * m + 1));
                const __m512 before = g ? _mm512_loadu_ps(out[m] + side) : _mm512_setzero_ps();
                _mm512_storeu_ps(out[m] + side, _mm512_fmadd_ps(whole, scale, before));
            }
        }
    }
}

// M tokens of SPANS, with four bits. All sums stay in registers; what is rounded is told step by step here too.
template <int SPAN, bool ZEROS, int M>
static void by_spans(const Matrix& w, int64_t at, const Tokens& x, int64_t first, float (*out)[PANEL]) {
    const int64_t alike = w.group / SPAN;  // spans that meet the same scale
    const char *panel = w.codes + at * bytes_of(INT4, w.columns), *rows = x.rows + first * x.stride;
    const float* units = x.unit + first * x.groups;
    const int32_t* sums = x.sums + first * x.groups;
    const __m512i nibble = _mm512_set1_epi8(15);
    __m512 low_total[M], high_total[M];
#pragma GCC unroll 6
    for (int m = 0; m < M; m++) low_total[m] = high_total[m] = _mm512_setzero_ps();
    int64_t lane = at * (w.columns / w.group) * PANEL;
    for (int64_t g = 0, left = alike; g < x.groups; g++, rows += SPAN) {
        __m512i a[M], b[M];
#pragma GCC unroll 6
        for (int m = 0; m < M; m++) {
            const __m512i less = _mm512_set1_epi32(-sums[m * x.groups + g]);
            a[m] = ZEROS ? _mm512_mullo_epi32(less, zeros(w, lane)) : _mm512_slli_epi32(less, 3);
            b[m] = ZEROS ? _mm512_mullo_epi32(less, zeros(w, lane + LANES)) : a[m];
        }
#pragma GCC unroll 4
        for (int i = 0; i < SPAN; i += 8, panel += 128) {
            ahead<M>(panel, 128);
            const __m512i low = _mm512_loadu_si512(panel), high = _mm512_loadu_si512(panel + 64);
            const __m512i later_low = _mm512_and_si512(_mm512_srli_epi16(low, 4), nibble);
            const __m512i later_high = _mm512_and_si512(_mm512_srli_epi16(high, 4), nibble);
#pragma GCC unroll 6
            for (int m = 0; m < M; m++) {
                __m512i four = _mm512_set1_epi32(*(const int32_t*)(rows + m * x.stride + i));
                a[m] = _mm512_dpbusd_epi32(a[m], _mm512_and_si512(low, nibble), four);
                b[m] = _mm512_dpbusd_epi32(b[m], _mm512_and_si512(high, nibble), four);
                four = _mm512_set1_epi32(*(const int32_t*)(rows + m * x.stride + i + 4));
                a[m] = _mm512_dpbusd_epi32(a[m], later_low, four);
                b[m] = _mm512_dpbusd_epi32(b[m], later_high, four);
            }
        }
        const __m512 scale = (__m512)sixteen(w.scale, w.scale_kind, lane);
        const __m512 high_scale = (__m512)sixteen(w.scale, w.scale_kind, lane + LANES);
#pragma GCC unroll 6
        for (int m = 0; m < M; m++) {
            const __m512 unit = _mm512_set1_ps(units[m * x.groups + g]);
            low_total[m] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(a[m]), _mm512_mul_ps(scale, unit), low_total[m]);
            high_total[m] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(b[m]), _mm512_mul_ps(high_scale, unit), high_total[m]);
        }
        if (!--left) left = alike, lane += PANEL;
    }
#pragma GCC unroll 6
    for (int m = 0; m < M; m++) {
        _mm512_storeu_ps(out[m], low_total[m]);
        _mm512_storeu_ps(out[m] + LANES, high_total[m]);
    }
}
#endif

// A panel of BRIEF as one of bf16, what is rare in it as 0.
static void paired(const Matrix& w, int64_t at, char* to) {
#if FAST
    const char* panel = w.codes + at * bytes_of(BRIEF, w.columns);
    const __m512i table = _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i*)(w.table + at * 16)));
    for (int64_t i = 0; i < w.columns; i += 4, panel += 192, to += 256) {
        const Four four(panel, table);
        for (int j = 0; j < 2; j++) {
            _mm512_storeu_si512(to + 128 * j, four.low[j]);
            _mm512_storeu_si512(to + 128 * j + 64, four.high[j]);
        }
    }
#else
    for (int64_t i = 0; i < w.columns; i++)
        for (int64_t row = 0; row < PANEL; row++)
            ((uint16_t*)to)[(i / 2 * PANEL + row) * 2 + i % 2] = brief_weight(w, at, i, row);
#endif
}

// What is rare in a panel of BRIEF, added to its products with n tokens from `first` on.
static void add_rare(const Matrix& w, int64_t at, const Tokens& x, int64_t first, int64_t n, float (*out)[PANEL]) {
    for (const Rare* one = w.rare + w.begin[at]; one < w.rare + w.begin[at + 1]; one++) {
        const int64_t column = one->place / PANEL, row = one->place % PANEL;
        float weight;
        memcpy(&weight, &one->bits, 4);
        for (int64_t i = 0; i < n; i++)
            for (int64_t part = 0; part < x.parts; part++) {
                const char* token = x.rows + ((first + i) * x.parts + part) * x.stride;
                const bool halved = form_of(BRIEF) == PAIRS;
                out[i][row] += weight * (halved ? from_bf16(((const uint16_t*)token)[column])
                                                : ((const float*)token)[column]);
            }
    }
}

// What the compiler makes of plain vectors: any CPU, and kinds without an instruction of their own. Up to four tokens.
template <int KIND, int M>
static void by_floats(const char* panel, int64_t columns, const Tokens& x, int64_t first, V (*sums)[2], const V* zero) {
    constexpr int STEP = KIND == BF16 ? 2 : KIND == INT8 ? 4 : KIND == INT4 ? 8 : 1;
    constexpr int SIZE = KIND == F16 ? 64 : 128;
    const float* rows = (const float*)(x.rows + first * x.stride);
    const int64_t stride = x.stride / 4;
    V a[M], b[M];
    for (int m = 0; m < M; m++) a[m] = sums[m][0], b[m] = sums[m][1];
    for (int64_t i = 0; i < columns; i += STEP, panel += SIZE) {
        for (int j = 0; j < STEP; j++) {
            V low, high;
            if constexpr (KIND == F32) {
                low = load((const float*)panel), high = load((const float*)panel + LANES);
            } else if constexpr (KIND == F16) {
                low = halves((const uint16_t*)panel), high = halves((const uint16_t*)panel + LANES);
            } else if constexpr (KIND == BF16) {
                U one = words(panel), two = words(panel + 64);
                low = floats(j ? one & 0xffff0000u : one << 16), high = floats(j ? two & 0xffff0000u : two << 16);
            } else {
                const int shift = KIND == INT8 ? 8 * j : 8 * (j % 4) + 4 * (j / 4);
                const uint32_t mask = KIND == INT8 ? 255 : 15;
                low = __builtin_convertvector((I)((words(panel) >> shift) & mask), V) - zero[0];
                high = __builtin_convertvector((I)((words(panel + 64) >> shift) & mask), V) - zero[1];
            }
            for (int m = 0; m < M; m++) {
                const float factor = rows[m * stride + i + j];
                a[m] += low * factor;
                b[m] += high * factor;
            }
        }
    }
    for (int m = 0; m < M; m++) sums[m][0] = a[m], sums[m][1] = b[m];
}

template <int KIND, int M>
static void plainly(const Matrix& w, int64_t at, const Tokens& x, int64_t first, float (*out)[PANEL]) {
    const char* panel = w.codes + at * bytes_of(KIND, w.columns);
    V sums[M][2] = {};
    if constexpr (KIND == INT8 || KIND == INT4) {
        const int64_t groups = w.columns / w.group;
        V total[M][2] = {};
        for (int64_t g = 0; g < groups; g++) {
            const int64_t place = (at * groups + g) * PANEL;
            V zero[2], scale[2];
            for (int side = 0; side < 2; side++)
                for (int i = 0; i < LANES; i++) {
                    const int64_t lane = place + side * LANES + i;
                    zero[side][i] = w.zero ? w.zero[lane] : KIND == INT4 ? 8 : 128;
                    scale[side][i] = w.scale_kind == F32    ? ((const float*)w.scale)[lane]
                                     : w.scale_kind == BF16 ? from_bf16(((const uint16_t*)w.scale)[lane])
                                                            : from_half(((const uint16_t*)w.scale)[lane]);
                }
            Tokens part = x;
            part.rows += g * w.group * 4;
            memset(sums, 0, sizeof sums);
            by_floats<KIND, M>(panel + g * bytes_of(KIND, w.group), w.group, part, first, sums, zero);
            for (int m = 0; m < M; m++)
                for (int side = 0; side < 2; side++) total[m][side] += sums[m][side] * scale[side];
        }
        memcpy(sums, total, sizeof sums);
    } else {
        by_floats<KIND, M>(panel, w.columns, x, first, sums, nullptr);
    }
    for (int m = 0; m < M; m++) store(out[m], sums[m][0]), store(out[m] + LANES, sums[m][1]);
}

// The product of a panel with n tokens from `first` on; units and biases are still to come.
template <int KIND>
static void plain_tile(const Matrix& w, int64_t at, const Tokens& x, int64_t first, int64_t n, float (*out)[PANEL]) {
    if (n >= 4) return plainly<KIND, 4>(w, at, x, first, out), plain_tile<KIND>(w, at, x, first + 4, n - 4, out + 4);
    if (n >= 2) return plainly<KIND, 2>(w, at, x, first, out), plain_tile<KIND>(w, at, x, first + 2, n - 2, out + 2);
    if (n == 1) plainly<KIND, 1>(w, at, x, first, out);
}

#if FAST
template <int KIND>
static void pair_tile(const Matrix& w, int64_t at, const Tokens& x, int64_t part, int64_t n, float (*out)[PANEL]) {
    int64_t done = 0;
    while (done < n) {
        const int64_t left = n - done;
        if (left >= 12) by_pairs<KIND, 12>(w, at, x, part + done, out + done), done += 12;
        else if (left >= 8) by_pairs<KIND, 8>(w, at, x, part + done, out + done), done += 8;
        else if (left >= 6) by_pairs<KIND, 6>(w, at, x, part + done, out + done), done += 6;
        else if (left >= 4) by_pairs<KIND, 4>(w, at, x, part + done, out + done), done += 4;
        else if (left == 3) by_pairs<KIND, 3>(w, at, x, part + done, out + done), done += 3;
        else if (left >= 2) by_pairs<KIND, 2>(w, at, x, part + done, out + done), done += 2;
        else by_pairs<KIND, 1>(w, at, x, part + done, out + done), done += 1;
    }
}

template <bool ZEROS>
static void byte_tile(const Matrix& w, int64_t at, const Tokens& x, int64_t first, int64_t n, float (*out)[PANEL]) {
    int64_t done = 0;
    while (done < n) {
        const int64_t left = n - done;
        if (left >= 6) by_bytes<ZEROS, 6>(w, at, x, first + done, out + done), done += 6;
        else if (left >= 4) by_bytes<ZEROS, 4>(w, at, x, first + done, out + done), done += 4;
        else if (left >= 2) by_bytes<ZEROS, 2>(w, at, x, first + done, out + done), done += 2;
        else by_bytes<ZEROS, 1>(w, at, x, first + done, out + done), done += 1;
    }
    for (int64_t i = 0; i < n; i++) {
        const V unit = all(x.unit[first + i]);
        store(out[i], load(out[i]) * unit), store(out[i] + LANES, load(out[i] + LANES) * unit);
    }
}

template <int SPAN, bool ZEROS>
static void span_tile(const Matrix& w, int64_t at, const Tokens& x, int64_t first, int64_t n, float (*out)[PANEL]) {
    int64_t done = 0;
    while (done < n) {
        const int64_t left = n - done;
        if (left >= 6 && left != 8) by_spans<SPAN, ZEROS, 6>(w, at, x, first + done, out + done), done += 6;
        else if (left >= 4) by_spans<SPAN, ZEROS, 4>(w, at, x, first + done, out + done), done += 4;
        else if (left >= 2) by_spans<SPAN, ZEROS, 2>(w, at, x, first + done, out + done), done += 2;
        else by_spans<SPAN, ZEROS, 1>(w, at, x, first + done, out + done), done += 1;
    }
}

template <int KIND, bool ZEROS>
static void whole_tile(const Matrix& w, int64_t at, const Tokens& x, int64_t first, int64_t n, float (*out)[PANEL]) {
    if (KIND == INT8) byte_tile<ZEROS>(w, at, x, first, n, out);
    else if (group_of(SPANS, w) == 32) span_tile<32, ZEROS>(w, at, x, first, n, out);
    else span_tile<16, ZEROS>(w, at, x, first, n, out);
}
#endif

// The product of panel `at` with n tokens from `first` on, n parts of which fit into MOST rows.
static void tile(const Matrix& w, int64_t at, const Tokens& x, int64_t first, int64_t n, float (*out)[PANEL]) {
    switch (w.kind) {
#if FAST
        case BF16:
        case BRIEF:
            if (w.kind == BF16) pair_tile<BF16>(w, at, x, first * x.parts, n * x.parts, out);
            else pair_tile<BRIEF>(w, at, x, first * x.parts, n * x.parts, out);
            for (int64_t i = 0; x.parts == 2 && i < n; i++) {
                store(out[i], load(out[2 * i]) + load(out[2 * i + 1]));
                store(out[i] + LANES, load(out[2 * i] + LANES) + load(out[2 * i + 1] + LANES));
            }
            return;
        case INT8: return (w.zero ? whole_tile<INT8, true> : whole_tile<INT8, false>)(w, at, x, first, n, out);
        case INT4: return (w.zero ? whole_tile<INT4, true> : whole_tile<INT4, false>)(w, at, x, first, n, out);
#else
        case BF16: return plain_tile<BF16>(w, at, x, first, n, out);
        case INT8: return plain_tile<INT8>(w, at, x, first, n, out);
        case INT4: return plain_tile<INT4>(w, at, x, first, n, out);
#endif
        case F16: return plain_tile<F16>(w, at, x, first, n, out);
        default: return plain_tile<F32>(w, at, x, first, n, out);
    }
}

// Bytes that a token takes, all its parts, and where its rows begin.
static inline int64_t stride_of(Form form, int64_t columns) {
    const int64_t bytes = columns * (form == FLOATS ? 4 : form == PAIRS ? 2 : 1);
    return (bytes + 63) / 64 * 64 + 64;  // not a power of two, whose rows would share a cache's places
}

// Write one token, numbers x (columns, a multiple of 16, the padding 0), as a product takes it.
static void given(Form form, int64_t parts, const float* x, int64_t columns, char* to, int64_t stride, float* unit,
                  int32_t* sums, int64_t group) {
    if (form == FLOATS) {
        memcpy(to, x, columns * 4);
        return;
    }
#if FAST
    if (form == PAIRS) {
        for (int64_t i = 0; i < columns; i += LANES) {
            const __m512 y = _mm512_loadu_ps(x + i);
            const __m256i near = (__m256i)_mm512_cvtneps_pbh(y);
            _mm256_storeu_si256((__m256i*)(to + 2 * i), near);
            if (parts == 1) continue;
            const __m512 back = _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(near), 16));
            _mm256_storeu_si256((__m256i*)(to + stride + 2 * i), (__m256i)_mm512_cvtneps_pbh(_mm512_sub_ps(y, back)));
        }
        return;
    }
    const int64_t some = form == SPANS ? group : columns;  // that share a unit
    for (int64_t begin = 0; begin < columns; begin += some, unit++) {
        V most = {};
        bool broken = false;
        for (int64_t i = begin; i < begin + some; i += LANES) {
            const V z = load(x + i);
            most = larger(most, absolute(z));
            broken |= _mm512_cmp_ps_mask((__m512)(z - z), _mm512_setzero_ps(), _CMP_NEQ_UQ);
        }
        const float scale = largest(most) / (form == SPANS ? 127.0f : 32639.0f);  // 32639: 127 * 257
        const float safe = scale > 1e-30f ? scale : 1e-30f;
        *unit = broken ? NAN : safe;  // bytes know no NaN
        const __m512 inverse = _mm512_set1_ps(broken ? 0.0f : 1.0f / safe);
        for (int64_t i = begin; i < begin + some; i += LANES) {
            const __m512 number = _mm512_maskz_loadu_ps(broken ? 0 : 0xffff, x + i);
            const __m512i whole = _mm512_cvtps_epi32(_mm512_mul_ps(number, inverse));
            if (form == SPANS) {
                _mm_storeu_si128((__m128i*)(to + i), _mm512_cvtepi32_epi8(whole));
                continue;
            }
            const __m512i high = _mm512_srai_epi32(_mm512_add_epi32(whole, _mm512_set1_epi32(128)), 8);
            _mm_storeu_si128((__m128i*)(to + i), _mm512_cvtepi32_epi8(high));
            _mm_storeu_si128((__m128i*)(to + stride + i), _mm512_cvtepi32_epi8(whole));
        }
    }
    for (int64_t part = 0; part < parts; part++)
        for (int64_t g = 0; g < columns / group; g++) {  // columns of padding are 0
            const int8_t* bytes = (const int8_t*)to + part * stride + g * group;
            __m512i total = _mm512_setzero_si512();
            for (int64_t i = 0; i < group; i += LANES)
                total = _mm512_add_epi32(total, _mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)(bytes + i))));
            sums[part * (columns / group) + g] = _mm512_reduce_add_epi32(total);
        }
#endif
}
