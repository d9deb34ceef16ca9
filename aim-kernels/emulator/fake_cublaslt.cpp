// fake_cublaslt.cpp: cuBLASLt on the CPU. Column-major D = epilogue(alpha op(A) op(B) + beta C), batched by strides; A
// and B both bf16 or both f32, C and D bf16 or f32, sums in f32, in as many orders as there are algorithms. An
// algorithm that was proposed for matrices at 16 bytes refuses others, and no GELU is fused where a bf16 matrix is not
// at 16 bytes or its leading dimension is no multiple of 8. Work goes through the fake driver's streams.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <dlfcn.h>
#include <memory>
#include <vector>

typedef int Status;
enum { SUCCESS = 0, NOT_INITIALIZED = 1, INVALID = 7, EXECUTION_FAILED = 13, UNSUPPORTED = 15 };
enum { F32 = 0, BF16 = 14 };
enum { DEFAULT = 1, BIAS = 4, GELU = 32, GELU_BIAS = 36, GELU_AUX = 160, GELU_AUX_BIAS = 164, DGELU = 192 };
constexpr uint64_t MAGIC = 0x61696d2d66616b65;

struct Desc {
  int compute, scale, pointers = 0, trans_a = 0, trans_b = 0, trans_c = 0, epilogue = DEFAULT;
  const void* bias = nullptr; int bias_type = -1; int64_t bias_stride = 0;
  void* aux = nullptr; int64_t aux_ld = 0, aux_stride = 0; int aux_type = -1;
};
struct Layout { int type; uint64_t rows, cols; int64_t ld; int order = 0, batch = 1; int64_t stride = 0; };
struct Preference { uint64_t workspace = 0; uint32_t alignment[4] = {256, 256, 256, 256}; };
struct Algo { uint64_t data[8]; };           // data[0] which, [1] workspace, [2] alignment it needs, [7] MAGIC
struct Found { Algo algo; size_t workspace; Status state; float waves; int reserved[4]; };
struct Job {
  Desc desc; Layout a, b, c, d;
  const void *A, *B, *C; void *D, *workspace; size_t workspace_bytes;
  float alpha, beta; int algorithm;
};

static size_t width(int type) { return type == BF16 ? 2 : 4; }
static float get(const void* p, int type, size_t i) {
  if (type == F32) return ((const float*)p)[i];
  uint32_t u = (uint32_t)((const uint16_t*)p)[i] << 16;
  float f; memcpy(&f, &u, 4);
  return f;
}
static void put(void* p, int type, size_t i, float f) {
  if (type == F32) { ((float*)p)[i] = f; return; }
  uint32_t u; memcpy(&u, &f, 4);
  ((uint16_t*)p)[i] = f != f ? 0x7fff : (u + 0x7fff + ((u >> 16) & 1)) >> 16;
}
// The tanh form, as the library's.
static float inner(float x) { return 0.7978845608f * (x + 0.044715f * x * x * x); }
static float gelu(float x) { return 0.5f * x * (1 + tanhf(inner(x))); }
static float dgelu(float x) {
  float t = tanhf(inner(x));
  return 0.5f * (1 + t) + 0.5f * x * (1 - t * t) * 0.7978845608f * (1 + 3 * 0.044715f * x * x);
}

// ---- the product --------------------------------------------------------------------------
typedef float V __attribute__((vector_size(32)));
constexpr size_t MR = 16, NR = 6;            // a tile of D: two vectors by six columns
static_assert(sizeof(V) == MR / 2 * sizeof(float));

