// Batch normalisation without weight and bias, f32 (columns.cuh says how blocks walk).
//
// Training takes two passes for the statistics: sums of differences from the first row give a mean, sums of differences
// from that mean and of their squares give the variance and put the mean's last digits right. So neither a large mean
// nor many rows lose digits. Each sum is f32 within a part of the rows and f64 over the parts: partial [parts, 2, dim].
// All kernels have 256 threads; those over x have a grid of tiles * parts, those over partial of ceil(dim / 32).
namespace batch_norm {
struct Rows { int first, end; };
DEV Rows rows_of(int part, int part_rows, int rows) {
  int first = part * part_rows;
  return {first + (int)threadIdx.x / 32, first + part_rows < rows ? first + part_rows : rows};
}

// Sums over this block's part of two values of each element; f(place, a, b) adds those of the V elements from place on.
template <int V, class F> DEV void sums(int rows, int dim, int part_rows, float* partial, F f) {
  int column = columns::column<V>(dim), part = columns::part<V>(dim);
  Rows r = rows_of(part, part_rows, rows);
  float a[V] = {}, b[V] = {};
  if (column < dim)
    for (int row = r.first; row < r.end; row += columns::WARPS) f((u64)row * dim + column, a, b);
  int tile = column - threadIdx.x % 32 * V;
  float* out = partial + (u64)part * 2 * dim + tile;
  columns::fold_warps<V>(a, [&](int c, float total) { if (tile + c < dim) out[c] = total; });
  columns::fold_warps<V>(b, [&](int c, float total) { if (tile + c < dim) out[dim + c] = total; });
}

template <int V> DEV void shifts(const float* x, int rows, int dim, int part_rows, float* partial) {
  int column = columns::column<V>(dim);
  float origin[V] = {};
  if (column < dim) columns::load<V>(origin, x + column);
  sums<V>(rows, dim, part_rows, partial, [&](u64 at, float (&a)[V], float (&)[V]) {
    float v[V];
    columns::load<V>(v, x + at);
    #pragma unroll
    for (int j = 0; j < V; j++) a[j] += v[j] - origin[j];
  });
}

// V values of a vector over the columns, which need not be aligned.
template <int V> DEV void load_columns(float (&v)[V], const float* p, int column, int dim) {
  #pragma unroll
  for (int j = 0; j < V; j++) v[j] = column + j < dim ? p[column + j] : 0.0f;
}

template <int V> DEV void squares(const float* x, const float* mean, int rows, int dim, int part_rows, float* partial) {
  float center[V];
  load_columns<V>(center, mean, columns::column<V>(dim), dim);
  sums<V>(rows, dim, part_rows, partial, [&](u64 at, float (&a)[V], float (&b)[V]) {
    float v[V];
    columns::load<V>(v, x + at);
    #pragma unroll
    for (int j = 0; j < V; j++) { float d = v[j] - center[j]; a[j] += d; b[j] += d * d; }
  });
}

template <int V>
DEV void gradients(const float* x, const float* mean, const float* rstd, const float* dy, int rows, int dim,
                   int part_rows, float* partial) {
  float center[V], scale[V];
  load_columns<V>(center, mean, columns::column<V>(dim), dim);
  load_columns<V>(scale, rstd, columns::column<V>(dim), dim);
  sums<V>(rows, dim, part_rows, partial, [&](u64 at, float (&a)[V], float (&b)[V]) {
    float v[V], d[V];
    columns::load<V>(v, x + at); columns::load<V>(d, dy + at);
    #pragma unroll
    for (int j = 0; j < V; j++) { a[j] += d[j]; b[j] += d[j] * ((v[j] - center[j]) * scale[j]); }
  });
}

// The two sums of each column over all parts, divided by the number of rows: out(column, a, b).
template <class F> DEV void means(const float* partial, int parts, int rows, int dim, F out) {
  __shared__ double part[2][columns::WARPS][32];
  int lane = threadIdx.x % 32, warp = threadIdx.x / 32, column = columns::column<1>(dim);
  double a = 0, b = 0;
  if (column < dim)
    for (int p = warp; p < parts; p += columns::WARPS) {
      a += partial[(u64)p * 2 * dim + column];
      b += partial[((u64)p * 2 + 1) * dim + column];
    }
  part[0][warp][lane] = a; part[1][warp][lane] = b;
  __syncthreads();
  if (warp || column >= dim) return;
  a = b = 0;
  for (int w = 0; w < columns::WARPS; w++) { a += part[0][w][lane]; b += part[1][w][lane]; }
  out(column, a / rows, b / rows);
}

// y = f(x, column's values) over this block's part.
template <int V, class F> DEV void apply(int rows, int dim, int part_rows, F f) {
  if (columns::column<V>(dim) >= dim) return;
  Rows r = rows_of(columns::part<V>(dim), part_rows, rows);
  for (int row = r.first; row < r.end; row += columns::WARPS) f((u64)row * dim + columns::column<V>(dim));
}

template <int V>
DEV void normalize(const float* x, const float* mean, const float* rstd, int rows, int dim, int part_rows, float* y) {
  float center[V], scale[V];
  load_columns<V>(center, mean, columns::column<V>(dim), dim);
  load_columns<V>(scale, rstd, columns::column<V>(dim), dim);
  apply<V>(rows, dim, part_rows, [&](u64 at) {
    float v[V];
    columns::load<V>(v, x + at);
    #pragma unroll
    for (int j = 0; j < V; j++) v[j] = (v[j] - center[j]) * scale[j];
    columns::store<V>(y + at, v);
  });
}

template <int V>
DEV void evaluate(const float* x, const float* mean, const float* var, float eps, int rows, int dim, int part_rows,
                  float* y) {
  float center[V], std[V];
  load_columns<V>(center, mean, columns::column<V>(dim), dim);
  load_columns<V>(std, var, columns::column<V>(dim), dim);
  #pragma unroll
  for (int j = 0; j < V; j++) std[j] = sqrtf(std[j] + eps);
  apply<V>(rows, dim, part_rows, [&](u64 at) {
    float v[V];
    columns::load<V>(v, x + at);
    #pragma unroll
    for (int j = 0; j < V; j++) v[j] = (v[j] - center[j]) / std[j];
    columns::store<V>(y + at, v);
  });
}

template <int V>
DEV void backward(const float* x, const float* mean, const float* rstd, const float* dy, const float* means, int rows,
                  int dim, int part_rows, float* dx, bool accumulate) {
  int column = columns::column<V>(dim);
  float center[V], scale[V], mean_dy[V], mean_dy_x[V];
  load_columns<V>(center, mean, column, dim);
  load_columns<V>(scale, rstd, column, dim);
  load_columns<V>(mean_dy, means, column, dim);
  load_columns<V>(mean_dy_x, means + dim, column, dim);
  apply<V>(rows, dim, part_rows, [&](u64 at) {
    float v[V], d[V], old[V] = {};
    columns::load<V>(v, x + at); columns::load<V>(d, dy + at);
    if (accumulate) columns::load<V>(old, dx + at);
    #pragma unroll
    for (int j = 0; j < V; j++)
      old[j] += scale[j] * fmaf((v[j] - center[j]) * scale[j], -mean_dy_x[j], d[j] - mean_dy[j]);
    columns::store<V>(dx + at, old);
  });
}
}  // namespace batch_norm

