// What forward and backward of prefix attention share: tiles in shared memory, products of tiles, the mask; and why the
// kernels have their shape.
//
// - mma.sync on 16-bit tiles: the same code from sm_80 on. How much a warp does with what it fetches from shared memory
//   decides the speed: an ldmatrix of four 8x8 tiles takes the SM's shared memory 4 clocks, an mma its tensor cores
//   about 1.6. In forward and backward_q a warp has 32 rows, so what it fetches of K and V serves 4 mma. The two sums
//   of backward_kv leave no room for that; it keeps its fragments of K and V in registers for the whole walk instead.
// - Two kernels in backward compute the scores twice, 7 products instead of 5, and no two blocks write to one address:
//   no atomics, no second pass over partial sums, the same bits in every run.
// - The tiles of a head are neighbours in the grid, so that what they share comes from L2; the longest walk is first.
// - cp.async fetches the next step while one is computed; one barrier a step.
// - A warp skips steps in which its rows see nothing, and steps in which they see all have no mask arithmetic. Warps of
//   low rows skip more, and a warp lives in the quarter of the SM that its number says: every other head turns the
//   order of the rows around, or one quarter would have the most work in all blocks.
// - At head dimension 128 nearly all of 255 registers hold tiles. What only some steps need is worked out in those
//   steps, and what is needed before and after the walk is worked out twice or waits in shared memory. The test of all
//   architectures with NVRTC shows whether something spills.
// - At head dimension 128 two blocks share an SM of an H100 or a later data-centre chip, by registers and by shared
//   memory; one fits the 99 KiB that a block may have on the other chips.
namespace prefix_attention {

constexpr int THREADS = 128, WARPS = 4;
// Queries of a block that walks over keys, and how many times 16 of them a warp has.
constexpr int ROWS = 128, PIECES = ROWS / (16 * WARPS);
constexpr float LOG2E = 1.4426950408889634f, LN2 = 0.6931471805599453f;
DEV float infinity() { return __uint_as_float(0x7f800000u); }

// Tiles are rows of D bf16, their 16-byte chunks XORed with the row: the 8 rows of a column of chunks, which is what
// ldmatrix reads at a time, and the chunks of a row lie in different banks.
template <int D> DEV u32 chunk_at(int row, int chunk) { return row * 2 * D + (chunk ^ (row & 7)) * 16; }

// A thread copies one chunk of a row, then the same chunk STEP rows below and so on until the tile is full. STEP is a
// multiple of 8: the XOR stays the same.
template <int D> constexpr int STEP = THREADS / (D / 8);
template <int D> DEV const bf16* my_chunk(const bf16* rows, u64 stride) {
  return rows + threadIdx.x / (D / 8) * stride + threadIdx.x % (D / 8) * 8;
}
// Starts copying a tile of TALL rows; those from `rows` on become zero and are not read. `step` is STEP rows in bytes,
// `any` some address. Moves `chunk` to the tile that follows. That, and that `step` and `any` are the kernel's own
// arguments, saves the registers of a dozen multiples of the stride.
template <int D, int TALL>
DEV void load_tile(unsigned char* tile, const bf16*& chunk, u64 step, int rows, const bf16* any) {
  int row = threadIdx.x / (D / 8);
  unsigned char* to = tile + chunk_at<D>(row, threadIdx.x % (D / 8));
  const unsigned char* from = (const unsigned char*)chunk;
  if (rows >= TALL) {
    #pragma unroll
    for (int i = 0; i < TALL; i += STEP<D>, from += step) cp_async16(to + i * 2 * D, from);
  } else {
    #pragma unroll
    for (int i = 0; i < TALL; i += STEP<D>, from += step) {
      bool valid = row + i < rows;
      cp_async16_zfill(to + i * 2 * D, valid ? from : (const unsigned char*)any, valid);
    }
  }
  chunk = (const bf16*)from;
}

// What a lane gives to ldmatrix, in bytes from the first of 16 rows: as operand A, or as B when the rows are summed
// over (_t); and as B when the rows are columns of the product.
template <int D> DEV u32 lane_a(int lane) { return chunk_at<D>(lane % 16, lane / 16); }
template <int D> DEV u32 lane_b(int lane) { return chunk_at<D>(lane / 16 * 8 + lane % 8, lane / 8 % 2); }
// Address of such an offset, `rows` rows and 16 * c columns further. The XOR acts on three bits of the chunk's number,
// two of which come from c; the rest is added to the pointer, where the compiler makes it part of the instruction.
template <int D> DEV const unsigned char* address(const unsigned char* smem, u32 at, int rows, int c) {
  return smem + (rows * 2 * D + c / 4 * 128) + (at ^ (c % 4 * 32));
}
// The i-th stretch of 16 columns to take: those with the same XOR one after the other, so that few addresses are kept.
template <int D> DEV constexpr int nth(int i) { return D == 64 ? i : i / 2 + i % 2 * 4; }

// s = a b^T: M times 16 rows of the tile at a and N times 16 of the one at b, both as a lane's offsets.
template <int D, int M, int N>
DEV void multiply_rows(float (&s)[M][2 * N][4], const unsigned char* smem, u32 a, u32 b) {
  #pragma unroll
  for (int m = 0; m < M; m++)
    #pragma unroll
    for (int n = 0; n < 2 * N; n++)
      #pragma unroll
      for (int i = 0; i < 4; i++) s[m][n][i] = 0;
  #pragma unroll
  for (int i = 0; i < D / 16; i++) {
    int c = nth<D>(i);
    u32 x[M][4];
    #pragma unroll
    for (int m = 0; m < M; m++) ldsm_x4(x[m], address<D>(smem, a, m * 16, c));
    #pragma unroll
    for (int n = 0; n < N; n++) {
      u32 y[4];
      ldsm_x4(y, address<D>(smem, b, n * 16, c));
      #pragma unroll
      for (int m = 0; m < M; m++) {
        mma_16816(s[m][2 * n], x[m], y[0], y[1]);
        mma_16816(s[m][2 * n + 1], x[m], y[2], y[3]);
      }
    }
  }
}

// 16 columns of a product, rounded, as operand A of the next one.
DEV void round_columns(u32 (&p)[4], const float (&s)[4], const float (&t)[4]) {
  p[0] = pack(s[0], s[1]);
  p[1] = pack(s[2], s[3]);
  p[2] = pack(t[0], t[1]);
  p[3] = pack(t[2], t[3]);
}

// sum += p b: p has 16 columns, b is 16 rows.
template <int D, int M>
DEV void add_product(float (&sum)[M][D / 8][4], const u32 (&p)[M][4], const unsigned char* smem, u32 b) {
  #pragma unroll
  for (int i = 0; i < D / 16; i++) {
    int n = nth<D>(i);
    u32 y[4];
    ldsm_x4_t(y, address<D>(smem, b, 0, n));
    #pragma unroll
    for (int m = 0; m < M; m++) {
      mma_16816(sum[m][2 * n], p[m], y[0], y[1]);
      mma_16816(sum[m][2 * n + 1], p[m], y[2], y[3]);
    }
  }
}

// Writes a warp's 16 M rows times `by`, the first `rows` of them, through shared memory that only this warp uses: the
// lanes hold 4 bytes of a row here and 4 there, and rows go to memory 16 bytes a lane.
template <int D, int M>
DEV void store_rows(bf16* to, u64 stride, int rows, const float (&sum)[M][D / 8][4], const float (&by)[M][2],
                    unsigned char* own, int lane) {
  constexpr int CHUNKS = D / 8, AT_ONCE = 32 / CHUNKS;
  __syncwarp();
  #pragma unroll
  for (int m = 0; m < M; m++)
    #pragma unroll
    for (int r = 0; r < 2; r++)
      #pragma unroll
      for (int n = 0; n < D / 8; n++)
        *(u32*)(own + chunk_at<D>(m * 16 + r * 8 + lane / 4, n) + lane % 4 * 4) =
            pack(sum[m][n][2 * r] * by[m][r], sum[m][n][2 * r + 1] * by[m][r]);
  __syncwarp();
  int row = lane / CHUNKS, chunk = lane % CHUNKS;
  to += row * stride + chunk * 8;
  #pragma unroll
  for (int i = 0; i < 16 * M; i += AT_ONCE, to += AT_ONCE * stride)
    if (row + i < rows) *(uint4*)to = *(const uint4*)(own + chunk_at<D>(row + i, chunk));
}

// What a block works on. Registers are short during the walk and the compiler would keep all of this: what the end
// needs waits behind the tiles in shared memory.
struct Place {
  u64 qkv, out, stat;  // where image and head begin in qkv, out and lse
  u64 stride, width;   // values in a token of qkv and of out
};
constexpr int PLACE_BYTES = 64;
static_assert(sizeof(Place) <= PLACE_BYTES, "the launcher adds so many");
template <int D> DEV Place place(int tokens) {
  u64 image = blockIdx.z, head = blockIdx.y, heads = gridDim.y;
  Place at;
  at.width = heads * D;
  at.stride = 3 * at.width;
  at.qkv = image * tokens * at.stride + head * D;
  at.out = image * tokens * at.width + head * D;
  at.stat = (image * heads + head) * tokens;
  return at;
}
// The warp's place among the block's rows, and the image's prefix: by shfl the compiler knows that all lanes have the
// same, and branches on them are plain.
DEV int place_of_warp() {
  return shfl((int)threadIdx.x / 32, 0) ^ ((blockIdx.z + blockIdx.y) & 1 ? WARPS - 1 : 0);
}
DEV int prefix_of_image(const int* prefix) { return shfl(prefix[blockIdx.z], 0); }

// Keys that query q sees: the first so many.
DEV int visible(int q, int prefix, int tokens) { return min(tokens, max(prefix, q + 1)); }

// The queries of a warp, or of a block, and the keys of a step, all counted from the first key: what is made of it is
// made in the step, where limits worked out before the walk would be kept in registers.
struct Step {
  int row0, prefix, tokens;  // the first query; where prefix and image end
  // Whether none of `rows` queries sees a key.
  DEV bool empty(int rows) const { return row0 >= tokens || visible(row0 + rows - 1, prefix, tokens) <= 0; }
  // Whether every query sees `keys` keys.
  DEV bool full(int keys) const { return visible(row0, prefix, tokens) >= keys; }
};

// Makes the scores of keys that a query does not see minus infinity.
template <int M, int N> DEV void hide(float (&s)[M][N][4], Step step, int lane) {
  #pragma unroll
  for (int m = 0; m < M; m++)
    #pragma unroll
    for (int r = 0; r < 2; r++) {
      int end = visible(step.row0 + m * 16 + r * 8 + lane / 4, step.prefix, step.tokens) - lane % 4 * 2;
      #pragma unroll
      for (int n = 0; n < N; n++)
        #pragma unroll
        for (int i = 0; i < 2; i++)
          if (n * 8 + i >= end) s[m][n][2 * r + i] = -infinity();
    }
}

}  // namespace prefix_attention
