// A CUDA device on one thread of the host. The threads of a block are fibers that give way where threads meet. Who
// may go first is drawn by lot for every block, and he who may go last goes no further than he must: a kernel in which
// a meeting is missing computes something else with another seed.
#include <setjmp.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <array>
#include <bitset>
#include <mutex>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "cuda.h"

emulation::Index threadIdx, blockIdx, gridDim;

namespace emulation {
namespace {

constexpr int kThreads = STN_THREADS;
constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffu;
constexpr size_t kStackBytes = 256 << 10;
constexpr size_t kGuardBytes = 4096;  // at the end of each stack; to touch it ends the process

enum class Place { ready, at_a_barrier, at_an_exchange, at_a_vote, done };
constexpr int kPlaces = 5;
constexpr const char* kNames[kPlaces] = {"ready", "at a barrier", "at an exchange", "at a vote", "done"};

struct Fiber {
  ucontext_t start;
  jmp_buf here;
  bool begun;
  Place place;
  unsigned long long brought, got;  // to and from a meeting
  int from;                         // the lane whose value is asked for
};

Fiber fibers[kThreads];
std::array<int, kThreads> order, rank;  // threads in the order in which they may go, and the place of each in it
std::bitset<kThreads> ready;            // by rank
int at_barrier, at_meeting[kThreads / kWarp];
jmp_buf scheduler;
std::mt19937_64 lot;
const Launch* current;
std::string wrong;

char* stack_of(int thread) {
  static char* const stacks = [] {
    void* memory = mmap(nullptr, kThreads * kStackBytes, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    for (int t = 0; t < kThreads; ++t) mprotect(static_cast<char*>(memory) + t * kStackBytes, kGuardBytes, PROT_NONE);
    return static_cast<char*>(memory);
  }();
  return stacks + thread * kStackBytes;
}

// From a fiber to the scheduler, until somebody wakes it.
[[gnu::noinline]] void wait() {
  if (!_setjmp(fibers[threadIdx.x].here)) _longjmp(scheduler, 1);
}

// What a fiber does, block after block.
void live() {
  for (;;) {
    current->kernel(*current->parameters);
    fibers[threadIdx.x].place = Place::done;
    wait();
  }
}

// From the scheduler to a fiber, until that waits.
[[gnu::noinline]] void resume(int thread) {
  Fiber& fiber = fibers[thread];
  threadIdx.x = thread;
  if (_setjmp(scheduler)) return;
  if (fiber.begun) _longjmp(fiber.here, 1);
  fiber.begun = true;
  getcontext(&fiber.start);
  fiber.start.uc_stack.ss_sp = stack_of(thread);
  fiber.start.uc_stack.ss_size = kStackBytes - thread * 192 % 16384;  // else all tops share few lines of the cache
  makecontext(&fiber.start, live, 0);
  setcontext(&fiber.start);
}

void wake(int thread) {
  fibers[thread].place = Place::ready;
  ready.set(rank[thread]);
}

// Warps one after the other, and their lanes.
void draw_order() {
  std::array<int, kThreads / kWarp> warps;
  std::iota(warps.begin(), warps.end(), 0);
  std::shuffle(warps.begin(), warps.end(), lot);
  auto lanes = order.begin();
  for (const int warp : warps) {
    std::iota(lanes, lanes + kWarp, warp * kWarp);
    std::shuffle(lanes, lanes + kWarp, lot);
    lanes += kWarp;
  }
  for (int r = 0; r < kThreads; ++r) rank[order[r]] = r;
}

int first_ready() {
  const size_t first = ready._Find_first();
  ready.reset(first);
  return order[first];
}

// If they are not all done, they wait for each other for ever.
void look_for_those_left() {
  int count[kPlaces] = {};
  for (const Fiber& fiber : fibers) ++count[static_cast<int>(fiber.place)];
  if (count[static_cast<int>(Place::done)] == kThreads) return;
  std::string places;
  for (int p = 0; p < kPlaces; ++p)
    if (count[p] != 0) places += (places.empty() ? "" : ", ") + std::to_string(count[p]) + " " + kNames[p];
  wrong = "expected all threads to meet, got " + places;
}

void run_block() {
  std::memset(current->shared, 0xff, current->shared_end - current->shared);
  at_barrier = 0;
  std::fill(std::begin(at_meeting), std::end(at_meeting), 0);
  draw_order();
  for (int t = 0; t < kThreads; ++t) wake(t);
  while (ready.any() && wrong.empty()) resume(first_ready());
  if (wrong.empty()) look_for_those_left();
}

void part_block() {
  unsigned long long count = 0;
  for (const Fiber& fiber : fibers) count += fiber.brought;
  for (int t = 0; t < kThreads; ++t) {
    fibers[t].got = count;
    wake(t);
  }
  at_barrier = 0;
}

void part_warp(int warp, Place place) {
  Fiber* const lanes = fibers + warp * kWarp;
  unsigned votes = 0;
  for (int lane = 0; lane < kWarp; ++lane) {
    if (lanes[lane].place != place) wrong = "expected the lanes of a warp at one place, got them at two";
    votes |= static_cast<unsigned>(lanes[lane].brought != 0) << lane;
  }
  for (int lane = 0; lane < kWarp; ++lane) {
    lanes[lane].got = place == Place::at_a_vote ? votes : lanes[lanes[lane].from].brought;
    wake(warp * kWarp + lane);
  }
  at_meeting[warp] = 0;
}

unsigned long long meet_warp(Place place, unsigned lanes, unsigned long long value, int from) {
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  Fiber& mine = fibers[threadIdx.x];
  mine.place = place;
  mine.brought = value;
  mine.from = from;
  if (lanes != kAllLanes) wrong = "expected all lanes of a warp to be asked for, got some";
  if (from < 0 || from >= kWarp) wrong = "expected a lane of the warp, got " + std::to_string(from);
  else if (++at_meeting[warp] == kWarp) part_warp(warp, place);
  wait();
  return mine.got;
}

}  // namespace

int meet_block(bool condition) {
  Fiber& mine = fibers[threadIdx.x];
  mine.place = Place::at_a_barrier;
  mine.brought = condition;
  if (++at_barrier == kThreads) part_block();
  wait();
  return static_cast<int>(mine.got);
}

unsigned long long exchange_bits(unsigned lanes, unsigned long long bits, int from) {
  return meet_warp(Place::at_an_exchange, lanes, bits, from);
}

unsigned vote(unsigned lanes, bool condition) {
  return static_cast<unsigned>(meet_warp(Place::at_a_vote, lanes, condition, 0));
}

int lane() { return static_cast<int>(threadIdx.x) % kWarp; }

const char* run(const Launch& launch) {
  static std::mutex one_at_a_time;
  const std::lock_guard<std::mutex> alone(one_at_a_time);
  current = &launch;
  gridDim.x = launch.blocks;
  lot.seed(launch.seed);
  wrong.clear();
  std::vector<unsigned> blocks(launch.blocks);
  std::iota(blocks.begin(), blocks.end(), 0u);
  std::shuffle(blocks.begin(), blocks.end(), lot);
  for (const unsigned block : blocks) {
    blockIdx.x = block;
    run_block();
    if (wrong.empty()) continue;
    ready.reset();
    for (Fiber& fiber : fibers) fiber.begun = false;  // those that wait are never resumed
    static thread_local std::string told;
    told = wrong;
    return told.c_str();
  }
  return nullptr;
}

}  // namespace emulation