// Rows [0, k) of `step` neighbouring rows or columns each, zero behind the edge: out[panel][x][step].
static void pack(std::vector<float>& out, const void* p, int type, size_t lines, size_t k, int64_t ld,
                 bool lines_near, size_t step) {
  size_t panels = (lines + step - 1) / step;
  out.assign(panels * k * step + MR, 0.f);
  for (size_t l = 0; l < panels; l++) {
    float* to = out.data() + l * k * step;
    size_t n = lines - l * step < step ? lines - l * step : step;
    if (lines_near)
      for (size_t x = 0; x < k; x++)
        for (size_t i = 0; i < n; i++) to[x * step + i] = get(p, type, x * ld + l * step + i);
    else
      for (size_t i = 0; i < n; i++)
        for (size_t x = 0; x < k; x++) to[x * step + i] = get(p, type, (l * step + i) * ld + x);
  }
}
// sum[column][row] += a[x][row] b[x][column] over x.
static void tile(V (&sum)[NR][2], const float* a, const float* b, size_t k) {
  V part[NR][2] = {};
  for (size_t x = 0; x < k; x++) {
    V a0, a1;
    memcpy(&a0, a + x * MR, sizeof a0); memcpy(&a1, a + x * MR + MR / 2, sizeof a1);
    for (size_t j = 0; j < NR; j++) {
      float s = b[x * NR + j];
      part[j][0] += a0 * s; part[j][1] += a1 * s;
    }
  }
  for (size_t j = 0; j < NR; j++) { sum[j][0] += part[j][0]; sum[j][1] += part[j][1]; }
}
// How long a run of k an algorithm sums before it adds to the rest.
static size_t run_of(int algorithm, size_t k) {
  size_t parts[] = {1, 2, 3};
  return algorithm < 3 ? (k + parts[algorithm] - 1) / parts[algorithm] : 64;
}
static void epilogue(const Job& job, int batch, size_t i, size_t j, float s) {
  const Desc& e = job.desc;
  int out = job.d.type, aux = e.aux_type < 0 ? out : e.aux_type, bias = e.bias_type < 0 ? out : e.bias_type;
  size_t place = (size_t)batch * e.aux_stride + j * e.aux_ld + i;
  s *= job.alpha;
  if (job.beta != 0) s += job.beta * get(job.C, job.c.type, batch * job.c.stride + j * job.c.ld + i);
  if (e.epilogue & BIAS) s += get(e.bias, bias, batch * e.bias_stride + i);
  if (e.epilogue == DGELU) s *= dgelu(get(e.aux, aux, place));
  else if (e.epilogue & GELU) {
    if (e.epilogue & 128) put(e.aux, aux, place, s);
    s = gelu(s);
  }
  put(job.D, out, batch * job.d.stride + j * job.d.ld + i, s);
}
static void run(const Job& job) {
  size_t m = job.d.rows, n = job.d.cols, k = job.desc.trans_a ? job.a.rows : job.a.cols, run = run_of(job.algorithm, k);
  std::vector<float> a, b;
  // What an algorithm leaves in its workspace is garbage.
  if (job.workspace_bytes) memset(job.workspace, 0xff, job.workspace_bytes);
  for (int batch = 0; batch < job.d.batch; batch++) {
    auto from = [&](const void* p, const Layout& l) { return (const char*)p + batch * l.stride * width(l.type); };
    pack(a, from(job.A, job.a), job.a.type, m, k, job.a.ld, !job.desc.trans_a, MR);
    pack(b, from(job.B, job.b), job.b.type, n, k, job.b.ld, job.desc.trans_b, NR);
    for (size_t j = 0; j < n; j += NR)
      for (size_t i = 0; i < m; i += MR) {
        V sum[NR][2] = {};
        for (size_t x = 0; x < k; x += run)
          tile(sum, a.data() + i * k + x * MR, b.data() + j * k + x * NR, k - x < run ? k - x : run);
        for (size_t jj = 0; jj < NR && j + jj < n; jj++)
          for (size_t ii = 0; ii < MR && i + ii < m; ii++)
            epilogue(job, batch, i + ii, j + jj, sum[jj][ii / 8][ii % 8]);
      }
  }
}

