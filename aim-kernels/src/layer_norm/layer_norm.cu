// Layer normalisation over rows of `dim` values: y = (x - mean) rstd weight + bias.
//
// A row is read once and stays in registers: it belongs to a warp when it is narrow and to a block when it is not (the
// template argument BLOCK), each thread keeping NV vectors of 8 values. The block works on several rows, one after the
// other, so that weight and bias are read and joined once. The `_any` kernels take rows that no vector divides, that
// are not aligned or longer than the registers hold; they go over the row again instead.
namespace layer_norm {
constexpr int MOST_WARPS = 16, MOST_WARP_COLUMNS = 512;

// Sums over the threads of a row, N at once, the same bits in all of them. `slots` must not be written again before
// each thread has passed another barrier.
template <bool BLOCK, int N> DEV void totals(float (&v)[N], float (*slots)[MOST_WARPS]) {
  #pragma unroll
  for (int k = 0; k < N; k++) v[k] = warp_sum(v[k]);
  if (!BLOCK) return;
  if (threadIdx.x % 32 == 0)
    #pragma unroll
    for (int k = 0; k < N; k++) slots[k][threadIdx.x / 32] = v[k];
  __syncthreads();
  #pragma unroll
  for (int k = 0; k < N; k++) {
    v[k] = slots[k][0];
    for (u32 w = 1; w < blockDim.x / 32; w++) v[k] += slots[k][w];
  }
}

// Which rows and columns a thread works on: rows first, first + step, ...; vectors lane, lane + width, ...
template <bool BLOCK> struct Place {
  int lane, width, row, rows;  // lane among the `width` threads of a row; row among the block's `rows` at a time
  DEV Place() {
    lane = BLOCK ? threadIdx.x : threadIdx.x % 32;
    width = BLOCK ? blockDim.x : 32;
    row = BLOCK ? 0 : threadIdx.x / 32;
    rows = BLOCK ? 1 : blockDim.x / 32;
  }
};

// Block b owns the rows from b * span * at.rows on, `span` for each of its warps, or for itself.
template <bool BLOCK, int NV>
DEV void forward(const bf16* x, const bf16* weight, const i16* weight_lo, const bf16* bias, const i16* bias_lo,
                 bf16* y, float* mean, float* rstd, int rows, int dim, float eps, int span) {
  __shared__ float slots[2][1][MOST_WARPS];
  Place<BLOCK> at;
  int vectors = dim / vec::WIDTH;
  float by = 1.f / dim, w[NV][8] = {}, b[NV][8] = {};
  #pragma unroll
  for (int k = 0; k < NV; k++) {
    int c = at.lane + k * at.width;
    if (c < vectors) {
      vec::load_split(weight + c * 8, weight_lo + c * 8, w[k]);
      vec::load_split(bias + c * 8, bias_lo + c * 8, b[k]);
    }
  }
  u64 first = (u64)blockIdx.x * span * at.rows + at.row;
  for (int i = 0; i < span; i++) {
    u64 row = first + (u64)i * at.rows;
    if (row >= (u64)rows) break;
    float v[NV][8], sum[1] = {0};
    #pragma unroll
    for (int k = 0; k < NV; k++) {
      int c = at.lane + k * at.width;
      vec::unpack(c < vectors ? vec::load(x + row * dim + c * 8) : vec::zero(), v[k]);
      #pragma unroll
      for (int j = 0; j < 8; j++) sum[0] += v[k][j];
    }
    totals<BLOCK>(sum, slots[0]);
    float m = sum[0] * by, square[1] = {0};
    // From the deviations: the variance of large values with a small spread keeps its digits.
    #pragma unroll
    for (int k = 0; k < NV; k++)
      if (at.lane + k * at.width < vectors)
        #pragma unroll
        for (int j = 0; j < 8; j++) square[0] = fmaf(v[k][j] - m, v[k][j] - m, square[0]);
    totals<BLOCK>(square, slots[1]);
    float r = rsqrtf(fmaf(square[0], by, eps));
    #pragma unroll
    for (int k = 0; k < NV; k++) {
      int c = at.lane + k * at.width;
      #pragma unroll
      for (int j = 0; j < 8; j++) v[k][j] = fmaf((v[k][j] - m) * r, w[k][j], b[k][j]);
      if (c < vectors) vec::store(y + row * dim + c * 8, v[k]);
    }
    if (at.lane == 0) { mean[row] = m; rstd[row] = r; }
  }
}

// Rows blockIdx.x, blockIdx.x + gridDim.x, ... (times the rows at a time). Column sums of the weight's and the bias's
// gradient stay in registers; row blockIdx.x of `partial` [gridDim.x, 2, dim] gets them at the end.
template <bool BLOCK, int NV>
DEV void backward(const bf16* x, const bf16* weight, const i16* weight_lo, const float* mean, const float* rstd,
                  const bf16* dy, bf16* dx, int accumulate, float* partial, int rows, int dim) {
  __shared__ float slots[2][2][MOST_WARPS];
  Place<BLOCK> at;
  int vectors = dim / vec::WIDTH, turn = 0;
  float by = 1.f / dim, w[NV][8] = {}, dw[NV][8] = {}, db[NV][8] = {};
  #pragma unroll
  for (int k = 0; k < NV; k++) {
    int c = at.lane + k * at.width;
    if (c < vectors) vec::load_split(weight + c * 8, weight_lo + c * 8, w[k]);
  }
  for (u64 row = (u64)blockIdx.x * at.rows + at.row; row < (u64)rows; row += (u64)gridDim.x * at.rows) {
    uint4 rx[NV], rdy[NV], old[NV];
    #pragma unroll
    for (int k = 0; k < NV; k++) {
      int c = at.lane + k * at.width;
      u64 here = row * dim + c * 8;
      bool in = c < vectors;
      rx[k] = in ? vec::load(x + here) : vec::zero();
      rdy[k] = in ? vec::load(dy + here) : vec::zero();
      old[k] = in && dx && accumulate ? vec::load(dx + here) : vec::zero();
    }
    float m = mean[row], r = rstd[row], sums[2] = {0, 0};
    #pragma unroll
    for (int k = 0; k < NV; k++) {
      float v[8], d[8];
      vec::unpack(rx[k], v);
      vec::unpack(rdy[k], d);
      #pragma unroll
      for (int j = 0; j < 8; j++) {
        float hat = (v[j] - m) * r, g = d[j] * w[k][j];
        dw[k][j] = fmaf(d[j], hat, dw[k][j]);
        db[k][j] += d[j];
        sums[0] += g;
        sums[1] = fmaf(g, hat, sums[1]);
      }
    }
    if (!dx) continue;
    // Two sets of slots in turn: a thread that writes one has passed the barrier after which the other was read.
    totals<BLOCK>(sums, slots[turn]);
    turn ^= 1;
    float mean_g = sums[0] * by, mean_gx = sums[1] * by;
    #pragma unroll
    for (int k = 0; k < NV; k++) {
      int c = at.lane + k * at.width;
      float v[8], d[8], add[8];
      vec::unpack(rx[k], v);
      vec::unpack(rdy[k], d);
      vec::unpack(old[k], add);
      #pragma unroll
      for (int j = 0; j < 8; j++)
        v[j] = fmaf(r, fmaf(d[j], w[k][j], -mean_g) - (v[j] - m) * r * mean_gx, add[j]);
      if (c < vectors) vec::store(dx + row * dim + c * 8, v);
    }
  }
  if (!partial) return;
  partial += (u64)blockIdx.x * 2 * dim;
  if constexpr (BLOCK) {
    #pragma unroll
    for (int k = 0; k < NV; k++) {
      int c = at.lane + k * at.width;
      if (c < vectors) { vec::store8(partial + c * 8, dw[k]); vec::store8(partial + dim + c * 8, db[k]); }
    }
  } else {                                       // the warps' sums, one warp after the other
    __shared__ float columns[2 * MOST_WARP_COLUMNS];
    for (int w = 0; w < at.rows; w++) {
      if (w == at.row)
        #pragma unroll
        for (int k = 0; k < NV; k++)
          #pragma unroll
          for (int j = 0; j < 8; j++) {
            int c = (at.lane + k * at.width) * 8 + j;
            if (c >= dim) continue;
            columns[c] = dw[k][j] + (w ? columns[c] : 0.f);
            columns[dim + c] = db[k][j] + (w ? columns[dim + c] : 0.f);
          }
      __syncthreads();
    }
    for (int c = threadIdx.x; c < 2 * dim; c += blockDim.x) partial[c] = columns[c];
  }
}
}  // namespace layer_norm

