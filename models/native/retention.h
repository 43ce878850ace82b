/* One step of retention (eq. 6) in one pass over the state: S <- gamma S + k^T v and o = q S while a row is at hand. */
#pragma once

#include <algorithm>

#include "vectors.h"

/* q, k (K), v (V), state S (K, V) updated in place -> o (V); only the values first .. end of V. Row by row, and fetched
so: memory is fastest in the order in which it lies. */
inline void retain(const float* q, const float* k, const float* v, float gamma, int64_t d_k, int64_t d_v, int64_t first,
                   int64_t end, float* state, float* o) {
  constexpr int64_t AHEAD = 2048;  // numbers
  const int64_t ahead = (AHEAD + end - first - 1) / std::max<int64_t>(1, end - first) * d_v;  // whole rows
  for (int64_t i = first; i < end; i++) o[i] = 0;
  for (int64_t row = 0; row < d_k; row++) {
    float* at = state + row * d_v;
    int64_t i = first;
    for (; i + LANES <= end; i += LANES) {
      prefetch(at + ahead + i);
      Floats updated = load(at + i) * gamma + k[row] * load(v + i);
      store(at + i, updated);
      store(o + i, load(o + i) + q[row] * updated);
    }
    for (; i < end; i++) {
      at[i] = at[i] * gamma + k[row] * v[i];
      o[i] += q[row] * at[i];
    }
  }
}
