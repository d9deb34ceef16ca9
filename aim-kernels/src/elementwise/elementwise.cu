// Sums and multiples of flat bf16 arrays, computed in f32 and rounded once.
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
