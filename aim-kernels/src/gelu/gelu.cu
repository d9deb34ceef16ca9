// Exact GELU: y = x Phi(x), dx = dy (Phi(x) + x phi(x)), on flat bf16 arrays, computed in f32.
// And the tanh form that cuBLASLt's epilogues compute, for products that it cannot fuse it into.
// Grid: n / vec::SPAN blocks, rounded up; block: vec::THREADS.
namespace gelu {
// Phi(-a) for a >= 0, as exp2(-a^2 / 2 log2 e + Q(a)) with a minimax polynomial Q on 0 <= a <= 10. An H200 brings 4.6
// values a clock to an SM, so that a value of the forward pass may cost 27 instructions before it costs time; with
// erff and its selected coefficients it costs more, with this 18. In f32 the result is within 1.4e-5 of Phi(-a),
// relative, and within 3.5e-6, absolute: 1/100 of what rounding y to bf16 changes. Beyond 10, where Phi is below
// 1e-23, Q keeps its last value and the exponential goes to zero.
DEV float tail(float a) {
  float c = fminf(a, 10.f);
  float q = -2.10778794e-9f;
  q = fmaf(q, c, 1.56167943e-7f);
  q = fmaf(q, c, -4.96262874e-6f);
  q = fmaf(q, c, 9.06666028e-5f);
  q = fmaf(q, c, -1.07596011e-3f);
  q = fmaf(q, c, 8.91370792e-3f);
  q = fmaf(q, c, -5.45712449e-2f);
  q = fmaf(q, c, 2.63328075e-1f);
  q = fmaf(q, c, -1.15137136f);
  q = fmaf(q, c, -9.99990165e-1f);
  return ex2(fmaf(a * -0.72134752f, a, q));
}

// For x < 0 this is x Phi(x), for x > 0 it is x - x Phi(-x). The smaller of |x| and 10 keeps infinity in order.
DEV float value(float x) {
  float a = fabsf(x);
  return fmaf(-fminf(a, 10.f), tail(a), fmaxf(x, 0.f));
}

DEV float slope(float x) {
  float a = fabsf(x), t = tail(a);
  float density = 0.39894228f * ex2(a * -0.72134752f * a);
  return fmaf(fmaxf(fminf(x, 20.f), -20.f), density, x < 0.f ? t : 1.f - t);
}

// (1 + tanh(u)) / 2 = 1 / (1 + exp(-2 u)) with u = sqrt(2 / pi) (x + 0.044715 x^3). Beyond +-12 it is 0 or 1 in f32.
DEV float gate(float x) {
  float c = fmaxf(fminf(x, 12.f), -12.f);
  return 1.f / (1.f + ex2(-2.3022082f * fmaf(0.044715f * c * c, c, c)));
}

DEV float value_tanh(float x) { return fmaxf(x, -12.f) * gate(x); }

DEV float slope_tanh(float x) {
  float g = gate(x), c = fmaxf(fminf(x, 12.f), -12.f);
  return fmaf(g * (1.f - g) * c, fmaf(0.21406612f * c, c, 1.5957691f), g);
}
}  // namespace gelu

KERNEL __launch_bounds__(256) void gelu_forward(const bf16* x, bf16* y, u64 n, int wide) {
  const bf16* in[1] = {x};
  vec::map(in, y, n, wide, [](const float (&v)[1]) { return gelu::value(v[0]); });
}

KERNEL __launch_bounds__(256) void gelu_backward(
    const bf16* x, const bf16* dy, bf16* dx, u64 n, int accumulate, int wide) {
  if (accumulate) {
    const bf16* in[3] = {x, dy, dx};
    vec::map(in, dx, n, wide, [](const float (&v)[3]) { return fmaf(v[1], gelu::slope(v[0]), v[2]); });
  } else {
    const bf16* in[2] = {x, dy};
    vec::map(in, dx, n, wide, [](const float (&v)[2]) { return v[1] * gelu::slope(v[0]); });
  }
}

KERNEL __launch_bounds__(256) void gelu_tanh_forward(const bf16* x, bf16* y, u64 n, int wide) {
  const bf16* in[1] = {x};
  vec::map(in, y, n, wide, [](const float (&v)[1]) { return gelu::value_tanh(v[0]); });
}

KERNEL __launch_bounds__(256) void gelu_tanh_backward(const bf16* x, const bf16* dy, bf16* dx, u64 n, int wide) {
  const bf16* in[2] = {x, dy};
  vec::map(in, dx, n, wide, [](const float (&v)[2]) { return v[1] * gelu::slope_tanh(v[0]); });
}
