// Attention pooling, f32 with bf16 weights (mod.rs has the algebra). An image's tokens are read once for every 4 rows of
// scores and once for every 8 weighted sums; everything else is smaller by the number of tokens. Sums have an order of
// their own that depends on the shape alone. All kernels have 256 threads: 8 warps, or 256 neighbouring columns.
namespace attention_pool {
constexpr int WARPS = 8, THREADS = 32 * WARPS;
constexpr int ROWS = 4, TOKENS = 4;  // of a warp's scores
constexpr int SUMS = 8, TILE = 32;   // weighted sums of a block; tokens of which it holds the weights
constexpr int PLACES = 16;           // tokens of a block of dx
constexpr int IMAGES = 8;            // images that share a read of Wv

DEV int lane() { return threadIdx.x % 32; }
DEV int warp() { return threadIdx.x / 32; }
DEV int column() { return blockIdx.x * THREADS + threadIdx.x; }

// Adds w[row][place] * m[row, column] over all rows to sum[place]; weight(row, place) is read once by the block.
template <class W> DEV void spread(int rows, int dim, const float* m, W weight, float (&sum)[PLACES]) {
  __shared__ float w[TILE][PLACES];
  for (int first = 0; first < rows; first += TILE) {
    __syncthreads();  // weights of the tile before have been read
    for (int i = threadIdx.x; i < TILE * PLACES; i += THREADS) {
      int row = first + i / PLACES;
      w[i / PLACES][i % PLACES] = row < rows ? weight(row, i % PLACES) : 0.f;
    }
    __syncthreads();
    if (column() >= dim) continue;
    for (int r = 0; r < TILE && first + r < rows; r++) {
      float v = m[(u64)(first + r) * dim + column()];
      #pragma unroll
      for (int i = 0; i < PLACES; i++) sum[i] = fmaf(w[r][i], v, sum[i]);
    }
  }
}
}  // namespace attention_pool

// U = factor Q Wk, head by head. Grid (dim / 256, heads * queries).
KERNEL void __launch_bounds__(256)
attention_pool_fold(const bf16* query, int query_stride, const bf16* key, int key_stride, int queries, int head_dim,
                    int dim, float factor, float* u) {
  using namespace attention_pool;
  int row = blockIdx.y, head = row / queries, c = column();
  if (c >= dim) return;
  const bf16* q = query + (u64)(row % queries) * query_stride + head * head_dim;
  const bf16* k = key + (u64)head * head_dim * key_stride + c;
  float sum = 0;
  for (int j = 0; j < head_dim; j++) sum = fmaf(f32(q[j]), f32(k[(u64)j * key_stride]), sum);
  u[(u64)row * dim + c] = factor * sum;
}

// s[image, row, token] = factor u[row] . x[image, token]; each image's u lies u_image values behind the last one's.
// Grid (tokens / 32, batch).
KERNEL void __launch_bounds__(256)
attention_pool_scores(const float* x, const float* u, u64 u_image, int rows, int tokens, int dim, float factor,
                      float* s) {
  using namespace attention_pool;
  u64 image = blockIdx.y;
  int first = (blockIdx.x * WARPS + warp()) * TOKENS;
  if (first >= tokens) return;
  const float* at[TOKENS];
  #pragma unroll
  for (int t = 0; t < TOKENS; t++) at[t] = x + (image * tokens + min(first + t, tokens - 1)) * dim;
  for (int row = 0; row < rows; row += ROWS) {
    const float* of[ROWS];
    #pragma unroll
    for (int r = 0; r < ROWS; r++) of[r] = u + image * u_image + (u64)min(row + r, rows - 1) * dim;
    float sum[ROWS][TOKENS] = {};
    for (int c = lane(); c < dim; c += 32) {
      float v[TOKENS];
      #pragma unroll
      for (int t = 0; t < TOKENS; t++) v[t] = at[t][c];
      #pragma unroll
      for (int r = 0; r < ROWS; r++) {
        float w = of[r][c];
        #pragma unroll
        for (int t = 0; t < TOKENS; t++) sum[r][t] = fmaf(w, v[t], sum[r][t]);
      }
    }
    #pragma unroll
    for (int r = 0; r < ROWS; r++)
      #pragma unroll
      for (int t = 0; t < TOKENS; t++) {
        float total = factor * warp_sum(sum[r][t]);
        if (lane() == 0 && row + r < rows && first + t < tokens)
          s[(image * rows + row + r) * tokens + first + t] = total;
      }
  }
}

