// One pass of a decoder over a few or many tokens, each of any row at any place: a step of decoding, of a batch, the
// check of a draft, or a piece of a prompt. It runs inside one parallel region; each phase ends with a barrier.
//
// Keys and values lie in blocks of 32 positions, laid out as matrices are, so that attention is products as well: of a
// block the keys are a panel of 32 rows, and the values panels of 32 channels whose columns are positions. What nobody
// has written in a block is 0, since values are multiplied with the 0 that positions to come are seen with.
#include <omp.h>
#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <atomic>
#include <cstdlib>
#include <new>
#include <thread>
#include <vector>

#include "products.h"

struct Norm {
    int64_t kind;  // 0: none, 1: root mean square, 2: layer norm
    double eps;
    const float* weight;
    const float* bias;  // of a layer norm
};

struct Layer {
    Norm attention_norm, attention_out_norm, mlp_norm, mlp_out_norm, q_norm, k_norm;
    Matrix q, k, v, out, gate, up, down;
    int64_t window;    // 0: none
    int64_t rotation;  // which table of angles, or -1
    int64_t pool, slot;  // the blocks that hold its keys and values, and where in each
};

enum Place { PRE, POST, OUTPUT, SANDWICH };

struct Model {
    int64_t layers, width, heads, kv_heads, head_dim, ff, turned;  // turned: channels of a head that rotate
    int64_t place, parallel, activation, gated, norm_whole;
    double scale, softcap, embed_scale, logit_scale, logit_softcap;  // a softcap of 0: none
    const float* slopes;                                             // ALiBi's, of each head, or null
    const Layer* layer;
    Matrix embed, head;
    const float* positions;  // vectors added to those of tokens, (places, width), or null
    Norm embed_norm, norm;
    int64_t kv_kind;  // F32, F16 or BF16
    int64_t pool_layers[2];  // layers whose keys and values are in a block of each pool
};

struct Pass {
    int64_t tokens;
    const int32_t *ids, *rows, *places;  // of each token; those of a row follow each other
    const int32_t* tables[2];            // blocks of each row, by pool: those of layers that see all, and of windows
    int64_t table_strides[2];
    char* blocks[2];
    const float* cosines[2];  // (places, turned / 2) by rotation
    const float* sines[2];
    int64_t asked;            // tokens whose scores are asked for
    const int32_t* which;
    float* logits;            // (asked, vocabulary)
    int64_t parts;            // of a token that is multiplied with bf16: 2 is exact, 1 is for many
    int64_t threads;
    int64_t layers;           // that run
    const int32_t* order;     // their numbers
};

// Memory between passes: grows, and never shrinks.
struct Workspace {
    char* memory = nullptr;
    int64_t size = 0;
};