// Grid: rows / (span * warps) or rows / span blocks, rounded up. Warp: up to 256 NV columns, 8 warps a block. Block: a
// thread for each NV vectors of the row, 512 at most.
KERNEL __launch_bounds__(256) void layer_norm_forward_warp1(
    const bf16* x, const bf16* weight, const i16* weight_lo, const bf16* bias, const i16* bias_lo, bf16* y,
    float* mean, float* rstd, int rows, int dim, float eps, int span) {
  layer_norm::forward<false, 1>(x, weight, weight_lo, bias, bias_lo, y, mean, rstd, rows, dim, eps, span);
}
KERNEL __launch_bounds__(256) void layer_norm_forward_warp2(
    const bf16* x, const bf16* weight, const i16* weight_lo, const bf16* bias, const i16* bias_lo, bf16* y,
    float* mean, float* rstd, int rows, int dim, float eps, int span) {
  layer_norm::forward<false, 2>(x, weight, weight_lo, bias, bias_lo, y, mean, rstd, rows, dim, eps, span);
}
KERNEL __launch_bounds__(128) void layer_norm_forward_block1(
    const bf16* x, const bf16* weight, const i16* weight_lo, const bf16* bias, const i16* bias_lo, bf16* y,
    float* mean, float* rstd, int rows, int dim, float eps, int span) {
  layer_norm::forward<true, 1>(x, weight, weight_lo, bias, bias_lo, y, mean, rstd, rows, dim, eps, span);
}
KERNEL __launch_bounds__(512, 1) void layer_norm_forward_block2(
    const bf16* x, const bf16* weight, const i16* weight_lo, const bf16* bias, const i16* bias_lo, bf16* y,
    float* mean, float* rstd, int rows, int dim, float eps, int span) {
  layer_norm::forward<true, 2>(x, weight, weight_lo, bias, bias_lo, y, mean, rstd, rows, dim, eps, span);
}

