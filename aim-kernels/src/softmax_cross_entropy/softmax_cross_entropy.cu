// Cross-entropy of class labels under a softmax, f32: one block a row, of one warp for few classes, of four for many.
// A row is read from memory once and then from the cache: 21,843 classes are 87 KB.
// A label that is no class gives NaN, so that it does not pass unseen.
namespace softmax_cross_entropy {
// The largest v of the block, in every thread. `shared` holds 32 values, as for block_sum.
DEV float block_max(float v, float* shared) {
  v = warp_max(v);
  __syncthreads();  // values of an earlier fold have been read
  if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = v;
  __syncthreads();
  for (u32 w = 0; w < blockDim.x / 32; w++) v = fmaxf(v, shared[w]);
  return v;
}

struct Row { float top, log_sum, below; };  // largest logit; log(sum of e^(x - top)); sum of x - top

template <int V> DEV Row statistics(const float* x, int classes) {
  __shared__ float shared[32];
  Row row;
  int first = threadIdx.x * V, step = blockDim.x * V;
  float top = x[0];  // a value of the row for threads that have none
  for (int i = first; i < classes; i += step) {
    float v[V];
    columns::load<V>(v, x + i);
    #pragma unroll
    for (int j = 0; j < V; j++) top = fmaxf(top, v[j]);
  }
  row.top = block_max(top, shared);
  float sum = 0, below = 0;
  for (int i = first; i < classes; i += step) {
    float v[V];
    columns::load<V>(v, x + i);
    #pragma unroll
    for (int j = 0; j < V; j++) { sum += expf(v[j] - row.top); below += v[j] - row.top; }
  }
  row.log_sum = logf(block_sum(sum, shared));
  row.below = block_sum(below, shared);
  return row;
}

DEV float not_a_number() { return __uint_as_float(0x7fc00000u); }

template <int V> DEV void forward(const float* x, int label, int classes, float smoothing, float* loss) {
  Row row = statistics<V>(x, classes);
  if (threadIdx.x) return;
  // Everything relative to the largest logit, so that large logits keep the digits of a small loss.
  float l = label < classes ? row.log_sum - (1.0f - smoothing) * (x[label] - row.top) : not_a_number();
  *loss = smoothing != 0.0f ? l - smoothing * (row.below / classes) : l;
}

template <int V>
DEV void backward(const float* x, int label, int classes, float smoothing, float scale, float* dx, bool accumulate) {
  Row row = statistics<V>(x, classes);
  float even = smoothing / classes, scale_ = label < classes ? scale : not_a_number();
  for (int i = threadIdx.x * V; i < classes; i += blockDim.x * V) {
    float v[V], d[V] = {};
    columns::load<V>(v, x + i);
    if (accumulate) columns::load<V>(d, dx + i);
    #pragma unroll
    for (int j = 0; j < V; j++) {
      float target = i + j == label ? even + (1.0f - smoothing) : even;
      d[j] += scale_ * (expf(v[j] - row.top - row.log_sum) - target);
    }
    columns::store<V>(dx + i, d);
  }
}

// Against shares t of the classes; label smoothing is theirs.
template <int V> DEV void soft_forward(const float* x, const float* t, int classes, float* loss) {
  __shared__ float shared[32];
  Row row = statistics<V>(x, classes);
  float sum = 0;
  for (int i = threadIdx.x * V; i < classes; i += blockDim.x * V) {
    float v[V], share[V];
    columns::load<V>(v, x + i); columns::load<V>(share, t + i);
    #pragma unroll
    for (int j = 0; j < V; j++) sum += share[j] * (row.log_sum - (v[j] - row.top));
  }
  sum = block_sum(sum, shared);
  if (threadIdx.x == 0) *loss = sum;
}

template <int V>
DEV void soft_backward(const float* x, const float* t, int classes, float scale, float* dx, bool accumulate) {
  __shared__ float shared[32];
  Row row = statistics<V>(x, classes);
  float whole = 0;
  for (int i = threadIdx.x; i < classes; i += blockDim.x) whole += t[i];
  whole = block_sum(whole, shared);
  for (int i = threadIdx.x * V; i < classes; i += blockDim.x * V) {
    float v[V], share[V], d[V] = {};
    columns::load<V>(v, x + i); columns::load<V>(share, t + i);
    if (accumulate) columns::load<V>(d, dx + i);
    #pragma unroll
    for (int j = 0; j < V; j++) d[j] += scale * (whole * expf(v[j] - row.top - row.log_sum) - share[j]);
    columns::store<V>(dx + i, d);
  }
}
}  // namespace softmax_cross_entropy

// Grid rows, 32 or 128 threads.
KERNEL void __launch_bounds__(128)
softmax_cross_entropy_forward(const float* logits, const int* labels, int classes, float smoothing, int vector,
                              float* loss) {
  using namespace softmax_cross_entropy;
  int row = blockIdx.x, label = labels[row];
  const float* x = logits + (u64)row * classes;
  if (label < 0) { if (threadIdx.x == 0) loss[row] = 0; return; }
  if (vector) forward<4>(x, label, classes, smoothing, loss + row);
  else forward<1>(x, label, classes, smoothing, loss + row);
}

// Grid rows, 32 or 128 threads.
KERNEL void __launch_bounds__(128)
softmax_cross_entropy_backward(const float* logits, const int* labels, int classes, float smoothing, float scale,
                               int vector, float* dlogits, int accumulate) {
  using namespace softmax_cross_entropy;
  int row = blockIdx.x, label = labels[row];
  const float* x = logits + (u64)row * classes;
  float* dx = dlogits + (u64)row * classes;
  if (label < 0) {
    if (!accumulate) for (int i = threadIdx.x; i < classes; i += blockDim.x) dx[i] = 0;
    return;
  }
  if (vector) backward<4>(x, label, classes, smoothing, scale, dx, accumulate);
  else backward<1>(x, label, classes, smoothing, scale, dx, accumulate);
}

// Grid rows, 32 or 128 threads.
KERNEL void __launch_bounds__(128)
softmax_cross_entropy_soft_forward(const float* logits, const float* targets, int classes, int vector, float* loss) {
  using namespace softmax_cross_entropy;
  u64 at = (u64)blockIdx.x * classes;
  if (vector) soft_forward<4>(logits + at, targets + at, classes, loss + blockIdx.x);
  else soft_forward<1>(logits + at, targets + at, classes, loss + blockIdx.x);
}

// Grid rows, 32 or 128 threads.
KERNEL void __launch_bounds__(128)
softmax_cross_entropy_soft_backward(const float* logits, const float* targets, int classes, float scale, int vector,
                                    float* dlogits, int accumulate) {
  using namespace softmax_cross_entropy;
  u64 at = (u64)blockIdx.x * classes;
  if (vector) soft_backward<4>(logits + at, targets + at, classes, scale, dlogits + at, accumulate);
  else soft_backward<1>(logits + at, targets + at, classes, scale, dlogits + at, accumulate);
}