namespace {

struct Run {  // tokens that follow each other in a row
    int64_t first, count, row, place;
};

int64_t rounded(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

constexpr int64_t CACHED = 384 << 10;  // bytes of a matrix that stay in a core's cache while tokens pass

// A matrix that tokens are multiplied with: as it is, or as panels of bf16 made of it, where nothing multiplies BRIEF.
struct Factor {
    const Matrix& source;
    Matrix read;
    bool made;
    int64_t begin = 0;

    explicit Factor(const Matrix& w) : source(w), read(w), made(!FAST && w.kind == BRIEF) {
        if (made) read.kind = BF16;
    }

    void make(int64_t low, int64_t high, char* to) {
        if (!made) return;
        begin = low, read.codes = to;
        for (int64_t at = low; at < high; at++, to += bytes_of(BF16, read.columns)) paired(source, at, to);
    }

    void product(int64_t at, const Tokens& tokens, int64_t t, int64_t some, float (*out)[PANEL]) const {
        tile(read, at - begin, tokens, t, some, out);
        const int64_t rows = source.rows - at * PANEL < PANEL ? source.rows - at * PANEL : PANEL;
        if (source.kind == BRIEF) add_rare(source, at, tokens, t, some, out);
        if (source.bias)
            for (int64_t i = 0; i < some; i++)
                for (int64_t j = 0; j < rows; j++) out[i][j] += source.bias[at * PANEL + j];
    }
};

// Whether matrices take the same form of the tokens.
bool alike(const Matrix& a, const Matrix& b) {
    const int64_t one = a.kind == BRIEF ? BF16 : a.kind, other = b.kind == BRIEF ? BF16 : b.kind;
    return one == other && a.group == b.group;
}

// Where threads wait for each other: a short while awake, since all have as much to do, and then leaving the core to
// others, of whom the one waited for may be in want of it. OpenMP's own barrier is as fast where cores are free, and a
// hundred times slower where they are not.
class Meeting {
  public:
    int64_t threads = 1;

    void wait() {
        if (threads == 1) return;
        const int64_t mine = turn.load(std::memory_order_relaxed);
        if (arrived.fetch_add(1, std::memory_order_acq_rel) == threads - 1) {
            arrived.store(0, std::memory_order_relaxed);
            turn.store(mine + 1, std::memory_order_release);
            return;
        }
        for (int64_t i = 0; turn.load(std::memory_order_acquire) == mine; i++) {
            if (i > AWAKE) std::this_thread::yield();
#if defined(__x86_64__)
            else _mm_pause();
#endif
        }
    }

  private:
    static constexpr int64_t AWAKE = 4000;  // some 50 to 100 microseconds
    alignas(64) std::atomic<int64_t> arrived{0};
    alignas(64) std::atomic<int64_t> turn{0};
};

struct Share {  // what a thread takes of `count` things
    int64_t begin, end;
    Share(int64_t count, int64_t thread, int64_t threads)
        : begin(count * thread / threads), end(count * (thread + 1) / threads) {}
};

// The vector of a token, from a table or from the packed matrix that the head multiplies with.
void vector_of(const Matrix& w, int64_t id, int64_t width, float* to) {
    if (w.kind == BRIEF) {
        for (int64_t i = 0; i < width; i++) to[i] = from_bf16(brief_weight(w, id / PANEL, i, id % PANEL));
        for (int64_t i = w.begin[id / PANEL]; i < w.begin[id / PANEL + 1]; i++)
            if (w.rare[i].place % PANEL == id % PANEL) memcpy(to + w.rare[i].place / PANEL, &w.rare[i].bits, 4);
        return;
    }
    const int64_t size = w.kind == F32 ? 4 : 2;
    const int64_t columns_of_word = w.kind == BF16 && !w.flat ? 2 : 1;
    for (int64_t i = 0; i < width; i++) {
        const char* from;
        if (w.flat) {
            from = w.codes + (id * w.columns + i) * size;
        } else {
            const int64_t step = i / columns_of_word;
            from = w.codes + (id / PANEL) * bytes_of(w.kind, w.columns) +
                   ((step * PANEL + id % PANEL) * columns_of_word + i % columns_of_word) * size;
        }
        to[i] = w.kind == F32 ? *(const float*)from
                : w.kind == BF16 ? from_bf16(*(const uint16_t*)from) : from_half(*(const uint16_t*)from);
    }
}

class Work {
  public:
    Work(const Model& model, const Pass& pass, Workspace& space) : m(model), p(pass), n(pass.tokens), most(n) {
        if (p.asked > most) most = p.asked;
        const int64_t inner = m.heads * m.head_dim, shared = m.kv_heads * m.head_dim;
        q_width = inner + 2 * shared;
        widest = rounded(largest_of(m.width, inner, m.ff), 32);
        lone = n < 3;
        token = 2 * stride_of(FLOATS, widest);
        group_sums = 2 * (widest / LANES + 2);
        int64_t tiled = 48 / (m.heads / m.kv_heads);
        tokens_of_tile = tiled < 1 ? 1 : tiled > 16 ? 16 : tiled;
        heads_of_item = m.heads / m.kv_heads;
        for (int64_t i = 0; i < n; i++) {
            if (i && p.rows[i] == p.rows[i - 1] && p.places[i] == p.places[i - 1] + 1) runs.back().count++;
            else runs.push_back({i, 1, p.rows[i], p.places[i]});
        }
        for (const Run& run : runs)
            for (int64_t t = 0; t < run.count; t += tokens_of_tile) {
                const int64_t left = run.count - t;
                tiles.push_back({run.first + t, left < tokens_of_tile ? left : tokens_of_tile, run.row, run.place + t});
            }
        const int64_t items = (int64_t)tiles.size() * m.kv_heads;
        if (items % p.threads && items < 4 * p.threads) heads_of_item = 1;  // else a thread waits for the others
        dim = rounded(m.head_dim, PANEL);
        rows_of_item = tokens_of_tile * heads_of_item;

        int64_t need = 0;
        auto take = [&](int64_t bytes) { int64_t at = need; need += rounded(bytes, 64); return at; };
        const int64_t copies = lone ? p.threads : 1;
        const int64_t at_x = take(n * m.width * 4), at_y = take(most * m.width * 4), at_q = take(n * q_width * 4);
        const int64_t at_a = take(n * inner * 4), at_h = take(n * m.ff * 4);
        const int64_t at_tokens = take(copies * most * token), at_units = take(copies * most * group_sums * 4);
        const int64_t at_sums = take(copies * most * group_sums * 4);
        one_line = rounded(widest * 4 + 64, 64);
        const int64_t at_lines = take(p.threads * one_line);
        query_stride = stride_of(FLOATS, dim), chance_stride = stride_of(FLOATS, PANEL);
        item_bytes = rounded(rows_of_item * (2 * query_stride + 2 * chance_stride + dim * 4 + 8), 64);
        const int64_t at_items = take(p.threads * item_bytes);
        panels_bytes = rounded(CACHED + 2 * bytes_of(BF16, widest), 64);
        const int64_t at_panels = take(p.threads * panels_bytes);
        if (need > space.size) {
            free(space.memory);
            space.memory = nullptr, space.size = 0;
            space.memory = (char*)aligned_alloc(64, rounded(need, 64));
            if (!space.memory) throw std::bad_alloc();
            space.size = need;
        }
        char* base = space.memory;
        x = (float*)(base + at_x), y = (float*)(base + at_y), q = (float*)(base + at_q), a = (float*)(base + at_a);
        h = (float*)(base + at_h), prepared = base + at_tokens, units = (float*)(base + at_units);
        sums = (int32_t*)(base + at_sums), lines = base + at_lines, items_memory = base + at_items;
        panels_memory = base + at_panels;
    }

    void operator()(int64_t thread, int64_t threads) {
#pragma omp single
        meeting.threads = threads;
        embed(thread, threads);
        for (int64_t i = 0; i < p.layers; i++) layer(p.order[i], thread, threads);
        for (int64_t i = Share(p.asked, thread, threads).begin; i < Share(p.asked, thread, threads).end; i++)
            memcpy(y + i * m.width, x + p.which[i] * m.width, m.width * 4);
        barrier();
        if (!p.asked) return;
        product(y, p.asked, m.width, m.norm, m.logit_scale, {{&m.head, p.logits, m.head.rows, SCORES}}, thread,
                threads);
    }

  private:
    enum End { STORE, ADD, SCORES };
    struct Target {
        const Matrix* matrix;
        float* to;
        int64_t stride;
        End end;
        const Matrix* gate = nullptr;  // its activated outputs are multiplied with the others
    };

    const Model& m;
    const Pass& p;
    const int64_t n;
    int64_t most, q_width, widest, token, group_sums, one_line, tokens_of_tile, heads_of_item, rows_of_item, dim;
    int64_t query_stride, chance_stride, item_bytes, panels_bytes;
    Meeting meeting;
    bool lone;  // each thread prepares the tokens for itself: cheaper than to wait for the others
    std::vector<Run> runs, tiles;
    float *x, *y, *q, *a, *h, *units;
    char *prepared, *lines, *items_memory, *panels_memory;
    int32_t* sums;

    static int64_t largest_of(int64_t a, int64_t b, int64_t c) { return a > b ? (a > c ? a : c) : (b > c ? b : c); }
    void barrier() { meeting.wait(); }

    static void normed(const Norm& norm, const float* from, int64_t size, float* to) {
        if (!norm.kind) {
            if (to != from) memcpy(to, from, size * 4);
            return;
        }
        const int64_t whole = size / LANES * LANES;
        float mean = 0;
        if (norm.kind == 2) {
            V total = {};
            for (int64_t i = 0; i < whole; i += LANES) total += load(from + i);
            mean = sum(total);
            for (int64_t i = whole; i < size; i++) mean += from[i];
            mean /= size;
        }
        V squares = {};
        for (int64_t i = 0; i < whole; i += LANES) {
            const V d = load(from + i) - mean;
            squares += d * d;
        }
        float square = sum(squares);
        for (int64_t i = whole; i < size; i++) square += (from[i] - mean) * (from[i] - mean);
        const float inverse = 1.0f / sqrtf(square / size + (float)norm.eps);
        for (int64_t i = 0; i < whole; i += LANES) {
            V z = (load(from + i) - mean) * inverse * load(norm.weight + i);
            store(to + i, norm.bias ? z + load(norm.bias + i) : z);
        }
        for (int64_t i = whole; i < size; i++)
            to[i] = (from[i] - mean) * inverse * norm.weight[i] + (norm.bias ? norm.bias[i] : 0);
    }

    void embed(int64_t thread, int64_t threads) {
        const Share mine(n, thread, threads);
        for (int64_t t = mine.begin; t < mine.end; t++) {
            float* to = x + t * m.width;
            vector_of(m.embed, p.ids[t], m.width, to);
            for (int64_t i = 0; i < m.width; i++) {
                to[i] *= (float)m.embed_scale;
                if (m.positions) to[i] += m.positions[p.places[t] * m.width + i];
            }
            normed(m.embed_norm, to, m.width, to);
        }
        barrier();
    }

    void layer(int64_t number, int64_t thread, int64_t threads) {
        const Layer& w = m.layer[number];
        const int64_t inner = m.heads * m.head_dim, shared = m.kv_heads * m.head_dim;
        const Norm none = {};
        const bool before = m.place == PRE || m.place == SANDWICH, apart = m.place != PRE || m.parallel;
        product(x, n, m.width, before ? w.attention_norm : none, 1,
                {{&w.q, q, q_width, STORE},
                 {&w.k, q + inner, q_width, STORE},
                 {&w.v, q + inner + shared, q_width, STORE}},
                thread, threads);
        remember(w, thread, threads);
        barrier();
        attend(w, thread, threads);
        barrier();
        float* sum = apart ? y : x;
        product(a, n, inner, none, 1, {{&w.out, sum, m.width, apart ? STORE : ADD}}, thread, threads);
        if (apart && !m.parallel) join(w.attention_norm, w.attention_out_norm, thread, threads);
        product(x, n, m.width, before ? w.mlp_norm : none, 1,
                {{&w.up, h, m.ff, STORE, m.gated ? &w.gate : nullptr}}, thread, threads, !m.gated);
        product(h, n, m.ff, none, 1, {{&w.down, sum, m.width, apart && !m.parallel ? STORE : ADD}}, thread, threads);
        if (apart) join(m.parallel ? none : w.mlp_norm, m.parallel ? none : w.mlp_out_norm, thread, threads);
    }

    // Bring what half a layer made, y, into the stream x.
    void join(const Norm& norm, const Norm& out_norm, int64_t thread, int64_t threads) {
        const Share mine(n, thread, threads);
        for (int64_t t = mine.begin; t < mine.end; t++) {
            float *to = x + t * m.width, *from = y + t * m.width;
            if (m.place == OUTPUT) normed(norm, from, m.width, from);
            if (m.place == SANDWICH) normed(out_norm, from, m.width, from);
            for (int64_t i = 0; i < m.width; i++) to[i] += from[i];
            if (m.place == POST) normed(norm, to, m.width, to);
        }
        barrier();
    }

    // Tokens as the matrix takes them; where every thread makes its own, without a barrier.
    Tokens prepare(const Matrix& w, const float* from, int64_t count, int64_t size, const Norm& norm, double scale,
                   int64_t thread, int64_t threads) {
        const Form form = form_of(w);
        const int64_t parts = parts_of(form, p.parts), stride = stride_of(form, w.columns);
        const int64_t group = group_of(form, w), groups = w.columns / group, units_here = form == SPANS ? groups : 1;
        const bool own = lone && count < 3;
        char* to = prepared + (own ? thread * most * token : 0);
        float* unit = units + (own ? thread * most * group_sums : 0);
        int32_t* sum = sums + (own ? thread * most * group_sums : 0);
        float* line = (float*)(lines + thread * one_line);
        const Share mine(count, own ? 0 : thread, own ? 1 : threads);
        for (int64_t t = mine.begin; t < mine.end; t++) {
            normed(norm, from + t * size, size, line);
            if (scale != 1)
                for (int64_t i = 0; i < size; i++) line[i] *= (float)scale;
            for (int64_t i = size; i < w.columns; i++) line[i] = 0;
            given(form, parts, line, w.columns, to + t * parts * stride, stride, unit + t * units_here,
                  sum + t * parts * groups, group);
        }
        if (!own) barrier();
        return {to, stride, parts, unit, sum, groups};
    }

    // Products of normed tokens with matrices; `active`: outputs pass the activation.
    template <int COUNT>
    void product(const float* from, int64_t count, int64_t size, const Norm& norm, double scale,
                 const Target (&targets)[COUNT], int64_t thread, int64_t threads, bool active = false) {
        int64_t done = 0;
        while (done < COUNT) {  // matrices that take the same form of the tokens go together
            const Matrix& first = *targets[done].matrix;
            int64_t end = done, total = 0;
            while (end < COUNT && alike(*targets[end].matrix, first))
                total += panels(*targets[end++].matrix);
            if (done) barrier();  // nobody reads the tokens of before any more
            const Tokens tokens = prepare(first, from, count, size, norm, scale, thread, threads);
            const Share mine(total, thread, threads);
            int64_t start = 0;
            for (; done < end; done++) {
                const int64_t here = panels(*targets[done].matrix);
                const int64_t low = mine.begin > start ? mine.begin - start : 0;
                const int64_t high = mine.end - start < here ? mine.end - start : here;
                if (low < high) multiply(targets[done], tokens, count, low, high, active, thread);
                start += here;
            }
        }
        barrier();
    }

    // Some panels of a matrix: as many as stay in a core's cache meet all tokens before the next are read.
    void multiply(const Target& target, const Tokens& tokens, int64_t count, int64_t low, int64_t high, bool active,
                  int64_t thread) {
        const Matrix& gate = target.gate ? *target.gate : *target.matrix;
        Factor first(*target.matrix), second(gate);
        const int64_t step = MOST / tokens.parts, columns = first.read.columns;
        const int64_t one = bytes_of(first.read.kind, columns), other = bytes_of(second.read.kind, columns);
        const int64_t bytes = one > other ? one : other;
        const int64_t fit = CACHED / (bytes * (target.gate ? 2 : 1)), held = fit < 1 ? 1 : fit;
        char* made = panels_memory + thread * panels_bytes;
        for (int64_t begin = low; begin < high; begin += held) {
            const int64_t end = begin + held < high ? begin + held : high;
            first.make(begin, end, made);
            if (target.gate) second.make(begin, end, made + held * bytes);
            for (int64_t t = 0; t < count; t += step) {
                const int64_t some = count - t < step ? count - t : step;
                for (int64_t at = begin; at < end; at++) {
                    alignas(64) float out[MOST][PANEL], gates[MOST][PANEL];
                    first.product(at, tokens, t, some, out);
                    if (target.gate) second.product(at, tokens, t, some, gates);
                    for (int64_t i = 0; i < some && (target.gate || active); i++)
                        for (int64_t j = 0; j < PANEL; j += LANES) {
                            const V z = load(out[i] + j);
                            store(out[i] + j, target.gate ? activated(load(gates[i] + j), m.activation) * z
                                                          : activated(z, m.activation));
                        }
                    write(target, at, t, some, out);
                }
            }
        }
    }

    void write(const Target& target, int64_t at, int64_t t, int64_t some, const float (*out)[PANEL]) {
        const int64_t rows = target.matrix->rows - at * PANEL < PANEL ? target.matrix->rows - at * PANEL : PANEL;
        for (int64_t i = 0; i < some; i++) {
            float* to = target.to + (t + i) * target.stride + at * PANEL;
            if (target.end == ADD) {
                for (int64_t j = 0; j < rows; j++) to[j] += out[i][j];
            } else if (target.end == SCORES && m.logit_softcap) {
                const float cap = (float)m.logit_softcap;
                for (int64_t j = 0; j < rows; j += LANES) {
                    const V z = cap * hyperbolic(load(out[i] + j) / cap);
                    memcpy(to + j, &z, 4 * (rows - j < LANES ? rows - j : LANES));
                }
            } else {
                memcpy(to, out[i], rows * 4);
            }
        }
    }

    int64_t kv_bytes() const { return m.kv_kind == F32 ? 4 : 2; }

    // Keys, or values after them, of one block, layer and head.
    char* block(int64_t row, int64_t number, const Layer& w, int64_t head, bool values) const {
        const int64_t at = p.tables[w.pool][row * p.table_strides[w.pool] + number];
        const int64_t place = (at * m.pool_layers[w.pool] + w.slot) * m.kv_heads + head;
        return p.blocks[w.pool] + (2 * place + values) * PANEL * dim * kv_bytes();
    }

    // Norm and turn queries and keys, and put keys and values into the cache.
    void remember(const Layer& w, int64_t thread, int64_t threads) {
        const int64_t heads = m.heads + 2 * m.kv_heads, d = m.head_dim;
        const Share mine(n * heads, thread, threads);
        float* line = (float*)(lines + thread * one_line);
        for (int64_t item = mine.begin; item < mine.end; item++) {
            const int64_t t = item / heads, head = item % heads;
            const bool query = head < m.heads, value = head >= m.heads + m.kv_heads;
            float* from = q + t * q_width + head * d;
            if (value) {
                put(t, w, head - m.heads - m.kv_heads, from, true);
                continue;
            }
            const Norm& norm = query ? w.q_norm : w.k_norm;
            memcpy(line, from, d * 4);
            if (norm.kind && !m.norm_whole) normed(norm, line, d, line);
            if (norm.kind && m.norm_whole) {  // by what the other heads hold as well; they are changed by nobody
                line = whole(w, t, query, head, line);
            }
            if (w.rotation >= 0) turn(line, p.places[t], w.rotation);
            if (query) memcpy(a_of(t, head), line, d * 4);
            else put(t, w, head - m.heads, line, false);
        }
    }

    // Queries go where attention's outputs will replace them, head by head.
    float* a_of(int64_t t, int64_t head) { return a + (t * m.heads + head) * m.head_dim; }

    float* whole(const Layer& w, int64_t t, bool query, int64_t head, float* line) {
        const int64_t d = m.head_dim, size = (query ? m.heads : m.kv_heads) * d, at = query ? head : head - m.heads;
        const float* all = q + t * q_width + (query ? 0 : m.heads * d);
        const Norm& norm = query ? w.q_norm : w.k_norm;
        float square = 0;
        for (int64_t i = 0; i < size; i++) square += all[i] * all[i];
        const float inverse = 1.0f / sqrtf(square / size + (float)norm.eps);
        for (int64_t i = 0; i < d; i++) line[i] = all[at * d + i] * inverse * norm.weight[at * d + i];
        return line;
    }

    void turn(float* x, int64_t place, int64_t kind) const {
        const int64_t half = m.turned / 2;
        const float *cosine = p.cosines[kind] + place * half, *sine = p.sines[kind] + place * half;
        for (int64_t i = 0; i < half; i++) {
            const float low = x[i], high = x[i + half];
            x[i] = low * cosine[i] - high * sine[i];
            x[i + half] = high * cosine[i] + low * sine[i];
        }
    }

    void put(int64_t t, const Layer& w, int64_t head, const float* from, bool values) const {
        const int64_t place = p.places[t], slot = place % PANEL, pair = m.kv_kind == BF16 ? 2 : 1;
        char* to = block(p.rows[t], place / PANEL, w, head, values);
        for (int64_t i = 0; i < m.head_dim; i++) {
            int64_t at;
            if (values) at = i / PANEL * PANEL * PANEL + (slot / pair * PANEL + i % PANEL) * pair + slot % pair;
            else at = (i / pair * PANEL + slot) * pair + i % pair;
            if (m.kv_kind == F32) ((float*)to)[at] = from[i];
            else ((uint16_t*)to)[at] = m.kv_kind == BF16 ? to_bf16(from[i]) : to_half(from[i]);
        }
    }

    void attend(const Layer& w, int64_t thread, int64_t threads) {
        const int64_t shared = m.heads / m.kv_heads, per_tile = m.heads / heads_of_item;
        const int64_t items = (int64_t)tiles.size() * per_tile;
        for (int64_t item = thread; item < items; item += threads) {
            const int64_t head = item % per_tile * heads_of_item;
            attend_tile(w, tiles[item / per_tile], head, head / shared, items_memory + thread * item_bytes);
        }
    }

    // Some tokens of a row, some heads that share keys and values: softmax over blocks as they come.
    // Source: Milakov and Gimelshein, arXiv:1805.02867, algorithm 3; Dao et al., arXiv:2205.14135.
    void attend_tile(const Layer& w, const Run& run, int64_t head, int64_t kv_head, char* memory) {
        const int64_t d = m.head_dim, rows = run.count * heads_of_item;
        const Form form = form_of(m.kv_kind);
        const int64_t parts = form == PAIRS ? p.parts : 1, step = MOST / parts;
        char *queries = memory, *chances = queries + rows_of_item * 2 * query_stride;
        float* out = (float*)(chances + rows_of_item * 2 * chance_stride);
        float *top = out + rows_of_item * dim, *total = top + rows_of_item;
        alignas(64) float line[1024];
        for (int64_t r = 0; r < rows; r++) {
            memcpy(line, a_of(run.first + r / heads_of_item, head + r % heads_of_item), d * 4);
            for (int64_t i = d; i < dim; i++) line[i] = 0;
            given(form, parts, line, dim, queries + r * parts * query_stride, query_stride, nullptr, nullptr, 1);
            top[r] = -INFINITY, total[r] = 0;
        }
        memset(out, 0, rows * dim * 4);
        Matrix keys = {}, values = {};
        keys.kind = values.kind = m.kv_kind, keys.rows = values.columns = PANEL, keys.columns = values.rows = dim;
        const Tokens q_rows = {queries, query_stride, parts, nullptr, nullptr, 1};
        const Tokens p_rows = {chances, chance_stride, parts, nullptr, nullptr, 1};
        const int64_t last = run.place + run.count - 1;
        const int64_t first = w.window && run.place >= w.window ? run.place - w.window + 1 : 0;
        I lane;
        for (int i = 0; i < LANES; i++) lane[i] = i;
        for (int64_t b = first / PANEL; b <= last / PANEL; b++) {
            keys.codes = block(run.row, b, w, kv_head, false);
            values.codes = block(run.row, b, w, kv_head, true);
            const bool edge = b * PANEL + PANEL - 1 > run.place || (w.window && last - b * PANEL >= w.window);
            for (int64_t r = 0; r < rows; r += step) {
                const int64_t some = rows - r < step ? rows - r : step;
                alignas(64) float made[MOST][PANEL];
                tile(keys, 0, q_rows, r, some, made);
                for (int64_t i = 0; i < some; i++) {
                    const int64_t place = run.place + (r + i) / heads_of_item;
                    V s[2];
                    for (int side = 0; side < 2; side++) {
                        const int64_t begin = b * PANEL + side * LANES;
                        V z = load(made[i] + side * LANES) * (float)m.scale;
                        if (m.softcap) z = (float)m.softcap * hyperbolic(z / (float)m.softcap);
                        const I away = (int32_t)(place - begin) - lane;
                        if (m.slopes) z -= __builtin_convertvector(away, V) * m.slopes[head + (r + i) % heads_of_item];
                        if (edge) {
                            z = away < 0 ? all(-INFINITY) : z;
                            if (w.window) z = away >= (int32_t)w.window ? all(-INFINITY) : z;
                        }
                        s[side] = z;
                    }
                    float& high = top[r + i];
                    const float higher = fmaxf(high, largest(larger(s[0], s[1])));
                    const float safe = higher == -INFINITY ? 0 : higher;  // nothing of this block or before is seen
                    const float shrunk = high == higher ? 1 : high == -INFINITY ? 0 : expf(high - safe);
                    for (int side = 0; side < 2; side++) {
                        s[side] = exponential(s[side] - safe);
                        store(line + side * LANES, s[side]);
                    }
                    total[r + i] = total[r + i] * shrunk + sum(s[0] + s[1]);
                    high = higher;
                    given(form, parts, line, PANEL, chances + (r + i) * parts * chance_stride, chance_stride, nullptr,
                          nullptr, 1);
                    float* to = out + (r + i) * dim;
                    if (shrunk != 1)
                        for (int64_t j = 0; j < dim; j += LANES) store(to + j, load(to + j) * shrunk);
                }
                for (int64_t c = 0; c < dim / PANEL; c++) {
                    tile(values, c, p_rows, r, some, made);
                    for (int64_t i = 0; i < some; i++)
                        for (int64_t j = 0; j < PANEL; j += LANES) {
                            float* to = out + (r + i) * dim + c * PANEL + j;
                            store(to, load(to) + load(made[i] + j));
                        }
                }
            }
        }
        for (int64_t r = 0; r < rows; r++) {
            float* to = a_of(run.first + r / heads_of_item, head + r % heads_of_item);
            for (int64_t i = 0; i < d; i++) to[i] = out[r * dim + i] / total[r];
        }
    }
};

// Ask for large pages, which are found faster, for memory that nobody has written into yet.
void in_large_pages(void* memory, int64_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    constexpr uintptr_t size = 2 << 20;
    const uintptr_t begin = ((uintptr_t)memory + size - 1) / size * size;
    const uintptr_t end = ((uintptr_t)memory + bytes) / size * size;
    if (begin < end) madvise((void*)begin, end - begin, MADV_HUGEPAGE);  // where there are none, small ones do
#else
    (void)memory, (void)bytes;
#endif
}

// Words of 32 rows side by side: (rows, words) to (panels, words, 32); those of rows that are missing are 0.
template <class Word>
void interleave(const Word* from, int64_t rows, int64_t words_of_row, Word* to, int64_t threads) {
    const int64_t count = (rows + PANEL - 1) / PANEL;
    in_large_pages(to, count * words_of_row * PANEL * sizeof(Word));
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t panel = 0; panel < count; panel++)
        for (int64_t begin = 0; begin < words_of_row; begin += 16)
            for (int64_t row = 0; row < PANEL; row++) {
                const int64_t at = panel * PANEL + row, end = begin + 16 < words_of_row ? begin + 16 : words_of_row;
                for (int64_t i = begin; i < end; i++)
                    to[(panel * words_of_row + i) * PANEL + row] = at < rows ? from[at * words_of_row + i] : 0;
            }
}

// The table of each panel for BRIEF, and how much is rare in it. From (rows, columns) of bf16.
void brief_tables(const uint16_t* from, int64_t rows, int64_t columns, uint8_t* tables, int64_t* counts,
                  int64_t threads) {
    const int64_t count = (rows + PANEL - 1) / PANEL;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t panel = 0; panel < count; panel++) {
        const int64_t end = (panel + 1) * PANEL < rows ? (panel + 1) * PANEL : rows;
        uint32_t seen[4][256] = {};  // four, since equal ones follow each other
        for (int64_t i = panel * PANEL * columns; i < end * columns; i += 4)
            for (int64_t j = 0; j < 4; j++) seen[j][from[i + j] >> 8]++;
        uint32_t total[128];
        for (int64_t i = 0; i < 128; i++) {
            total[i] = 0;
            for (int64_t j = 0; j < 4; j++) total[i] += seen[j][i] + seen[j][i + 128];
        }
        total[0] = 0;
        uint8_t* table = tables + panel * 16;
        table[0] = 0, table[8] = 128;
        for (int64_t i = 1; i < 8; i++) {
            int64_t most = 1;
            for (int64_t j = 2; j < 128; j++) most = total[j] > total[most] ? j : most;
            table[i] = most, table[i + 8] = most | 128;
            total[most] = 0;
        }
        counts[panel] = 0;
        for (int64_t i = 1; i < 128; i++) counts[panel] += total[i];
    }
}