// Grid: rows; block: 256.
KERNEL __launch_bounds__(256) void layer_norm_forward_any(
    const bf16* x, const bf16* weight, const i16* weight_lo, const bf16* bias, const i16* bias_lo, bf16* y,
    float* mean, float* rstd, int rows, int dim, float eps, int span) {
  __shared__ float slots[32];
  u64 row = blockIdx.x;
  x += row * dim;
  y += row * dim;
  float sum = 0, square = 0;
  for (int c = threadIdx.x; c < dim; c += blockDim.x) sum += f32(x[c]);
  float m = block_sum(sum, slots) / dim;
  for (int c = threadIdx.x; c < dim; c += blockDim.x) square = fmaf(f32(x[c]) - m, f32(x[c]) - m, square);
  float r = rsqrtf(block_sum(square, slots) / dim + eps);
  for (int c = threadIdx.x; c < dim; c += blockDim.x)
    y[c] = to_bf16(fmaf((f32(x[c]) - m) * r, join(weight[c], weight_lo[c]), join(bias[c], bias_lo[c])));
  if (threadIdx.x == 0) { mean[row] = m; rstd[row] = r; }
}

// The same blocks as forward; a grid that depends on the shape only, since it decides the order of the column sums.
KERNEL __launch_bounds__(256, 3) void layer_norm_backward_warp1(
    const bf16* x, const bf16* weight, const i16* weight_lo, const float* mean, const float* rstd, const bf16* dy,
    bf16* dx, int accumulate, float* partial, int rows, int dim) {
  layer_norm::backward<false, 1>(x, weight, weight_lo, mean, rstd, dy, dx, accumulate, partial, rows, dim);
}
KERNEL __launch_bounds__(256, 2) void layer_norm_backward_warp2(
    const bf16* x, const bf16* weight, const i16* weight_lo, const float* mean, const float* rstd, const bf16* dy,
    bf16* dx, int accumulate, float* partial, int rows, int dim) {
  layer_norm::backward<false, 2>(x, weight, weight_lo, mean, rstd, dy, dx, accumulate, partial, rows, dim);
}
KERNEL __launch_bounds__(256, 3) void layer_norm_backward_block1(
    const bf16* x, const bf16* weight, const i16* weight_lo, const float* mean, const float* rstd, const bf16* dy,
    bf16* dx, int accumulate, float* partial, int rows, int dim) {
  layer_norm::backward<true, 1>(x, weight, weight_lo, mean, rstd, dy, dx, accumulate, partial, rows, dim);
}
KERNEL __launch_bounds__(512, 1) void layer_norm_backward_block2(
    const bf16* x, const bf16* weight, const i16* weight_lo, const float* mean, const float* rstd, const bf16* dy,
    bf16* dx, int accumulate, float* partial, int rows, int dim) {
  layer_norm::backward<true, 2>(x, weight, weight_lo, mean, rstd, dy, dx, accumulate, partial, rows, dim);
}

