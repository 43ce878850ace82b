/* A team of threads that run one function together, meet at barriers and claim its work piece by piece.

Waiting spins for a moment, since a step meets at a barrier every fraction of a millisecond, and then sleeps, since a
spinning thread takes the processor from the one that it waits for when both have only one. */
#pragma once

#include <linux/futex.h>
#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

constexpr std::chrono::microseconds SPIN{100};

/* A counter whose next value can be waited for. */
class Signal {
 public:
  uint32_t now() const { return value_.load(std::memory_order_acquire); }

  void advance() {
    value_.fetch_add(1);
    if (sleepers_.load()) futex(FUTEX_WAKE_PRIVATE, INT32_MAX);
  }

  void wait_after(uint32_t seen) {
    auto end = std::chrono::steady_clock::now() + SPIN;
    do {
      for (int i = 0; i < 16; i++) {
        if (now() != seen) return;
        pause();
      }
    } while (std::chrono::steady_clock::now() < end);
    sleepers_.fetch_add(1);  // before the kernel looks at the value once more, so that no advance is missed
    while (now() == seen) futex(FUTEX_WAIT_PRIVATE, seen);
    sleepers_.fetch_sub(1);
  }

 private:
  static void pause() {
#ifdef __x86_64__
    __builtin_ia32_pause();
#endif
  }

  void futex(int operation, uint32_t argument) {
    syscall(SYS_futex, &value_, operation, argument, nullptr, nullptr, 0);
  }

  std::atomic<uint32_t> value_{0};
  std::atomic<uint32_t> sleepers_{0};
};

class Team {
 public:
  /* The caller is the first of ``size`` threads; where no more can be made the team is smaller. */
  explicit Team(int size) : taken_(size) {
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);  // signals are for the threads of the program
    try {
      for (int thread = 1; thread < size; thread++) threads_.emplace_back([this, thread] { serve(thread); });
    } catch (const std::system_error&) {
    }
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
  }

  ~Team() {
    job_ = nullptr;
    start_.advance();
    for (std::thread& thread : threads_) thread.join();
  }

  int size() const { return int(threads_.size()) + 1; }

  /* Runs ``work(thread)`` on every thread and returns when all are done. */
  template <class Work>
  void run(const Work& work) {
    context_ = &work;
    job_ = [](const void* context, int thread) { (*static_cast<const Work*>(context))(thread); };
    if (!threads_.empty()) start_.advance();
    work(0);
    barrier();
  }

  /* Returns when all threads have come here; claims then start anew. */
  void barrier() {
    uint32_t seen = passed_.now();
    if (arrived_.fetch_add(1) + 1 < size()) return passed_.wait_after(seen);
    arrived_ = 0;
    claimed_ = 0;
    for (Count& taken : taken_) taken.value = 0;
    passed_.advance();
  }

  /* The next piece of the work between two barriers: 0, 1, 2 ..., each given to one thread. */
  int64_t claim() { return claimed_.fetch_add(1, std::memory_order_relaxed); }

  /* As ``claim`` of so many pieces, ``pieces`` when none is left. A thread goes through a share of its own, the same in
  every step and in the order of memory, and then helps others with theirs. */
  int64_t claim_near(int thread, int64_t pieces) {
    for (int i = 0; i < size(); i++) {
      int64_t whose = (thread + i) % size();
      int64_t piece = whose * pieces / size() + taken_[whose].value.fetch_add(1, std::memory_order_relaxed);
      if (piece < (whose + 1) * pieces / size()) return piece;
    }
    return pieces;
  }

 private:
  struct alignas(64) Count {
    std::atomic<int64_t> value{0};
  };

  void serve(int thread) {
    for (uint32_t seen = 0;; seen++) {
      start_.wait_after(seen);
      if (!job_) return;
      job_(context_, thread);
      barrier();
    }
  }

  void (*job_)(const void*, int) = nullptr;
  const void* context_ = nullptr;
  alignas(64) Signal start_;
  alignas(64) Signal passed_;
  alignas(64) std::atomic<int> arrived_{0};
  alignas(64) std::atomic<int64_t> claimed_{0};
  std::vector<Count> taken_;  // of each thread's share
  std::vector<std::thread> threads_;
};

/* The team of this process while one caller uses it, made when first needed. A child of fork has none of its parent's
threads: it leaves that team where it is and makes its own. Never destroyed: threads that sleep do not keep a process
alive. */
class OnTeam {
 public:
  explicit OnTeam(int size) : lock_(used()), team(of(size)) {}

 private:
  static std::mutex& used() {
    static std::mutex mutex;
    return mutex;
  }

  static Team& of(int size) {
    static Team* team = nullptr;
    static pid_t owner = 0;
    static int wanted = 0;
    if (owner != getpid() || wanted != size) {
      if (owner == getpid()) delete team;
      team = new Team(size);
      owner = getpid();
      wanted = size;
    }
    return *team;
  }

  std::lock_guard<std::mutex> lock_;

 public:
  Team& team;
};
