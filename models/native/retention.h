/* One step of retention (eq. 6) in one pass over the state: S <- gamma S + k^T v and o = q S while a row is at hand. */
#pragma once

#include "vectors.h"

/* Adds R rows of S to the sums o over the values first .. end. */
template <int R>
void retain_rows(const float* q, const float* k, const float* v, float gamma, int64_t d_v, int64_t first, int64_t end,
                 float* state, float* o) {
  int64_t i = first;
  for (; i + LANES <= end; i += LANES) {
    Floats value = load(v + i), total = load(o + i);
#pragma GCC unroll 8
    for (int row = 0; row < R; row++) {
      float* at = state + row * d_v + i;
      Floats updated = load(at) * gamma + k[row] * value;
      store(at, updated);
      total += q[row] * updated;
    }
    store(o + i, total);
  }
  for (; i < end; i++) {
    for (int row = 0; row < R; row++) {
      float& at = state[row * d_v + i];
      at = at * gamma + k[row] * v[i];
      o[i] += q[row] * at;
    }
  }
}

/* q, k (K), v (V), state S (K, V) updated in place -> o (V); only the values first .. end of V. */
inline void retain(const float* q, const float* k, const float* v, float gamma, int64_t d_k, int64_t d_v, int64_t first,
                   int64_t end, float* state, float* o) {
  for (int64_t i = first; i < end; i++) o[i] = 0;
  int64_t row = 0;
  for (; row + 4 <= d_k; row += 4) {
    for (int64_t ahead = 16; ahead < 20; ahead++) {
      for (int64_t i = first; i < end; i += LANES) prefetch(state + (row + ahead) * d_v + i);
    }
    retain_rows<4>(q + row, k + row, v, gamma, d_v, first, end, state + row * d_v, o);
  }
  for (; row < d_k; row++) retain_rows<1>(q + row, k + row, v, gamma, d_v, first, end, state + row * d_v, o);
}