// ---- what is refused ----------------------------------------------------------------------
static bool says(const char* what) { fprintf(stderr, "emulator: cuBLASLt: %s\n", what); return false; }
static Status shapes(const Desc& e, const Layout& a, const Layout& b, const Layout& c, const Layout& d) {
  uint64_t m = e.trans_a ? a.cols : a.rows, k = e.trans_a ? a.rows : a.cols, n = e.trans_b ? b.rows : b.cols;
  if (m != d.rows || n != d.cols || k != (e.trans_b ? b.cols : b.rows)) return INVALID;
  if (c.rows != d.rows || c.cols != d.cols) return INVALID;
  if (!m || !n || !k) return INVALID;
  for (auto l : {&a, &b, &c, &d}) {
    if (l->ld < (int64_t)l->rows || l->batch != d.batch) return INVALID;
    if (l->order || (l->type != F32 && l->type != BF16)) return UNSUPPORTED;
    if (l->type == BF16 && e.epilogue & ~(DEFAULT | BIAS) && (l->ld % 8 || l->stride % 8)) return UNSUPPORTED;
  }
  if (a.type != b.type || c.type != d.type || (a.type == F32 && d.type == BF16)) return UNSUPPORTED;
  // f32 sums and scales; 74, 75 and 77 let f32 operands be rounded.
  if (e.compute != 68 && e.compute != 69 && e.compute != 75 && e.compute != 77) return UNSUPPORTED;
  if (e.scale != F32 || e.pointers || e.trans_c) return UNSUPPORTED;
  if (e.compute >= 75 && a.type == BF16) return UNSUPPORTED;
  switch (e.epilogue) {
    case DEFAULT: case BIAS: case GELU: case GELU_BIAS: break;
    case GELU_AUX: case GELU_AUX_BIAS: case DGELU:
      if (e.aux_ld < (int64_t)m) return INVALID;
      if (e.aux_ld % 8 || e.aux_stride % 8 || (uintptr_t)e.aux % 16) return UNSUPPORTED;
      break;
    default: return UNSUPPORTED;
  }
  return SUCCESS;
}
static uint64_t workspace_of(int algorithm, const Layout& d) {
  return algorithm == 1 || algorithm == 2 ? (d.rows * d.cols * d.batch * 4 * (algorithm + 1) + 255) / 256 * 256 : 0;
}

typedef int (*Enqueue)(void*, void (*)(void*), void*);
typedef int (*OnDevice)(const void*, size_t);
static void* driver(const char* name) {
  static void* library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_NOLOAD);
  return library ? dlsym(library, name) : nullptr;
}
static size_t span(const Layout& l) {
  return (((uint64_t)l.batch - 1) * l.stride + (l.cols - 1) * l.ld + l.rows) * width(l.type);
}
static bool there(const char* what, const void* p, size_t bytes) {
  static auto on_device = (OnDevice)driver("aim_emulator_on_device");
  if (on_device && on_device(p, bytes)) return true;
  fprintf(stderr, "emulator: cuBLASLt: %s needs %zu bytes at %p, which are not on the device\n", what, bytes, p);
  return false;
}
static bool apart(const void* p, const Layout& a, const void* q, const Layout& b) {
  if (a.ld != (int64_t)a.rows || b.ld != (int64_t)b.rows) return true;     // views may interleave
  return (const char*)p + span(a) <= (const char*)q || (const char*)q + span(b) <= (const char*)p;
}
static bool operands(const Job& job) {
  const Desc& e = job.desc;
  size_t out = width(job.d.type);
  bool ok = there("A", job.A, span(job.a)) && there("B", job.B, span(job.b)) && there("D", job.D, span(job.d));
  if (job.beta != 0) ok = ok && there("C", job.C, span(job.c));
  size_t bias = e.bias_type < 0 ? out : width(e.bias_type);
  if (e.epilogue & BIAS) ok = ok && there("the bias", e.bias, job.d.rows * bias);
  size_t aux = ((job.d.cols - 1) * e.aux_ld + job.d.rows) * out;
  if (e.epilogue & 128) ok = ok && there("the auxiliary matrix", e.aux, aux);
  if (ok && !(apart(job.D, job.d, job.A, job.a) && apart(job.D, job.d, job.B, job.b))) ok = says("D overlaps A or B");
  if (ok && job.beta != 0 && job.C != job.D && !apart(job.D, job.d, job.C, job.c)) ok = says("D overlaps C in part");
  if (ok && job.beta != 0 && job.C == job.D && job.c.ld != job.d.ld) ok = says("C is D with another leading dimension");
  return ok;
}
static bool aligned(const void* p, int type, uint64_t to) { return type != BF16 || (uintptr_t)p % to == 0; }
// Bytes, up to 16, that all starts of columns are multiples of if the matrix starts at a multiple of `start`.
static uint64_t alignment(const Layout& l, uint64_t start) {
  for (uint64_t unit = 16; unit > 2; unit /= 2)
    if (start % unit == 0 && l.ld * 2 % unit == 0 && l.stride * 2 % unit == 0) return unit;
  return 2;
}

