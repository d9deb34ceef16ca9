// AdamW: one pass over a flat range of parameters that are kept as split masters.
//
// A parameter costs 28 bytes of traffic: hi 2, lo 2, gradient 4, m 4 and v 4 read; hi 2, lo 2, m 4 and v 4 written.
// Values come in groups of four: 16 bytes of each f32 array and 8 of each half a lane, whole lines a warp. (Eight
// values a lane would make every access 16 bytes but leave gaps between the lanes of the f32 arrays.) A thread takes
// two groups, so that 128 bytes are under way at a time.
// Grid ceil(groups / 512), 256 threads. The few values before the first aligned group and after the last are taken one
// by one by the first threads; where the arrays are aligned differently (groups = 0), all are.
namespace adamw {
struct Constants { float decay, grad_scale, one_minus_beta1, beta2, one_minus_beta2, step_size, root_correction, eps; };

// The CPU kernel's arithmetic in its order.
DEV float update(const Constants& c, float p, float g, float& m, float& v) {
  g = fmaf(g, c.grad_scale, -0.0f);                     // a plain product would be fused into g - m
  m = fmaf(c.one_minus_beta1, g - m, m);
  v = fmaf(c.beta2, v, c.one_minus_beta2 * g * g);
  float denominator = fmaf(sqrtf(v), c.root_correction, c.eps);
  p = fmaf(-c.step_size, m / denominator, p * c.decay);
  // Some patterns of NaN have -0 as their nearest bf16: the plain one shows in the compute copy, too.
  return p == p ? p : __uint_as_float(0x7fc00000u);
}

// Value J of four whose halves are packed in words.
template <int J> DEV void step(const Constants& c, u64& hi, u64& lo, float g, float& m, float& v) {
  bf16 h = {(u16)(hi >> 16 * J)};
  i16 l = (i16)(lo >> 16 * J);
  split(update(c, join(h, l), g, m, v), &h, &l);
  const u64 mask = 0xffffull << 16 * J;
  hi = (hi & ~mask) | (u64)h.x << 16 * J;
  lo = (lo & ~mask) | (u64)(u16)l << 16 * J;
}

// N groups of four, 256 groups apart; i is the first value.
template <int N>
DEV void groups(const Constants& c, bf16* hi, i16* lo, const float* g, float* m, float* v, u64 i) {
  u64 his[N], los[N];
  float4 gs[N], ms[N], vs[N];
  #pragma unroll
  for (int n = 0; n < N; n++) {
    u64 at = i + n * 1024;
    his[n] = *(const u64*)(hi + at); los[n] = *(const u64*)(lo + at);
    gs[n] = *(const float4*)(g + at); ms[n] = *(const float4*)(m + at); vs[n] = *(const float4*)(v + at);
  }
  #pragma unroll
  for (int n = 0; n < N; n++) {
    u64 at = i + n * 1024;
    step<0>(c, his[n], los[n], gs[n].x, ms[n].x, vs[n].x);
    step<1>(c, his[n], los[n], gs[n].y, ms[n].y, vs[n].y);
    step<2>(c, his[n], los[n], gs[n].z, ms[n].z, vs[n].z);
    step<3>(c, his[n], los[n], gs[n].w, ms[n].w, vs[n].w);
    *(u64*)(hi + at) = his[n]; *(u64*)(lo + at) = los[n];
    *(float4*)(m + at) = ms[n]; *(float4*)(v + at) = vs[n];
  }
}
}  // namespace adamw

KERNEL void __launch_bounds__(256)
adamw_step(bf16* hi, i16* lo, const float* g, float* m, float* v, u64 len, u64 groups, int head,
           float decay, float grad_scale, float one_minus_beta1, float beta2, float one_minus_beta2, float step_size,
           float root_correction, float eps) {
  const adamw::Constants c = {decay,           grad_scale, one_minus_beta1, beta2,
                              one_minus_beta2, step_size,  root_correction, eps};
  u64 first = (u64)blockIdx.x * 512 + threadIdx.x;
  if (first + 256 < groups) adamw::groups<2>(c, hi, lo, g, m, v, head + 4 * first);
  else if (first < groups) adamw::groups<1>(c, hi, lo, g, m, v, head + 4 * first);

  u64 single = (u64)blockIdx.x * 256 + threadIdx.x;
  if (single < len - 4 * groups) {
    u64 i = single < (u64)head ? single : single + 4 * groups;
    float moment = m[i], square = v[i];
    split(adamw::update(c, join(hi[i], lo[i]), g[i], moment, square), hi + i, lo + i);
    m[i] = moment; v[i] = square;
  }
}
