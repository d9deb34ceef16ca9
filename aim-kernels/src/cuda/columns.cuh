// columns.cuh: what kernels that walk down the columns of a matrix share.
//
// Their blocks are 8 warps. A lane owns V neighbouring columns, so that a warp reads 32 V
// of them, whole lines of memory, with 16 bytes a lane: V is 8 of bf16 and 4 of f32, and 1 where a row's length is no
// multiple of that or an address is not aligned. Block b works on tile b % tiles of the columns and on part b / tiles
// of the rows, its warp w on rows w, w + 8, ... of the part. So the order in which a column is summed depends on the
// numbers of rows and columns, not on V: the same bits on every path.
namespace columns {
constexpr int WARPS = 8, THREADS = 32 * WARPS;

template <int V> DEV void load(float (&v)[V], const float* p) {
  if constexpr (V == 4) {
    const float4 u = *(const float4*)p;
    v[0] = u.x; v[1] = u.y; v[2] = u.z; v[3] = u.w;
  } else {
    static_assert(V == 1);
    v[0] = p[0];
  }
}
template <int V> DEV void load(float (&v)[V], const bf16* p) {
  if constexpr (V == 8) {
    const uint4 u = *(const uint4*)p;
    const u32 pairs[4] = {u.x, u.y, u.z, u.w};
    #pragma unroll
    for (int i = 0; i < 4; i++) {
      v[2 * i] = f32_lo(pairs[i]);
      v[2 * i + 1] = f32_hi(pairs[i]);
    }
  } else {
    static_assert(V == 1);
    v[0] = f32(p[0]);
  }
}
template <int V> DEV void store(float* p, const float (&v)[V]) {
  if constexpr (V == 4) {
    *(float4*)p = make_float4(v[0], v[1], v[2], v[3]);
  } else {
    static_assert(V == 1);
    p[0] = v[0];
  }
}
template <int V> DEV void store(bf16* p, const float (&v)[V]) {
  if constexpr (V == 8) {
    *(uint4*)p = make_uint4(pack(v[0], v[1]), pack(v[2], v[3]), pack(v[4], v[5]), pack(v[6], v[7]));
  } else {
    static_assert(V == 1);
    p[0] = to_bf16(v[0]);
  }
}

// Tiles of a matrix with that many columns.
template <int V> DEV int tiles(int columns) { return (columns + 32 * V - 1) / (32 * V); }
// The first of this lane's columns; it may lie outside the matrix.
template <int V> DEV int column(int columns) {
  return ((int)(blockIdx.x % (u32)tiles<V>(columns)) * 32 + (int)(threadIdx.x % 32)) * V;
}
// The part of the rows that this block works on.
template <int V> DEV int part(int columns) { return (int)(blockIdx.x / (u32)tiles<V>(columns)); }

// Where value j of a lane lies among a warp's sums: neighbouring columns, which are read together, in different banks.
template <int V> DEV int slot(int lane, int j) { return j * (32 + 32 / V) + lane; }
// Sums of each warp: one array for all folds of a width.
template <int V> DEV float (&warp_sums())[WARPS][V * (32 + 32 / V)] {
  __shared__ float sums[WARPS][V * (32 + 32 / V)];
  return sums;
}
// Adds up what the 8 warps summed, in order, and gives out(c, total) for each of the block's 32 V columns.
template <int V, class F> DEV void fold_warps(const float (&sum)[V], F out) {
  auto& part = warp_sums<V>();
  int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  #pragma unroll
  for (int j = 0; j < V; j++) part[warp][slot<V>(lane, j)] = sum[j];
  __syncthreads();
  for (int c = threadIdx.x; c < 32 * V; c += THREADS) {
    float total = 0;
    #pragma unroll
    for (int w = 0; w < WARPS; w++) total += part[w][slot<V>(c / V, c % V)];
    out(c, total);
  }
  __syncthreads();  // before another fold writes here
}
}  // namespace columns
