// fake_cuda.cpp: a CUDA driver whose device is the emulator. It has what cudarc and this workspace ask of libcuda.
//
// AIM_EMULATOR_SCHEDULE=0..5  the order of threads (see host.h). Below 3 everything asynchronous also happens as late
//                             as it may: work on a stream when somebody waits for it. From 3 on it happens at once. A
//                             program that forgets to wait gives other results in the two.
// AIM_EMULATOR_MEMORY=BYTES   memory of the device, 2 GiB otherwise
// AIM_EMULATOR_REPORT=FILE    at the end a line a kernel: launches, blocks, bank conflicts of ldmatrix and of plain
//                             accesses
#include "host.h"
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <pthread.h>

typedef int Result;
typedef unsigned long long Pointer;
enum {
  OK = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, INVALID_DEVICE = 101, INVALID_IMAGE = 200, INVALID_CONTEXT = 201,
  INVALID_HANDLE = 400, NOT_FOUND = 500, NOT_READY = 600, LAUNCH_OUT_OF_RESOURCES = 701, NOT_SUPPORTED = 801,
};
typedef std::chrono::steady_clock Clock;

struct Stream;
// One recording of an event.
struct Record { Stream* stream; bool done = false; Clock::time_point time; };
struct Event { std::shared_ptr<Record> record; bool timed; };
struct Stream { std::deque<std::function<void()>> work; bool blocking; };
struct Function { const emu::Kernel* kernel; unsigned dynamic_shared = 48 << 10; };

// All calls take this lock: kernels run inside it, one at a time.
static std::recursive_mutex lock;
#define LOCKED std::lock_guard<std::recursive_mutex> guard(lock)
static Stream legacy{{}, true};          // the null stream
static std::vector<Stream*> streams;
static Result broken;                    // an error of a kernel stays
static size_t used;
static std::map<const char*, size_t> pinned;
static std::map<std::string, Function> functions;
// The context of the calling thread. No thread-local variable: the emulator poisons those of this library.
static struct Current {
  pthread_key_t key;
  Current() { pthread_key_create(&key, nullptr); }
  operator bool() const { return pthread_getspecific(key); }
} current;
static int context;                      // its address is the context

static size_t total() {
  static const char* asked = getenv("AIM_EMULATOR_MEMORY");
  static const size_t bytes = asked ? strtoull(asked, nullptr, 10) : 2ull << 30;
  return bytes;
}
static int schedule() {
  static const int n = [] { auto s = getenv("AIM_EMULATOR_SCHEDULE"); return s ? atoi(s) : 0; }();
  return n;
}
static bool late() { return schedule() < 3; }

// At exit, before the tables of kernels are gone: they were made earlier.
static void report() {
  auto path = getenv("AIM_EMULATOR_REPORT");
  if (!path) return;
  FILE* file = fopen(path, "w");
  if (!file) { perror(path); return; }
  for (auto& k : emu::kernels()) {
    auto& c = emu::counts(k);
    fprintf(file, "%s %llu %llu %llu %llu\n", k.name, c.launches, c.blocks, c.matrix_conflicts, c.access_conflicts);
  }
  fclose(file);
}

// ---- streams ------------------------------------------------------------------------------
static void step(Stream* s) {
  auto work = std::move(s->work.front());
  s->work.pop_front();
  work();
}
static void drain(Stream* s) { while (!s->work.empty()) step(s); }
static void drain_all() { for (auto s : streams) drain(s); drain(&legacy); }
static Stream* known(void* handle) {
  if (!handle || handle == (void*)1) return &legacy;
  for (auto s : streams) if (s == handle) return s;
  return nullptr;
}
static void finish(Record* r) { while (!r->done) step(r->stream); }

// Puts work on a stream.
static Result enqueue(void* handle, std::function<void()> work) {
  Stream* s = known(handle);
  if (!s) return INVALID_HANDLE;
  if (broken) return broken;
  if (s == &legacy) {                     // waits for all streams that did not ask to be left out
    for (auto other : streams) if (other->blocking) drain(other);
  }
  s->work.push_back([work = std::move(work)] { if (!broken) work(); });
  if (!late() || s == &legacy || s->work.size() > 1 << 14) drain(s);
  return OK;
}

