// The kernels: look-up, gradients, and the optimizers' updates.
//
// This file is compiled in four ways: by nvcc to kernels.ptx (compute capability 8.0, checked in, loaded at run time), by NVRTC on a
// machine whose driver rejects that file, by ptxas in CI to check registers and spills, and as plain C++ by the tests of indexing and
// arithmetic (tests/kernels). So it includes no header and uses neither shared memory nor warp instructions. Each thread owns its
// output elements and adds in the order of positions: the same input gives the same bits. (Counts of positions are atomic integers.)
//
// Compile with -fmad=false: a product and a sum are rounded separately, as on the CPU, in candle's order of operations.
//
// Threads: x indexes the columns of a row, y the rows of a block. Blocks cover the remaining rows. `K` elements are loaded and
// stored at once.
// Shapes: table and weight (V, C), ids (N), gradients (N, C); moments (V, C) f32. Offsets are 64 bits: V * C may exceed 2^32.

typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

struct bf16 { u16 bits; };
struct f16 { u16 bits; };

// The type in which sums and updates are computed.
template <class T> struct wide { typedef float type; };
template <> struct wide<double> { typedef double type; };

union FloatBits { float value; u32 bits; };

__device__ inline float widen(float x) { return x; }
__device__ inline double widen(double x) { return x; }
__device__ inline float widen(bf16 x) {
    FloatBits f;
    f.bits = (u32)x.bits << 16;
    return f.value;
}
__device__ inline float widen(f16 x) {
#ifdef __CUDA_ARCH__
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(x.bits));
    return value;
#else
    _Float16 value;
    __builtin_memcpy(&value, &x, sizeof value);
    return value;
#endif
}

// Rounds to nearest, ties to even.
template <class T, class A> __device__ inline T narrow(A x) { return x; }
template <> __device__ inline bf16 narrow<bf16, float>(float x) {
    FloatBits f;
    f.value = x;
    bf16 out;
    if ((f.bits & 0x7fffffffu) > 0x7f800000u) out.bits = (u16)(f.bits >> 16 | 0x40u); // keeps a NaN a NaN
    else out.bits = (u16)((f.bits + 0x7fffu + (f.bits >> 16 & 1u)) >> 16);
    return out;
}
template <> __device__ inline f16 narrow<f16, float>(float x) {
    f16 out;
#ifdef __CUDA_ARCH__
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(out.bits) : "f"(x));
#else
    _Float16 value = (_Float16)x;
    __builtin_memcpy(&out, &value, sizeof out);
#endif
    return out;
}

// K adjacent elements, in one load or store (two for double).
template <class T, int K> struct alignas(sizeof(T) * K < 16 ? sizeof(T) * K : 16) Pack { T at[K]; };
template <int K, class T> __device__ inline Pack<T, K> load(const T* from) { return *(const Pack<T, K>*)from; }
template <int K, class T> __device__ inline void store(T* to, const Pack<T, K>& pack) { *(Pack<T, K>*)to = pack; }

// The row of this thread, its first column, and the step to its next column.
__device__ inline u64 row_of_thread() { return (u64)blockIdx.x * blockDim.y + threadIdx.y; }
#define EACH_COLUMN(K, column, columns) \
    for (u64 column = (u64)threadIdx.x * K; column < columns; column += (u64)blockDim.x * K)

// ---- look-up --------------------------------------------------------------------------------------------------------------------

// Copies rows in units of 16 bytes, or of fewer if a row is not a multiple of 16 bytes. An id without a row (padding) gives zeros.
template <class Unit>
__device__ inline void gather(const Unit* table, const u32* ids, Unit* out, u64 rows, u64 count, u64 units) {
    const u64 position = row_of_thread();
    if (position >= count) return;
    const u64 id = ids[position];
    const Unit* from = table + id * units;
    Unit* to = out + position * units;
    if (id < rows) {
#pragma unroll 4
        EACH_COLUMN(1, unit, units) to[unit] = from[unit];
    } else {
        EACH_COLUMN(1, unit, units) to[unit] = Unit();
    }
}

template <class T>
__device__ inline void gather_scaled(const T* table, const u32* ids, T* out, u64 rows, u64 count, u64 columns,
                                     typename wide<T>::type scale) {
    const u64 position = row_of_thread();
    if (position >= count) return;
    const u64 id = ids[position];
    EACH_COLUMN(1, column, columns)
        out[position * columns + column] = id < rows ? narrow<T>(widen(table[id * columns + column]) * scale) : T();
}

