// emu.h: the emulator's body of prim.cuh. Each CUDA thread is a fiber, a block runs on one thread of the system, blocks
// run one after another. What the threads of a warp or block do together happens in emu.cpp when the last of them
// arrives. Plain memory accesses of kernels run as they are compiled.
#pragma once
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <utility>

namespace emu {
struct Dim { unsigned x, y, z; };
struct Thread {
  Dim id;              // threadIdx
  unsigned index;      // in the block
  void* stack_pointer; // while it does not run
};
struct State {
  Thread* thread;                   // the one that runs
  Dim block, grid, threads;         // blockIdx, gridDim, blockDim
  unsigned char* shared;            // dynamic shared memory
};
extern State state;

// A kernel as the fake driver finds it.
struct Kernel {
  const char* name;
  void (*call)(void** arguments);
  unsigned arguments;
  const unsigned* sizes;            // bytes of each argument
  unsigned most_threads;            // __launch_bounds__, or 0
};
void add(const Kernel& kernel);
template <auto F> struct Entry;
template <class... A, void (*F)(A...)> struct Entry<F> {
  static constexpr unsigned count = sizeof...(A);
  static constexpr unsigned sizes[count + 1] = {sizeof(A)..., 0};
  static void call(void** a) { unpack(a, std::make_integer_sequence<unsigned, count>()); }
  template <unsigned... I> static void unpack(void** a, std::integer_sequence<unsigned, I...>) { F(*(A*)a[I]...); }
};

void sync_block(int line);
void sync_warp();
void shuffle(void* value, unsigned bytes, int from);
void mma(float* d, const u32* a, u32 b0, u32 b1);
void load_matrices(u32* r, const void* row, bool transposed);
void copy_async(void* to, const void* from, bool valid);
void commit_copies();
void wait_copies(unsigned left);
inline unsigned lane() { return state.thread->index % 32; }
}  // namespace emu

// A line like EMULATED_KERNEL(layer_norm_forward, 0) for each kernel is made by the harness from the names that follow
// KERNEL void; the second argument is that of __launch_bounds__.
#define EMULATED_KERNEL(name, bounds) \
  static const int emulated_##name = (emu::add({#name, emu::Entry<name>::call, emu::Entry<name>::count, \
    emu::Entry<name>::sizes, emu::first bounds}), 0);
namespace emu { constexpr unsigned first(unsigned a = 0, unsigned = 0) { return a; } }

#define KERNEL static
#define DEV inline
#define __launch_bounds__(...)
// One copy a thread of the system: memory that emu.cpp can find and poison before each block.
#define __shared__ static thread_local
#define DYN_SMEM(name) unsigned char* name = emu::state.shared
#define threadIdx (emu::state.thread->id)
#define blockIdx (emu::state.block)
#define gridDim (emu::state.grid)
#define blockDim (emu::state.threads)
#define __syncthreads() emu::sync_block(__LINE__)
#define __syncwarp() emu::sync_warp()

struct alignas(8) float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
struct alignas(16) int4 { int x, y, z, w; };
struct alignas(8) uint2 { u32 x, y; };
struct alignas(16) uint4 { u32 x, y, z, w; };
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }
inline uint2 make_uint2(u32 x, u32 y) { return {x, y}; }
inline uint4 make_uint4(u32 x, u32 y, u32 z, u32 w) { return {x, y, z, w}; }
inline int min(int a, int b) { return b < a ? b : a; }
inline int max(int a, int b) { return a < b ? b : a; }
inline u32 min(u32 a, u32 b) { return b < a ? b : a; }
inline u32 max(u32 a, u32 b) { return a < b ? b : a; }
inline u64 min(u64 a, u64 b) { return b < a ? b : a; }
inline u64 max(u64 a, u64 b) { return a < b ? b : a; }
inline i64 min(i64 a, i64 b) { return b < a ? b : a; }
inline i64 max(i64 a, i64 b) { return a < b ? b : a; }

inline float __uint_as_float(u32 u) { float f; memcpy(&f, &u, 4); return f; }
inline u32 __float_as_uint(float f) { u32 u; memcpy(&u, &f, 4); return u; }
inline float rsqrtf(float x) { return 1.f / sqrtf(x); }
// Denormals are zero, before and after.
inline float emulated_flush(float x) { return fabsf(x) < 1.17549435e-38f ? copysignf(0.f, x) : x; }
inline float ex2(float x) { return emulated_flush(exp2f(emulated_flush(x))); }
inline float lg2(float x) { return log2f(emulated_flush(x)); }

inline float f32(bf16 b) { return __uint_as_float((u32)b.x << 16); }
inline bf16 to_bf16(float f) {
  u32 u = __float_as_uint(f);
  if (f != f) return bf16{0x7fff};
  return bf16{(u16)((u + 0x7fff + ((u >> 16) & 1)) >> 16)};
}
inline u32 pack(float lo, float hi) { return to_bf16(lo).x | (u32)to_bf16(hi).x << 16; }

template <class T> inline T shfl(T v, int from) { emu::shuffle(&v, sizeof v, from); return v; }
template <class T> inline T shfl_xor(T v, int o) { emu::shuffle(&v, sizeof v, (int)emu::lane() ^ o); return v; }
inline void mma_16816(float* d, const u32* a, u32 b0, u32 b1) { emu::mma(d, a, b0, b1); }
inline void ldsm_x4(u32* r, const void* p) { emu::load_matrices(r, p, false); }
inline void ldsm_x4_t(u32* r, const void* p) { emu::load_matrices(r, p, true); }
inline void cp_async16(void* s, const void* g) { emu::copy_async(s, g, true); }
inline void cp_async16_zfill(void* s, const void* g, bool valid) { emu::copy_async(s, g, valid); }
inline void cp_async_commit() { emu::commit_copies(); }
template <int N> inline void cp_async_wait() { emu::wait_copies(N); }
