// One type to another. Flat kernels: a thread owns 4 neighbouring values, 16 bytes of f32 and 8 of bf16, so that a warp
// reads and writes whole lines of both; grid: n / 1024, rounded up; block: 256; wide: all pointers are at 16 bytes.
namespace cast {
constexpr int OWN = 4;

// whole(i) for 4 values from i on, one(i) for each value of a part.
template <class W, class O> DEV void each(u64 n, int wide, W whole, O one) {
  u64 first = ((u64)blockIdx.x * vec::THREADS + threadIdx.x) * OWN;
  if (wide && first + OWN <= n) { whole(first); return; }
  for (u64 i = first; i < first + OWN && i < n; i++) one(i);
}
// The split form of a value. A NaN becomes the plain one: its neighbours' nearest bf16 may wrap round to -0, and the
// compute copy would hide it.
DEV void halves(float v, bf16* hi, i16* lo) { split(v == v ? v : __uint_as_float(0x7fc00000u), hi, lo); }
}  // namespace cast

KERNEL __launch_bounds__(256) void cast_to_bf16(const float* from, bf16* to, u64 n, int wide) {
  cast::each(n, wide, [=](u64 i) {
    float4 v = *(const float4*)(from + i);
    *(uint2*)(to + i) = make_uint2(pack(v.x, v.y), pack(v.z, v.w));
  }, [=](u64 i) { to[i] = to_bf16(from[i]); });
}

// from [rows, cols] to [rows, stride]: zero in the columns past cols. `width`: vectors of 8 values in a row of `to`
// (wide: cols is a multiple of 4 too), or its values. Grid: rows / span, rounded up; block: any.
KERNEL __launch_bounds__(256) void cast_pad_bf16(
    const float* from, bf16* to, int rows, int cols, int width, int span, int wide) {
  for (int i = threadIdx.x; i < span * width; i += blockDim.x) {
    u64 row = (u64)blockIdx.x * span + i / width;
    int c = i % width;
    if (row >= (u64)rows) return;
    if (wide) {
      const float* p = from + row * cols + c * 8;
      float4 none = make_float4(0, 0, 0, 0);
      float4 a = c * 8 < cols ? *(const float4*)p : none, b = c * 8 + 4 < cols ? *(const float4*)(p + 4) : none;
      ((uint4*)to)[row * width + c] = make_uint4(pack(a.x, a.y), pack(a.z, a.w), pack(b.x, b.y), pack(b.z, b.w));
    } else {
      to[row * width + c] = to_bf16(c < cols ? from[row * cols + c] : 0.f);
    }
  }
}

KERNEL __launch_bounds__(256) void cast_to_f32(const bf16* from, float* to, u64 n, int wide) {
  cast::each(n, wide, [=](u64 i) {
    uint2 v = *(const uint2*)(from + i);
    *(float4*)(to + i) = make_float4(f32_lo(v.x), f32_hi(v.x), f32_lo(v.y), f32_hi(v.y));
  }, [=](u64 i) { to[i] = f32(from[i]); });
}

KERNEL __launch_bounds__(256) void cast_split(const float* from, bf16* hi, i16* lo, u64 n, int wide) {
  cast::each(n, wide, [=](u64 i) {
    float4 v = *(const float4*)(from + i);
    bf16 h[4];
    i16 l[4];
    cast::halves(v.x, &h[0], &l[0]);
    cast::halves(v.y, &h[1], &l[1]);
    cast::halves(v.z, &h[2], &l[2]);
    cast::halves(v.w, &h[3], &l[3]);
    *(uint2*)(hi + i) = make_uint2(h[0].x | (u32)h[1].x << 16, h[2].x | (u32)h[3].x << 16);
    *(uint2*)(lo + i) = make_uint2((u16)l[0] | (u32)(u16)l[1] << 16, (u16)l[2] | (u32)(u16)l[3] << 16);
  }, [=](u64 i) { cast::halves(from[i], hi + i, lo + i); });
}

KERNEL __launch_bounds__(256) void cast_join(const bf16* hi, const i16* lo, float* to, u64 n, int wide) {
  cast::each(n, wide, [=](u64 i) {
    uint2 h = *(const uint2*)(hi + i), l = *(const uint2*)(lo + i);
    float4 v;
    v.x = join(bf16{(u16)h.x}, (i16)(u16)l.x);
    v.y = join(bf16{(u16)(h.x >> 16)}, (i16)(u16)(l.x >> 16));
    v.z = join(bf16{(u16)h.y}, (i16)(u16)l.y);
    v.w = join(bf16{(u16)(h.y >> 16)}, (i16)(u16)(l.y >> 16));
    *(float4*)(to + i) = v;
  }, [=](u64 i) { to[i] = join(hi[i], lo[i]); });
}
