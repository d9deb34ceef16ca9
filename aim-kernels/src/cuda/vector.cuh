// vector.cuh: bf16 values 16 bytes at a time, and the body of kernels that go over flat arrays.
namespace vec {
constexpr int WIDTH = 8;                         // bf16 values in 16 bytes
constexpr int THREADS = 256;                     // of a block of a flat kernel
constexpr int EACH = 2;                          // vectors that a thread of vec::map has under way
constexpr int SPAN = THREADS * EACH * WIDTH;     // values that a block of vec::map owns

DEV uint4 load(const bf16* p) { return *(const uint4*)p; }
DEV uint4 zero() { return make_uint4(0, 0, 0, 0); }
DEV void unpack(uint4 raw, float (&v)[WIDTH]) {
  v[0] = f32_lo(raw.x); v[1] = f32_hi(raw.x); v[2] = f32_lo(raw.y); v[3] = f32_hi(raw.y);
  v[4] = f32_lo(raw.z); v[5] = f32_hi(raw.z); v[6] = f32_lo(raw.w); v[7] = f32_hi(raw.w);
}
DEV void store(bf16* p, const float (&v)[WIDTH]) {
  *(uint4*)p = make_uint4(pack(v[0], v[1]), pack(v[2], v[3]), pack(v[4], v[5]), pack(v[6], v[7]));
}
// 8 values from 32 aligned bytes, and back.
DEV void load8(const float* p, float (&v)[WIDTH]) {
  float4 a = *(const float4*)p, b = *(const float4*)(p + 4);
  v[0] = a.x; v[1] = a.y; v[2] = a.z; v[3] = a.w; v[4] = b.x; v[5] = b.y; v[6] = b.z; v[7] = b.w;
}
DEV void store8(float* p, const float (&v)[WIDTH]) {
  *(float4*)p = make_float4(v[0], v[1], v[2], v[3]);
  *(float4*)(p + 4) = make_float4(v[4], v[5], v[6], v[7]);
}
// 8 values of a split master: both halves are 16 aligned bytes.
DEV void load_split(const bf16* hi, const i16* lo, float (&v)[WIDTH]) {
  uint4 h = *(const uint4*)hi, l = *(const uint4*)lo;
  const u32 high[4] = {h.x, h.y, h.z, h.w}, low[4] = {l.x, l.y, l.z, l.w};
  #pragma unroll
  for (int i = 0; i < 4; i++) {
    v[2 * i] = join(bf16{(u16)high[i]}, (i16)(u16)low[i]);
    v[2 * i + 1] = join(bf16{(u16)(high[i] >> 16)}, (i16)(u16)(low[i] >> 16));
  }
}

// out[i] = f(in[0][i], in[1][i], ...) for every i below n, where f takes the values as an array. `out` may be one of
// the inputs. Blocks of THREADS threads, each owning SPAN values; wide: all pointers are at 16 bytes. A thread has all
// its loads under way before it computes, which is what it takes to keep the memory busy.
template <int IN, class F> DEV void map(const bf16* const (&in)[IN], bf16* out, u64 n, int wide, F f) {
  u64 first = (u64)blockIdx.x * SPAN;
  if (!wide || first + SPAN > n) {               // the last block, or values that are not aligned
    for (int i = threadIdx.x; i < SPAN && first + i < n; i += THREADS) {
      float v[IN];
      #pragma unroll
      for (int k = 0; k < IN; k++) v[k] = f32(in[k][first + i]);
      out[first + i] = to_bf16(f(v));
    }
    return;
  }
  first += threadIdx.x * WIDTH;
  uint4 raw[EACH][IN];
  #pragma unroll
  for (int j = 0; j < EACH; j++)
    #pragma unroll
    for (int k = 0; k < IN; k++) raw[j][k] = load(in[k] + first + j * THREADS * WIDTH);
  #pragma unroll
  for (int j = 0; j < EACH; j++) {
    float v[IN][WIDTH], y[WIDTH];
    #pragma unroll
    for (int k = 0; k < IN; k++) unpack(raw[j][k], v[k]);
    #pragma unroll
    for (int i = 0; i < WIDTH; i++) {
      float of[IN];
      #pragma unroll
      for (int k = 0; k < IN; k++) of[k] = v[k][i];
      y[i] = f(of);
    }
    store(out + first + j * THREADS * WIDTH, y);
  }
}
}  // namespace vec
