// Images cut into patches: f32 [batch * tokens, 3 * patch * patch], values in (channel, row, column) order.
//
// The patches of one row of the grid, a band, are neighbours in memory: width * patch * 3 values. A block writes SPAN
// of them in order and reads the pixels where they are; a pixel is read once per channel, from the L1 cache but for
// the first time. Grid: bands * chunks, where chunks is a band's length / SPAN, rounded up; block: 256.
namespace patch_embed {
constexpr int THREADS = 256, SPAN = 4096;

// pixel(band, channel, row, column): row within the band, column within the image. V values a store: 4 if a patch is a
// multiple of that.
template <int V, class F> DEV void cut(float* patches, int width, int patch, int chunks, F pixel) {
  int band = blockIdx.x / chunks, chunk = blockIdx.x % chunks;
  int length = width * patch * 3, dim = patch * patch * 3;
  patches += (u64)band * length;
  int end = min(length, (chunk + 1) * SPAN);
  for (int at = chunk * SPAN + threadIdx.x * V; at < end; at += THREADS * V) {
    int token = at / dim, line = at % dim / patch, column = at % dim % patch;
    int channel = line / patch, row = line % patch;
    float v[V];
    #pragma unroll
    for (int i = 0; i < V; i++) {
      v[i] = pixel(band, channel, row, token * patch + column);
      if (++column == patch) {
        column = 0;
        if (++row == patch) { row = 0; channel++; }
      }
    }
    if constexpr (V == 4) *(float4*)(patches + at) = make_float4(v[0], v[1], v[2], v[3]);
    else patches[at] = v[0];
  }
}
}  // namespace patch_embed

// pixels: u8 [batch, height, width, 3], normalised (v / 255 - mean) / std per channel.
KERNEL __launch_bounds__(256) void patch_embed_patchify_u8(
    const u8* pixels, float mean0, float mean1, float mean2, float std0, float std1, float std2, float* patches,
    int width, int patch, int chunks, int wide) {
  // A byte has 256 values; the divisions are done once for each and give the CPU's bits.
  __shared__ float table[3 * 256];
  float v = (float)threadIdx.x / 255.f;
  table[threadIdx.x] = (v - mean0) / std0;
  table[256 + threadIdx.x] = (v - mean1) / std1;
  table[512 + threadIdx.x] = (v - mean2) / std2;
  __syncthreads();
  auto pixel = [&](int band, int channel, int row, int column) {
    return table[channel * 256 + pixels[(((u64)band * patch + row) * width + column) * 3 + channel]];
  };
  if (wide) patch_embed::cut<4>(patches, width, patch, chunks, pixel);
  else patch_embed::cut<1>(patches, width, patch, chunks, pixel);
}

// images: f32 [batch, 3, height, width]; `bands`: of an image.
KERNEL __launch_bounds__(256) void patch_embed_patchify(
    const float* images, float* patches, int bands, int width, int patch, int chunks, int wide) {
  auto pixel = [&](int band, int channel, int row, int column) {
    u64 line = ((u64)(band / bands * 3 + channel) * bands + band % bands) * patch + row;
    return images[line * width + column];
  };
  if (wide) patch_embed::cut<4>(patches, width, patch, chunks, pixel);
  else patch_embed::cut<1>(patches, width, patch, chunks, pixel);
}