KERNEL void __launch_bounds__(256)
batch_norm_shifts(const float* x, int rows, int dim, int part_rows, int vector, float* partial) {
  if (vector) batch_norm::shifts<4>(x, rows, dim, part_rows, partial);
  else batch_norm::shifts<1>(x, rows, dim, part_rows, partial);
}
KERNEL void __launch_bounds__(256)
batch_norm_mean(const float* x, const float* partial, int parts, int rows, int dim, float* mean) {
  batch_norm::means(partial, parts, rows, dim, [&](int column, double shift, double) {
    mean[column] = (float)(x[column] + shift);
  });
}
KERNEL void __launch_bounds__(256)
batch_norm_squares(const float* x, const float* mean, int rows, int dim, int part_rows, int vector, float* partial) {
  if (vector) batch_norm::squares<4>(x, mean, rows, dim, part_rows, partial);
  else batch_norm::squares<1>(x, mean, rows, dim, part_rows, partial);
}
KERNEL void __launch_bounds__(256)
batch_norm_rstd(const float* partial, int parts, int rows, int dim, float eps, float* mean, float* rstd) {
  batch_norm::means(partial, parts, rows, dim, [&](int column, double shift, double square) {
    mean[column] = (float)(mean[column] + shift);
    rstd[column] = 1.0f / sqrtf((float)(square - shift * shift) + eps);
  });
}
KERNEL void __launch_bounds__(256)
batch_norm_normalize(const float* x, const float* mean, const float* rstd, int rows, int dim, int part_rows, int vector,
                     float* y) {
  if (vector) batch_norm::normalize<4>(x, mean, rstd, rows, dim, part_rows, y);
  else batch_norm::normalize<1>(x, mean, rstd, rows, dim, part_rows, y);
}
KERNEL void __launch_bounds__(256)
batch_norm_evaluate(const float* x, const float* mean, const float* var, float eps, int rows, int dim, int part_rows,
                    int vector, float* y) {
  if (vector) batch_norm::evaluate<4>(x, mean, var, eps, rows, dim, part_rows, y);
  else batch_norm::evaluate<1>(x, mean, var, eps, rows, dim, part_rows, y);
}
KERNEL void __launch_bounds__(256)
batch_norm_gradients(const float* x, const float* mean, const float* rstd, const float* dy, int rows, int dim,
                     int part_rows, int vector, float* partial) {
  if (vector) batch_norm::gradients<4>(x, mean, rstd, dy, rows, dim, part_rows, partial);
  else batch_norm::gradients<1>(x, mean, rstd, dy, rows, dim, part_rows, partial);
}
KERNEL void __launch_bounds__(256)
batch_norm_gradient_means(const float* partial, int parts, int rows, int dim, float* means) {
  batch_norm::means(partial, parts, rows, dim, [&](int column, double dy, double dy_x) {
    means[column] = (float)dy; means[dim + column] = (float)dy_x;
  });
}
KERNEL void __launch_bounds__(256)
batch_norm_backward(const float* x, const float* mean, const float* rstd, const float* dy, const float* means, int rows,
                    int dim, int part_rows, int vector, float* dx, int accumulate) {
  if (vector) batch_norm::backward<4>(x, mean, rstd, dy, means, rows, dim, part_rows, dx, accumulate);
  else batch_norm::backward<1>(x, mean, rstd, dy, means, rows, dim, part_rows, dx, accumulate);
}
