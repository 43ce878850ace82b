/* The right-hand side of products with a few columns, and how weights for them are fetched. */
#pragma once

#include <algorithm>
#include <type_traits>

#include "vectors.h"

/* X (B, K): as floats and, for packed products, as ``pack`` lays it out. */
struct Activations {
  int64_t columns, depth;  // B, K
  float* values;           // (B, K)
  void* packed;            // ``packed_bytes``
};

/* Room for any layout: columns fill vectors, and K cache lines. */
template <class T>
int64_t packed_bytes(int64_t columns, int64_t depth) {
  return round_up(columns, LANES) * round_up(depth * int64_t(sizeof(T)), 64);
}

/* Fetches memory in the order in which it lies while a block of rows is read across: that is what memory is fastest at,
and no row of the next block is then waited for. */
class Ahead {
 public:
  static constexpr int64_t LEAST = 16384, LINE = 64;  // bytes

  Ahead(const void* block, int64_t bytes) : next_(static_cast<const char*>(block) + std::max(LEAST, bytes)) {}

  template <int LINES>
  void fetch() {
#pragma GCC unroll 8
    for (int line = 0; line < LINES; line++) prefetch(next_ + line * LINE);
    next_ += LINES * LINE;
  }

 private:
  const char* next_;
};

template <int N>
using Constant = std::integral_constant<int, N>;