template <class T> static Status take(T& to, const void* from, size_t bytes) {
  if (!from || bytes != sizeof(T)) return INVALID;
  memcpy(&to, from, sizeof(T));
  return SUCCESS;
}

extern "C" {
size_t cublasLtGetVersion() { return 130000; }
Status cublasLtCreate(void** h) {
  *h = (void*)MAGIC;
  return driver("aim_emulator_enqueue") ? SUCCESS : NOT_INITIALIZED;
}
Status cublasLtDestroy(void*) { return SUCCESS; }
const char* cublasLtGetStatusName(Status s) {
  return s == SUCCESS ? "CUBLAS_STATUS_SUCCESS" : s == INVALID ? "CUBLAS_STATUS_INVALID_VALUE"
       : s == UNSUPPORTED ? "CUBLAS_STATUS_NOT_SUPPORTED" : "CUBLAS_STATUS_EXECUTION_FAILED";
}
const char* cublasLtGetStatusString(Status s) { return cublasLtGetStatusName(s); }
Status cublasLtMatmulDescCreate(Desc** d, int compute, int scale) { *d = new Desc{compute, scale}; return SUCCESS; }
Status cublasLtMatmulDescDestroy(Desc* d) { delete d; return SUCCESS; }
Status cublasLtMatmulDescSetAttribute(Desc* d, int attribute, const void* v, size_t n) {
  switch (attribute) {
    case 0: return take(d->compute, v, n);
    case 1: return take(d->scale, v, n);
    case 2: return take(d->pointers, v, n);
    case 3: return take(d->trans_a, v, n);
    case 4: return take(d->trans_b, v, n);
    case 5: return take(d->trans_c, v, n);
    case 7: return take(d->epilogue, v, n);
    case 8: return take(d->bias, v, n);
    case 10: return take(d->bias_stride, v, n);
    case 11: return take(d->aux, v, n);
    case 12: return take(d->aux_ld, v, n);
    case 13: return take(d->aux_stride, v, n);
    case 15: return n == 4 ? SUCCESS : INVALID;      // multiprocessors to use
    case 22: return take(d->aux_type, v, n);
    case 26: return take(d->bias_type, v, n);
    default: return UNSUPPORTED;
  }
}
Status cublasLtMatrixLayoutCreate(Layout** l, int type, uint64_t rows, uint64_t cols, int64_t ld) {
  *l = new Layout{type, rows, cols, ld};
  return SUCCESS;
}
Status cublasLtMatrixLayoutDestroy(Layout* l) { delete l; return SUCCESS; }
Status cublasLtMatrixLayoutSetAttribute(Layout* l, int attribute, const void* v, size_t n) {
  switch (attribute) {
    case 0: return take(l->type, v, n);
    case 1: return take(l->order, v, n);
    case 2: return take(l->rows, v, n);
    case 3: return take(l->cols, v, n);
    case 4: return take(l->ld, v, n);
    case 5: return take(l->batch, v, n);
    case 6: return take(l->stride, v, n);
    default: return UNSUPPORTED;
  }
}
Status cublasLtMatmulPreferenceCreate(Preference** p) { *p = new Preference; return SUCCESS; }
Status cublasLtMatmulPreferenceDestroy(Preference* p) { delete p; return SUCCESS; }
Status cublasLtMatmulPreferenceSetAttribute(Preference* p, int attribute, const void* v, size_t n) {
  if (attribute == 1) return take(p->workspace, v, n);
  if (attribute >= 5 && attribute <= 8) return take(p->alignment[attribute - 5], v, n);
  return attribute >= 0 && attribute <= 12 ? SUCCESS : INVALID;
}
static Found result(int algorithm, const Layout& d, uint64_t alignment) {
  Found found{};
  found.algo.data[0] = algorithm;
  found.algo.data[2] = alignment;
  found.workspace = found.algo.data[1] = workspace_of(algorithm, d);
  found.algo.data[7] = MAGIC;
  found.waves = 0.5f;
  return found;
}
Status cublasLtMatmulAlgoGetHeuristic(void*, const Desc* e, const Layout* a, const Layout* b, const Layout* c,
                                      const Layout* d, const Preference* p, int asked, Found* results, int* found) {
  *found = 0;
  if (asked < 1 || !results) return INVALID;
  Status s = shapes(*e, *a, *b, *c, *d);
  if (s) return s;
  const Layout* all[4] = {a, b, c, d};
  uint64_t least = 16;
  for (int i = 0; i < 4; i++)
    if (all[i]->type == BF16 && alignment(*all[i], p->alignment[i]) < least)
      least = alignment(*all[i], p->alignment[i]);
  if (least < 16 && e->epilogue & ~(DEFAULT | BIAS)) return UNSUPPORTED;
  for (int algorithm : {1, 0, 2, 3}) {
    if (least < 16 && algorithm > 1) break;
    Found one = result(algorithm, *d, least);
    if (one.workspace <= p->workspace && *found < asked) results[(*found)++] = one;
  }
  return SUCCESS;
}
Status cublasLtMatmulAlgoCheck(void*, const Desc* e, const Layout* a, const Layout* b, const Layout* c, const Layout* d,
                               const Algo* algo, Found* out) {
  Status s = shapes(*e, *a, *b, *c, *d);
  if (s) return s;
  if (algo->data[7] != MAGIC || algo->data[0] > 3) return INVALID;
  *out = result(algo->data[0], *d, algo->data[2]);
  return SUCCESS;
}
Status cublasLtMatmul(void* handle, const Desc* e, const void* alpha, const void* A, const Layout* a, const void* B,
                      const Layout* b, const void* beta, const void* C, const Layout* c, void* D, const Layout* d,
                      const Algo* algo, void* workspace, size_t workspace_bytes, void* stream) {
  if (handle != (void*)MAGIC) return NOT_INITIALIZED;
  Status s = shapes(*e, *a, *b, *c, *d);
  if (s) return s;
  Job job{*e, *a, *b, *c, *d, A, B, C, D, workspace, 0, *(const float*)alpha, *(const float*)beta, 0};
  uint64_t to = algo ? algo->data[2] : 16;
  if (algo) {
    if (algo->data[7] != MAGIC || algo->data[0] > 3) return INVALID;
    job.algorithm = algo->data[0];
    job.workspace_bytes = workspace_of(job.algorithm, *d);
    if (job.workspace_bytes > workspace_bytes) return INVALID;
    if (job.workspace_bytes && (uintptr_t)workspace % 256) return INVALID;
    if (job.workspace_bytes && !there("the workspace", workspace, workspace_bytes)) return INVALID;
  }
  if (!aligned(A, a->type, to) || !aligned(B, b->type, to) || !aligned(D, d->type, to)) return UNSUPPORTED;
  if (job.beta != 0 && !aligned(C, c->type, to)) return UNSUPPORTED;
  if (e->epilogue & BIAS && (uintptr_t)e->bias % 16) return UNSUPPORTED;
  if (!operands(job)) return EXECUTION_FAILED;
  static auto enqueue = (Enqueue)driver("aim_emulator_enqueue");
  auto work = [](void* p) { std::unique_ptr<Job> job((Job*)p); run(*job); };
  return enqueue && enqueue(stream, work, new Job(job)) == 0 ? SUCCESS : EXECUTION_FAILED;
}
}