// (rows, columns) of bf16 as BRIEF; rows that are missing are 0.
void brief(const uint16_t* from, const Matrix& w, uint8_t* codes, Rare* rare, int64_t threads) {
    in_large_pages(codes, panels(w) * bytes_of(BRIEF, w.columns));
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t panel = 0; panel < panels(w); panel++) {
        uint8_t numbers[256], *step = codes + panel * bytes_of(BRIEF, w.columns);
        memset(numbers, 255, sizeof numbers);
        for (int64_t i = 0; i < 16; i++) numbers[w.table[panel * 16 + i]] = i;
        Rare* to = rare + w.begin[panel];
        const int64_t rows = w.rows - panel * PANEL < PANEL ? w.rows - panel * PANEL : PANEL;
        for (int64_t i = 0; i < w.columns; i += 4, step += 192) {
            memset(step, 0, 192);
            for (int64_t row = 0; row < rows; row++)
                for (int64_t j = 0; j < 4; j++) {
                    const uint16_t weight = from[(panel * PANEL + row) * w.columns + i + j];
                    const int64_t place = brief_place(j, row);
                    if (numbers[weight >> 8] == 255) {
                        *to++ = {(uint32_t)((i + j) * PANEL + row), (uint32_t)weight << 16};
                    } else {
                        step[place] = weight;
                        step[128 + place % 64] |= numbers[weight >> 8] << place / 64 * 4;
                    }
                }
        }
    }
}

}  // namespace

