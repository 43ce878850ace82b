/* Y = X W^T by AVX512-BF16: vectors of 16 pairs of numbers of W times the same of X, added up in float32. */
#pragma once

#include "activations.h"

/* Fills ``packed`` as (B, K). */
inline void pack(const Activations& x) {
  int64_t depth = round_up(x.depth, PACKED_DEPTH);
  for (int64_t column = 0; column < x.columns; column++) {
    const float* from = x.values + column * x.depth;
    BFloat* to = x.packed + column * depth;
    int64_t k = 0;
    for (; k + LANES <= x.depth; k += LANES) store(to + k, load(from + k));
    for (; k < depth; k++) narrow(k < x.depth ? from[k] : 0.0f, to[k]);
  }
}

inline __m512bh load_pairs(const BFloat* from) { return (__m512bh)_mm512_loadu_si512(from); }

inline __m512bh load_pairs(const int8_t* from) {
  return _mm512_cvtne2ps_pbh((__m512)load(from + LANES), (__m512)load(from));
}

/* out[c][r] = W[r] . X[c] for R rows and C columns; x is the first of these in ``packed``. */
template <int R, int C, class W>
void multiply_pairs(const W* weights, const BFloat* x, int64_t depth, float* out, int64_t stride) {
  constexpr int64_t PAIRS = 2 * LANES, STEP = Ahead::LINE / sizeof(W);
  const int64_t padded = round_up(depth, PACKED_DEPTH);
  Ahead ahead(weights, R * depth * int64_t(sizeof(W)));
  __m512 totals[C][R] = {};
  auto add = [&](const auto* from, int64_t pitch, int64_t k) {
    __m512bh rows[R];
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) rows[r] = load_pairs(from + r * pitch);
#pragma GCC unroll 8
    for (int c = 0; c < C; c++) {
      __m512bh column = load_pairs(x + c * padded + k);
#pragma GCC unroll 8
      for (int r = 0; r < R; r++) totals[c][r] = _mm512_dpbf16_ps(totals[c][r], rows[r], column);
    }
  };
  int64_t k = 0;
  for (; k + STEP <= depth; k += STEP) {
    ahead.fetch<R>();
    for (int64_t part = 0; part < STEP; part += PAIRS) add(weights + k + part, depth, k + part);
  }
  for (; k < depth; k += PAIRS) {
    BFloat rest[R][PAIRS];
    for (int r = 0; r < R; r++) {
      for (int64_t i = 0; i < PAIRS; i++) narrow(k + i < depth ? widen(weights[r * depth + k + i]) : 0.0f, rest[r][i]);
    }
    add(rest[0], PAIRS, k);
  }
  for (int c = 0; c < C; c++) {
    for (int r = 0; r < R; r++) out[c * stride + r] = _mm512_reduce_add_ps(totals[c][r]);
  }
}

template <class W>
void multiply_packed(const W* weights, int64_t rows, const Activations& x, float* out, int64_t stride) {
  for_blocks(rows, x.columns, [&](auto r, auto c, int64_t row, int64_t column) {
    const BFloat* from = x.packed + packed_size(column, x.depth);
    multiply_pairs<r, c>(weights + row * x.depth, from, x.depth, out + column * stride + row, stride);
  });
}
