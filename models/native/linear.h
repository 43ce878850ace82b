/* Y = X W^T for a few rows of X and weights as they lie in memory: every weight is read once, in order.

A product of weights W (N, K) with activations X (B, K) at small B is as fast as W can be read. Three kernels:
- vectors: a block of rows of W times one or two rows of X, all in float32, whatever W's type; any processor;
- lanes: more rows of X, packed into the lanes of vectors, in W's type; AVX-512, for bf16 with its products;
- tiles (bf16): the same by AMX.
None wants another layout of the weights, so that prefill, checkpoints and memory know only one. Weights of int8
become floats, or bf16, which hold them exactly; their scales are the caller's. */
#pragma once

#include "activations.h"
#include "tiles.h"
#include "vectors.h"
#ifdef __AVX512F__
#include "linear_lanes.h"
#endif
#ifdef __AMX_BF16__
#include "linear_tiles.h"
#endif

constexpr int64_t PACKED_FROM = 3;  // columns from which packed products are faster

/* Whether products with so many columns want them packed. */
template <class T>
bool use_packed(int64_t columns) {
#ifdef __AVX512F__
  return columns >= PACKED_FROM && (sizeof(T) == sizeof(float) || has_tiles());
#else
  return false;
#endif
}

template <class T>
void pack(const Activations& x) {
#ifdef __AMX_BF16__
  if constexpr (sizeof(T) == sizeof(BFloat)) return pack_tiles(x);
#endif
#ifdef __AVX512F__
  pack_lanes<T>(x);
#endif
}

template <class T, class W>
void multiply_packed(const W* weights, int64_t rows, const Activations& x, float* out, int64_t stride) {
#ifdef __AMX_BF16__
  if constexpr (sizeof(T) == sizeof(BFloat)) return multiply_tiles(weights, rows, x, out, stride);
#endif
#ifdef __AVX512F__
  multiply_lanes<T>(weights, rows, x, out, stride);
#endif
}

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

/* out[c][r] = W[r] . X[c] for R rows and C columns. */
template <int R, int C, class T>
void dot_products(const T* weights, const float* x, int64_t depth, float* out, int64_t stride) {
  constexpr int64_t STEP = Ahead::LINE / sizeof(T);
  Floats totals[C][R] = {};
  auto add = [&](int64_t k) {
    Floats columns[C];
#pragma GCC unroll 8
    for (int c = 0; c < C; c++) columns[c] = load(x + c * depth + k);
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) {
      Floats row = load(weights + r * depth + k);
#pragma GCC unroll 8
      for (int c = 0; c < C; c++) totals[c][r] += row * columns[c];
    }
  };
  Ahead ahead(weights, R * depth * int64_t(sizeof(T)));
  int64_t k = 0;
  for (; k + STEP <= depth; k += STEP) {
    ahead.fetch<R>();
#pragma GCC unroll 2
    for (int64_t part = 0; part < STEP; part += LANES) add(k + part);
  }
  for (; k + LANES <= depth; k += LANES) add(k);
#pragma GCC unroll 8
  for (int c = 0; c < C; c++) {
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) {
      float total = sum(totals[c][r]);
      for (int64_t rest = k; rest < depth; rest++) total += widen(weights[r * depth + rest]) * x[c * depth + rest];
      out[c * stride + r] = total;
    }
  }
}

/* By vectors. */
template <class T>
void multiply_vectors(const T* weights, int64_t rows, const Activations& x, float* out, int64_t stride) {
  for_blocks(rows, x.columns, [&](auto r, auto c, int64_t row, int64_t column) {
    const float* from = x.values + column * x.depth;
    dot_products<r, c>(weights + row * x.depth, from, x.depth, out + column * stride + row, stride);
  });
}

/* out[c][r] = W[r] . X[c] for ``rows`` rows of weights and every column. W is of type T, that of the model, or int8. */
template <class T, class W>
void multiply(const W* weights, int64_t rows, const Activations& x, float* out, int64_t stride) {
  if (use_packed<T>(x.columns)) return multiply_packed<T>(weights, rows, x, out, stride);
  multiply_vectors(weights, rows, x, out, stride);
}
