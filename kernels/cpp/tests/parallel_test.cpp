// Unit tests of how work is split over threads: every chunk once, no deadlock, and threads that wait for the next call.
#include <atomic>
#include <chrono>
#include <cstdio>
#include <thread>
#include <vector>

#include "core/parallel.h"
#include "pools.h"

using namespace lowbit;

namespace {

void TestParallelFor() {
  Workers pool(3);
  for (int64_t count : {0, 1, 2, 7, 1000}) {
    std::vector<std::atomic<int>> hits(count);
    ParallelFor(&pool, 4, count, [&](int64_t i) { hits[i].fetch_add(1); });
    for (auto& hit : hits) EXPECT(hit.load() == 1);
  }
  Dead dead;  // nobody of its own comes: the caller and who waits in a seat do it all, and a late worker finds nothing
  std::atomic<int> done{0};
  ParallelFor(&dead, 8, 100, [&](int64_t) { done.fetch_add(1); });
  EXPECT(done.load() == 100);
  for (auto& task : dead.kept) task();
  EXPECT(done.load() == 100);
}

// Every worker of the pool is itself a caller: a call that waited for tasks not yet started would hang here.
void TestNoDeadlock() {
  Workers pool(2);
  std::atomic<int> total{0};
  for (int round = 0; round < 50; ++round) {
    ParallelFor(&pool, 2, 4, [&](int64_t) { ParallelFor(&pool, 2, 8, [&](int64_t) { total.fetch_add(1); }); });
  }
  EXPECT(total.load() == 50 * 4 * 8);
}

// A thread that has just worked waits for the next call, which needs no pool then, and leaves its seat when none comes.
void TestSeats() {
  EXPECT(ThreadsFor(100.0, 100.0, 4) == 4 && ThreadsFor(99.0, 100.0, 4) == 1 && ThreadsFor(1.0, 100.0, 4) == 1);
  Workers pool(1);
  const auto own = std::this_thread::get_id();
  std::atomic<int> elsewhere{0};
  for (int round = 0; round < 100000 && elsewhere.load() == 0; ++round) {
    ParallelFor(&pool, 2, 2, [](int64_t) {});
    for (int i = 0; i < 100 && Seats::Get().waiting() == 0; ++i) std::this_thread::yield();
    Dead dead;
    std::vector<std::atomic<int>> hits(64);
    ParallelFor(&dead, 2, 64, [&](int64_t i) {
      hits[i].fetch_add(1);
      if (std::this_thread::get_id() != own) elsewhere.fetch_add(1);
      while (dead.kept.empty() && elsewhere.load() == 0) std::this_thread::yield();  // it was handed over: the other comes
    });
    for (auto& hit : hits) EXPECT(hit.load() == 1);
  }
  EXPECT(elsewhere.load() > 0);
  for (int i = 0; i < 1000 && Seats::Get().waiting() > 0; ++i) std::this_thread::sleep_for(std::chrono::milliseconds(10));
  EXPECT(Seats::Get().waiting() == 0);
}

}  // namespace

int main() {
  TestParallelFor();
  TestNoDeadlock();
  TestSeats();
  std::printf("ok\n");
  return 0;
}
