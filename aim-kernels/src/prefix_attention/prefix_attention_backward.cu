// Prefix-causal attention on packed qkv, backward: the formulas and layouts are in mod.rs, the reasons for the shape of
// the kernels in prefix_attention.cuh.
//
//   prefix_attention_backward_q_D    dQ, delta     a block has 128 queries of one head and walks over the keys
//   prefix_attention_backward_kv_D   dK, dV        a block has 64 keys of one head and walks over the queries
//
// D, the head dimension, is 64 or 128; delta is what mod.rs calls D, [batch, heads, tokens]. The first kernel makes it
// for the second. Grid: (tiles of a head, heads, images); block: 128 threads, four warps; dynamic shared memory:
// BACKWARD_Q_SHARED and BACKWARD_KV_SHARED.
namespace prefix_attention {

// ---- queries --------------------------------------------------------------------------------------------------

// A step is 32 keys, so that 32 rows of scores and of dP fit beside 32 rows of dQ: 64 KiB of Q and dO, 32 of K and V.
constexpr int BACKWARD_KEYS = 32;
template <int D> constexpr int BACKWARD_Q_SHARED = (2 * ROWS + 4 * BACKWARD_KEYS) * 2 * D + PLACE_BYTES;

// A lane's share of the warp's rows of O: of rows lane / 4 + 8 r every fourth chunk. Odd rows take the chunks in
// another order, or their part of dO would lie in the banks of the row before.
template <int D> DEV int share(int c, int lane) { return (c * 4 + lane % 4) ^ (lane / 4 % 2 * 4); }

DEV float dot2(u32 x, u32 y) { return f32_lo(x) * f32_lo(y) + f32_hi(x) * f32_hi(y); }
// delta of the lane's rows: O as it was shared out, times the same part of the warp's rows of dO.
template <int D, int M>
DEV void row_dots(float (&dot)[M][2], const uint4 (&o)[2 * M][D / 32], const unsigned char* own_dout, int lane) {
  #pragma unroll
  for (int r = 0; r < 2 * M; r++) {
    float d = 0;
    #pragma unroll
    for (int c = 0; c < D / 32; c++) {
      uint4 x = o[r][c], y = *(const uint4*)(own_dout + chunk_at<D>(lane / 4 + r * 8, share<D>(c, lane)));
      d += dot2(x.x, y.x) + dot2(x.y, y.y) + dot2(x.z, y.z) + dot2(x.w, y.w);
    }
    d += shfl_xor(d, 1);
    d += shfl_xor(d, 2);
    dot[r / 2][r % 2] = d;
  }
}

// One step: dQ += dS K for the warp's rows, with dS 32 keys wide. `q`, `d_out`, `k` and `v` are the offsets of
// rows.
template <int D, int M>
DEV void add_keys(float (&dq)[M][D / 8][4], const float (&minus_lse)[M][2], const float (&dot)[M][2],
                  const unsigned char* smem, u32 q, u32 d_out, u32 k, u32 v, Step step, float scale_log2,
                  int lane) {
  constexpr int KEYS = BACKWARD_KEYS;
  u32 la = lane_a<D>(lane), lb = lane_b<D>(lane);
  float s[M][KEYS / 8][4], dp[M][KEYS / 8][4];
  multiply_rows<D, M, KEYS / 16>(s, smem, q + la, k + lb);
  if (!step.full(KEYS)) hide(s, step, lane);
  multiply_rows<D, M, KEYS / 16>(dp, smem, d_out + la, v + lb);
  #pragma unroll
  for (int c = 0; c < KEYS / 16; c++) {
    u32 ds[M][4];
    #pragma unroll
    for (int m = 0; m < M; m++) {
      #pragma unroll
      for (int n = 2 * c; n < 2 * c + 2; n++)
        #pragma unroll
        for (int i = 0; i < 4; i++)
          s[m][n][i] = ex2(s[m][n][i] * scale_log2 + minus_lse[m][i / 2]) * (dp[m][n][i] - dot[m][i / 2]);
      round_columns(ds[m], s[m][2 * c], s[m][2 * c + 1]);
    }
    add_product<D, M>(dq, ds, smem, k + c * 32 * D + la);
  }
}

template <int D>
DEV void backward_q(const bf16* qkv, const int* prefix, const bf16* out, const float* lse, const bf16* dout, bf16* dqkv,
                    float* delta, int tokens, u64 qkv_step, u64 out_step, float scale, float scale_log2) {
  DYN_SMEM(smem);
  constexpr int M = PIECES, KEYS = BACKWARD_KEYS, TILE = KEYS * 2 * D, R = 2 * M;
  Place at = place<D>(tokens), *kept = (Place*)(smem + BACKWARD_Q_SHARED<D> - PLACE_BYTES);
  if (threadIdx.x == 0) *kept = at;
  int warp = place_of_warp();
  int lane = threadIdx.x % 32, q0 = (gridDim.x - 1 - blockIdx.x) * ROWS, row0 = q0 + warp * 16 * M;
  u32 own = warp * 32 * M * D, own_dout = own + ROWS * 2 * D, stages = 2 * ROWS * 2 * D, half = 0;
  const bf16 *q = my_chunk<D>(qkv + at.qkv + q0 * at.stride, at.stride);
  const bf16 *k = my_chunk<D>(qkv + at.qkv + at.width, at.stride), *v = k + at.width;
  const bf16* d_out = my_chunk<D>(dout + at.out + q0 * at.width, at.width);

  load_tile<D, ROWS>(smem + ROWS * 2 * D, d_out, out_step, tokens - q0, dout);
  load_tile<D, ROWS>(smem, q, qkv_step, tokens - q0, qkv);
  load_tile<D, KEYS>(smem + stages, k, qkv_step, tokens, qkv);
  load_tile<D, KEYS>(smem + stages + TILE, v, qkv_step, tokens, qkv);
  cp_async_commit();

  // delta = sum over the head of dO O, with O straight from memory while the copies are under way.
  int row = row0 + lane / 4;
  uint4 o[R][D / 32];
  float minus_lse[M][2], dot[M][2];
  #pragma unroll
  for (int r = 0; r < R; r++) {
    bool valid = row + r * 8 < tokens;
    #pragma unroll
    for (int c = 0; c < D / 32; c++) {
      o[r][c] = uint4{0, 0, 0, 0};
      if (valid) o[r][c] = *(const uint4*)(out + at.out + (row + r * 8) * at.width + share<D>(c, lane) * 8);
    }
    minus_lse[r / 2][r % 2] = valid ? lse[at.stat + row + r * 8] * -LOG2E : 0;
  }
  int seen = prefix_of_image(prefix);
  cp_async_wait<0>();
  __syncthreads();
  row_dots<D, M>(dot, o, smem + own_dout, lane);
  #pragma unroll
  for (int r = 0; r < R; r++)
    if (lane % 4 == 0 && row + r * 8 < tokens) delta[at.stat + row + r * 8] = dot[r / 2][r % 2];

  float dq[M][D / 8][4] = {};
  for (int k0 = 0; !Step{q0 - k0, seen - k0, tokens - k0}.empty(ROWS); k0 += KEYS, half ^= 2 * TILE) {
    if (k0 > 0) {
      cp_async_wait<0>();
      __syncthreads();
    }
    int next = k0 + KEYS;
    if (!Step{q0 - next, seen - next, tokens - next}.empty(ROWS)) {
      unsigned char* other = smem + stages + (half ^ 2 * TILE);
      load_tile<D, KEYS>(other, k, qkv_step, tokens - next, qkv);
      load_tile<D, KEYS>(other + TILE, v, qkv_step, tokens - next, qkv);
      cp_async_commit();
    }
    Step step{row0 - k0, seen - k0, tokens - k0};
    if (step.empty(16 * M)) continue;
    u32 keys = stages + half;
    add_keys<D, M>(dq, minus_lse, dot, smem, own, own_dout, keys, keys + TILE, step, scale_log2, lane);
  }
  // Worked out again, or it would take registers during the walk, as `at` would.
  warp = place_of_warp(), row0 = q0 + warp * 16 * M, own = warp * 32 * M * D;
  if (row0 >= tokens) return;
  at = *kept;
  const float by[M][2] = {{scale, scale}, {scale, scale}};
  store_rows<D, M>(dqkv + at.qkv + row0 * at.stride, at.stride, tokens - row0, dq, by, smem + own, lane);
}

// ---- keys and values ------------------------------------------------------------------------------------------

// A step is 64 queries, in quarters of 16: Q and dO, and of each query lse and delta, all in two halves.
constexpr int COLUMNS = 64, QUERIES = 64;
template <int D> constexpr int BACKWARD_KV_SHARED = 4 * QUERIES * 2 * D + 4 * QUERIES * 4 + PLACE_BYTES;
struct alignas(8) Pair {
  float x, y;
};

// One quarter of a step: dV += P^T dO and dK += dS^T Q for the warp's 16 keys, with P^T and dS^T 16 queries wide. `q`
// and `d_out` are the offsets of the queries' rows; `key0` and `prefix` count from the first of them.
template <int D>
DEV void add_queries(float (&dk)[1][D / 8][4], float (&dv)[1][D / 8][4], const u32 (&kf)[D / 16][4],
                     const u32 (&vf)[D / 16][4], const unsigned char* smem, u32 q, u32 d_out, const float* stats,
                     int key0, int prefix, float scale_log2, int lane) {
  u32 la = lane_a<D>(lane), lb = lane_b<D>(lane);
  float s[2][4] = {}, dp[2][4] = {};
  #pragma unroll
  for (int i = 0; i < D / 16; i++) {
    int c = nth<D>(i);
    u32 x[4], y[4];
    ldsm_x4(x, address<D>(smem, q + lb, 0, c));
    mma_16816(s[0], kf[c], x[0], x[1]);
    mma_16816(s[1], kf[c], x[2], x[3]);
    ldsm_x4(y, address<D>(smem, d_out + lb, 0, c));
    mma_16816(dp[0], vf[c], y[0], y[1]);
    mma_16816(dp[1], vf[c], y[2], y[3]);
  }
  if (key0 + 15 > 0 && key0 + 15 >= prefix)
    #pragma unroll
    for (int r = 0; r < 2; r++) {
      int key = key0 + r * 8 + lane / 4, from = key < prefix ? 0 : key - lane % 4 * 2;
      #pragma unroll
      for (int n = 0; n < 2; n++)
        #pragma unroll
        for (int e = 0; e < 2; e++)
          if (n * 8 + e < from) s[n][2 * r + e] = -infinity();
    }
  #pragma unroll
  for (int n = 0; n < 2; n++) {
    const Pair* stat = (const Pair*)(stats + n * 8 + lane % 4 * 2);
    Pair minus_lse = stat[0], dot = stat[QUERIES / 2];
    #pragma unroll
    for (int e = 0; e < 4; e++) {
      s[n][e] = ex2(s[n][e] * scale_log2 + (e % 2 ? minus_lse.y : minus_lse.x));
      dp[n][e] = s[n][e] * (dp[n][e] - (e % 2 ? dot.y : dot.x));
    }
  }
  u32 p[1][4], ds[1][4];
  round_columns(p[0], s[0], s[1]);
  round_columns(ds[0], dp[0], dp[1]);
  add_product<D, 1>(dv, p, smem, d_out + la);
  add_product<D, 1>(dk, ds, smem, q + la);
}

template <int D>
DEV void backward_kv(const bf16* qkv, const int* prefix, const float* lse, const bf16* dout, const float* delta,
                     bf16* dqkv, int tokens, u64 qkv_step, u64 out_step, float scale, float scale_log2) {
  DYN_SMEM(smem);
  constexpr int TILE = QUERIES * 2 * D;
  Place at = place<D>(tokens), *kept = (Place*)(smem + BACKWARD_KV_SHARED<D> - PLACE_BYTES);
  if (threadIdx.x == 0) *kept = at;
  int warp = place_of_warp();
  int t = threadIdx.x, lane = t % 32, k0 = blockIdx.x * COLUMNS, key0 = k0 + warp * 16;
  u32 own = warp * 32 * D, half = 0;
  float* stats = (float*)(smem + 4 * TILE);

  // K and V pass through the half that is not yet in use.
  const bf16 *k = my_chunk<D>(qkv + at.qkv + at.width + k0 * at.stride, at.stride), *v = k + at.width;
  load_tile<D, COLUMNS>(smem + 2 * TILE, k, qkv_step, tokens - k0, qkv);
  load_tile<D, COLUMNS>(smem + 3 * TILE, v, qkv_step, tokens - k0, qkv);
  cp_async_commit();
  // Keys beyond the prefix are seen by no earlier query.
  int seen = prefix_of_image(prefix), q0 = k0 < seen ? 0 : k0;
  const bf16* q = my_chunk<D>(qkv + at.qkv + q0 * at.stride, at.stride);
  const bf16* d_out = my_chunk<D>(dout + at.out + q0 * at.width, at.width);
  load_tile<D, QUERIES>(smem, q, qkv_step, tokens - q0, qkv);
  load_tile<D, QUERIES>(smem + TILE, d_out, out_step, tokens - q0, dout);
  cp_async_commit();
  // Half of the threads fetch -lse in powers of two and half delta. Queries past the end have a probability of
  // 2^-inf = 0 everywhere, so no other mask is needed for them; keys past the end are not stored.
  bool second = t >= QUERIES;
  auto fetch = [&](int first) {
    int query = first + t % QUERIES;
    float value = second ? 0 : infinity();
    if (query < tokens) value = (second ? delta : lse)[at.stat + query];
    return second ? value : value * -LOG2E;
  };
  stats[t] = fetch(q0);

  u32 kf[D / 16][4], vf[D / 16][4];
  cp_async_wait<1>();
  __syncthreads();
  #pragma unroll
  for (int c = 0; c < D / 16; c++) {
    ldsm_x4(kf[c], address<D>(smem, own + 2 * TILE + lane_a<D>(lane), 0, c));
    ldsm_x4(vf[c], address<D>(smem, own + 3 * TILE + lane_a<D>(lane), 0, c));
  }

  float dk[1][D / 8][4] = {}, dv[1][D / 8][4] = {};
  for (; q0 < tokens; q0 += QUERIES, half ^= 2 * TILE) {
    cp_async_wait<0>();
    __syncthreads();
    int next = q0 + QUERIES;
    float value = 0;
    if (next < tokens) {
      unsigned char* other = smem + (half ^ 2 * TILE);
      load_tile<D, QUERIES>(other, q, qkv_step, tokens - next, qkv);
      load_tile<D, QUERIES>(other + TILE, d_out, out_step, tokens - next, dout);
      cp_async_commit();
      value = fetch(next);
    }
    // From the first query that sees some of the warp's keys, if it has keys.
    int first = key0 < tokens && key0 < seen ? 0 : key0, here = half / (2 * TILE) * 2 * QUERIES;
    int end = min(QUERIES, tokens - q0);
    for (int i = max(0, first - q0); i < end; i += 16) {
      u32 rows = half + i * 2 * D;
      add_queries<D>(dk, dv, kf, vf, smem, rows, rows + TILE, stats + here + i, key0 - q0 - i, seen - q0 - i,
                     scale_log2, lane);
    }
    if (next < tokens) stats[2 * QUERIES - here + t] = value;
  }
  if (key0 >= tokens) return;
  at = *kept;
  // Nobody reads the half before the last one.
  bf16* to = dqkv + at.qkv + at.width + key0 * at.stride;
  const float by_scale[1][2] = {{scale, scale}}, by_one[1][2] = {{1, 1}};
  store_rows<D, 1>(to, at.stride, tokens - key0, dk, by_scale, smem + own + half, lane);
  store_rows<D, 1>(to + at.width, at.stride, tokens - key0, dv, by_one, smem + own + half + TILE, lane);
}

}  // namespace prefix_attention

