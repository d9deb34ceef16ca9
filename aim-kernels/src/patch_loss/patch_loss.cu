// Squared error of predicted patches. A warp scores one row: it reads the target patch once, takes mean and variance,
// and finds the values again in shared memory in the order of the prediction: value 3 i + c of pred is value
// c * n / 3 + i of the patch. A warp needs no barrier of the block, and its sums cost a fifth of the block's.
// Grid: rows / warps, rounded up; block: any number of warps up to 8; shared memory: n values a warp (staged), or
// nothing for patches that are too large for it and are read again. `wide`: n is a multiple of 4 and all pointers are
// at 16 bytes.
namespace patch_loss {
constexpr float EPS = 1e-6f;

template <int V> DEV void load(const float* p, float (&v)[V]) {
  if constexpr (V == 4) {
    float4 a = *(const float4*)p;
    v[0] = a.x; v[1] = a.y; v[2] = a.z; v[3] = a.w;
  } else v[0] = *p;
}
template <int V> DEV void store(float* p, const float (&v)[V]) {
  if constexpr (V == 4) *(float4*)p = make_float4(v[0], v[1], v[2], v[3]);
  else *p = v[0];
}

// The calling warp's row and its part of shared memory.
struct Place {
  u64 row;
  float* shared;
  DEV Place(unsigned char* memory, int n, int staged) {
    int warp = threadIdx.x / 32;
    row = (u64)blockIdx.x * (blockDim.x / 32) + warp;
    shared = staged ? (float*)memory + warp * n : nullptr;
  }
};

// Calls each(j, error) for V values j, j + 1, ... of the row at a time: error[i] = pred - target.
template <int V, class F>
DEV void score(const float* pred, const float* patch, float* shared, int n, int normalize, F each) {
  int step = 32 * V, own = threadIdx.x % 32 * V;
  float ahead[V] = {}, v[V];
  if (own < n) load<V>(pred + own, ahead);       // under way while the target is looked at
  // From the first value on, the mean of a flat patch is exact and its target is zero: rounding in the mean would
  // otherwise be blown up by 1 / sqrt(EPS).
  float from = patch[0], sum = 0, square = 0, mean = 0, rstd = 1;
  for (int j = own; j < n; j += step) {
    load<V>(patch + j, v);
    if (shared) store<V>(shared + j, v);
    #pragma unroll
    for (int i = 0; i < V; i++) sum += v[i] - from;
  }
  if (normalize) {
    mean = from + warp_sum(sum) / n;
    const float* values = shared ? shared : patch;
    for (int j = own; j < n; j += step) {        // a lane reads what it wrote
      load<V>(values + j, v);
      #pragma unroll
      for (int i = 0; i < V; i++) square = fmaf(v[i] - mean, v[i] - mean, square);
    }
    rstd = 1.f / sqrtf(warp_sum(square) / (n - 1) + EPS);
  }
  __syncwarp();
  const float* values = shared ? shared : patch;
  int area = n / 3;
  for (int j = own; j < n; j += step) {
    if (j == own)
      #pragma unroll
      for (int i = 0; i < V; i++) v[i] = ahead[i];
    else load<V>(pred + j, v);
    #pragma unroll
    for (int i = 0; i < V; i++) v[i] -= (values[(j + i) % 3 * area + (j + i) / 3] - mean) * rstd;
    each(j, v);
  }
}

template <int V>
DEV void forward(const float* pred, const float* patch, float* shared, float* loss, int n, int normalize) {
  float sum = 0;
  score<V>(pred, patch, shared, n, normalize, [&](int, const float (&error)[V]) {
    #pragma unroll
    for (int i = 0; i < V; i++) sum = fmaf(error[i], error[i], sum);
  });
  sum = warp_sum(sum);
  if (threadIdx.x % 32 == 0) *loss = sum / n;
}

template <int V>
DEV void backward(const float* pred, const float* patch, float* shared, float scale, float* dpred, int n,
                  int normalize) {
  scale = 2.f * scale / n;
  score<V>(pred, patch, shared, n, normalize, [&](int j, float (&error)[V]) {
    #pragma unroll
    for (int i = 0; i < V; i++) error[i] *= scale;
    store<V>(dpred + j, error);
  });
}
}  // namespace patch_loss

// loss[r] = sum (pred - target)^2 / n
KERNEL __launch_bounds__(256) void patch_loss_forward(
    const float* pred, const float* patches, const int* targets, float* loss, int rows, int n, int normalize,
    int staged, int wide) {
  DYN_SMEM(memory);
  patch_loss::Place at(memory, n, staged);
  if (at.row >= (u64)rows) return;
  const float* patch = patches + (u64)targets[at.row] * n;
  pred += at.row * n;
  if (wide) patch_loss::forward<4>(pred, patch, at.shared, loss + at.row, n, normalize);
  else patch_loss::forward<1>(pred, patch, at.shared, loss + at.row, n, normalize);
}

// dpred = scale * 2 / n * (pred - target)
KERNEL __launch_bounds__(256) void patch_loss_backward(
    const float* pred, const float* patches, const int* targets, float scale, float* dpred, int rows, int n,
    int normalize, int staged, int wide) {
  DYN_SMEM(memory);
  patch_loss::Place at(memory, n, staged);
  if (at.row >= (u64)rows) return;
  const float* patch = patches + (u64)targets[at.row] * n;
  pred += at.row * n;
  dpred += at.row * n;
  if (wide) patch_loss::backward<4>(pred, patch, at.shared, scale, dpred, n, normalize);
  else patch_loss::backward<1>(pred, patch, at.shared, scale, dpred, n, normalize);
}
