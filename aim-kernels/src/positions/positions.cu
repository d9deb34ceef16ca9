// Position vectors added to rows: y[r] = x[r] + table[index[r]], in f32, rounded once.
// Grid: rows / span, rounded up; block: any. `width`: vectors of 8 values in a row (wide), or its values.
KERNEL __launch_bounds__(256) void positions_forward(
    const bf16* x, const float* table, const int* index, bf16* y, int rows, int width, int span, int wide) {
  for (int i = threadIdx.x; i < span * width; i += blockDim.x) {
    u64 row = (u64)blockIdx.x * span + i / width;
    int c = i % width;
    if (row >= (u64)rows) return;
    u64 here = row * width + c, there = (u64)index[row] * width + c;
    if (wide) {
      float v[8], add[8];
      vec::unpack(vec::load(x + here * 8), v);
      vec::load8(table + there * 8, add);
      #pragma unroll
      for (int j = 0; j < 8; j++) v[j] += add[j];
      vec::store(y + here * 8, v);
    } else {
      y[here] = to_bf16(f32(x[here]) + table[there]);
    }
  }
}
