// The CPU stream's threads: every rank runs once per job, whatever the team, and forks and idle pools do no harm.
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <numeric>
#include <thread>

#include "backends/cpu/parallel.h"
#include "backends/cpu/thread_pool.h"
#include "support/device.h"

namespace onerec::cpu {
namespace {

TEST(ThreadPool, EveryRankRunsOncePerJob) {
  ONEREC_CPU_ONLY();
  for (const int threads : {1, 2, 3, 8}) {
    ThreadPool pool(threads);
    std::vector<std::int64_t> calls(static_cast<std::size_t>(threads));
    std::int64_t jobs = 0;
    for (int round = 0; round < 2000; ++round) {
      for (int team = 1; team <= threads; ++team, ++jobs) {
        pool.run(team, [&](int rank) { calls[static_cast<std::size_t>(rank)] += 1; });
      }
    }
    // Rank r is in the teams of more than r.
    for (int rank = 0; rank < threads; ++rank) {
      EXPECT_EQ(calls[static_cast<std::size_t>(rank)], jobs / threads * (threads - rank)) << rank << " of " << threads;
    }
  }
}

TEST(ThreadPool, WorkersThatFellAsleepWakeUp) {
  ONEREC_CPU_ONLY();
  ThreadPool pool(3);
  for (int round = 0; round < 5; ++round) {
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
    std::atomic<int> sum = 0;
    pool.run(3, [&](int rank) {
      if (rank == 1) std::this_thread::sleep_for(std::chrono::milliseconds(1));
      sum += rank + 1;
    });
    EXPECT_EQ(sum, 6);
  }
}

TEST(ThreadPool, AChildOfForkStartsItsOwnThreads) {
  ONEREC_CPU_ONLY();
  ThreadPool pool(2);
  const auto both_ran = [&pool] {
    std::atomic<int> sum = 0;
    pool.run(2, [&](int rank) { sum += rank + 1; });
    return sum == 3;
  };
  ASSERT_TRUE(both_ran());
  const pid_t child = fork();
  ASSERT_GE(child, 0);
  if (child == 0) _exit(both_ran() ? 0 : 1);
  int status = -1;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
  EXPECT_TRUE(both_ran());
}

TEST(Parallel, RowsAndTasksAreSharedOutCompletely) {
  ONEREC_CPU_ONLY();
  ThreadPool pool(4);
  const PoolScope scope(pool);
  for (const std::int64_t rows : {0, 1, 3, 4, 1000}) {
    std::vector<int> touched(static_cast<std::size_t>(rows));
    for_rows(rows, 1'000'000, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t r = begin; r < end; ++r) ++touched[static_cast<std::size_t>(r)];
    });
    EXPECT_EQ(touched, std::vector<int>(static_cast<std::size_t>(rows), 1));
    std::fill(touched.begin(), touched.end(), 0);
    for_tasks(3, rows, [&](int rank, std::int64_t task) {
      EXPECT_LT(rank, 3);
      ++touched[static_cast<std::size_t>(task)];
    });
    EXPECT_EQ(touched, std::vector<int>(static_cast<std::size_t>(rows), 1));
  }
}

}  // namespace
}  // namespace onerec::cpu
