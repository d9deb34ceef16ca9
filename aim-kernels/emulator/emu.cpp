// emu.cpp: fibers and their scheduler, what warps and blocks do together, launches.
#include "host.h"
#include <csignal>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <link.h>
#include <sys/mman.h>
#include <unistd.h>

#if !defined(__x86_64__)
#define EMULATOR_UCONTEXT
#endif
#ifndef EMULATOR_UCONTEXT
// Saves what a call must keep, changes stacks, restores. 12 instructions against ucontext's two system calls.
extern "C" void emulator_switch(void** from, void* to);
asm(".text\n.globl emulator_switch\n.hidden emulator_switch\n.type emulator_switch,@function\nemulator_switch:\n"
    " push %rbp\n push %rbx\n push %r12\n push %r13\n push %r14\n push %r15\n"
    " mov %rsp,(%rdi)\n mov %rsi,%rsp\n"
    " pop %r15\n pop %r14\n pop %r13\n pop %r12\n pop %rbx\n pop %rbp\n ret\n");
#else
#include <ucontext.h>
static void emulator_switch(void** from, void* to) {
  ucontext_t here;
  *from = &here;
  swapcontext(&here, (ucontext_t*)to);
}
#endif

namespace emu {
State state;
Places places;

// ---- kernels ------------------------------------------------------------------------------
static std::vector<Kernel>& table() { static std::vector<Kernel> t; return t; }
static std::vector<Counts>& tally() { static std::vector<Counts> t; return t; }
void add(const Kernel& kernel) { table().push_back(kernel); tally().emplace_back(); }
const std::vector<Kernel>& kernels() { return table(); }
Counts& counts(const Kernel& kernel) { return tally()[&kernel - table().data()]; }
const Kernel* find(const char* name) {
  for (auto& kernel : table()) if (!strcmp(kernel.name, name)) return &kernel;
  return nullptr;
}

// ---- fibers -------------------------------------------------------------------------------
constexpr unsigned MOST_THREADS = 1024;
constexpr size_t STACK = 33 * PAGE, MOST_SHARED = 232448;  // 227 KiB, as on sm_90
enum class Op : u8 { None, Sync, Shuffle, Mma, Matrices, MatricesT };
static const char* const OP_NAMES[] = {"nothing", "__syncwarp", "a shuffle", "an mma", "an ldmatrix", "an ldmatrix"};
struct Copy { void* to; const void* from; unsigned group; bool valid; };
struct Fiber : Thread {
  enum { RUNS, WARP, BLOCK, DONE } where;
  int line;                        // of the barrier of the block that it waits at
  // What it asks of its warp.
  Op op;
  unsigned bytes; int from;        // shuffle
  void* out; const void* in; u32 b0, b1;
  // Copies under way, oldest first from `landed` on.
  std::vector<Copy> copies; size_t landed; unsigned group;
#ifdef EMULATOR_UCONTEXT
  ucontext_t context;
#endif
};
struct Warp { unsigned size, here; };

static Fiber fibers[MOST_THREADS];
static Warp warps[MOST_THREADS / 32];
static unsigned char* stacks;      // one for each fiber, a guard page below each
static u64 ready[MOST_THREADS / 64];
static unsigned threads, alive, at_barrier, order;
static bool eager, runs;
static void* home;                 // the scheduler's own stack
static int failure;
static const Kernel* kernel;
static void** arguments;

bool running() { return runs; }
static Fiber& self() { return *static_cast<Fiber*>(state.thread); }
static void set_ready(unsigned i) { ready[i / 64] |= 1ull << i % 64; }
static void clear_ready(unsigned i) { ready[i / 64] &= ~(1ull << i % 64); }

// The next fiber by the schedule's order, or -1.
static int pick(unsigned after) {
  const int words = (threads + 63) / 64;
  if (order == 0) {
    unsigned start = after + 1 < threads ? after + 1 : 0;
    int w = start / 64;
    u64 bits = ready[w] & (~0ull << start % 64);
    for (int i = 0; i <= words; i++) {
      if (bits) return w * 64 + __builtin_ctzll(bits);
      w = w + 1 < words ? w + 1 : 0;
      bits = ready[w];
    }
    return -1;
  }
  if (order == 1) {
    for (int w = 0; w < words; w++) if (ready[w]) return w * 64 + __builtin_ctzll(ready[w]);
    return -1;
  }
  for (int w = words; w-- > 0;) if (ready[w]) return w * 64 + 63 - __builtin_clzll(ready[w]);
  return -1;
}

static void go(void** save, unsigned after) {
  int next = pick(after);
  if (next < 0) { emulator_switch(save, home); return; }
  state.thread = &fibers[next];
  emulator_switch(save, fibers[next].stack_pointer);
}
// Leaves the fiber until somebody makes it ready.
static void leave() {
  Fiber& me = self();
  clear_ready(me.index);
  go(&me.stack_pointer, me.index);
}

void describe(FILE* to) {
  fprintf(to, "emulator: kernel %s, block (%u, %u, %u) of (%u, %u, %u)", kernel->name, state.block.x, state.block.y,
          state.block.z, state.grid.x, state.grid.y, state.grid.z);
  Dim t = state.thread->id;
  if (state.thread->index < threads) fprintf(to, ", thread (%u, %u, %u)", t.x, t.y, t.z);
  fprintf(to, ": ");
}
// Ends the launch with an error. The fibers are abandoned where they are.
void fail(int code, const char* format, ...) {
  describe(stderr);
  va_list rest; va_start(rest, format); vfprintf(stderr, format, rest); va_end(rest);
  fputc('\n', stderr);
  failure = code;
  void* nowhere;
  emulator_switch(&nowhere, home);
  abort();
}

static void entry() {
  kernel->call(arguments);
  Fiber& me = self();
  me.where = Fiber::DONE;
  alive--;
  leave();
  abort();
}

// ---- shared memory ------------------------------------------------------------------------
// Dynamic: `window` pages between guards, used from the end so that the byte behind it faults.
static unsigned char* window;
constexpr size_t WINDOW = (MOST_SHARED + PAGE - 1) / PAGE * PAGE;
static size_t shared_bytes;
static unsigned char *static_start, *static_end;   // of this thread of the system
// A thread-local variable of this library: where it lies says where all others do. They hold nothing between launches.
static thread_local unsigned char anchor[16];

static int find_segment(dl_phdr_info* info, size_t, void* offset) {
  uintptr_t inside = (uintptr_t)&find_segment;
  const ElfW(Phdr)* tls = nullptr;
  bool ours = false;
  for (int i = 0; i < info->dlpi_phnum; i++) {
    const ElfW(Phdr)& p = info->dlpi_phdr[i];
    if (p.p_type == PT_LOAD && inside - (info->dlpi_addr + p.p_vaddr) < p.p_memsz) ours = true;
    if (p.p_type == PT_TLS) tls = &p;
  }
  if (!ours || !tls || !info->dlpi_tls_data) return 0;
  ((size_t*)offset)[0] = (uintptr_t)anchor - (uintptr_t)info->dlpi_tls_data;
  ((size_t*)offset)[1] = tls->p_memsz;
  return 1;
}
static void find_static() {
  static size_t place[2];
  anchor[0] = 0;  // the loader makes the memory of a thread at the first access
  if (!place[1]) dl_iterate_phdr(find_segment, place);
  static_start = (unsigned char*)anchor - place[0];
  static_end = static_start + place[1];
}
// NaN everywhere: what a block did not write itself shows.
static void poison() {
  memset(state.shared, 0xff, window + WINDOW - state.shared);
  memset(static_start, 0xff, static_end - static_start);
}
static bool in_shared(const void* p, size_t bytes) {
  auto at = (const unsigned char*)p;
  return (at >= state.shared && at + bytes <= state.shared + shared_bytes)
      || (at >= static_start && at + bytes <= static_end);
}

// ---- what threads do together -------------------------------------------------------------
// Stricter than the machine, which lets threads that ended count as arrived: they do not, and a barrier is one line.
static void meet_all() {
  for (unsigned w = 0; w * 32 < threads; w++) watch_segment(w, warps[w].size, counts(*kernel));
}
void sync_block(int line) {
  Fiber& me = self();
  me.where = Fiber::BLOCK; me.line = line;
  if (++at_barrier < threads) { leave(); return; }
  at_barrier = 0;
  if (WATCHES) { meet_all(); watch_barrier(); }
  for (unsigned i = 0; i < threads; i++) {
    if (fibers[i].line != line)
      fail(LAUNCH_FAILED,
           "divergent barrier: this thread is at the __syncthreads of line %d, thread %u at that of line %d", line, i,
           fibers[i].line);
    fibers[i].where = Fiber::RUNS;
    set_ready(i);
  }
}

static void run_op(Op op, Fiber* lanes, unsigned size);

// Each lane states what it wants; the last to arrive does it for all.
static void together(Op op) {
  Fiber& me = self();
  Warp& warp = warps[me.index / 32];
  me.op = op; me.where = Fiber::WARP;
  if (++warp.here < warp.size) { leave(); return; }
  warp.here = 0;
  Fiber* lanes = &fibers[me.index / 32 * 32];
  for (unsigned i = 0; i < warp.size; i++) {
    if (lanes[i].op != op)
      fail(LAUNCH_FAILED, "divergent warp: this thread is at %s, lane %u at %s", OP_NAMES[(int)op], i,
           OP_NAMES[(int)lanes[i].op]);
  }
  if (WATCHES) watch_segment(me.index / 32, warp.size, counts(*kernel));
  if (op != Op::Sync) run_op(op, lanes, warp.size);
  else if (WATCHES) watch_warp_barrier(me.index / 32);
  for (unsigned i = 0; i < warp.size; i++) { lanes[i].where = Fiber::RUNS; set_ready(lanes[i].index); }
}
void sync_warp() { together(Op::Sync); }
void shuffle(void* value, unsigned bytes, int from) {
  Fiber& me = self();
  me.out = value; me.bytes = bytes; me.from = from;
  together(Op::Shuffle);
}
void mma(float* d, const u32* a, u32 b0, u32 b1) {
  Fiber& me = self();
  me.out = d; me.in = a; me.b0 = b0; me.b1 = b1;
  together(Op::Mma);
}
void load_matrices(u32* r, const void* row, bool transposed) {
  Fiber& me = self();
  if ((uintptr_t)row % 16) fail(MISALIGNED_ADDRESS, "ldmatrix: a row's address is not at 16 bytes");
  if (!in_shared(row, 16)) fail(ILLEGAL_ADDRESS, "ldmatrix: a row's address is outside shared memory");
  if (WATCHES) watch_read(row, 16);
  me.out = r; me.in = row;
  together(transposed ? Op::MatricesT : Op::Matrices);
}

static float low(u32 v) { return __uint_as_float(v << 16); }
static float high(u32 v) { return __uint_as_float(v & 0xffff0000u); }

// PTX ISA, mma.m16n8k16 with .bf16: with g = lane / 4 and t = lane % 4, see prim.cuh.
static void run_mma(Fiber* lanes) {
  float a[16][16], b[16][8], d[16][8];
  for (unsigned l = 0; l < 32; l++) {
    unsigned g = l / 4, t = l % 4;
    auto ra = (const u32*)lanes[l].in;
    auto rd = (const float*)lanes[l].out;
    for (unsigned r = 0; r < 4; r++) {
      unsigned row = g + r % 2 * 8, k = 2 * t + r / 2 * 8;
      a[row][k] = low(ra[r]); a[row][k + 1] = high(ra[r]);
    }
    b[2 * t][g] = low(lanes[l].b0); b[2 * t + 1][g] = high(lanes[l].b0);
    b[2 * t + 8][g] = low(lanes[l].b1); b[2 * t + 9][g] = high(lanes[l].b1);
    for (unsigned r = 0; r < 4; r++) d[g + r / 2 * 8][2 * t + r % 2] = rd[r];
  }
  for (unsigned m = 0; m < 16; m++)
    for (unsigned k = 0; k < 16; k++)
      for (unsigned n = 0; n < 8; n++) d[m][n] += a[m][k] * b[k][n];
  for (unsigned l = 0; l < 32; l++) {
    unsigned g = l / 4, t = l % 4;
    auto rd = (float*)lanes[l].out;
    for (unsigned r = 0; r < 4; r++) rd[r] = d[g + r / 2 * 8][2 * t + r % 2];
  }
}
static void run_matrices(Fiber* lanes, bool transposed) {
  Counts& count = counts(*kernel);
  for (unsigned m = 0; m < 4; m++) {
    const u16* rows[8];
    for (unsigned i = 0; i < 8; i++) rows[i] = (const u16*)lanes[m * 8 + i].in;
    // A row covers 4 of the 32 banks; rows at different addresses in the same banks take a pass each.
    unsigned most = 1, passes[8] = {};
    for (unsigned i = 0; i < 8; i++) {
      bool seen = false;
      for (unsigned j = 0; j < i; j++) seen |= rows[j] == rows[i];
      unsigned n = passes[(uintptr_t)rows[i] / 16 % 8] += !seen;
      if (n > most) most = n;
    }
    count.matrix_conflicts += most - 1;
    for (unsigned l = 0; l < 32; l++) {
      unsigned at = l / 4, pair = l % 4 * 2;
      u16 x = transposed ? rows[pair][at] : rows[at][pair], y = transposed ? rows[pair + 1][at] : rows[at][pair + 1];
      ((u32*)lanes[l].out)[m] = x | (u32)y << 16;
    }
  }
}
static void run_op(Op op, Fiber* lanes, unsigned size) {
  if (op == Op::Shuffle) {
    unsigned char values[32][8];
    for (unsigned i = 0; i < size; i++) {
      if (lanes[i].bytes > 8 || lanes[i].bytes != lanes[0].bytes)
        fail(LAUNCH_FAILED, "shuffle of values of several types");
      memcpy(values[i], lanes[i].out, lanes[i].bytes);
    }
    for (unsigned i = 0; i < size; i++) {
      if ((unsigned)lanes[i].from >= size)
        fail(LAUNCH_FAILED, "shuffle: lane %u asks for lane %d of %u", i, lanes[i].from, size);
      memcpy(lanes[i].out, values[lanes[i].from], lanes[i].bytes);
    }
    return;
  }
  if (size < 32) fail(LAUNCH_FAILED, "%s in a warp of %u threads", OP_NAMES[(int)op], size);
  if (op == Op::Mma) run_mma(lanes); else run_matrices(lanes, op == Op::MatricesT);
}

// ---- asynchronous copies ------------------------------------------------------------------
static void land(const Copy& c) {
  if (c.valid) memcpy(c.to, c.from, 16); else memset(c.to, 0, 16);
}
void copy_async(void* to, const void* from, bool valid) {
  if ((uintptr_t)to % 16 || (valid && (uintptr_t)from % 16))
    fail(MISALIGNED_ADDRESS, "cp.async: an address is not at 16 bytes");
  if (!in_shared(to, 16)) fail(ILLEGAL_ADDRESS, "cp.async: the target is outside shared memory");
  Fiber& me = self();
  Copy c{to, from, me.group, valid};
  if (WATCHES) { watch_copy_start(to); if (valid) watch_read(from, 16); }
  if (eager && !WATCHES) land(c); else me.copies.push_back(c);
}
void commit_copies() { self().group++; }
void wait_copies(unsigned left) {
  Fiber& me = self();
  while (me.landed < me.copies.size() && me.copies[me.landed].group + left < me.group) {
    const Copy& c = me.copies[me.landed++];
    land(c);
    if (WATCHES) watch_copy_end(c.to);
  }
  if (me.landed == me.copies.size()) { me.copies.clear(); me.landed = 0; }
}

// ---- launches -----------------------------------------------------------------------------
static void make_fibers() {
  if (stacks) return;
  const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
  stacks = (unsigned char*)mmap(nullptr, MOST_THREADS * STACK, PROT_READ | PROT_WRITE, flags, -1, 0);
  window = (unsigned char*)mmap(nullptr, WINDOW + 2 * PAGE, PROT_NONE, flags, -1, 0);
  if (stacks == MAP_FAILED || window == MAP_FAILED) { perror("emulator: stacks"); abort(); }
  window += PAGE;
  mprotect(window, WINDOW, PROT_READ | PROT_WRITE);
  for (unsigned i = 0; i < MOST_THREADS; i++) { mprotect(stacks + i * STACK, PAGE, PROT_NONE); fibers[i].index = i; }
}
static void start(unsigned i) {
  Fiber& f = fibers[i];
  f.id = {i % state.threads.x, i / state.threads.x % state.threads.y, i / state.threads.x / state.threads.y};
  f.where = Fiber::RUNS; f.copies.clear(); f.landed = 0; f.group = 0;
  // Tops at like addresses would share a few sets of the cache.
  unsigned char* top = stacks + (i + 1) * STACK - i % 32 * 320;
#ifdef EMULATOR_UCONTEXT
  getcontext(&f.context);
  f.context.uc_stack.ss_sp = stacks + i * STACK + PAGE;
  f.context.uc_stack.ss_size = top - stacks - i * STACK - PAGE; f.context.uc_link = nullptr;
  makecontext(&f.context, entry, 0);
  f.stack_pointer = &f.context;
#else
  void** sp = (void**)top;
  *--sp = nullptr; *--sp = (void*)entry;      // the stack is 8 off 16 at a function's start
  for (int r = 0; r < 6; r++) *--sp = nullptr;
  f.stack_pointer = sp;
#endif
  set_ready(i);
}
static void deadlock() {
  unsigned block = 0, warp = 0, done = 0;
  const Fiber *first_block = nullptr, *first_warp = nullptr;
  for (unsigned i = 0; i < threads; i++) {
    const Fiber& f = fibers[i];
    if (f.where == Fiber::BLOCK) { block++; if (!first_block) first_block = &f; }
    if (f.where == Fiber::WARP) { warp++; if (!first_warp) first_warp = &f; }
    done += f.where == Fiber::DONE;
  }
  state.thread = &fibers[first_block ? first_block->index : first_warp->index];
  describe(stderr);
  fprintf(stderr, "deadlock (divergent barrier): of %u threads %u ended", threads, done);
  if (block)
    fprintf(stderr, ", %u wait at __syncthreads (thread %u in line %d)", block, first_block->index, first_block->line);
  if (warp)
    fprintf(stderr, ", %u wait for their warp (thread %u at %s)", warp, first_warp->index,
            OP_NAMES[(int)first_warp->op]);
  fputc('\n', stderr);
  failure = LAUNCH_FAILED;
}
static Places whereabouts() {
  auto at = [](void* p) { return (uintptr_t)p; };
  return {at(stacks), at(stacks + MOST_THREADS * STACK), at(window), at(window + WINDOW), at(state.shared),
          at(state.shared + shared_bytes), at(static_start), at(static_end)};
}
static void run_block() {
  poison();
  memset(ready, 0, sizeof ready);
  alive = threads; at_barrier = 0;
  for (unsigned i = 0; i < threads; i++) start(i);
  for (unsigned w = 0; w * 32 < threads; w++) warps[w] = {threads - w * 32 < 32 ? threads - w * 32 : 32, 0};
  if (WATCHES) watch_block();
  go(&home, threads - 1);
  if (failure) return;
  if (alive) { deadlock(); return; }
  if (WATCHES) { meet_all(); watch_no_copies(); }
  for (unsigned char* p = state.shared + shared_bytes; p < window + WINDOW; p++)
    if (*p != 0xff) {
      state.thread = &fibers[0];
      describe(stderr);
      fprintf(stderr, "some thread wrote %td bytes behind the %zu bytes of dynamic shared memory\n",
              p - state.shared - shared_bytes, shared_bytes);
      failure = ILLEGAL_ADDRESS;
      return;
    }
}

// Parameters lie in memory of their own, which is no device memory but may be read.
static void** parameters(const Kernel& what, void** args) {
  static u64 space[512];
  static void* places[64];
  size_t at = 0;
  for (unsigned i = 0; i < what.arguments; i++) {
    if (i >= 64 || at + (what.sizes[i] + 7) / 8 > 512) {
      fprintf(stderr, "emulator: %s has too many arguments\n", what.name);
      abort();
    }
    places[i] = memcpy(space + at, args[i], what.sizes[i]);
    at += (what.sizes[i] + 7) / 8;
  }
  return places;
}

int launch(const Kernel& what, Dim grid, Dim block, size_t shared, void** args, int schedule) {
  make_fibers();
  catch_signals();
  find_static();
  kernel = &what; arguments = parameters(what, args); failure = 0;
  state.grid = grid; state.threads = block;
  threads = block.x * block.y * block.z;
  order = schedule % 3; eager = schedule >= 3;
  shared_bytes = shared;
  state.shared = window + WINDOW - (shared + 1023) / 1024 * 1024;
  // Pages below are closed too: an index below zero faults.
  size_t closed = (state.shared - window) / PAGE * PAGE;
  static size_t closed_before;
  if (closed != closed_before) {
    mprotect(window, WINDOW, PROT_READ | PROT_WRITE);
    if (closed) mprotect(window, closed, PROT_NONE);
    closed_before = closed;
  }
  u64 blocks = (u64)grid.x * grid.y * grid.z;
  Counts& count = counts(what);
  count.launches++; count.blocks += blocks;
  // A fault on a fiber's stack needs another stack for the handler, and messages need more than Rust's threads have.
  static unsigned char handler_stack[64 << 10];
  stack_t handlers{}, others;
  handlers.ss_sp = handler_stack; handlers.ss_size = sizeof handler_stack;
  sigaltstack(&handlers, &others);
  places = whereabouts();
  if (WATCHES) watch_launch();
  runs = true;
  for (u64 i = 0; i < blocks && !failure; i++) {
    u64 b = order == 2 ? blocks - 1 - i : i;
    state.block = {(unsigned)(b % grid.x), (unsigned)(b / grid.x % grid.y), (unsigned)(b / grid.x / grid.y)};
    run_block();
  }
  runs = false;
  sigaltstack(&others, nullptr);
  if (!failure && overrun(what.name)) failure = ILLEGAL_ADDRESS;
  return failure;
}
}  // namespace emu
