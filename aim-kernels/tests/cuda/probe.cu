// Kernels with one fault each, and the right ones beside them: what the emulator and the fake driver are tested with.

KERNEL void __launch_bounds__(256) probe_fill(float* x, float value, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) x[i] = value;
}
KERNEL void probe_copy(const float* x, float* y, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) y[i] = x[i];
}

// Each thread gives the next one its number, with (safe) or without a barrier.
KERNEL void probe_neighbour(float* x, int safe) {
  DYN_SMEM(smem);
  float* s = (float*)smem;
  s[threadIdx.x] = threadIdx.x;
  if (safe) __syncthreads();
  x[threadIdx.x] = s[(threadIdx.x + 1) % blockDim.x];
}
// The same within a warp.
KERNEL void probe_warp_neighbour(float* x, int safe) {
  __shared__ float s[32];
  s[threadIdx.x] = threadIdx.x;
  if (safe) __syncwarp();
  x[threadIdx.x] = s[(threadIdx.x + 1) % 32];
}
// A copy replaces values: it starts when all have read the old ones, or before; either way it is waited for after that.
KERNEL void probe_overwrite(float* x, const float* from, int safe) {
  DYN_SMEM(smem);
  float* s = (float*)smem;
  for (int i = 0; i < 4; i++) s[threadIdx.x * 4 + i] = 1;
  __syncthreads();
  if (!safe) cp_async16(s + threadIdx.x * 4, from + threadIdx.x * 4);
  __syncthreads();
  float before = s[(threadIdx.x * 4 + 4) % (blockDim.x * 4)];
  __syncthreads();
  if (safe) cp_async16(s + threadIdx.x * 4, from + threadIdx.x * 4);
  cp_async_commit();
  cp_async_wait<0>();
  x[threadIdx.x] = before + s[threadIdx.x * 4];
}
// A copy is read before (or after) it was waited for.
KERNEL void probe_impatient(float* x, const float* from, int safe) {
  DYN_SMEM(smem);
  float* s = (float*)smem;
  cp_async16(s + threadIdx.x * 4, from + threadIdx.x * 4);
  cp_async_commit();
  if (safe) cp_async_wait<0>();
  x[threadIdx.x] = s[threadIdx.x * 4];
}
// Blocks that add to one place.
KERNEL void probe_blocks(float* x, int safe) {
  if (threadIdx.x == 0) x[safe ? blockIdx.x : 0] += 1;
}
// Memory that the block did not write.
KERNEL void probe_unwritten(float* x) {
  DYN_SMEM(smem);
  __shared__ float fixed[4];
  if (blockIdx.x == 0) {
    for (int i = 0; i < 4; i++) { fixed[i] = 1; ((float*)smem)[i] = 1; }
    return;
  }
  x[0] = fixed[3];
  x[1] = ((float*)smem)[3];
}
KERNEL void probe_divergent(int threads) {
  if ((int)threadIdx.x < threads) __syncthreads();
}
KERNEL void probe_two_barriers(int threads) {
  if ((int)threadIdx.x < threads)
    __syncthreads();
  else
    __syncthreads();
}
KERNEL void probe_write(float* x, int i) { x[i] = 1; }
KERNEL void probe_read(const float* x, int i, float* y) { y[0] = x[i]; }
KERNEL void probe_read_shared(int i, float* y) {
  DYN_SMEM(smem);
  y[0] = ((float*)smem)[i];
}
KERNEL void probe_misaligned(float* x, int from) { *(float4*)(x + from) = make_float4(0, 0, 0, 0); }
KERNEL void probe_stack(float* x, int depth) {
  volatile float deep[16384];
  for (int i = 0; i < depth; i++) deep[16383 - i] = i;
  x[0] = deep[16383];
}
// A warp reads a column or a row of 32 x 32 values, and ldmatrix rows that are 128 (or 16) bytes apart.
KERNEL void probe_banks(float* x, int column) {
  DYN_SMEM(smem);
  float* s = (float*)smem;
  for (int i = 0; i < 32; i++) s[i * 32 + threadIdx.x] = i;
  __syncthreads();
  u32 r[4];
  ldsm_x4(r, smem + threadIdx.x * (column ? 128 : 16));
  x[threadIdx.x] = s[column ? threadIdx.x * 32 : threadIdx.x] + r[0] + r[1] + r[2] + r[3];
}
