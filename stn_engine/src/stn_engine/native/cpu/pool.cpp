#include "pool.h"

#include <dlfcn.h>
#include <pthread.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

#include "tuning.h"

namespace stn {
namespace {

void pause() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// One call in progress.
struct Job {
  Job(const std::function<void(int64_t)>& run, int64_t tasks) : task(run), count(tasks) {}

  const std::function<void(int64_t)>& task;
  const int64_t count;
  std::atomic<int64_t> next{0};
  std::atomic<bool> failed{false};
  std::exception_ptr error;

  void work() {
    for (int64_t i = next.fetch_add(1); i < count; i = next.fetch_add(1)) {
      try {
        task(i);
      } catch (...) {
        if (!failed.exchange(true)) error = std::current_exception();
        next.store(count);
      }
    }
  }
};

class Pool {
 public:
  // False if another call has the pool.
  bool run(Job& job, int helpers) {
    std::unique_lock<std::mutex> turn(turn_, std::try_to_lock);
    if (!turn.owns_lock()) return false;
    grow(helpers);
    {
      std::lock_guard<std::mutex> lock(mutex_);
      job_ = &job, wanted_ = helpers, busy_ = 0;
      generation_.fetch_add(1);
    }
    wake_.notify_all();
    job.work();
    finish();
    return true;
  }

 private:
  void grow(int helpers) {
    while (static_cast<int>(threads_.size()) < helpers) {
      threads_.emplace_back([this, seen = generation_.load()] { serve(seen); });
      threads_.back().detach();
    }
  }

  // Helpers that come too late find no job; those at work are waited for.
  void finish() {
    std::unique_lock<std::mutex> lock(mutex_);
    wanted_ = 0;
    for (int spin = 0; busy_ > 0 && spin < kSpins; ++spin) {
      lock.unlock();
      pause();
      lock.lock();
    }
    done_.wait(lock, [this] { return busy_ == 0; });
    job_ = nullptr;
  }

  void serve(uint64_t seen) {
    bool comes_soon = true;
    for (;;) {
      const auto idle_since = std::chrono::steady_clock::now();
      // Who looks takes a core that others may need, such as a client on this host and the loop that answers it.
      const int spins = comes_soon ? kSpins : 0;
      for (int spin = 0; generation_.load(std::memory_order_relaxed) == seen && spin < spins; ++spin) pause();
      Job* job = nullptr;
      {
        std::unique_lock<std::mutex> lock(mutex_);
        wake_.wait(lock, [&] { return generation_.load() != seen; });
        comes_soon = std::chrono::steady_clock::now() - idle_since < kSoon;
        seen = generation_.load();
        if (wanted_ > 0) --wanted_, ++busy_, job = job_;
      }
      if (job == nullptr) continue;
      job->work();
      {
        std::lock_guard<std::mutex> lock(mutex_);
        --busy_;
      }
      done_.notify_one();
    }
  }

  std::mutex turn_;
  std::mutex mutex_;
  std::condition_variable wake_, done_;
  std::atomic<uint64_t> generation_{0};
  Job* job_ = nullptr;
  int wanted_ = 0, busy_ = 0;
  std::vector<std::thread> threads_;
};

// Never destroyed: its threads, which the first call starts, may outlive main. A forked child, which has none of them,
// starts new ones.
Pool* pool = new Pool;

// In a forked child OpenMP waits for threads that only its parent has.
bool is_forked = false;

// From the loading of the module on: it may be torch alone that has used OpenMP when the process is forked.
[[maybe_unused]] const int noticed = pthread_atfork(nullptr, nullptr, [] { pool = new Pool, is_forked = true; });

// How compilers enter a parallel region: GNU's OpenMP, and those of LLVM and Intel for its sake.
using Parallel = void (*)(void (*)(void*), void*, unsigned threads, unsigned flags);

// That of the OpenMP which torch brings along and makes visible to all; null without one.
Parallel openmp_parallel() {
  static const Parallel found = reinterpret_cast<Parallel>(dlsym(RTLD_DEFAULT, "GOMP_parallel"));
  return found;
}

}  // namespace

void for_each_task(int64_t count, Threads threads, const std::function<void(int64_t)>& task) {
  Job job(task, count);
  const int64_t helpers = (threads.count < count ? threads.count : count) - 1;
  if (helpers <= 0) {
    job.work();
  } else if (const Parallel parallel = openmp_parallel(); threads.beside_torch && !is_forked && parallel != nullptr) {
    // Always all threads: OpenMP ends those that a smaller team leaves over, and starts them anew for the next.
    parallel([](void* data) { static_cast<Job*>(data)->work(); }, &job, static_cast<unsigned>(threads.count), 0);
  } else if (!pool->run(job, static_cast<int>(helpers))) {
    job.work();
  }
  if (job.error) std::rethrow_exception(job.error);
}

}  // namespace stn
