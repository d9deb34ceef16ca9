// Sum of squares of a flat array, as one partial sum a block; the host adds those up in order.
//
// Squares of f32 are exact in f64 and so nothing is lost or overflows before the sum does. A thread takes groups of
// four values, 16 bytes; the order depends on the length only. 256 threads, a fixed number of blocks.
KERNEL void __launch_bounds__(256)
global_norm_sum_of_squares(const float* x, u64 len, int aligned, double* partial) {
  __shared__ double shared[32];
  u64 groups = len / 4, step = (u64)gridDim.x * 256, first = (u64)blockIdx.x * 256 + threadIdx.x;
  double sum[4] = {0, 0, 0, 0};
  if (aligned) {
    #pragma unroll 4
    for (u64 i = first; i < groups; i += step) {
      float4 v = *(const float4*)(x + 4 * i);
      sum[0] += (double)v.x * v.x; sum[1] += (double)v.y * v.y;
      sum[2] += (double)v.z * v.z; sum[3] += (double)v.w * v.w;
    }
  } else {
    for (u64 i = first; i < groups; i += step)
      #pragma unroll
      for (int j = 0; j < 4; j++) sum[j] += (double)x[4 * i + j] * x[4 * i + j];
  }
  if (first < len % 4) { float v = x[4 * groups + first]; sum[0] += (double)v * v; }
  double total = block_sum((sum[0] + sum[1]) + (sum[2] + sum[3]), shared);
  if (threadIdx.x == 0) partial[blockIdx.x] = total;
}