// ---- grouping of positions by row, for ids on the device ------------------------------------------------------------------------

// 1. Count the positions of each row. 2. Each row with positions takes a slot and a span of positions. 3. Fill the spans, in any
// order of threads. 4. Sort each span: the place of a position is the number of smaller positions in its span.

__device__ inline u64 element_of_thread() { return (u64)blockIdx.x * blockDim.x + threadIdx.x; }

__device__ inline void group_count(const u32* ids, u32* counts, u64 count, u64 rows) {
    const u64 position = element_of_thread();
    if (position < count && ids[position] < rows) atomicAdd(counts + ids[position], 1u);
}

// `taken` counts slots in the upper half and positions in the lower half. One atomic addition takes both, so spans have the order of
// slots.
__device__ inline void group_place(const u32* counts, u32* begins, u32* slots, u32* starts, u64* taken, u64 rows) {
    const u64 row = element_of_thread();
    if (row >= rows || counts[row] == 0) return;
    const u64 before = atomicAdd(taken, (u64)1 << 32 | counts[row]);
    const u32 slot = (u32)(before >> 32), begin = (u32)before;
    begins[row] = begin;
    slots[slot] = (u32)row;
    starts[slot + 1] = begin + counts[row];
    if (slot == 0) starts[0] = 0;
}

__device__ inline void group_fill(const u32* ids, const u32* begins, u32* filled, u32* unordered, u64 count, u64 rows) {
    const u64 position = element_of_thread();
    if (position >= count || ids[position] >= rows) return;
    const u32 row = ids[position];
    unordered[begins[row] + atomicAdd(filled + row, 1u)] = (u32)position;
}

__device__ inline void group_order(const u32* ids, const u32* begins, const u32* counts, const u32* unordered, u32* positions, u64 count,
                                   u64 rows) {
    const u64 position = element_of_thread();
    if (position >= count || ids[position] >= rows) return;
    const u32 row = ids[position], begin = begins[row], end = begin + counts[row];
    u32 before = 0;
    for (u32 p = begin; p < end; ++p) before += unordered[p] < position;
    positions[begin + before] = (u32)position;
}

// ---- sums of gradients by row ---------------------------------------------------------------------------------------------------

// Equal to LONGEST_RUN of src/cuda/plan.rs. A longer sum is a sum of partial sums of this length.
static const u32 LONGEST_RUN = 128;

// Sum i adds the rows positions[starts[i]..starts[i + 1]], in this order. Positions below `split` are rows of `grads`. Position
// `split` + j is row j of `partials`. A sum has only one of the two kinds.
template <int K, class G, class A>
__device__ inline Pack<A, K> sum_of(u64 i, const G* grads, const A* partials, const u32* starts, const u32* positions, u32 split,
                                    u64 columns, u64 column, A scale) {
    Pack<A, K> sum;
    for (int k = 0; k < K; ++k) sum.at[k] = 0;
    const u32 begin = starts[i], end = starts[i + 1];
    if (begin < end && positions[begin] >= split) {
#pragma unroll 4
        for (u32 p = begin; p < end; ++p) {
            const Pack<A, K> part = load<K>(partials + (u64)(positions[p] - split) * columns + column);
            for (int k = 0; k < K; ++k) sum.at[k] += part.at[k];
        }
    } else {
        for (u32 first = begin; first < end; first += LONGEST_RUN) {
            const u32 last = end - first < LONGEST_RUN ? end : first + LONGEST_RUN;
            Pack<A, K> run;
            for (int k = 0; k < K; ++k) run.at[k] = 0;
#pragma unroll 4
            for (u32 p = first; p < last; ++p) {
                const Pack<G, K> grad = load<K>(grads + (u64)positions[p] * columns + column);
                for (int k = 0; k < K; ++k) run.at[k] += widen(grad.at[k]) * scale;
            }
            for (int k = 0; k < K; ++k) sum.at[k] += run.at[k];
        }
    }
    return sum;
}

// Writes sum i to row targets[i] of `out`, or to row i without `targets`. If the number of sums is known only on the device, it is in
// `taken`.
template <int K, class G, class O, class A>
__device__ inline void sum_rows(const G* grads, const A* partials, const u32* starts, const u32* positions, const u32* targets,
                                const u64* taken, O* out, u32 split, u64 count, u64 columns, A scale) {
    const u64 i = row_of_thread();
    if (i >= (taken ? *taken >> 32 : count)) return;
    const u64 row = targets ? targets[i] : i;
    EACH_COLUMN(K, column, columns) {
        const Pack<A, K> sum = sum_of<K>(i, grads, partials, starts, positions, split, columns, column, scale);
        Pack<O, K> rounded;
        for (int k = 0; k < K; ++k) rounded.at[k] = narrow<O>(sum.at[k]);
        store<K>(out + row * columns + column, rounded);
    }
}

