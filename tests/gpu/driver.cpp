// A CUDA driver for machines without a GPU: memory is the host's, a launch calls the kernel thread by thread. It runs the whole path of the library
// through cudarc (loading by name, arguments, copies, the pool), so that an argument too few, in the wrong place or of the wrong type is found
// by CI. It says nothing about races or speed.
//
// Every allocation ends at a page that may not be touched, and is filled with NaN: an index too large is a crash, a value that was never
// written is seen; one that is not where its type may lie ends the program. There are three devices, for the ranks of nccl.cpp. DRIVER_SM=75 makes the device one that refuses code for a later. tallow's kernels are those of kernels.cu; of candle's the few that the acceptance program needs stand here, each
// done by one call for the whole launch.
//
// .ci/cuda links it as libcuda.so.1, over weak stand-ins for all other functions.

#include "../kernels/host.cpp"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <mutex>
#include <string>
#include <sys/mman.h>

namespace {

struct Function {
    bool by_thread;
    std::function<void(void**, size_t)> call;
};
std::map<std::string, Function> functions;
std::recursive_mutex one_at_a_time;

template <class... A, size_t... I> void call_with(void (*kernel)(A...), void** params, std::index_sequence<I...>) {
    kernel(*(A*)params[I]...);
}
template <class... A> void kernel_of_tallow(const char* name, void (*kernel)(A...)) {
    functions[name] = {true, [=](void** params, size_t) { call_with(kernel, params, std::index_sequence_for<A...>()); }};
}

// The n-th argument of a launch.
template <class T> T arg(void** params, int n) { return *(T*)params[n]; }

// Where element i of a view lies: `info` holds dimensions, then the strides of one operand after the other; without it all is contiguous.
size_t place(size_t i, size_t dims, const size_t* info, int operand) {
    if (!info) return i;
    size_t at = 0;
    for (size_t d = dims; d-- > 0;) {
        at += i % info[d] * info[dims * (operand + 1) + d];
        i /= info[d];
    }
    return at;
}

template <class O, class T> O to(T x) { return (O)x; }
template <> double to<double, float>(float x) { return x; }
template <> float to<float, double>(double x) { return (float)x; }
template <> bf16 to<bf16, float>(float x) { return narrow<bf16>(x); }
template <> f16 to<f16, float>(float x) { return narrow<f16>(x); }

void whole(const std::string& name, std::function<void(void**, size_t)> call) { functions[name] = {false, call}; }

// candle's kernels for one type: (elements, dimensions, info, operands…, output).
template <class T> void kernels_of_candle(const std::string& t) {
    auto binary = [&](const char* name, auto f) {
        whole(name + t, [f](void** p, size_t) {
            const size_t n = arg<size_t>(p, 0), dims = arg<size_t>(p, 1);
            const size_t* info = arg<const size_t*>(p, 2);
            const T *a = arg<const T*>(p, 3), *b = arg<const T*>(p, 4);
            T* out = arg<T*>(p, 5);
            for (size_t i = 0; i < n; ++i) out[i] = to<T>(f(widen(a[place(i, dims, info, 0)]), widen(b[place(i, dims, info, 1)])));
        });
    };
    binary("bmul_", [](auto a, auto b) { return a * b; });
    binary("badd_", [](auto a, auto b) { return a + b; });
    binary("bsub_", [](auto a, auto b) { return a - b; });
    binary("bdiv_", [](auto a, auto b) { return a / b; });
    auto unary = [&](const char* name, auto f) {
        whole(name + t, [f](void** p, size_t) {
            const size_t n = arg<size_t>(p, 0), dims = arg<size_t>(p, 1);
            const size_t* info = arg<const size_t*>(p, 2);
            const T* in = arg<const T*>(p, 3);
            T* out = arg<T*>(p, 4);
            for (size_t i = 0; i < n; ++i) out[i] = to<T>(f(widen(in[place(i, dims, info, 0)])));
        });
    };
    unary("ucopy_", [](auto x) { return x; });
    unary("usqr_", [](auto x) { return x * x; });
    unary("usqrt_", [](auto x) { return (decltype(x))sqrt(x); });
    unary("uneg_", [](auto x) { return -x; });
    unary("uexp_", [](auto x) { return (decltype(x))exp(x); });
    unary("ulog_", [](auto x) { return (decltype(x))log(x); });
    unary("urelu_", [](auto x) { return x > 0 ? x : 0; });
    whole("affine_" + t, [](void** p, size_t) {
        const size_t n = arg<size_t>(p, 0), dims = arg<size_t>(p, 1);
        const size_t* info = arg<const size_t*>(p, 2);
        const T *in = arg<const T*>(p, 3), mul = arg<T>(p, 5), add = arg<T>(p, 6);
        T* out = arg<T*>(p, 4);
        for (size_t i = 0; i < n; ++i) out[i] = to<T>(widen(in[place(i, dims, info, 0)]) * widen(mul) + widen(add));
    });
    whole("const_set_" + t, [](void** p, size_t) {
        const size_t n = arg<size_t>(p, 0), dims = arg<size_t>(p, 1);
        const size_t* info = arg<const size_t*>(p, 2);
        for (size_t i = 0; i < n; ++i) arg<T*>(p, 4)[place(i, dims, info, 0)] = arg<T>(p, 3);
    });
    auto reduce = [&](const char* name, typename wide<T>::type first, auto f) {
        auto run = [=](void** p, size_t results) {
            const size_t each = arg<size_t>(p, 1), dims = arg<size_t>(p, 2);
            const size_t* info = arg<const size_t*>(p, 3);
            for (size_t r = 0; r < results; ++r) {
                auto result = first;
                for (size_t i = r * each; i < (r + 1) * each; ++i) result = f(result, widen(arg<const T*>(p, 4)[place(i, dims, info, 0)]));
                arg<T*>(p, 5)[r] = to<T>(result);
            }
        };
        whole(name + t, run);
        whole(name + ("small_" + t), [=](void** p, size_t) { run(p, arg<size_t>(p, 0)); });
    };
    reduce("fast_sum_", 0, [](auto a, auto b) { return a + b; });
    reduce("fast_max_", -INFINITY, [](auto a, auto b) { return a > b ? a : b; });
    whole("copy2d_" + t, [](void** p, size_t) {
        const u32 rows = arg<u32>(p, 2), columns = arg<u32>(p, 3), from = arg<u32>(p, 4), step = arg<u32>(p, 5);
        for (size_t row = 0; row < rows; ++row)
            memmove(arg<T*>(p, 1) + row * step, arg<const T*>(p, 0) + row * from, columns * sizeof(T));
    });
    whole("gather_u32_" + t, [](void** p, size_t) {
        const size_t n = arg<size_t>(p, 0), from = arg<size_t>(p, 5), ids = arg<size_t>(p, 6), right = arg<size_t>(p, 7);
        for (size_t i = 0; i < n; ++i) {
            const u32 id = arg<const u32*>(p, 1)[i];
            arg<T*>(p, 3)[i] = id == 0xffffffffu ? T() : arg<const T*>(p, 2)[(i / (right * ids) * from + id) * right + i % right];
        }
    });
    whole("sa_u32_" + t, [](void** p, size_t) {
        const size_t left = arg<size_t>(p, 3), from = arg<size_t>(p, 4), to_rows = arg<size_t>(p, 5), right = arg<size_t>(p, 6);
        for (size_t i = 0; i < left * from * right; ++i) {
            const u32 id = arg<const u32*>(p, 0)[i];
            if (id == 0xffffffffu) continue;
            T& out = arg<T*>(p, 2)[(i / (right * from) * to_rows + id) * right + i % right];
            out = to<T>(widen(out) + widen(arg<const T*>(p, 1)[i]));
        }
    });
    whole("ia_u32_" + t, [](void** p, size_t) { // one table: candle's left_size is 1
        const size_t ids = arg<size_t>(p, 1), right = arg<size_t>(p, 7);
        for (size_t i = 0; i < ids * right; ++i) {
            T& out = arg<T*>(p, 3)[arg<const u32*>(p, 0)[i / right] * right + i % right];
            out = to<T>(widen(out) + widen(arg<const T*>(p, 2)[i]));
        }
    });
    whole("is_u32_" + t, [](void** p, size_t) {
        const size_t n = arg<size_t>(p, 0), ids = arg<size_t>(p, 8), right = arg<size_t>(p, 9);
        for (size_t i = 0; i < n; ++i) { // one table: candle's left_size is 1; the largest id gives zeros
            const u32 id = arg<const u32*>(p, 3)[i / right % ids];
            arg<T*>(p, 5)[i] = id == ~(u32)0 ? T() : arg<const T*>(p, 4)[(size_t)id * right + i % right];
        }
    });
}

template <class S, class O> void cast(const char* name) {
    whole(name, [](void** p, size_t) {
        const size_t n = arg<size_t>(p, 0), dims = arg<size_t>(p, 1);
        const size_t* info = arg<const size_t*>(p, 2);
        for (size_t i = 0; i < n; ++i) arg<O*>(p, 4)[i] = to<O>(widen(arg<const S*>(p, 3)[place(i, dims, info, 0)]));
    });
}
template <class T> void copy(const char* name) {
    whole(name, [](void** p, size_t) {
        for (size_t i = 0; i < arg<size_t>(p, 0); ++i)
            arg<T*>(p, 4)[i] = arg<const T*>(p, 3)[place(i, arg<size_t>(p, 1), arg<const size_t*>(p, 2), 0)];
    });
}
template <class T, class F> void compare(const char* name, F f) {
    whole(name, [f](void** p, size_t) {
        const size_t n = arg<size_t>(p, 0), dims = arg<size_t>(p, 1);
        const size_t* info = arg<const size_t*>(p, 2);
        for (size_t i = 0; i < n; ++i)
            arg<unsigned char*>(p, 5)[i] = f(arg<const T*>(p, 3)[place(i, dims, info, 0)], arg<const T*>(p, 4)[place(i, dims, info, 1)]);
    });
}

const bool registered = [] {
#define TALLOW(NAME) kernel_of_tallow(#NAME, NAME);
#include "entries.inc"
    kernels_of_candle<float>("f32");
    kernels_of_candle<bf16>("bf16");
    kernels_of_candle<f16>("f16");
    kernels_of_candle<double>("f64");
    whole("cast_i64_u32", [](void** p, size_t) {
        for (size_t i = 0; i < arg<size_t>(p, 0); ++i)
            arg<u32*>(p, 4)[i] = (u32)arg<const long long*>(p, 3)[place(i, arg<size_t>(p, 1), arg<const size_t*>(p, 2), 0)];
    });
    whole("badd_u32", [](void** p, size_t) {
        const size_t n = arg<size_t>(p, 0), dims = arg<size_t>(p, 1);
        const size_t* info = arg<const size_t*>(p, 2);
        for (size_t i = 0; i < n; ++i)
            arg<u32*>(p, 5)[i] = arg<const u32*>(p, 3)[place(i, dims, info, 0)] + arg<const u32*>(p, 4)[place(i, dims, info, 1)];
    });
    copy<unsigned char>("ucopy_u8");
    copy<u32>("ucopy_u32");
    copy<long long>("ucopy_i64");
    cast<bf16, float>("cast_bf16_f32");
    cast<f16, float>("cast_f16_f32");
    cast<float, double>("cast_f32_f64");
    cast<double, float>("cast_f64_f32");
    cast<float, bf16>("cast_f32_bf16");
    cast<float, f16>("cast_f32_f16");
    compare<u32>("eq_u32", [](u32 a, u32 b) { return a == b; });
    compare<float>("eq_f32", [](float a, float b) { return a == b; });
    compare<float>("ge_f32", [](float a, float b) { return a >= b; });
    whole("cast_u8_f32", [](void** p, size_t) {
        for (size_t i = 0; i < arg<size_t>(p, 0); ++i)
            arg<float*>(p, 4)[i] = arg<const unsigned char*>(p, 3)[place(i, arg<size_t>(p, 1), arg<const size_t*>(p, 2), 0)];
    });
    whole("where_u8_u32", [](void** p, size_t) {
        const size_t n = arg<size_t>(p, 0), dims = arg<size_t>(p, 1);
        const size_t* info = arg<const size_t*>(p, 2);
        for (size_t i = 0; i < n; ++i)
            arg<u32*>(p, 6)[i] = arg<const unsigned char*>(p, 3)[place(i, dims, info, 0)] ? arg<const u32*>(p, 4)[place(i, dims, info, 1)]
                                                                                          : arg<const u32*>(p, 5)[place(i, dims, info, 2)];
    });
    return true;
}();

// Allocations: the bytes, rounded up to 16, lie right before a page without rights.
const size_t PAGE = 4096;
struct Mapped {
    void* start;
    size_t mapped, bytes;
};
std::map<void*, Mapped> allocations;
u64 used = 0;

int take(void** out, size_t bytes) {
    std::lock_guard<std::recursive_mutex> lock(one_at_a_time);
    if (bytes == 0) return 1; // as CUDA: invalid value
    const size_t rounded_up = (bytes + 15) / 16 * 16, pages = (rounded_up + PAGE - 1) / PAGE * PAGE;
    char* start = (char*)mmap(nullptr, pages + PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (start == MAP_FAILED) return 2; // out of memory
    mprotect(start + pages, PAGE, PROT_NONE);
    memset(start, 0xff, pages);
    *out = start + pages - rounded_up;
    allocations[*out] = {start, pages + PAGE, bytes};
    used += bytes;
    return 0;
}

int give(void* at) {
    std::lock_guard<std::recursive_mutex> lock(one_at_a_time);
    auto found = allocations.find(at);
    if (found == allocations.end()) return 1;
    munmap(found->second.start, found->second.mapped);
    used -= found->second.bytes;
    allocations.erase(found);
    return 0;
}

// The device's compute capability, times ten.
int capability() {
    const char* given = getenv("DRIVER_SM");
    return given ? atoi(given) : 80;
}

const int DEVICES = 3;
char contexts[DEVICES];
thread_local void* current = nullptr;

int handle(void** out) {
    static int something;
    *out = &something;
    return 0;
}

} // namespace

extern "C" {
int cuInit(unsigned) { return 0; }
int cuDriverGetVersion(int* version) { return *version = 13000, 0; }
int cuDeviceGet(int* device, int ordinal) { return ordinal >= 0 && ordinal < DEVICES ? (*device = ordinal, 0) : 101; }
int cuDeviceGetCount(int* count) { return *count = DEVICES, 0; }
int cuDeviceGetName(char* name, int len, int) { return snprintf(name, len, "the host"), 0; }
int cuDeviceGetAttribute(int* value, int attribute, int) {
    *value = attribute == 75 ? capability() / 10 : attribute == 76 ? capability() % 10 : 1; // pools are there
    return 0;
}
int cuDevicePrimaryCtxRetain(void** context, int device) { return *context = &contexts[device], 0; }
int cuDevicePrimaryCtxRelease_v2(int) { return 0; }
int cuCtxSetCurrent(void* context) { return current = context, 0; }
int cuCtxGetCurrent(void** context) { return *context = current, 0; }
int cuCtxSynchronize() { return 0; }
int cuStreamCreate(void** stream, unsigned) { return handle(stream); }
int cuStreamDestroy_v2(void*) { return 0; }
int cuStreamSynchronize(void*) { return 0; }
int cuStreamWaitEvent(void*, void*, unsigned) { return 0; }
int cuStreamIsCapturing(void*, int* status) { return *status = 0, 0; }
int cuEventCreate(void** event, unsigned) { return handle(event); }
int cuEventDestroy_v2(void*) { return 0; }
int cuEventElapsedTime_v2(float* ms, void*, void*) { return *ms = 0, 0; }
int cuEventElapsedTime(float* ms, void*, void*) { return *ms = 0, 0; }
int cuEventRecord(void*, void*) { return 0; }
int cuEventSynchronize(void*) { return 0; }
int cuMemAllocAsync(void** out, size_t bytes, void*) { return take(out, bytes); }
int cuMemFreeAsync(void* at, void*) { return give(at); }
int cuMemAlloc_v2(void** out, size_t bytes) { return take(out, bytes); }
int cuMemFree_v2(void* at) { return give(at); }
int cuMemcpyHtoDAsync_v2(void* to, const void* from, size_t bytes, void*) { return memcpy(to, from, bytes), 0; }
int cuMemcpyDtoHAsync_v2(void* to, const void* from, size_t bytes, void*) { return memcpy(to, from, bytes), 0; }
int cuMemcpyDtoDAsync_v2(void* to, const void* from, size_t bytes, void*) { return memmove(to, from, bytes), 0; }
int cuMemsetD8Async(void* at, unsigned char value, size_t bytes, void*) { return memset(at, value, bytes), 0; }
int cuDeviceGetDefaultMemPool(void** pool, int) { return handle(pool); }
static u64 threshold = 0;
int cuMemPoolSetAttribute(void*, int attribute, void* value) { return attribute == 4 ? (threshold = *(u64*)value, 0) : 1; }
int cuMemPoolGetAttribute(void*, int attribute, void* value) {
    return *(u64*)value = attribute == 4 ? threshold : used, attribute == 4 || attribute == 7 ? 0 : 1;
}
int cuModuleLoadData(void** module, const void* image) {
    const char* target = strstr((const char*)image, "\n.target sm_");
    const bool stand_in = !strstr((const char*)image, ".entry"); // candle's, by .ci/nvcc-standin
    if (target && !stand_in && atoi(target + strlen("\n.target sm_")) > capability()) return 209; // no binary for this GPU
    return handle(module);
}
int cuModuleUnload(void*) { return 0; }
int cuModuleGetFunction(void** function, void*, const char* name) {
    auto found = functions.find(name);
    if (found == functions.end()) return fprintf(stderr, "driver.cpp has no kernel %s\n", name), 500;
    return *function = &found->second, 0;
}
int cuLaunchKernel(void* function, unsigned blocks, unsigned by, unsigned bz, unsigned x, unsigned y, unsigned z, unsigned, void*, void** params, void**) {
    std::lock_guard<std::recursive_mutex> lock(one_at_a_time);
    if (blocks == 0 || by != 1 || bz != 1 || z != 1 || x * y > 1024) return 1;
    const Function& kernel = *(Function*)function;
    if (!kernel.by_thread) return kernel.call(params, blocks), 0;
    for (unsigned block = 0; block < blocks; ++block)
        for (unsigned i = 0; i < x * y; ++i) {
            this_thread(block, i % x, i / x, x, y);
            kernel.call(params, 1);
        }
    return 0;
}
int cuGetErrorName(int, const char** name) { return *name = "an error of tests/gpu/driver.cpp", 0; }
int cuGetErrorString(int, const char** name) { return *name = "see the number", 0; }
}

// cuBLAS's product in f32: column-major, op(A) (m, k) by op(B) (k, n).
extern "C" int cublasGemmStridedBatchedEx(void*, int transa, int transb, int m, int n, int k, const float* alpha, const float* a, int, int lda,
                                          long long stride_a, const float* b, int, int ldb, long long stride_b, const float* beta, float* c,
                                          int, int ldc, long long stride_c, int batches, int, int) {
    for (int batch = 0; batch < batches; ++batch, a += stride_a, b += stride_b, c += stride_c)
        for (int j = 0; j < n; ++j)
            for (int i = 0; i < m; ++i) {
                float sum = 0;
                for (int l = 0; l < k; ++l) sum += a[transa ? l + (size_t)i * lda : i + (size_t)l * lda] * b[transb ? j + (size_t)l * ldb : l + (size_t)j * ldb];
                c[i + (size_t)j * ldc] = *alpha * sum + (*beta == 0 ? 0 : *beta * c[i + (size_t)j * ldc]);
            }
    return 0;
}
