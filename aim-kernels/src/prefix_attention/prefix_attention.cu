// Prefix-causal attention on packed qkv, forward: the formulas and layouts are in mod.rs, the reasons for the shape of
// the kernels in prefix_attention.cuh.
//
//   prefix_attention_forward_D       out, lse      a block has 128 queries of one head and walks over the keys
//
// D, the head dimension, is 64 or 128. Grid: (tiles of a head, heads, images); block: 128 threads, four warps; dynamic
// shared memory: FORWARD_SHARED.
namespace prefix_attention {

// A step is 64 keys: 32 KiB of Q and 64 KiB of K and V in two halves at D = 128.
constexpr int FORWARD_KEYS = 64;
template <int D> constexpr int FORWARD_SHARED = (ROWS + 4 * FORWARD_KEYS) * 2 * D + PLACE_BYTES;

// One step of the online softmax: s becomes 2^(scale s - top), what was summed so far is scaled to the new top. Row by
// row the shuffles would wait for each other, so each stage is done for all rows.
template <int D, int M>
DEV void soften(float (&s)[M][FORWARD_KEYS / 8][4], float (&sum)[M][D / 8][4], float (&top)[M][2], float (&total)[M][2],
                float scale_log2, bool first) {
  float most[M][2], fix[M][2];
  #pragma unroll
  for (int m = 0; m < M; m++)
    #pragma unroll
    for (int r = 0; r < 2; r++) {
      most[m][r] = s[m][0][2 * r];
      #pragma unroll
      for (int n = 0; n < FORWARD_KEYS / 8; n++)
        most[m][r] = fmaxf(most[m][r], fmaxf(s[m][n][2 * r], s[m][n][2 * r + 1]));
    }
  #pragma unroll
  for (int lanes = 1; lanes < 4; lanes *= 2)
    #pragma unroll
    for (int m = 0; m < M; m++)
      #pragma unroll
      for (int r = 0; r < 2; r++) most[m][r] = fmaxf(most[m][r], shfl_xor(most[m][r], lanes));
  #pragma unroll
  for (int m = 0; m < M; m++)
    #pragma unroll
    for (int r = 0; r < 2; r++) {
      // Every row sees key 0, which is in the first step, so the top is finite from then on.
      most[m][r] = fmaxf(top[m][r], most[m][r] * scale_log2);
      fix[m][r] = ex2(top[m][r] - most[m][r]);
      total[m][r] *= fix[m][r];
      top[m][r] = most[m][r];
    }
  if (!first)
    #pragma unroll
    for (int m = 0; m < M; m++)
      #pragma unroll
      for (int n = 0; n < D / 8; n++)
        #pragma unroll
        for (int i = 0; i < 4; i++) sum[m][n][i] *= fix[m][i / 2];
  #pragma unroll
  for (int m = 0; m < M; m++)
    #pragma unroll
    for (int n = 0; n < FORWARD_KEYS / 8; n++)
      #pragma unroll
      for (int i = 0; i < 4; i++) {
        s[m][n][i] = ex2(s[m][n][i] * scale_log2 - top[m][i / 2]);
        total[m][i / 2] += s[m][n][i];
      }
}

// What the sums of the lane's rows are to be multiplied by; writes lse of the first `rows` rows of the warp.
template <int M>
DEV void finish(float (&by)[M][2], const float (&top)[M][2], const float (&total)[M][2], float* lse, int rows,
                int lane) {
  #pragma unroll
  for (int m = 0; m < M; m++)
    #pragma unroll
    for (int r = 0; r < 2; r++) {
      float whole = total[m][r];
      whole += shfl_xor(whole, 1);
      whole += shfl_xor(whole, 2);
      float log2_whole = lg2(whole);
      by[m][r] = ex2(-log2_whole);  // a division would be a call
      int row = m * 16 + r * 8 + lane / 4;
      if (lane % 4 == 0 && row < rows) lse[row] = (top[m][r] + log2_whole) * LN2;
    }
}

template <int D>
DEV void forward(const bf16* qkv, const int* prefix, bf16* out, float* lse, int tokens, u64 qkv_step,
                 float scale_log2) {
  DYN_SMEM(smem);
  constexpr int M = PIECES, KEYS = FORWARD_KEYS, TILE = KEYS * 2 * D;
  Place at = place<D>(tokens), *kept = (Place*)(smem + FORWARD_SHARED<D> - PLACE_BYTES);
  if (threadIdx.x == 0) *kept = at;
  int warp = place_of_warp();
  int lane = threadIdx.x % 32, q0 = (gridDim.x - 1 - blockIdx.x) * ROWS;  // the last queries see the most
  int row0 = q0 + warp * 16 * M;
  u32 own = warp * 32 * M * D, stages = ROWS * 2 * D, half = 0;
  const bf16 *q = my_chunk<D>(qkv + at.qkv + q0 * at.stride, at.stride);
  const bf16 *k = my_chunk<D>(qkv + at.qkv + at.width, at.stride), *v = k + at.width;

  load_tile<D, ROWS>(smem, q, qkv_step, tokens - q0, qkv);
  load_tile<D, KEYS>(smem + stages, k, qkv_step, tokens, qkv);
  cp_async_commit();
  load_tile<D, KEYS>(smem + stages + TILE, v, qkv_step, tokens, qkv);
  cp_async_commit();

  u32 la = lane_a<D>(lane), lb = lane_b<D>(lane);
  int seen = prefix_of_image(prefix);
  float sum[M][D / 8][4] = {}, total[M][2] = {}, top[M][2];
  #pragma unroll
  for (int m = 0; m < M; m++) top[m][0] = top[m][1] = -infinity();
  for (int k0 = 0; !Step{q0 - k0, seen - k0, tokens - k0}.empty(ROWS); k0 += KEYS, half ^= 2 * TILE) {
    // At the first step V may still be under way. The barrier also says that nobody reads the other half any more.
    if (k0 == 0) cp_async_wait<1>(); else cp_async_wait<0>();
    __syncthreads();
    int next = k0 + KEYS;
    if (!Step{q0 - next, seen - next, tokens - next}.empty(ROWS)) {
      unsigned char* other = smem + stages + (half ^ 2 * TILE);
      load_tile<D, KEYS>(other, k, qkv_step, tokens - next, qkv);
      load_tile<D, KEYS>(other + TILE, v, qkv_step, tokens - next, qkv);
    }
    cp_async_commit();
    // A warp without rows does the first step all the same: there is a barrier in it.
    Step step{row0 - k0, seen - k0, tokens - k0};
    if (k0 > 0 && step.empty(16 * M)) continue;
    float s[M][KEYS / 8][4];
    multiply_rows<D, M, KEYS / 16>(s, smem, own + la, stages + half + lb);
    if (!step.full(KEYS)) hide(s, step, lane);
    soften<D, M>(s, sum, top, total, scale_log2, k0 == 0);
    if (k0 == 0) {
      cp_async_wait<1>();
      __syncthreads();
    }
    #pragma unroll
    for (int c = 0; c < KEYS / 16; c++) {
      u32 p[M][4];
      #pragma unroll
      for (int m = 0; m < M; m++) round_columns(p[m], s[m][2 * c], s[m][2 * c + 1]);
      add_product<D, M>(sum, p, smem, stages + half + TILE + c * 32 * D + la);
    }
  }
  // Worked out again, or it would take registers during the walk, as `at` would.
  warp = place_of_warp(), row0 = q0 + warp * 16 * M, own = warp * 32 * M * D;
  if (row0 >= tokens) return;
  at = *kept;
  float by[M][2];
  finish<M>(by, top, total, lse + at.stat + row0, tokens - row0, lane);
  // The warp's own rows of Q are used up.
  store_rows<D, M>(out + at.out + row0 * at.width, at.width, tokens - row0, sum, by, smem + own, lane);
}

}  // namespace prefix_attention

// qkv_step: bytes of STEP rows of qkv. scale_log2: log2(e) / sqrt(D).
KERNEL void __launch_bounds__(128, 2) prefix_attention_forward_64(
    const bf16* qkv, const int* prefix, bf16* out, float* lse, int tokens, u64 qkv_step, float scale_log2) {
  prefix_attention::forward<64>(qkv, prefix, out, lse, tokens, qkv_step, scale_log2);
}
KERNEL void __launch_bounds__(128, 2) prefix_attention_forward_128(
    const bf16* qkv, const int* prefix, bf16* out, float* lse, int tokens, u64 qkv_step, float scale_log2) {
  prefix_attention::forward<128>(qkv, prefix, out, lse, tokens, qkv_step, scale_log2);
}