extern "C" {
// For the fake of cuBLASLt.
Result aim_emulator_enqueue(void* stream, void (*work)(void*), void* argument) {
  LOCKED;
  return enqueue(stream, [=] { work(argument); });
}
int aim_emulator_on_device(const void* p, size_t bytes) {
  LOCKED;
  auto a = emu::allocation_near((uintptr_t)p);
  return a && (uintptr_t)p >= a->start && (uintptr_t)p + bytes <= a->start + a->bytes;
}

// ---- device and context -------------------------------------------------------------------
Result cuInit(unsigned flags) {
  LOCKED;
  static const int registered = atexit(report);
  (void)registered;
  return flags ? INVALID_VALUE : OK;
}
Result cuDriverGetVersion(int* v) { *v = 13000; return OK; }
Result cuDeviceGetCount(int* n) { *n = 1; return OK; }
Result cuDeviceGet(int* d, int i) { *d = i; return i ? INVALID_DEVICE : OK; }
Result cuDeviceGetName(char* s, int n, int) { snprintf(s, n, "CPU emulator"); return OK; }
Result cuDeviceGetUuid_v2(unsigned char* uuid, int) { memcpy(uuid, "aim-emulator----", 16); return OK; }
Result cuDeviceGetUuid(unsigned char* uuid, int d) { return cuDeviceGetUuid_v2(uuid, d); }
Result cuDeviceTotalMem_v2(size_t* n, int) { *n = total(); return OK; }
Result cuDeviceGetAttribute(int* v, int attribute, int) {
  switch (attribute) {
    case 1: *v = 1024; break;              // threads of a block, and along x, y, z
    case 2: case 3: *v = 1024; break;
    case 4: *v = 64; break;
    case 5: *v = 2147483647; break;        // blocks along x, y, z
    case 6: case 7: *v = 65535; break;
    case 8: *v = 48 << 10; break;          // shared memory of a block
    case 10: *v = 32; break;               // lanes of a warp
    case 12: case 82: *v = 65536; break;   // registers
    case 16: *v = 2; break;                // multiprocessors
    case 38: *v = 1 << 20; break;          // L2
    case 39: *v = 2048; break;             // threads of a multiprocessor
    case 40: case 41: *v = 1; break;       // copies beside kernels, unified addresses
    case 75: *v = 9; break;                // compute capability
    case 76: *v = 0; break;
    case 81: *v = 233472; break;           // shared memory of a multiprocessor
    case 97: *v = 232448; break;           // and of a block that asks for it
    case 111: *v = 1024; break;            // of it, kept by the system
    case 115: *v = 1; break;               // memory pools
    default: *v = 0;
  }
  return OK;
}
Result cuDevicePrimaryCtxRetain(void** c, int d) { *c = &context; return d ? INVALID_DEVICE : OK; }
Result cuDevicePrimaryCtxRelease_v2(int) { LOCKED; drain_all(); return OK; }
Result cuCtxGetCurrent(void** c) { *c = pthread_getspecific(current.key); return OK; }
Result cuCtxSetCurrent(void* c) { pthread_setspecific(current.key, c); return OK; }
Result cuCtxGetDevice(int* d) { *d = 0; return current ? OK : INVALID_CONTEXT; }
Result cuCtxSynchronize() { LOCKED; drain_all(); return broken; }
Result cuProfilerStart() { return OK; }
Result cuProfilerStop() { return OK; }

static const struct { int code; const char *name, *text; } ERRORS[] = {
  {OK, "CUDA_SUCCESS", "no error"},
  {INVALID_VALUE, "CUDA_ERROR_INVALID_VALUE", "invalid argument"},
  {OUT_OF_MEMORY, "CUDA_ERROR_OUT_OF_MEMORY", "out of memory"},
  {INVALID_DEVICE, "CUDA_ERROR_INVALID_DEVICE", "invalid device ordinal"},
  {INVALID_IMAGE, "CUDA_ERROR_INVALID_IMAGE", "device kernel image is invalid"},
  {INVALID_CONTEXT, "CUDA_ERROR_INVALID_CONTEXT", "invalid device context"},
  {INVALID_HANDLE, "CUDA_ERROR_INVALID_HANDLE", "invalid resource handle"},
  {NOT_FOUND, "CUDA_ERROR_NOT_FOUND", "named symbol not found"},
  {NOT_READY, "CUDA_ERROR_NOT_READY", "device not ready"},
  {emu::ILLEGAL_ADDRESS, "CUDA_ERROR_ILLEGAL_ADDRESS", "an illegal memory access was encountered"},
  {LAUNCH_OUT_OF_RESOURCES, "CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES", "too many resources requested for launch"},
  {emu::MISALIGNED_ADDRESS, "CUDA_ERROR_MISALIGNED_ADDRESS", "misaligned address"},
  {emu::LAUNCH_FAILED, "CUDA_ERROR_LAUNCH_FAILED", "unspecified launch failure"},
  {NOT_SUPPORTED, "CUDA_ERROR_NOT_SUPPORTED", "operation not supported"},
};
Result cuGetErrorName(int code, const char** text) {
  for (auto& e : ERRORS) if (e.code == code) { *text = e.name; return OK; }
  *text = nullptr;
  return INVALID_VALUE;
}
Result cuGetErrorString(int code, const char** text) {
  for (auto& e : ERRORS) if (e.code == code) { *text = e.text; return OK; }
  *text = nullptr;
  return INVALID_VALUE;
}

// ---- memory -------------------------------------------------------------------------------
Result cuMemAlloc_v2(Pointer* p, size_t bytes) {
  LOCKED;
  if (!current) return INVALID_CONTEXT;
  if (broken) return broken;
  if (!bytes) return INVALID_VALUE;
  if (bytes > total() - used) return OUT_OF_MEMORY;
  void* start = emu::allocate(bytes);
  if (!start) return OUT_OF_MEMORY;
  used += bytes;
  *p = (Pointer)start;
  return OK;
}
static Result release(Pointer p) {
  if (!p) return OK;
  size_t bytes;
  emu::overrun("(some)");
  if (!emu::release((void*)p, &bytes)) return INVALID_VALUE;
  used -= bytes;
  return OK;
}
Result cuMemFree_v2(Pointer p) { LOCKED; drain_all(); Result r = release(p); return broken ? broken : r; }
Result cuMemAllocAsync(Pointer* p, size_t bytes, void* stream) {
  LOCKED;
  return known(stream) ? cuMemAlloc_v2(p, bytes) : INVALID_HANDLE;
}
Result cuMemFreeAsync(Pointer p, void* stream) { LOCKED; return enqueue(stream, [=] { release(p); }); }
Result cuMemGetInfo_v2(size_t* free, size_t* all) {
  LOCKED;
  *all = total(); *free = total() - used;
  return current ? OK : INVALID_CONTEXT;
}

Result cuMemHostAlloc(void** p, size_t bytes, unsigned) {
  LOCKED;
  if (!current) return INVALID_CONTEXT;
  *p = emu::allocate(bytes ? bytes : 1);
  if (!*p) return OUT_OF_MEMORY;
  pinned[(const char*)*p] = bytes;
  return OK;
}
Result cuMemFreeHost(void* p) {
  LOCKED;
  drain_all();
  if (!pinned.erase((const char*)p)) return INVALID_VALUE;
  size_t bytes;
  emu::release(p, &bytes);
  return OK;
}
static bool is_pinned(const void* p) {
  auto next = pinned.upper_bound((const char*)p);
  return next != pinned.begin() && (const char*)p < (--next)->first + next->second;
}
// Everything that a copy touches on the device must be there.
static bool inside(Pointer p, size_t bytes) { return aim_emulator_on_device((void*)p, bytes) && !is_pinned((void*)p); }

static Result set(Pointer p, size_t bytes, void* stream, std::function<void()> work) {
  if (!inside(p, bytes)) return INVALID_VALUE;
  return enqueue(stream, std::move(work));
}
Result cuMemsetD8Async(Pointer p, unsigned char v, size_t n, void* stream) {
  LOCKED;
  return set(p, n, stream, [=] { memset((void*)p, v, n); });
}
Result cuMemsetD32Async(Pointer p, unsigned v, size_t n, void* stream) {
  LOCKED;
  return set(p, n * 4, stream, [=] { for (size_t i = 0; i < n; i++) ((unsigned*)p)[i] = v; });
}
Result cuMemsetD8_v2(Pointer p, unsigned char v, size_t n) { return cuMemsetD8Async(p, v, n, nullptr); }
Result cuMemcpyHtoDAsync_v2(Pointer to, const void* from, size_t n, void* stream) {
  LOCKED;
  if (!inside(to, n)) return INVALID_VALUE;
  if (!late() || is_pinned(from)) return enqueue(stream, [=] { memcpy((void*)to, from, n); });
  // From memory that is not pinned the driver takes the values before it returns.
  auto values = std::make_shared<std::vector<char>>((const char*)from, (const char*)from + n);
  return enqueue(stream, [=] { memcpy((void*)to, values->data(), n); });
}
Result cuMemcpyDtoHAsync_v2(void* to, Pointer from, size_t n, void* stream) {
  LOCKED;
  if (!inside(from, n)) return INVALID_VALUE;
  Result r = enqueue(stream, [=] { memcpy(to, (void*)from, n); });
  if (r == OK && !is_pinned(to)) { drain(known(stream)); r = broken; }
  return r;
}
Result cuMemcpyDtoDAsync_v2(Pointer to, Pointer from, size_t n, void* stream) {
  LOCKED;
  if (!inside(to, n) || !inside(from, n)) return INVALID_VALUE;
  return enqueue(stream, [=] { memmove((void*)to, (void*)from, n); });
}
Result cuMemcpyHtoD_v2(Pointer to, const void* from, size_t n) { return cuMemcpyHtoDAsync_v2(to, from, n, nullptr); }
Result cuMemcpyDtoH_v2(void* to, Pointer from, size_t n) { return cuMemcpyDtoHAsync_v2(to, from, n, nullptr); }
Result cuMemcpyDtoD_v2(Pointer to, Pointer from, size_t n) { return cuMemcpyDtoDAsync_v2(to, from, n, nullptr); }

// ---- streams and events -------------------------------------------------------------------
Result cuStreamCreate(void** s, unsigned flags) {
  LOCKED;
  if (!current) return INVALID_CONTEXT;
  auto made = new Stream{{}, !(flags & 1)};
  streams.push_back(made);
  *s = made;
  return OK;
}
Result cuStreamCreateWithPriority(void** s, unsigned flags, int) { return cuStreamCreate(s, flags); }
Result cuCtxGetStreamPriorityRange(int* least, int* greatest) { *least = 0; *greatest = -5; return OK; }
Result cuStreamDestroy_v2(void* handle) {
  LOCKED;
  Stream* s = known(handle);
  if (!s || s == &legacy) return INVALID_HANDLE;
  drain(s);
  for (size_t i = 0; i < streams.size(); i++) if (streams[i] == s) { streams.erase(streams.begin() + i); break; }
  delete s;
  return OK;
}
Result cuStreamSynchronize(void* handle) {
  LOCKED;
  Stream* s = known(handle);
  if (!s) return INVALID_HANDLE;
  if (s == &legacy) { for (auto other : streams) if (other->blocking) drain(other); }
  drain(s);
  return broken;
}
// Who asks again and again must see an end: each question gets one thing done.
Result cuStreamQuery(void* handle) {
  LOCKED;
  Stream* s = known(handle);
  if (!s) return INVALID_HANDLE;
  if (s->work.empty()) return broken;
  step(s);
  return s->work.empty() ? broken : NOT_READY;
}
Result cuStreamIsCapturing(void*, int* status) { *status = 0; return OK; }
Result cuStreamWaitEvent(void* handle, void* event, unsigned) {
  LOCKED;
  auto record = ((Event*)event)->record;
  if (!record) return OK;                 // never recorded
  return enqueue(handle, [=] { finish(record.get()); });
}
Result cuLaunchHostFunc(void* handle, void (*f)(void*), void* data) {
  LOCKED;
  return enqueue(handle, [=] { f(data); });
}
Result cuEventCreate(void** e, unsigned flags) { *e = new Event{nullptr, !(flags & 2)}; return OK; }
Result cuEventDestroy_v2(void* e) { LOCKED; delete (Event*)e; return OK; }
Result cuEventRecord(void* e, void* handle) {
  LOCKED;
  Stream* s = known(handle);
  if (!s) return INVALID_HANDLE;
  auto record = std::make_shared<Record>();
  record->stream = s;
  ((Event*)e)->record = record;
  // Not through enqueue: after a kernel's error whoever waits for the event must still see it done.
  s->work.push_back([=] { record->done = true; record->time = Clock::now(); });
  if (!late() || s == &legacy) drain(s);
  return OK;
}
Result cuEventSynchronize(void* e) {
  LOCKED;
  auto record = ((Event*)e)->record;
  if (record) finish(record.get());
  return broken;
}
Result cuEventQuery(void* e) {
  LOCKED;
  auto record = ((Event*)e)->record;
  if (!record || record->done) return broken;
  step(record->stream);
  return record->done ? broken : NOT_READY;
}
static Result elapsed(float* ms, void* a, void* b) {
  LOCKED;
  auto first = (Event*)a, second = (Event*)b;
  if (!first->timed || !second->timed || !first->record || !second->record) return INVALID_HANDLE;
  if (!first->record->done || !second->record->done) return NOT_READY;
  *ms = std::chrono::duration<float, std::milli>(second->record->time - first->record->time).count();
  return OK;
}
Result cuEventElapsedTime(float* ms, void* a, void* b) { return elapsed(ms, a, b); }
Result cuEventElapsedTime_v2(float* ms, void* a, void* b) { return elapsed(ms, a, b); }

// ---- kernels ------------------------------------------------------------------------------
Result cuModuleLoadData(void** m, const void* image) { *m = (void*)image; return image ? OK : INVALID_VALUE; }
Result cuModuleLoadDataEx(void** m, const void* image, unsigned, int*, void**) { return cuModuleLoadData(m, image); }
Result cuModuleUnload(void*) { return OK; }
Result cuModuleGetFunction(void** f, void*, const char* name) {
  LOCKED;
  auto kernel = emu::find(name);
  if (!kernel) return NOT_FOUND;
  *f = &functions.emplace(name, Function{kernel}).first->second;
  return OK;
}
Result cuFuncGetAttribute(int* v, int attribute, void* f) {
  auto function = (Function*)f;
  unsigned most = function->kernel->most_threads;
  *v = attribute == 0 ? (most ? most : 1024) : attribute == 8 ? function->dynamic_shared : attribute == 4 ? 32 : 0;
  return OK;
}
Result cuFuncSetAttribute(void* f, int attribute, int v) {
  if (attribute != 8) return attribute == 9 ? OK : INVALID_VALUE;
  if (v < 0 || v > 232448) return INVALID_VALUE;
  ((Function*)f)->dynamic_shared = v;
  return OK;
}
Result cuFuncSetCacheConfig(void*, int) { return OK; }
Result cuOccupancyMaxActiveBlocksPerMultiprocessor(int* n, void*, int threads, size_t shared) {
  int by_threads = 2048 / (threads > 0 ? threads : 1), by_shared = shared ? 233472 / (shared + 1024) : 32;
  *n = by_threads < by_shared ? by_threads : by_shared;
  return OK;
}
Result cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* n, void* f, int threads, size_t shared, unsigned) {
  return cuOccupancyMaxActiveBlocksPerMultiprocessor(n, f, threads, shared);
}
Result cuLaunchKernel(void* f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                      unsigned shared, void* stream, void** args, void** extra) {
  LOCKED;
  auto function = (Function*)f;
  const emu::Kernel& kernel = *function->kernel;
  if (!current) return INVALID_CONTEXT;
  if (extra || !gx || !gy || !gz || gx > 2147483647u || gy > 65535 || gz > 65535) return INVALID_VALUE;
  if (!bx || !by || !bz || bx > 1024 || by > 1024 || bz > 64) return INVALID_VALUE;
  if (bx * by * bz > 1024) return INVALID_VALUE;
  if (shared > function->dynamic_shared) return INVALID_VALUE;   // above 48 KiB a kernel must have been allowed it
  if (kernel.most_threads && bx * by * bz > kernel.most_threads) return LAUNCH_OUT_OF_RESOURCES;
  // The caller's arguments live until the call returns.
  auto values = std::make_shared<std::vector<unsigned long long>>();
  auto places = std::make_shared<std::vector<void*>>();
  for (unsigned i = 0; i < kernel.arguments; i++) {
    places->push_back((void*)values->size());
    values->resize(values->size() + (kernel.sizes[i] + 7) / 8);
    memcpy(values->data() + (size_t)places->back(), args[i], kernel.sizes[i]);
  }
  for (auto& place : *places) place = values->data() + (size_t)place;
  return enqueue(stream, [=, &kernel, values = values] {   // `places` points into `values`
    int error = emu::launch(kernel, {gx, gy, gz}, {bx, by, bz}, shared, places->data(), schedule());
    if (error) broken = error;
  });
}
}
