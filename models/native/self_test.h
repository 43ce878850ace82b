/* A small product of each kind beside plain loops: what the compiler and the processor make of them must be right. */
#pragma once

#include <cmath>
#include <vector>

#include "linear.h"

/* Rows, depth and columns that leave a rest in every loop; all numbers are small integers, so results are exact. */
template <class T, class W>
bool products_are_right(int64_t columns) {
  constexpr int64_t ROWS = 75, DEPTH = 150;
  std::vector<W> weights(ROWS * DEPTH);
  std::vector<float> values(columns * DEPTH), out(columns * ROWS);
  std::vector<char> packed(packed_bytes<T>(columns, DEPTH));
  for (int64_t i = 0; i < ROWS * DEPTH; i++) narrow(float(i * 7 % 11 - 5), weights[i]);
  for (int64_t i = 0; i < columns * DEPTH; i++) values[i] = float(i * 5 % 13 - 6);
  Activations x{columns, DEPTH, values.data(), packed.data()};
  if (use_packed<T>(columns)) pack<T>(x);
  multiply<T>(weights.data(), ROWS, x, out.data(), ROWS);
  for (int64_t c = 0; c < columns; c++) {
    for (int64_t r = 0; r < ROWS; r++) {
      float expected = 0;
      for (int64_t k = 0; k < DEPTH; k++) expected += widen(weights[r * DEPTH + k]) * values[c * DEPTH + k];
      if (out[c * ROWS + r] != expected) return false;
    }
  }
  return true;
}

inline bool all_products_are_right() {
  for (int64_t columns : {1, 2, 3, 5, 11, 19, 33, 69}) {
    if (!products_are_right<float, float>(columns) || !products_are_right<BFloat, BFloat>(columns)) return false;
    if (!products_are_right<float, int8_t>(columns) || !products_are_right<BFloat, int8_t>(columns)) return false;
  }
  return true;
}
