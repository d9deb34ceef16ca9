// Mean over the tokens of each image and its gradient, f32 (columns.cuh says how blocks walk; a part is an image).
namespace mean_pool {
constexpr int ROWS = 32;                                // tokens of a block of backward

template <int V> DEV void forward(const float* x, int tokens, int dim, float* y) {
  int column = columns::column<V>(dim), image = columns::part<V>(dim);
  const float* p = x + (u64)image * tokens * dim + column;
  float sum[V] = {};
  if (column < dim)
    #pragma unroll 4
    for (int token = threadIdx.x / 32; token < tokens; token += columns::WARPS) {
      float v[V];
      columns::load<V>(v, p + (u64)token * dim);
      #pragma unroll
      for (int j = 0; j < V; j++) sum[j] += v[j];
    }
  int tile = column - threadIdx.x % 32 * V;
  columns::fold_warps<V>(sum, [&](int c, float total) {
    if (tile + c < dim) y[(u64)image * dim + tile + c] = total / tokens;
  });
}

template <int V> DEV void backward(const float* dy, int tokens, int dim, float* dx, bool accumulate) {
  int column = columns::column<V>(dim), chunks = (tokens + ROWS - 1) / ROWS;
  int image = columns::part<V>(dim) / chunks, first = columns::part<V>(dim) % chunks * ROWS;
  if (column >= dim) return;
  float share[V];
  columns::load<V>(share, dy + (u64)image * dim + column);
  float scale = 1.0f / tokens;
  #pragma unroll
  for (int j = 0; j < V; j++) share[j] *= scale;
  #pragma unroll
  for (int i = 0; i < ROWS; i += columns::WARPS) {
    int token = first + i + threadIdx.x / 32;
    if (token >= tokens) return;
    float* p = dx + ((u64)image * tokens + token) * dim + column;
    float v[V] = {};
    if (accumulate) columns::load<V>(v, p);
    #pragma unroll
    for (int j = 0; j < V; j++) v[j] += share[j];
    columns::store<V>(p, v);
  }
}
}  // namespace mean_pool

// Grid tiles * batch, 256 threads.
KERNEL void __launch_bounds__(256) mean_pool_forward(const float* x, int tokens, int dim, int vector, float* y) {
  if (vector) mean_pool::forward<4>(x, tokens, dim, y); else mean_pool::forward<1>(x, tokens, dim, y);
}

// Grid tiles * batch * ceil(tokens / 32), 256 threads.
KERNEL void __launch_bounds__(256)
mean_pool_backward(const float* dy, int tokens, int dim, int vector, float* dx, int accumulate) {
  if (vector) mean_pool::backward<4>(dy, tokens, dim, dx, accumulate);
  else mean_pool::backward<1>(dy, tokens, dim, dx, accumulate);
}
