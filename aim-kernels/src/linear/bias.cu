// A linear layer's bias where the matrix product cannot add it, and its gradient (columns.cuh says how blocks walk).
namespace bias {
constexpr int ROWS = 32;                                // of a block of add

template <int V, class T> DEV void add(T* y, const bf16* hi, const i16* lo, int rows, int outputs) {
  int column = columns::column<V>(outputs), first = columns::part<V>(outputs) * ROWS;
  if (column >= outputs) return;
  float b[V];
  #pragma unroll
  for (int j = 0; j < V; j++) b[j] = join(hi[column + j], lo[column + j]);
  #pragma unroll
  for (int i = 0; i < ROWS; i += columns::WARPS) {
    int row = first + i + threadIdx.x / 32;
    if (row >= rows) return;
    T* p = y + (u64)row * outputs + column;
    float v[V];
    columns::load<V>(v, p);
    #pragma unroll
    for (int j = 0; j < V; j++) v[j] += b[j];
    columns::store<V>(p, v);
  }
}

template <int V, class T>
DEV void sum_rows(const T* dy, u64 stride, int rows, int outputs, int part_rows, float* partial) {
  int column = columns::column<V>(outputs), part = columns::part<V>(outputs), first = part * part_rows;
  int end = first + part_rows < rows ? first + part_rows : rows;
  float sum[V] = {};
  if (column < outputs)
    #pragma unroll 4
    for (int row = first + threadIdx.x / 32; row < end; row += columns::WARPS) {
      float v[V];
      columns::load<V>(v, dy + row * stride + column);
      #pragma unroll
      for (int j = 0; j < V; j++) sum[j] += v[j];
    }
  int tile = column - threadIdx.x % 32 * V;
  columns::fold_warps<V>(sum, [&](int c, float total) {
    if (tile + c < outputs) partial[(u64)part * outputs + tile + c] = total;
  });
}
}  // namespace bias

// y += bias. Grid tiles * ceil(rows / 32), 256 threads.
KERNEL void __launch_bounds__(256)
bias_add_bf16(bf16* y, const bf16* hi, const i16* lo, int rows, int outputs, int vector) {
  if (vector) bias::add<8>(y, hi, lo, rows, outputs); else bias::add<1>(y, hi, lo, rows, outputs);
}
KERNEL void __launch_bounds__(256)
bias_add_f32(float* y, const bf16* hi, const i16* lo, int rows, int outputs, int vector) {
  if (vector) bias::add<4>(y, hi, lo, rows, outputs); else bias::add<1>(y, hi, lo, rows, outputs);
}

// First stage of dbias: sums over each part of the rows, partial [parts, outputs]. Grid tiles * parts, 256 threads.
KERNEL void __launch_bounds__(256)
bias_backward_bf16(const bf16* dy, u64 stride, int rows, int outputs, int part_rows, int vector, float* partial) {
  if (vector) bias::sum_rows<8>(dy, stride, rows, outputs, part_rows, partial);
  else bias::sum_rows<1>(dy, stride, rows, outputs, part_rows, partial);
}
KERNEL void __launch_bounds__(256)
bias_backward_f32(const float* dy, u64 stride, int rows, int outputs, int part_rows, int vector, float* partial) {
  if (vector) bias::sum_rows<4>(dy, stride, rows, outputs, part_rows, partial);
  else bias::sum_rows<1>(dy, stride, rows, outputs, part_rows, partial);
}

// Second stage: dbias += the parts. Grid ceil(outputs / 32), 256 threads.
KERNEL void __launch_bounds__(256) bias_backward_sum(const float* partial, int parts, int outputs, float* dbias) {
  int column = columns::column<1>(outputs);
  float sum[1] = {};
  if (column < outputs)
    #pragma unroll 4
    for (int part = threadIdx.x / 32; part < parts; part += columns::WARPS)
      sum[0] += partial[(u64)part * outputs + column];
  int tile = column - threadIdx.x % 32;
  columns::fold_warps<1>(sum, [&](int c, float total) {
    if (tile + c < outputs) dbias[tile + c] += total;
  });
}
