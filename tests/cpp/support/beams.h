// Beam states and trie levels for the tests of the search.
#pragma once

#include <array>
#include <vector>

#include "ops/beam_search.h"
#include "support/tensors.h"

namespace onerec::test {

// [rows] beams with `levels` codes each and one ancestry per step.
struct TestBeams {
  std::int64_t levels;
  TestArray<float> scores;
  TestArray<std::int32_t> states, codes;
  std::vector<TestArray<std::int32_t>> ancestry;

  TestBeams(std::int64_t rows, std::int64_t levels_, int steps)
      : levels(levels_), scores(rows), states(rows), codes(rows * levels_) {
    for (int s = 0; s < steps; ++s) ancestry.emplace_back(rows);
  }

  BeamState view() const {
    BeamState state{.scores = scores.get(), .states = states.get(), .codes = codes.get()};
    for (std::size_t s = 0; s < ancestry.size(); ++s) state.ancestry[s] = ancestry[s].get();
    return state;
  }

  std::vector<GuardedBuffer*> buffers() {
    std::vector<GuardedBuffer*> list = {&scores, &states, &codes};
    for (auto& array : ancestry) list.push_back(&array);
    return list;
  }

  // Codes and ancestries of any value, scores 0, states 0.
  void fill_random(Random& random) {
    for (float& score : scores) score = 0.0f;
    for (std::int32_t& state : states) state = 0;
    for (std::int32_t& code : codes) code = static_cast<std::int32_t>(uniform(random, 0, 99));
    for (auto& array : ancestry) {
      for (std::int32_t& row : array) row = static_cast<std::int32_t>(uniform(random, 0, 99));
    }
  }
};

// One level of a trie with random edges: node s has about `density` of all codes.
struct TestTrieLevel {
  TestArray<std::int32_t> row_ptr, code;

  TestTrieLevel(Random& random, std::int64_t nodes, std::int64_t codebook, double density) : row_ptr(0), code(0) {
    std::bernoulli_distribution has_edge(density);
    std::vector<std::int32_t> begins = {0}, codes;
    for (std::int64_t s = 0; s < nodes; ++s) {
      for (std::int64_t c = 0; c < codebook; ++c) {
        if (has_edge(random)) codes.push_back(static_cast<std::int32_t>(c));
      }
      begins.push_back(static_cast<std::int32_t>(codes.size()));
    }
    row_ptr = TestArray<std::int32_t>(begins);
    code = TestArray<std::int32_t>(codes);
  }
};

}  // namespace onerec::test