// ---- AdamW ----------------------------------------------------------------------------------------------------------------------

// One step's constants: `Step` of src/optim/history.rs.
struct Step {
    float beta1, beta2, one_minus_beta1, one_minus_beta2, scale_m, scale_v, decay, eps, lr, floor;
};

__device__ inline float above(float x, float floor) { return fabsf(x) < floor ? 0.0f : x; }

// As in src/optim/kernel.rs, including the additions of zero, which turn -0 into 0.
__device__ inline float updated(float theta, float m, float v, const Step& s) {
    const float m_hat = m * s.scale_m + 0.0f, v_hat = v * s.scale_v + 0.0f;
    return (theta * s.decay + 0.0f) - (m_hat / (sqrtf(v_hat) + s.eps) * s.lr + 0.0f);
}

__device__ inline float step_one(float theta, float& m, float& v, float g, const Step& s) {
    m = above((m * s.beta1 + 0.0f) + (g * s.one_minus_beta1 + 0.0f), s.floor);
    v = above((v * s.beta2 + 0.0f) + (g * g * s.one_minus_beta2 + 0.0f), s.floor);
    return updated(theta, m, v, s);
}

// One step on K elements of weight and moments.
template <int K, class W>
__device__ inline void adamw(W* weight, float* m, float* v, const Pack<float, K>& g, const Step& s) {
    Pack<W, K> theta = load<K>(weight);
    Pack<float, K> first = load<K>(m), second = load<K>(v);
    for (int k = 0; k < K; ++k) theta.at[k] = narrow<W>(step_one(widen(theta.at[k]), first.at[k], second.at[k], g.at[k], s));
    store<K>(weight, theta);
    store<K>(m, first);
    store<K>(v, second);
}

template <int K, class W>
__device__ inline void adamw_dense(W* weight, const W* grad, float* m, float* v, u64 elements, const Step& s) {
    const u64 at = ((u64)blockIdx.x * blockDim.x + threadIdx.x) * K;
    if (at >= elements) return;
    const Pack<W, K> narrow_grad = load<K>(grad + at);
    Pack<float, K> g;
    for (int k = 0; k < K; ++k) g.at[k] = widen(narrow_grad.at[k]);
    adamw<K>(weight + at, m + at, v + at, g, s);
}

// Sums and updates in one pass. The summed gradients are not stored.
template <int K, class W, class G>
__device__ inline void adamw_rows(W* weight, float* m, float* v, const u32* rows, const G* grads, const float* partials,
                                  const u32* starts, const u32* positions, u32 split, u64 count, u64 columns, const Step& s) {
    const u64 i = row_of_thread();
    if (i >= count) return;
    EACH_COLUMN(K, column, columns) {
        const Pack<float, K> g = sum_of<K>(i, grads, partials, starts, positions, split, columns, column, 1.0f);
        const u64 at = (u64)rows[i] * columns + column;
        adamw<K>(weight + at, m + at, v + at, g, s);
    }
}

// ---- replay of deferred updates -------------------------------------------------------------------------------------------------

// A step, and the bound of `History` (proof in src/optim/history.rs).
struct Entry {
    Step step;
    float factor;
};

// A row whose updates of entries from + 1 ..= to are replayed. Then it is multiplied by the products of all later entries.
struct Due {
    u32 row, from, to;
    u32 flags;
    float decay, beta1, beta2;
};
static const u32 BOUNDED = 1, DECAYS = 2, JUMPS = 4;

static const float SMALLEST_WEIGHT = 8.673617e-19f, MIN_POSITIVE = 1.17549435e-38f;
static const u32 STEPS_A_LOOK = 4;

template <class W> __device__ inline float rounded(float x) { return widen(narrow<W>(x)); }

__device__ inline bool settled(float theta, float m, float v, float factor, bool zero_is_safe) {
    const float weight = fabsf(theta);
    const bool bound = weight >= SMALLEST_WEIGHT && fabsf(m) * factor <= sqrtf(v) * weight;
    return bound || (m == 0.0f && zero_is_safe && v >= 0.0f);
}