// Softmax of each row in place, one warp a row. Grid rows / 8.
KERNEL void __launch_bounds__(256) attention_pool_softmax(float* p, int rows, int tokens) {
  using namespace attention_pool;
  int row = blockIdx.x * WARPS + warp();
  if (row >= rows) return;
  float* s = p + (u64)row * tokens;
  // A lane reads and writes its own values alone.
  float top = __uint_as_float(0xff800000u), sum = 0;  // minus infinity
  for (int i = lane(); i < tokens; i += 32) top = fmaxf(top, s[i]);
  top = warp_max(top);
  for (int i = lane(); i < tokens; i += 32) sum += expf(s[i] - top);
  float inverse = 1.0f / warp_sum(sum);
  for (int i = lane(); i < tokens; i += 32) s[i] = expf(s[i] - top) * inverse;
}

// ds = p (g - sum(p g)); `queries` rows share a row of g. Grid rows / 8.
KERNEL void __launch_bounds__(256)
attention_pool_softmax_backward(const float* p, const float* g, int rows, int queries, int tokens, float* ds) {
  using namespace attention_pool;
  int row = blockIdx.x * WARPS + warp();
  if (row >= rows) return;
  u64 at = (u64)row * tokens;
  g += (u64)(row / queries) * tokens;
  float mean = 0;
  for (int i = lane(); i < tokens; i += 32) mean = fmaf(p[at + i], g[i], mean);
  mean = warp_sum(mean);
  for (int i = lane(); i < tokens; i += 32) ds[at + i] = p[at + i] * (g[i] - mean);
}

// out[image, row] = the sum over tokens of the mean of `each` rows of w, times the token. Grid (dim / 256, rows / 8,
// batch).
KERNEL void __launch_bounds__(256)
attention_pool_weigh(const float* w, const float* x, int rows, int each, int tokens, int dim, float* out) {
  using namespace attention_pool;
  __shared__ float weight[SUMS][TILE];
  u64 image = blockIdx.z;
  int first = blockIdx.y * SUMS, c = column();
  float sum[SUMS] = {}, share = 1.0f / each;
  for (int token = 0; token < tokens; token += TILE) {
    __syncthreads();  // weights of the tile before have been read
    {
      int row = first + (int)threadIdx.x / TILE, at = token + (int)threadIdx.x % TILE;
      float total = 0;
      if (row < rows && at < tokens)
        for (int q = 0; q < each; q++) total += w[((image * rows + row) * each + q) * tokens + at];
      weight[threadIdx.x / TILE][threadIdx.x % TILE] = total * share;
    }
    __syncthreads();
    if (c >= dim) continue;
    for (int t = 0; t < TILE && token + t < tokens; t++) {
      float v = x[(image * tokens + token + t) * dim + c];
      #pragma unroll
      for (int r = 0; r < SUMS; r++) sum[r] = fmaf(weight[r][t], v, sum[r]);
    }
  }
  if (c >= dim) return;
  #pragma unroll
  for (int r = 0; r < SUMS; r++)
    if (first + r < rows) out[(image * rows + first + r) * dim + c] = sum[r];
}

// out = pooled Wv^T, head by head, one warp a column. Grid (dim / 8, batch / 8).
KERNEL void __launch_bounds__(256)
attention_pool_values(const float* pooled, const bf16* value, int value_stride, int heads, int head_dim, int batch,
                      float* out) {
  using namespace attention_pool;
  int dim = heads * head_dim, row = blockIdx.x * WARPS + warp(), first = blockIdx.y * IMAGES;
  if (row >= dim) return;
  const bf16* v = value + (u64)row * value_stride;
  float sum[IMAGES] = {};
  for (int c = lane(); c < dim; c += 32) {
    float w = f32(v[c]);
    #pragma unroll
    for (int i = 0; i < IMAGES; i++)
      sum[i] = fmaf(pooled[((u64)min(first + i, batch - 1) * heads + row / head_dim) * dim + c], w, sum[i]);
  }
  #pragma unroll
  for (int i = 0; i < IMAGES; i++) {
    float total = warp_sum(sum[i]);
    if (lane() == 0 && first + i < batch) out[(u64)(first + i) * dim + row] = total;
  }
}

