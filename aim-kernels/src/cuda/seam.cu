// One kernel a primitive of prim.cuh. checks/seam.rs computes what must come out from the PTX ISA: on a card this tests
// what the emulator assumes of the machine, and in the emulator the emulator.

// Registers of a warp in and out: a [32][4], b [32][2], c and d [32][4]. One warp.
KERNEL void seam_mma(const u32* a, const u32* b, const float* c, float* d) {
  int lane = threadIdx.x;
  float sum[4];
  for (int i = 0; i < 4; i++) sum[i] = c[lane * 4 + i];
  mma_16816(sum, a + lane * 4, b[lane * 2], b[lane * 2 + 1]);
  for (int i = 0; i < 4; i++) d[lane * 4 + i] = sum[i];
}

// Four matrices out of `rows` rows of 16 bytes: lane l points at row at[l]; r [32][4] plain, then [32][4] transposed.
// One warp, 16 * rows bytes of shared memory.
KERNEL void seam_matrices(const uint4* in, const int* at, int rows, u32* r) {
  DYN_SMEM(smem);
  uint4* tile = (uint4*)smem;
  int lane = threadIdx.x;
  for (int i = lane; i < rows; i += 32) tile[i] = in[i];
  __syncthreads();
  u32 plain[4], transposed[4];
  ldsm_x4(plain, tile + at[lane]);
  ldsm_x4_t(transposed, tile + at[lane]);
  for (int i = 0; i < 4; i++) {
    r[lane * 4 + i] = plain[i];
    r[128 + lane * 4 + i] = transposed[i];
  }
}

// out[i] = in[(i + 1) % n] for the first n values, brought by other threads in a first group of copies; then the same
// of the second n values, where valid[i] says so, and 0 elsewhere. n threads, 32 n bytes of shared memory.
KERNEL void seam_copies(const uint4* in, const int* valid, uint4* out) {
  DYN_SMEM(smem);
  uint4* tile = (uint4*)smem;
  int n = blockDim.x, t = threadIdx.x, next = (t + 1) % n;
  cp_async16(tile + t, in + t);
  cp_async_commit();
  cp_async16_zfill(tile + n + t, in + n + t, valid[t]);
  cp_async_commit();
  cp_async_wait<1>();
  __syncthreads();
  out[t] = tile[next];
  cp_async_wait<0>();
  __syncthreads();
  out[n + t] = tile[n + next];
}

// Rows of 32: the value of lane ^ o for o = 1, 2, 4, 8, 16, then that of lane from[lane]. One warp.
template <class T> DEV void seam_shuffle(const T* in, const int* from, T* out) {
  int lane = threadIdx.x;
  T v = in[lane];
  for (int i = 0; i < 5; i++) out[i * 32 + lane] = shfl_xor(v, 1 << i);
  out[5 * 32 + lane] = shfl(v, from[lane]);
}
KERNEL void seam_shuffle_32(const float* in, const int* from, float* out) { seam_shuffle(in, from, out); }
KERNEL void seam_shuffle_64(const u64* in, const int* from, u64* out) { seam_shuffle(in, from, out); }

// y [5][n]: 2^x, log2 x, 1 / sqrt x, e^x, tanh x.
KERNEL void seam_functions(const float* x, float* y, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  y[i] = ex2(x[i]);
  y[n + i] = lg2(x[i]);
  y[2 * n + i] = rsqrtf(x[i]);
  y[3 * n + i] = expf(x[i]);
  y[4 * n + i] = tanhf(x[i]);
}

// y [5][n]: to_bf16(x), pack(x, -x), the halves of x, their joint bits, the value of to_bf16(x).
KERNEL void seam_numbers(const float* x, u32* y, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  bf16 hi;
  i16 lo;
  split(x[i], &hi, &lo);
  u32 both = pack(x[i], -x[i]);
  y[i] = to_bf16(x[i]).x;
  y[n + i] = both;
  y[2 * n + i] = (u32)hi.x << 16 | (u16)lo;
  y[3 * n + i] = __float_as_uint(join(hi, lo));
  y[4 * n + i] = __float_as_uint(f32_lo(both)) | (__float_as_uint(f32_hi(both)) >> 16);
}

// y [3][threads]: block_sum of x, block_sum of x * x at once behind it, warp_max of x; and z [threads]: block_sum on
// double. One block.
KERNEL void seam_sums(const float* x, float* y, double* z) {
  __shared__ float shared[32];
  __shared__ double wide[32];
  int t = threadIdx.x, n = blockDim.x;
  float v = x[t], square = v * v;
  y[t] = block_sum(v, shared);
  y[n + t] = block_sum(square, shared);
  y[2 * n + t] = warp_max(v);
  z[t] = block_sum((double)v, wide);
}