// Steps `first` to `last` as products only. A moment below the normal range becomes zero.
__device__ inline float faded(float x, float Step::*beta, const Entry* entries, u32 first, u32 last) {
    for (u32 k = first; k <= last && x != 0.0f; ++k) x = above(x * (entries[k].step.*beta), MIN_POSITIVE);
    return x;
}

template <class W>
__device__ inline void replay(W* weight, float* first, float* second, const Due* due, u64 count, u64 columns, const Entry* entries,
                              u32 unsafe_until) {
    const u64 i = row_of_thread();
    if (i >= count) return;
    const Due d = due[i];
    EACH_COLUMN(1, column, columns) {
        const u64 element = (u64)d.row * columns + column;
        float theta = widen(weight[element]), m = first[element], v = second[element];
        u32 at = d.from;
        while (at < d.to) {
            if ((d.flags & BOUNDED) && settled(theta, m, v, entries[at].factor, at >= unsafe_until)) break;
            const u32 stop = d.to - at < STEPS_A_LOOK ? d.to : at + STEPS_A_LOOK;
#pragma unroll 1
            for (; at < stop; ++at) {
                const Step& s = entries[at + 1].step;
                m = above(m * s.beta1 + 0.0f, s.floor);
                v = above(v * s.beta2 + 0.0f, s.floor);
                theta = rounded<W>(updated(theta, m, v, s));
            }
        }
        if (at < d.to) { // None of the remaining updates can change this weight.
            theta += 0.0f;
            if (d.flags & DECAYS)
                for (u32 k = at + 1; k <= d.to; ++k) theta = rounded<W>(theta * entries[k].step.decay + 0.0f);
            m = faded(m, &Step::beta1, entries, at + 1, d.to);
            v = faded(v, &Step::beta2, entries, at + 1, d.to);
        }
        if (d.flags & JUMPS) {
            theta *= d.decay;
            m *= d.beta1;
            v *= d.beta2;
        }
        weight[element] = narrow<W>(theta);
        first[element] = m;
        second[element] = v;
    }
}

// ---- plain gradient descent -----------------------------------------------------------------------------------------------------

template <int K, class W> __device__ inline void descend(W* weight, const Pack<float, K>& g, float lr) {
    Pack<W, K> theta = load<K>(weight);
    for (int k = 0; k < K; ++k) theta.at[k] = narrow<W>(widen(theta.at[k]) - (g.at[k] * lr + 0.0f));
    store<K>(weight, theta);
}

template <int K, class W> __device__ inline void sgd_dense(W* weight, const W* grad, u64 elements, float lr) {
    const u64 at = ((u64)blockIdx.x * blockDim.x + threadIdx.x) * K;
    if (at >= elements) return;
    const Pack<W, K> narrow_grad = load<K>(grad + at);
    Pack<float, K> g;
    for (int k = 0; k < K; ++k) g.at[k] = widen(narrow_grad.at[k]);
    descend<K>(weight + at, g, lr);
}

template <int K, class W, class G>
__device__ inline void sgd_rows(W* weight, const u32* rows, const G* grads, const float* partials, const u32* starts,
                                const u32* positions, u32 split, u64 count, u64 columns, float lr) {
    const u64 i = row_of_thread();
    if (i >= count) return;
    EACH_COLUMN(K, column, columns) {
        const Pack<float, K> g = sum_of<K>(i, grads, partials, starts, positions, split, columns, column, 1.0f);
        descend<K>(weight + (u64)rows[i] * columns + column, g, lr);
    }
}

// ---- entry points: NAME_TYPES_K -------------------------------------------------------------------------------------------------

// Read-only and written buffers. No two buffers overlap.
#define IN(T) const T* __restrict__
#define OUT(T) T* __restrict__
// 256 threads, and at least four blocks per multiprocessor: up to 64 registers per thread.
#define KERNEL extern "C" __global__ void __launch_bounds__(256, 4)

#define GATHER(BYTES, UNIT) \
    KERNEL gather_##BYTES(IN(UNIT) table, IN(u32) ids, OUT(UNIT) out, u64 rows, u64 count, u64 units) { \
        gather(table, ids, out, rows, count, units); \
    }
GATHER(16, uint4)
GATHER(8, u64)
GATHER(4, u32)
GATHER(2, u16)

#define GATHER_SCALED(T, NAME, A) \
    KERNEL gather_scaled_##NAME(IN(T) table, IN(u32) ids, OUT(T) out, u64 rows, u64 count, u64 columns, A scale) { \
        gather_scaled(table, ids, out, rows, count, columns, scale); \
    }