// dpooled = dout Wv, head by head. Grid (dim / 256, heads, batch / 8).
KERNEL void __launch_bounds__(256)
attention_pool_values_backward(const float* dout, const bf16* value, int value_stride, int head_dim, int batch,
                               float* dpooled) {
  using namespace attention_pool;
  int head = blockIdx.y, heads = gridDim.y, dim = heads * head_dim, first = blockIdx.z * IMAGES, c = column();
  if (c >= dim) return;
  float sum[IMAGES] = {};
  for (int row = head * head_dim; row < (head + 1) * head_dim; row++) {
    float w = f32(value[(u64)row * value_stride + c]);
    #pragma unroll
    for (int i = 0; i < IMAGES; i++) sum[i] = fmaf(dout[(u64)min(first + i, batch - 1) * dim + row], w, sum[i]);
  }
  #pragma unroll
  for (int i = 0; i < IMAGES; i++)
    if (first + i < batch) dpooled[((u64)(first + i) * heads + head) * dim + c] = sum[i];
}

// dx[image, token] = ds^T U + (mean over queries of P)^T dpooled, written or added. Grid (dim / 256, tokens / 16, batch).
KERNEL void __launch_bounds__(256)
attention_pool_tokens(const float* p, const float* ds, const float* u, const float* dpooled, int heads, int queries,
                      int tokens, int dim, float* dx, int accumulate) {
  using namespace attention_pool;
  u64 image = blockIdx.z;
  int first = blockIdx.y * PLACES, rows = heads * queries, c = column();
  const float *p_image = p + image * rows * tokens, *ds_image = ds + image * rows * tokens;
  float sum[PLACES] = {}, share = 1.0f / queries;
  spread(rows, dim, u, [&](int row, int i) {
    return first + i < tokens ? ds_image[(u64)row * tokens + first + i] : 0.f;
  }, sum);
  spread(heads, dim, dpooled + image * heads * dim, [&](int head, int i) {
    float total = 0;
    if (first + i < tokens)
      for (int q = 0; q < queries; q++) total += p_image[((u64)head * queries + q) * tokens + first + i];
    return total * share;
  }, sum);
  if (c >= dim) return;
  #pragma unroll
  for (int i = 0; i < PLACES; i++) {
    if (first + i >= tokens) return;
    float* to = dx + (image * tokens + first + i) * dim + c;
    *to = accumulate ? *to + sum[i] : sum[i];
  }
}

// sum[i] over the images' parts of n values each. Grid n / 256.
KERNEL void __launch_bounds__(256) attention_pool_sum(const float* parts, int batch, int n, float* sum) {
  int i = attention_pool::column();
  if (i >= n) return;
  float total = 0;
  for (int image = 0; image < batch; image++) total += parts[(u64)image * n + i];
  sum[i] = total;
}

// dWk += factor Q^T dU and dWv += dout^T pooled, head by head. Grid (dim / 256, dim).
KERNEL void __launch_bounds__(256)
attention_pool_matrices(const bf16* query, int query_stride, const float* du, const float* dout, const float* pooled,
                        int heads, int queries, int head_dim, int batch, float factor, float* dkey, int dkey_stride,
                        float* dvalue, int dvalue_stride) {
  using namespace attention_pool;
  int row = blockIdx.y, head = row / head_dim, dim = heads * head_dim, c = column();
  if (c >= dim) return;
  float key = 0, value = 0;
  for (int q = 0; q < queries; q++)
    key = fmaf(f32(query[(u64)q * query_stride + row]), du[((u64)head * queries + q) * dim + c], key);
  for (int image = 0; image < batch; image++)
    value = fmaf(dout[(u64)image * dim + row], pooled[((u64)image * heads + head) * dim + c], value);
  dkey[(u64)row * dkey_stride + c] += factor * key;
  dvalue[(u64)row * dvalue_stride + c] += value;
}

// dQ += factor dU Wk^T, head by head, one warp a value. Grid queries * dim / 8.
KERNEL void __launch_bounds__(256)
attention_pool_query(const float* du, const bf16* key, int key_stride, int queries, int head_dim, int dim, float factor,
                     float* dquery, int dquery_stride) {
  using namespace attention_pool;
  int at = blockIdx.x * WARPS + warp(), q = at / dim, row = at % dim;
  if (q >= queries) return;
  const float* d = du + ((u64)(row / head_dim) * queries + q) * dim;
  const bf16* k = key + (u64)row * key_stride;
  float sum = 0;
  for (int c = lane(); c < dim; c += 32) sum = fmaf(d[c], f32(k[c]), sum);
  sum = factor * warp_sum(sum);
  if (lane() == 0) dquery[(u64)q * dquery_stride + row] += sum;
}
