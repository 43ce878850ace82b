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

/* what(Constant<n>) for n from 1 to 8. */
template <class Do>
void with_constant(int64_t n, const Do& what) {
  switch (n) {
    case 1: return what(Constant<1>{});
    case 2: return what(Constant<2>{});
    case 3: return what(Constant<3>{});
    case 4: return what(Constant<4>{});
    case 5: return what(Constant<5>{});
    case 6: return what(Constant<6>{});
    case 7: return what(Constant<7>{});
    default: return what(Constant<8>{});
  }
}

constexpr int MOST_ROWS = 4;  // of a block: more at once are too many streams to prefetch

/* what(R, C, row, column) for blocks of R rows and C columns that fill the registers, at most 8 columns at a time: few
enough rows stay in cache for the next columns. */
template <class Do>
void for_blocks(int64_t rows, int64_t columns, const Do& what) {
  int64_t groups = (columns + 7) / 8;
  for (int64_t group = 0; group < groups; group++) {
    int64_t column = group * columns / groups, width = (group + 1) * columns / groups - column;
    with_constant(width, [&](auto c) {
      constexpr int R = std::max(1, std::min(MOST_ROWS, ACCUMULATORS / c));
      int64_t row = 0;
      for (; row + R <= rows; row += R) what(Constant<R>{}, c, row, column);
      for (; row < rows; row++) what(Constant<1>{}, c, row, column);
    });
  }
}
