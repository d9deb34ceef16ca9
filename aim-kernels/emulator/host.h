// host.h: what the fake driver asks of the emulator.
#pragma once
#include "prim.cuh"
#include <cstdio>
#include <string>
#include <vector>

namespace emu {
constexpr size_t PAGE = 4096;
// The driver's error codes that kernels end in.
enum { ILLEGAL_ADDRESS = 700, MISALIGNED_ADDRESS = 716, LAUNCH_FAILED = 719 };

// One allocation of device memory, with unreadable pages before and behind.
struct Allocation { uintptr_t start; size_t bytes; };

// What is counted over all launches of a kernel.
struct Counts {
  unsigned long long launches = 0, blocks = 0;
  unsigned long long matrix_conflicts = 0;  // extra passes of ldmatrix over the banks
  unsigned long long access_conflicts = 0;  // of plain accesses to shared memory; counted by the watching build only
};

const Kernel* find(const char* name);
Counts& counts(const Kernel& kernel);
const std::vector<Kernel>& kernels();
// Runs a kernel to its end: 0, or an error code after its message went to stderr. Schedules 0, 1, 2: threads take
// turns, the lowest runs ahead, the highest does (and the last block comes first); copies land at the last moment.
// 3, 4, 5: the same, copies land at once.
int launch(const Kernel& kernel, Dim grid, Dim threads, size_t shared, void** arguments, int schedule);

// Device memory.
void* allocate(size_t bytes);             // null when the system refuses
bool release(void* start, size_t* bytes); // false: not an allocation's start
const Allocation* allocation_near(uintptr_t address);
// Ends the launch that runs with an error and a message.
[[noreturn]] void fail(int code, const char* format, ...) __attribute__((format(printf, 2, 3)));
bool running();
// The kernel, block and thread that run.
void describe(FILE* to);
// Says where a wild access happened before it ends the process.
void catch_signals();
// Whether a kernel wrote behind an allocation where no page guards it; says so.
bool overrun(const char* kernel);

// Of stacks, the window of shared memory, what of it is used, static shared memory.
struct Places { uintptr_t stacks, stacks_end, window, window_end, dynamic, dynamic_end, fixed, fixed_end; };
extern Places places;

// From emu.cpp to watch.cpp, which is part of the watching build only.
#ifdef EMULATOR_WATCH
constexpr bool WATCHES = true;
#else
constexpr bool WATCHES = false;
#endif
void watch_allocation(uintptr_t start, size_t bytes);
void watch_release(uintptr_t start);
void watch_launch();
void watch_block();
void watch_barrier();
void watch_warp_barrier(unsigned warp);
void watch_segment(unsigned warp, unsigned size, Counts& counts);
void watch_read(const void* p, size_t bytes);
void watch_copy_start(void* to);
void watch_copy_end(void* to);
void watch_no_copies();
}  // namespace emu
