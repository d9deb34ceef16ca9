// Sums and multiples of flat arrays, computed in f32 and rounded once; bf16 unless a name says more.
// Grid: n / vec::SPAN blocks, rounded up; block: vec::THREADS. y may be one of the inputs.

// y = a + b
KERNEL __launch_bounds__(256) void elementwise_add(const bf16* a, const bf16* b, bf16* y, u64 n, int wide) {
  const bf16* in[2] = {a, b};
  vec::map(in, y, n, wide, [](const float (&v)[2]) { return v[0] + v[1]; });
}

// y = factor x, or y += factor x
KERNEL __launch_bounds__(256) void elementwise_scale(
    const bf16* x, float factor, bf16* y, u64 n, int accumulate, int wide) {
  if (accumulate) {
    const bf16* in[2] = {x, y};
    vec::map(in, y, n, wide, [=](const float (&v)[2]) { return fmaf(factor, v[0], v[1]); });
  } else {
    const bf16* in[1] = {x};
    vec::map(in, y, n, wide, [=](const float (&v)[1]) { return factor * v[0]; });
  }
}

// y = factor x, or y += factor x, from bf16 to f32 and back; grid and block as in cast.cu.
KERNEL __launch_bounds__(256) void elementwise_scale_to_f32(
    const bf16* x, float factor, float* y, u64 n, int accumulate, int wide) {
  cast::each(n, wide, [=](u64 i) {
    uint2 v = *(const uint2*)(x + i);
    float4 old = accumulate ? *(const float4*)(y + i) : make_float4(0, 0, 0, 0);
    *(float4*)(y + i) = make_float4(fmaf(factor, f32_lo(v.x), old.x), fmaf(factor, f32_hi(v.x), old.y),
                                    fmaf(factor, f32_lo(v.y), old.z), fmaf(factor, f32_hi(v.y), old.w));
  }, [=](u64 i) { y[i] = fmaf(factor, f32(x[i]), accumulate ? y[i] : 0.f); });
}
KERNEL __launch_bounds__(256) void elementwise_scale_to_bf16(
    const float* x, float factor, bf16* y, u64 n, int accumulate, int wide) {
  cast::each(n, wide, [=](u64 i) {
    float4 v = *(const float4*)(x + i);
    uint2 old = accumulate ? *(const uint2*)(y + i) : make_uint2(0, 0);
    *(uint2*)(y + i) = make_uint2(pack(fmaf(factor, v.x, f32_lo(old.x)), fmaf(factor, v.y, f32_hi(old.x))),
                                  pack(fmaf(factor, v.z, f32_lo(old.y)), fmaf(factor, v.w, f32_hi(old.y))));
  }, [=](u64 i) { y[i] = to_bf16(fmaf(factor, x[i], accumulate ? f32(y[i]) : 0.f)); });
}