KERNEL __launch_bounds__(256) void layer_norm_backward_any(
    const bf16* x, const bf16* weight, const i16* weight_lo, const float* mean, const float* rstd, const bf16* dy,
    bf16* dx, int accumulate, float* partial, int rows, int dim) {
  __shared__ float slots[32];
  if (partial) partial += (u64)blockIdx.x * 2 * dim;
  for (u64 row = blockIdx.x; row < (u64)rows; row += gridDim.x) {
    const bf16 *px = x + row * dim, *pdy = dy + row * dim;
    float m = mean[row], r = rstd[row], sum_g = 0, sum_gx = 0;
    for (int c = threadIdx.x; c < dim; c += blockDim.x) {
      float hat = (f32(px[c]) - m) * r, d = f32(pdy[c]), g = d * join(weight[c], weight_lo[c]);
      sum_g += g;
      sum_gx = fmaf(g, hat, sum_gx);
      if (partial) {                             // each column of it is one thread's
        bool first = row == blockIdx.x;
        partial[c] = fmaf(d, hat, first ? 0.f : partial[c]);
        partial[dim + c] = d + (first ? 0.f : partial[dim + c]);
      }
    }
    if (!dx) continue;
    float mean_g = block_sum(sum_g, slots) / dim, mean_gx = block_sum(sum_gx, slots) / dim;
    for (int c = threadIdx.x; c < dim; c += blockDim.x) {
      float hat = (f32(px[c]) - m) * r, g = f32(pdy[c]) * join(weight[c], weight_lo[c]);
      u64 here = row * dim + c;
      dx[here] = to_bf16(fmaf(r, g - mean_g - hat * mean_gx, accumulate ? f32(dx[here]) : 0.f));
    }
  }
}

// dweight and dbias += the sums of the columns of partial [parts, 2, dim]: 16 warps take every 16th row, in order, then
// their sums in order. Grid: 2 dim / 32, rounded up; block: 512.
KERNEL __launch_bounds__(512) void layer_norm_backward_sum(
    const float* partial, int parts, int dim, float* dweight, float* dbias) {
  __shared__ float sums[16][32];
  int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  u64 c = (u64)blockIdx.x * 32 + lane, columns = 2 * (u64)dim;
  float sum = 0;
  if (c < columns)
    #pragma unroll 8
    for (int p = warp; p < parts; p += 16) sum += partial[p * columns + c];
  sums[warp][lane] = sum;
  __syncthreads();
  if (warp || c >= columns) return;
  for (int w = 1; w < 16; w++) sum += sums[w][lane];
  float* out = c < (u64)dim ? dweight + c : dbias + (c - dim);
  *out += sum;
}