// qkv_step, out_step: bytes of STEP rows of qkv and of out. scale: 1 / sqrt(D); scale_log2: that times log2(e).
KERNEL void __launch_bounds__(128, 2) prefix_attention_backward_q_64(
    const bf16* qkv, const int* prefix, const bf16* out, const float* lse, const bf16* dout, bf16* dqkv, float* delta,
    int tokens, u64 qkv_step, u64 out_step, float scale, float scale_log2) {
  prefix_attention::backward_q<64>(qkv, prefix, out, lse, dout, dqkv, delta, tokens, qkv_step, out_step, scale,
                                   scale_log2);
}
KERNEL void __launch_bounds__(128, 3) prefix_attention_backward_kv_64(
    const bf16* qkv, const int* prefix, const float* lse, const bf16* dout, const float* delta, bf16* dqkv, int tokens,
    u64 qkv_step, u64 out_step, float scale, float scale_log2) {
  prefix_attention::backward_kv<64>(qkv, prefix, lse, dout, delta, dqkv, tokens, qkv_step, out_step, scale,
                                    scale_log2);
}
KERNEL void __launch_bounds__(128, 2) prefix_attention_backward_q_128(
    const bf16* qkv, const int* prefix, const bf16* out, const float* lse, const bf16* dout, bf16* dqkv, float* delta,
    int tokens, u64 qkv_step, u64 out_step, float scale, float scale_log2) {
  prefix_attention::backward_q<128>(qkv, prefix, out, lse, dout, dqkv, delta, tokens, qkv_step, out_step, scale,
                                   scale_log2);
}
KERNEL void __launch_bounds__(128, 2) prefix_attention_backward_kv_128(
    const bf16* qkv, const int* prefix, const float* lse, const bf16* dout, const float* delta, bf16* dqkv, int tokens,
    u64 qkv_step, u64 out_step, float scale, float scale_log2) {
  prefix_attention::backward_kv<128>(qkv, prefix, lse, dout, delta, dqkv, tokens, qkv_step, out_step, scale,
                                    scale_log2);
}
