// Rows picked by index, and their gradient back. `width` is the number of 16-byte vectors of a row (wide) or of its
// values. No atomics and nothing set to zero beforehand: each source row finds its picks by itself.
namespace gather_rows {
constexpr int SPAN = 16;                         // source rows of a block of the backward kernel

template <class T> DEV void pick(const T* x, const int* index, T* y, int rows, int width, int span) {
  for (int i = threadIdx.x; i < span * width; i += blockDim.x) {
    u64 row = (u64)blockIdx.x * span + i / width;
    int c = i % width;
    if (row < (u64)rows) y[row * width + c] = x[(u64)index[row] * width + c];
  }
}

// The first r with index[r] >= source.
DEV int first_pick(const int* index, int rows, int source) {
  int low = 0, high = rows;
  while (low < high) {
    int middle = low + (high - low) / 2;
    if (index[middle] < source) low = middle + 1; else high = middle;
  }
  return low;
}
}  // namespace gather_rows

// y[r] = x[index[r]]. Grid: rows / span, rounded up; block: any.
KERNEL __launch_bounds__(256) void gather_rows_forward(
    const bf16* x, const int* index, bf16* y, int rows, int width, int span, int wide) {
  if (wide) gather_rows::pick((const uint4*)x, index, (uint4*)y, rows, width, span);
  else gather_rows::pick(x, index, y, rows, width, span);
}

// dx[s] = or += the sum of the dy[r] with index[r] == s, in order of r; the index is ascending.
// Grid: sources / 16, rounded up; block: any from 32 on.
KERNEL __launch_bounds__(256) void gather_rows_backward(
    const bf16* dy, const int* index, bf16* dx, int sources, int rows, int width, int accumulate, int wide) {
  __shared__ int picks[gather_rows::SPAN + 1];
  u64 first = (u64)blockIdx.x * gather_rows::SPAN;
  if (threadIdx.x <= gather_rows::SPAN)
    picks[threadIdx.x] = gather_rows::first_pick(index, rows, (int)(first + threadIdx.x));
  __syncthreads();
  for (int i = threadIdx.x; i < gather_rows::SPAN * width; i += blockDim.x) {
    int local = i / width, c = i % width, begin = picks[local], end = picks[local + 1];
    if (first + local >= (u64)sources) return;
    if (accumulate && begin == end) continue;
    u64 here = (first + local) * width + c;
    if (wide) {
      float sum[8], v[8];
      vec::unpack(accumulate ? vec::load(dx + here * 8) : vec::zero(), sum);
      for (int r = begin; r < end; r++) {
        vec::unpack(vec::load(dy + ((u64)r * width + c) * 8), v);
        #pragma unroll
        for (int j = 0; j < 8; j++) sum[j] += v[j];
      }
      vec::store(dx + here * 8, sum);
    } else {
      float sum = accumulate ? f32(dx[here]) : 0.f;
      for (int r = begin; r < end; r++) sum += f32(dy[(u64)r * width + c]);
      dx[here] = to_bf16(sum);
    }
  }
}