extern "C" {

int64_t llmctl_fast() { return FAST; }

Workspace* llmctl_workspace() { return new (std::nothrow) Workspace; }

void llmctl_release(Workspace* space) {
    if (space) free(space->memory);
    delete space;
}

// 0, or 1 where there is no memory.
int64_t llmctl_pass(const Model* model, const Pass* pass, Workspace* space) {
    try {
        Work work(*model, *pass, *space);
#pragma omp parallel num_threads(pass->threads)
        work(omp_get_thread_num(), omp_get_num_threads());
        return 0;
    } catch (const std::bad_alloc&) {
        return 1;
    }
}

void llmctl_interleave(const void* from, int64_t rows, int64_t words, int64_t size, void* to, int64_t threads) {
    if (size == 4) interleave((const uint32_t*)from, rows, words, (uint32_t*)to, threads);
    else if (size == 2) interleave((const uint16_t*)from, rows, words, (uint16_t*)to, threads);
    else interleave((const uint8_t*)from, rows, words, (uint8_t*)to, threads);
}

void llmctl_brief_tables(const void* from, int64_t rows, int64_t columns, void* tables, void* counts,
                         int64_t threads) {
    brief_tables((const uint16_t*)from, rows, columns, (uint8_t*)tables, (int64_t*)counts, threads);
}

// To what the matrix points at.
void llmctl_brief(const void* from, const Matrix* to, int64_t threads) {
    brief((const uint16_t*)from, *to, (uint8_t*)to->codes, (Rare*)to->rare, threads);
}

// A matrix of BRIEF as panels of bf16.
void llmctl_paired(const Matrix* from, void* to, int64_t threads) {
    const int64_t size = bytes_of(BF16, from->columns);
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t at = 0; at < panels(*from); at++) {
        uint16_t* panel = (uint16_t*)((char*)to + at * size);
        paired(*from, at, (char*)panel);
        for (int64_t i = from->begin[at]; i < from->begin[at + 1]; i++) {
            const int64_t column = from->rare[i].place / PANEL, row = from->rare[i].place % PANEL;
            panel[(column / 2 * PANEL + row) * 2 + column % 2] = from->rare[i].bits >> 16;
        }
    }
}

// Vectors of tokens, (count, columns) float32, from a table or a packed matrix of floats.
void llmctl_rows(const Matrix* from, const int64_t* ids, int64_t count, float* to, int64_t columns) {
    for (int64_t i = 0; i < count; i++) vector_of(*from, ids[i], columns, to + i * columns);
}

}
