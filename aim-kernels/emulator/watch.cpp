// watch.cpp: looks at every memory access of kernels. Part of the watching build only, whose kernels are compiled with
// -fsanitize=thread: the compiler then calls a function at each access, and the functions are these instead of those of
// ThreadSanitizer. Found, in any one schedule:
//
// - races: two accesses to one place, one of them a write, by threads that no barrier orders. Blocks are never ordered.
//   Shuffles order nothing, __syncwarp orders a warp, an asynchronous copy is a write from its start to its wait.
// - accesses outside allocations by a single byte, or to memory of the host
//
// and counted: passes over the banks of shared memory beyond those that an access of a warp needs. Accesses of its
// lanes belong together when they are the same instruction, the same time around since the lanes last met.
//
// Places are pairs of bytes: kernels that write single bytes of a pair from two threads would be wrongly accused.
#include "host.h"
#include <cstdio>
#include <link.h>
#include <map>
#include <sys/mman.h>

namespace emu {
// What is known of one place. Epochs count launches, blocks and barriers of a block, one after another; `sync` counts
// the __syncwarps of the thread's warp.
struct Cell {
  u32 write_epoch, write_sync, read_epoch, read_sync;
  u16 writer, reader;              // MANY: several threads of one warp, or of several
  u8 read_by_other_block, many, pending;
};
enum { ONE, WARP, BLOCK };         // Cell::many: `reader` alone, others of its warp, others of its block

static u32 epoch, launch_epoch, block_epoch;
static u32 syncs[32];              // of each warp
static Cell* shared_cells;         // of the window, then of static shared memory
constexpr size_t MOST_STATIC = 1 << 20;
static uintptr_t code, code_end;   // this library: constants of kernels, the emulator's own state

struct Shadow { uintptr_t start; size_t bytes; Cell* cells; };
static std::map<uintptr_t, Shadow> shadows;
static Shadow last;                // where the last access went

static Cell* make_cells(size_t bytes) {
  void* p = mmap(nullptr, bytes / 2 * sizeof(Cell) + sizeof(Cell), PROT_READ | PROT_WRITE,
                 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  return p == MAP_FAILED ? nullptr : (Cell*)p;
}
void watch_allocation(uintptr_t start, size_t bytes) { shadows[start] = {start, bytes, make_cells(bytes + 1)}; }
void watch_release(uintptr_t start) {
  auto at = shadows.find(start);
  munmap(at->second.cells, (at->second.bytes + 1) / 2 * sizeof(Cell) + sizeof(Cell));
  shadows.erase(at);
  last = {};
}

static int find_code(dl_phdr_info* info, size_t, void*) {
  uintptr_t low = ~0ull, high = 0;
  for (int i = 0; i < info->dlpi_phnum; i++) {
    const ElfW(Phdr)& p = info->dlpi_phdr[i];
    if (p.p_type != PT_LOAD) continue;
    uintptr_t start = info->dlpi_addr + p.p_vaddr;
    low = start < low ? start : low;
    high = start + p.p_memsz > high ? start + p.p_memsz : high;
  }
  uintptr_t inside = (uintptr_t)&find_code;
  if (inside < low || inside >= high) return 0;
  code = low; code_end = high;
  return 1;
}
static void forget_logs();
void watch_launch() {
  if (!code) dl_iterate_phdr(find_code, nullptr);
  if (!shared_cells) shared_cells = make_cells(places.window_end - places.window + MOST_STATIC);
  forget_logs();                   // a launch that failed may have left some
  launch_epoch = ++epoch;
}
void watch_block() { block_epoch = ++epoch; }
void watch_barrier() { epoch++; }
void watch_warp_barrier(unsigned warp) { syncs[warp]++; }

// ---- races --------------------------------------------------------------------------------
static void accuse(const char* what, u32 other, bool other_block, uintptr_t address, const Shadow* where) {
  char place[96];
  if (where)
    snprintf(place, sizeof place, "byte %zu of an allocation of %zu", (size_t)(address - where->start), where->bytes);
  else if (address >= places.window && address < places.window_end)
    snprintf(place, sizeof place, "byte %td of dynamic shared memory", (ptrdiff_t)(address - places.dynamic));
  else snprintf(place, sizeof place, "static shared memory");
  if (other_block) fail(LAUNCH_FAILED, "race: %s by a thread of another block, %s", what, place);
  fail(LAUNCH_FAILED, "race: %s by thread %u with no barrier between, %s", what, other, place);
}
// Whether what thread `other` did in (when, sync) is ordered before what this thread does now.
static bool ordered(u32 other, u32 when, u32 sync, u32 me) {
  if (when < block_epoch) return false;    // another block of this launch
  return when < epoch || other == me || (other / 32 == me / 32 && sync < syncs[me / 32]);
}
static void look(Cell& c, bool write, uintptr_t address, const Shadow* where) {
  u32 me = state.thread->index, warp = me / 32;
  // Shared memory is new for each block.
  u32 since = where ? launch_epoch : block_epoch;
  if (c.pending)
    accuse(write ? "a write to where a copy is under way" : "a read of what a copy is still bringing", c.writer, false,
           address, where);
  if (c.write_epoch >= since && !ordered(c.writer, c.write_epoch, c.write_sync, me))
    accuse(write ? "a write over what was written" : "a read of what was written", c.writer,
           c.write_epoch < block_epoch, address, where);
  if (!write) {
    if (c.read_epoch < since) c.read_by_other_block = 0;
    else if (c.read_epoch < block_epoch) c.read_by_other_block = 1;
    // Readers since the last barrier of the block are gathered.
    if (c.read_epoch != epoch) { c.reader = me; c.many = ONE; }
    else if (c.reader != me) c.many = c.many == BLOCK || c.reader / 32 != warp ? BLOCK : WARP;
    c.read_epoch = epoch; c.read_sync = syncs[warp];
    return;
  }
  if (c.read_epoch >= since) {
    bool other_block = c.read_epoch < block_epoch || c.read_by_other_block;
    bool fine = c.read_epoch < epoch
        || (c.many == ONE && c.reader == me)
        || (c.many != BLOCK && c.reader / 32 == warp && c.read_sync < syncs[warp]);
    if (other_block || !fine) accuse("a write over what was read", c.reader, other_block, address, where);
  }
  c.writer = me; c.write_epoch = epoch; c.write_sync = syncs[warp];
}

// ---- banks --------------------------------------------------------------------------------
struct Access { const void* instruction; u32 offset, bytes; };
static std::vector<Access> logs[1024];
static void forget_logs() { for (auto& log : logs) log.clear(); }

static u64 extra_passes(const Access* const* lanes, unsigned count) {
  u32 bytes = lanes[0]->bytes < 4 ? 4 : lanes[0]->bytes;
  unsigned together = 128 / bytes;              // lanes of one pass
  u64 extra = 0;
  for (unsigned first = 0; first < count; first += together) {
    u32 words[32 * 4]; unsigned n = 0, degree[32] = {}, most = 1;
    for (unsigned l = first; l < count && l < first + together; l++)
      for (u32 w = lanes[l]->offset / 4; w < (lanes[l]->offset + lanes[l]->bytes + 3) / 4; w++) {
        bool seen = false;
        for (unsigned i = 0; i < n; i++) seen |= words[i] == w;
        if (seen || n == 128) continue;
        words[n++] = w;
        if (++degree[w % 32] > most) most = degree[w % 32];
      }
    extra += most - 1;
  }
  return extra;
}
// The lanes of a warp meet: what each logged is put together.
void watch_segment(unsigned warp, unsigned size, Counts& counts) {
  std::vector<Access>* log = logs + warp * 32;
  bool alike = true;
  for (unsigned l = 1; l < size && alike; l++) {
    alike = log[l].size() == log[0].size();
    for (size_t i = 0; alike && i < log[0].size(); i++) alike = log[l][i].instruction == log[0][i].instruction;
  }
  const Access* lanes[32];
  if (alike) {
    for (size_t i = 0; i < log[0].size(); i++) {
      for (unsigned l = 0; l < size; l++) lanes[l] = &log[l][i];
      counts.access_conflicts += extra_passes(lanes, size);
    }
  } else {
    std::map<std::pair<const void*, unsigned>, std::vector<const Access*>> groups;
    for (unsigned l = 0; l < size; l++) {
      std::map<const void*, unsigned> times;
      for (auto& a : log[l]) groups[{a.instruction, times[a.instruction]++}].push_back(&a);
    }
    for (auto& group : groups) counts.access_conflicts += extra_passes(group.second.data(), group.second.size());
  }
  for (unsigned l = 0; l < size; l++) log[l].clear();
}

// ---- accesses -----------------------------------------------------------------------------
static Cell* shared_cell(uintptr_t p) {
  if (p >= places.window && p < places.window_end) return shared_cells + (p - places.window) / 2;
  if (p - places.fixed < MOST_STATIC) return shared_cells + (places.window_end - places.window + p - places.fixed) / 2;
  return nullptr;
}
static void look_at(Cell* cells, uintptr_t p, size_t bytes, bool write, const Shadow* where) {
  for (size_t i = 0; i < (p % 2 + bytes + 1) / 2; i++) look(cells[i], write, p + 2 * i, where);
}
// Without an instruction: part of something that counts its own passes.
static void on_access(const void* address, size_t bytes, bool write, const void* instruction) {
  auto p = (uintptr_t)address;
  if (!running() || !bytes) return;
  if (p - places.stacks < places.stacks_end - places.stacks) return;
  bool dynamic = p + PAGE - places.window < places.window_end - places.window + 2 * PAGE;   // or the guards around it
  if (dynamic || p - places.fixed < places.fixed_end - places.fixed) {
    if (dynamic && (p < places.dynamic || p + bytes > places.dynamic_end))
      fail(ILLEGAL_ADDRESS, "%s of %zu bytes at byte %td of %zu of dynamic shared memory", write ? "write" : "read",
           bytes, (ptrdiff_t)(p - places.dynamic), (size_t)(places.dynamic_end - places.dynamic));
    look_at(shared_cell(p), p, bytes, write, nullptr);
    if (!instruction) return;
    u32 offset = p - (dynamic ? places.window : places.fixed);
    logs[state.thread->index].push_back({instruction, offset, (u32)bytes});
    return;
  }
  if (p - code < code_end - code) return;
  if (p - last.start >= last.bytes) {
    auto next = shadows.upper_bound(p);
    if (next != shadows.begin()) last = std::prev(next)->second;
  }
  if (p < last.start || p + bytes > last.start + last.bytes) {
    if (p - last.start < last.bytes + 4096)
      fail(ILLEGAL_ADDRESS, "%s of %zu bytes at byte %zu of an allocation of %zu", write ? "write" : "read", bytes,
           (size_t)(p - last.start), last.bytes);
    fail(ILLEGAL_ADDRESS, "%s of %zu bytes at %p, which is not memory of the device", write ? "write" : "read", bytes,
         address);
  }
  look_at(last.cells + (p - last.start) / 2, p, bytes, write, &last);
}
void watch_read(const void* p, size_t bytes) { on_access(p, bytes, false, nullptr); }
void watch_copy_start(void* to) {
  on_access(to, 16, true, nullptr);
  for (int i = 0; i < 8; i++) shared_cell((uintptr_t)to)[i].pending = 1;
}
void watch_copy_end(void* to) {
  Cell* c = shared_cell((uintptr_t)to);
  for (int i = 0; i < 8; i++) {
    c[i].pending = 0;
    c[i].write_epoch = epoch; c[i].write_sync = syncs[state.thread->index / 32];
  }
}
void watch_no_copies() {
  // Copies that nobody waited for end with their block.
  for (uintptr_t p = places.dynamic; p < places.dynamic_end; p += 2) shared_cell(p)->pending = 0;
}
}  // namespace emu

// ---- what the compiler calls --------------------------------------------------------------
#define HERE __builtin_return_address(0)
extern "C" {
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void*, void*) {}
#define ACCESSES(n) \
  void __tsan_read##n(void* p) { emu::on_access(p, n, false, HERE); } \
  void __tsan_write##n(void* p) { emu::on_access(p, n, true, HERE); } \
  void __tsan_unaligned_read##n(void* p) { emu::on_access(p, n, false, HERE); } \
  void __tsan_unaligned_write##n(void* p) { emu::on_access(p, n, true, HERE); } \
  void __tsan_read_write##n(void* p) { emu::on_access(p, n, false, HERE); emu::on_access(p, n, true, HERE); } \
  void __tsan_unaligned_read_write##n(void* p) { __tsan_read_write##n(p); }
ACCESSES(1) ACCESSES(2) ACCESSES(4) ACCESSES(8) ACCESSES(16)
void __tsan_read_range(void* p, size_t n) { emu::on_access(p, n, false, HERE); }
void __tsan_write_range(void* p, size_t n) { emu::on_access(p, n, true, HERE); }
void* __tsan_memcpy(void* to, const void* from, size_t n) {
  emu::on_access(from, n, false, HERE); emu::on_access(to, n, true, HERE);
  return memcpy(to, from, n);
}
void* __tsan_memmove(void* to, const void* from, size_t n) {
  emu::on_access(from, n, false, HERE); emu::on_access(to, n, true, HERE);
  return memmove(to, from, n);
}
void* __tsan_memset(void* to, int v, size_t n) { emu::on_access(to, n, true, HERE); return memset(to, v, n); }
}
