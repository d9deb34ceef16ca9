// memory.cpp: device memory, and what is said of accesses outside it. Each allocation ends at an unreadable page: less
// than 16 bytes lie between, which hold 0xff and are looked at after each launch. Large ones, the arenas of a program,
// start at a multiple of 256 as the driver's do. Freed memory stays unreadable for good. New memory holds 0xff: NaN.
#include "host.h"
#include <csignal>
#include <cstdio>
#include <sys/mman.h>

namespace emu {
static std::vector<Allocation> allocations;  // by address
static size_t slack(size_t bytes) {
  size_t unit = bytes < 1 << 20 ? 16 : 256;
  return (unit - bytes % unit) % unit;
}

static std::vector<Allocation>::iterator after(uintptr_t address) {
  auto low = allocations.begin(), high = allocations.end();
  while (low < high) {
    auto middle = low + (high - low) / 2;
    if (middle->start <= address) low = middle + 1; else high = middle;
  }
  return low;
}
void* allocate(size_t bytes) {
  size_t body = (bytes + PAGE - 1) / PAGE * PAGE;
  if (body < bytes || body + 2 * PAGE < body) return nullptr;
  const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
  auto base = (unsigned char*)mmap(nullptr, body + 2 * PAGE, PROT_NONE, flags, -1, 0);
  if (base == MAP_FAILED) return nullptr;
  base += PAGE;
  if (mprotect(base, body, PROT_READ | PROT_WRITE)) return nullptr;
  memset(base, 0xff, body);
  unsigned char* start = base + body - bytes - slack(bytes);
  allocations.insert(after((uintptr_t)start), Allocation{(uintptr_t)start, bytes});
  if (WATCHES) watch_allocation((uintptr_t)start, bytes);
  return start;
}
bool release(void* start, size_t* bytes) {
  auto at = after((uintptr_t)start);
  if (at == allocations.begin() || (--at)->start != (uintptr_t)start) return false;
  *bytes = at->bytes;
  if (WATCHES) watch_release((uintptr_t)start);
  auto base = (unsigned char*)((uintptr_t)start / PAGE * PAGE);
  size_t body = (unsigned char*)start + at->bytes + slack(at->bytes) - base;
  mmap(base, body, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
  allocations.erase(at);
  return true;
}
const Allocation* allocation_near(uintptr_t address) {
  auto next = after(address);
  const Allocation* below = next == allocations.begin() ? nullptr : &next[-1];
  if (next != allocations.end() && (!below || next->start - address < address - below->start - below->bytes)
      && !(below && address < below->start + below->bytes)) return &*next;
  return below;
}
bool overrun(const char* kernel) {
  for (auto& a : allocations) {
    auto end = (const unsigned char*)a.start + a.bytes;
    for (size_t i = 0; i < slack(a.bytes); i++)
      if (end[i] != 0xff) {
        fprintf(stderr, "emulator: kernel %s wrote %zu bytes behind an allocation of %zu bytes\n",
                kernel, i, a.bytes);
        return true;
      }
  }
  return false;
}

// ---- wild accesses ------------------------------------------------------------------------
// Says where a fault happened, then lets the signal end the process.
static struct sigaction before[NSIG];
static void on_signal(int number, siginfo_t* info, void* context) {
  if (!running()) {
    const struct sigaction& old = before[number];
    if (old.sa_flags & SA_SIGINFO) { old.sa_sigaction(number, info, context); return; }
    if (old.sa_handler != SIG_DFL && old.sa_handler != SIG_IGN) { old.sa_handler(number); return; }
    signal(number, SIG_DFL);
    return;
  }
  describe(stderr);
  auto address = (uintptr_t)info->si_addr;
  if (number == SIGILL || number == SIGTRAP) {
    fprintf(stderr, "an access that is not aligned as its type asks\n");
  } else {
    fprintf(stderr, "access to %p", info->si_addr);
    if (address - places.stacks < places.stacks_end - places.stacks) fprintf(stderr, ", the end of a thread's stack");
    else if (address + PAGE - places.window < places.window_end - places.window + 2 * PAGE)
      fprintf(stderr, ", byte %td of %zu of dynamic shared memory", (ptrdiff_t)(address - places.dynamic),
              (size_t)(places.dynamic_end - places.dynamic));
    else if (auto a = allocation_near(address))
      fprintf(stderr, ", byte %td of the nearest allocation's %zu", (ptrdiff_t)(address - a->start), a->bytes);
    fputc('\n', stderr);
  }
  signal(number, SIG_DFL);  // the access is tried again and ends the process
}
void catch_signals() {
  static bool installed;
  if (installed) return;
  installed = true;
  struct sigaction action{};
  action.sa_sigaction = on_signal;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK;
  for (int number : {SIGSEGV, SIGBUS, SIGILL, SIGTRAP}) sigaction(number, &action, &before[number]);
}
}  // namespace emu
