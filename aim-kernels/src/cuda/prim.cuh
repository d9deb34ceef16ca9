// prim.cuh: all that a kernel asks of the machine. Two bodies: CUDA (inline PTX, no header) and the emulator (emu.h).
// Kernels include nothing else and use no CUDA intrinsic that is not named here.
//
// From the machine's own language, the same in both bodies: threadIdx, blockIdx, blockDim, gridDim, __shared__,
// __syncthreads(), __syncwarp(), __launch_bounds__(threads[, blocks]), float2, float4, int4, uint2, uint4 with their
// make_ functions (float4 and uint4 are loaded and stored as 16 aligned bytes), __float_as_uint, __uint_as_float,
// min and max of integers, and of <cmath>: fmaf fmaxf fminf fabsf sqrtf rsqrtf expf exp2f logf log2f powf tanhf erff
// floorf, fma sqrt exp log on double.
#pragma once
typedef unsigned short u16; typedef unsigned int u32; typedef unsigned long long u64;
typedef short i16; typedef long long i64; typedef unsigned char u8;
struct bf16 { u16 x; };

#ifdef __CUDACC__
// A kernel: KERNEL void name(arguments) { ... }
#define KERNEL extern "C" __global__
#define DEV __device__ __forceinline__
// The block's dynamic shared memory, aligned to 1024 bytes.
#define DYN_SMEM(name) extern __shared__ __align__(1024) unsigned char name[]
DEV float f32(bf16 b) { return __uint_as_float((u32)b.x << 16); }
// To the nearest, ties to even; NaN becomes 0x7fff.
DEV bf16 to_bf16(float f) { bf16 r; asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(r.x) : "f"(f)); return r; }
// Two bf16 in a word, `lo` in the lower half, which is the lower address.
DEV u32 pack(float lo, float hi) { u32 r; asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(hi), "f"(lo)); return r; }
// The value of lane (own lane ^ o); all 32 lanes must call.
template <class T> DEV T shfl_xor(T v, int o) { return __shfl_xor_sync(~0u, v, o); }
// The value of lane `from`; all 32 lanes must call.
template <class T> DEV T shfl(T v, int from) { return __shfl_sync(~0u, v, from); }
// 2^x and log2(x), denormals flushed, about 22 bits.
DEV float ex2(float x) { float r; asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x)); return r; }
DEV float lg2(float x) { float r; asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x)); return r; }
DEV u32 saddr(const void* p) { return (u32)__cvta_generic_to_shared(p); }
// d += a(16x16, row) * b(16x8, col), one warp. With g = lane / 4 and t = lane % 4, two values a register:
// a[0] row g, columns 2t 2t+1; a[1] row g+8; a[2] row g, columns 2t+8 2t+9; a[3] row g+8; b0 rows 2t 2t+1 of
// column g, b1 rows 2t+8 2t+9; d[0] d[1] row g, columns 2t 2t+1; d[2] d[3] row g+8.
DEV void mma_16816(float* d, const u32* a, u32 b0, u32 b1) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
    : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
// Four 8x8 matrices of 16-bit values from shared memory: lane l gives the address of row l%8 of matrix l/8 (16 bytes,
// aligned) and gets in r[m] of matrix m the values at row l/4, columns 2(l%4) and 2(l%4)+1; with _t of its transpose.
DEV void ldsm_x4(u32* r, const void* p) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
    : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(saddr(p)) : "memory");
}
DEV void ldsm_x4_t(u32* r, const void* p) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
    : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(saddr(p)) : "memory");
}
// 16 bytes from global to shared memory, landing at any time up to the wait that covers their group; both aligned.
DEV void cp_async16(void* s, const void* g) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" :: "r"(saddr(s)), "l"(g) : "memory");
}
// The same, or 16 zero bytes: `g` is not read then, but let it point at something (clamp the row).
DEV void cp_async16_zfill(void* s, const void* g, bool valid) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
    :: "r"(saddr(s)), "l"(g), "r"(valid ? 16 : 0) : "memory");
}
// Closes the calling thread's group of copies, which may be empty.
DEV void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits until at most N of the calling thread's groups are still under way. Other threads see what landed only
// after a barrier.
template <int N> DEV void cp_async_wait() { asm volatile("cp.async.wait_group %0;" :: "n"(N) : "memory"); }
#elif !defined(EMULATOR_LIST)  // the harness lists the kernels in what a preprocessor leaves
#include "emu.h"
#endif

// Halves of a word as two bf16.
DEV float f32_lo(u32 v) { return __uint_as_float(v << 16); }
DEV float f32_hi(u32 v) { return __uint_as_float(v & 0xffff0000u); }

// An f32 kept as the nearest bf16 (ties away from zero) and a signed remainder in units of the 32-bit pattern; exact
// both ways for every pattern, NaN and infinities included.
DEV float join(bf16 hi, i16 lo) { return __uint_as_float(((u32)hi.x << 16) + (u32)(int)lo); }
DEV void split(float f, bf16* hi, i16* lo) {
  u32 bits = __float_as_uint(f), high = (bits + 0x8000u) >> 16;
  hi->x = (u16)high;
  *lo = (i16)(bits - (high << 16));
}

// Over the 32 lanes, the same bits in all of them.
template <class T> DEV T warp_sum(T v) {
  #pragma unroll
  for (int o = 16; o; o >>= 1) v += shfl_xor(v, o);
  return v;
}
DEV float warp_max(float v) {
  #pragma unroll
  for (int o = 16; o; o >>= 1) v = fmaxf(v, shfl_xor(v, o));
  return v;
}
// Over the block (threads along x, a multiple of 32), the same bits in all threads and in every run: a butterfly in
// each warp, then the warps in order. `shared` holds 32 values and may be used again at once by another block_sum.
template <class T> DEV T block_sum(T v, T* shared) {
  v = warp_sum(v);
  __syncthreads();  // values of an earlier sum have been read
  if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = v;
  __syncthreads();
  T sum = shared[0];
  for (u32 w = 1; w < blockDim.x / 32; w++) sum += shared[w];
  return sum;
}