GATHER_SCALED(float, f32, float)
GATHER_SCALED(bf16, bf16, float)
GATHER_SCALED(f16, f16, float)
GATHER_SCALED(double, f64, double)

KERNEL group_count_ids(IN(u32) ids, OUT(u32) counts, u64 count, u64 rows) { group_count(ids, counts, count, rows); }
KERNEL group_place_rows(IN(u32) counts, OUT(u32) begins, OUT(u32) slots, OUT(u32) starts, OUT(u64) taken, u64 rows) {
    group_place(counts, begins, slots, starts, taken, rows);
}
KERNEL group_fill_spans(IN(u32) ids, IN(u32) begins, OUT(u32) filled, OUT(u32) unordered, u64 count, u64 rows) {
    group_fill(ids, begins, filled, unordered, count, rows);
}
KERNEL group_order_spans(IN(u32) ids, IN(u32) begins, IN(u32) counts, IN(u32) unordered, OUT(u32) positions, u64 count, u64 rows) {
    group_order(ids, begins, counts, unordered, positions, count, rows);
}

#define SUM_ROWS_K(K, G, G_NAME, O, O_NAME, A) \
    KERNEL sum_rows_##G_NAME##_##O_NAME##_##K(IN(G) grads, IN(A) partials, IN(u32) starts, IN(u32) positions, \
                                              IN(u32) targets, IN(u64) taken, OUT(O) out, u32 split, u64 count, u64 columns, \
                                              A scale) { \
        sum_rows<K>(grads, partials, starts, positions, targets, taken, out, split, count, columns, scale); \
    }
#define SUM_ROWS(...) SUM_ROWS_K(1, __VA_ARGS__) SUM_ROWS_K(4, __VA_ARGS__)
SUM_ROWS(float, f32, float, f32, float)
SUM_ROWS(bf16, bf16, float, f32, float)
SUM_ROWS(bf16, bf16, bf16, bf16, float)
SUM_ROWS(f16, f16, float, f32, float)
SUM_ROWS(f16, f16, f16, f16, float)
SUM_ROWS(double, f64, double, f64, double)

#define DENSE_K(K, W, NAME) \
    KERNEL adamw_dense_##NAME##_##K(OUT(W) weight, IN(W) grad, OUT(float) m, OUT(float) v, u64 elements, Step step) { \
        adamw_dense<K>(weight, grad, m, v, elements, step); \
    } \
    KERNEL sgd_dense_##NAME##_##K(OUT(W) weight, IN(W) grad, u64 elements, float lr) { sgd_dense<K>(weight, grad, elements, lr); }
#define DENSE(...) DENSE_K(1, __VA_ARGS__) DENSE_K(4, __VA_ARGS__)
DENSE(float, f32)
DENSE(bf16, bf16)
DENSE(f16, f16)

#define ROWS_K(K, W, W_NAME, G, G_NAME) \
    KERNEL adamw_rows_##W_NAME##_##G_NAME##_##K(OUT(W) weight, OUT(float) m, OUT(float) v, IN(u32) rows, IN(G) grads, \
                                                IN(float) partials, IN(u32) starts, IN(u32) positions, u32 split, \
                                                u64 count, u64 columns, Step step) { \
        adamw_rows<K>(weight, m, v, rows, grads, partials, starts, positions, split, count, columns, step); \
    } \
    KERNEL sgd_rows_##W_NAME##_##G_NAME##_##K(OUT(W) weight, IN(u32) rows, IN(G) grads, IN(float) partials, IN(u32) starts, \
                                              IN(u32) positions, u32 split, u64 count, u64 columns, float lr) { \
        sgd_rows<K>(weight, rows, grads, partials, starts, positions, split, count, columns, lr); \
    }
#define ROWS(...) ROWS_K(1, __VA_ARGS__) ROWS_K(4, __VA_ARGS__)
ROWS(float, f32, float, f32)
ROWS(bf16, bf16, bf16, bf16)
ROWS(bf16, bf16, float, f32)
ROWS(f16, f16, f16, f16)
ROWS(f16, f16, float, f32)

#define REPLAY(W, NAME) \
    KERNEL replay_##NAME(OUT(W) weight, OUT(float) m, OUT(float) v, IN(Due) due, u64 count, u64 columns, IN(Entry) entries, \
                         u32 unsafe_until) { \
        replay(weight, m, v, due, count, columns, entries, unsafe_until); \
    }
REPLAY(float, f32)
REPLAY(bf16, bf16)
REPLAY(f16, f16)
