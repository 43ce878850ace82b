/* Y = X W^T with the columns of X side by side in the lanes of vectors, for AVX-512.

A word is 32 bits along K: a float, or a pair of bf16. A vector of packed X holds as many neighbouring words of each of
4, 8 or 16 columns as fill it; the same words of a row of W, broadcast, are multiplied by it. So a row is read as it
lies, X is read once for a block of rows, in order, and what the lanes of a column have summed up meets at the end. */
#pragma once

#include <type_traits>

#include "activations.h"

constexpr int64_t MOST_COLUMNS = 2 * LANES;  // at once, in two vectors

template <class T>
constexpr int64_t LINE_DEPTH = Ahead::LINE / int64_t(sizeof(T));  // numbers of a cache line

template <class T>
constexpr int64_t PER_WORD = 4 / sizeof(T);

/* what(Constant<words of a column in a vector>, Constant<vectors>, first) for groups of columns. */
template <class Do>
void for_groups(int64_t columns, const Do& what) {
  for (int64_t first = 0; first < columns; first += MOST_COLUMNS) {
    int64_t left = columns - first;
    if (left > LANES) what(Constant<1>{}, Constant<2>{}, first);
    else if (left > LANES / 2) what(Constant<2>{}, Constant<2>{}, first);
    else if (left > LANES / 4) what(Constant<2>{}, Constant<1>{}, first);
    else what(Constant<4>{}, Constant<1>{}, first);
  }
}

/* Fills ``packed`` as groups of (K / words, columns, words), zeros where there is no column and after the last K. */
template <class T>
void pack_lanes(const Activations& x) {
  constexpr int64_t LINE = LINE_DEPTH<T>;
  const int64_t depth = round_up(x.depth, LINE);
  for_groups(x.columns, [&](auto words, auto vectors, int64_t first) {
    constexpr int64_t WORDS = words, WIDTH = vectors * LANES / WORDS;
    uint32_t* to = reinterpret_cast<uint32_t*>(static_cast<T*>(x.packed) + first * depth);
    for (int64_t k = 0; k < depth; k += LINE) {
      for (int64_t column = 0; column < WIDTH; column++) {
        const float* from = x.values + (first + column) * x.depth;
        const int64_t here = first + column < x.columns ? x.depth : 0;
        T line[LINE] = {};
        if (k + LINE <= here) {
          for (int64_t i = 0; i < LINE; i += LANES) store(line + i, load(from + k + i));
        } else {
          for (int64_t i = 0; k + i < here; i++) narrow(from[k + i], line[i]);
        }
        uint32_t line_words[LANES];
        memcpy(line_words, line, sizeof line);
        uint32_t* at = to + k / PER_WORD<T> * WIDTH + column * WORDS;
        for (int64_t i = 0; i < LANES; i++) at[i / WORDS * WORDS * WIDTH + i % WORDS] = line_words[i];
      }
    }
  });
}

/* A vector with as many words as there are at ``from``, over and over. */
template <int WORDS>
inline Floats broadcast_words(const void* from) {
  if constexpr (WORDS == 1) {
    int32_t word;
    memcpy(&word, from, sizeof word);
    return (Floats)_mm512_set1_epi32(word);
  } else if constexpr (WORDS == 2) {
    int64_t words;
    memcpy(&words, from, sizeof words);
    return (Floats)_mm512_set1_epi64(words);
  } else {
    static_assert(WORDS == 4);
    return (Floats)_mm512_broadcast_i32x4(_mm_loadu_si128(static_cast<const __m128i*>(from)));
  }
}

/* sums + a b, word by word. */
template <class T>
inline Floats add_products(Floats sums, Floats a, Floats b) {
#ifdef __AVX512BF16__
  if constexpr (sizeof(T) == 2) return (Floats)_mm512_dpbf16_ps((__m512)sums, (__m512bh)a, (__m512bh)b);
#endif
  return sums + a * b;
}

/* A cache line of weights as numbers of type T. */
inline void widen_line(const int8_t* from, float* to) {
  for (int64_t i = 0; i < LINE_DEPTH<int8_t>; i += LANES) store(to + i, load(from + i));
}

inline void widen_line(const int8_t* from, BFloat* to) {
#ifdef __AVX512BF16__
  for (int64_t i = 0; i < LINE_DEPTH<int8_t>; i += 2 * LANES) {
    __m512bh both = _mm512_cvtne2ps_pbh((__m512)load(from + i + LANES), (__m512)load(from + i));
    memcpy(to + i, &both, sizeof both);
  }
#endif
}

/* out[c][r] = W[r] . X[c] for R rows and the ``columns`` of a group; x is where that starts in ``packed``. */
template <class T, int R, int WORDS, int VECTORS, class W>
void multiply_lanes_block(const W* weights, const T* x, int64_t columns, int64_t depth, float* out, int64_t stride) {
  constexpr int SETS = VECTORS == 2 ? 1 : R == 8 ? 2 : 4;  // of sums, so that enough are under way at once
  constexpr int64_t WIDTH = VECTORS * LANES / WORDS, LINE = LINE_DEPTH<T>, AT_ONCE = WORDS * PER_WORD<T>;
  constexpr int64_t STEP = std::is_same_v<T, W> ? LINE : 256;  // what was just stored is slow to read
  Floats sums[SETS][VECTORS][R] = {};
  auto add_line = [&](const T* rows, int64_t pitch, const T* line) {
    const float* across = reinterpret_cast<const float*>(line);  // words, whatever they hold
#pragma GCC unroll 1
    for (int64_t k = 0; k < LINE; k += SETS * AT_ONCE) {
#pragma GCC unroll 4
      for (int set = 0; set < SETS; set++, across += VECTORS * LANES) {
#pragma GCC unroll 8
        for (int r = 0; r < R; r++) {
          Floats row = broadcast_words<WORDS>(rows + r * pitch + k + set * AT_ONCE);
#pragma GCC unroll 2
          for (int v = 0; v < VECTORS; v++) {
            sums[set][v][r] = add_products<T>(sums[set][v][r], row, load(across + v * LANES));
          }
        }
      }
    }
  };
  T room[R][STEP];
  Ahead ahead(weights, R * depth * int64_t(sizeof(W)));
  int64_t k = 0;
  for (; k + STEP <= depth; k += STEP) {
    for (int64_t part = 0; part < STEP; part += LINE_DEPTH<W>) {
      ahead.fetch<R>();
      if constexpr (!std::is_same_v<T, W>) {
        for (int r = 0; r < R; r++) widen_line(weights + r * depth + k + part, room[r] + part);
      }
    }
    if constexpr (std::is_same_v<T, W>) {
      add_line(weights + k, depth, x + k * WIDTH);
    } else {
      for (int64_t part = 0; part < STEP; part += LINE) add_line(room[0] + part, STEP, x + (k + part) * WIDTH);
    }
  }
  for (; k < depth; k += LINE) {
    for (int r = 0; r < R; r++) {
      for (int64_t i = 0; i < LINE; i++) narrow(k + i < depth ? widen(weights[r * depth + k + i]) : 0.0f, room[r][i]);
    }
    add_line(room[0], STEP, x + k * WIDTH);
  }
  alignas(64) float lanes[VECTORS][R][LANES];
#pragma GCC unroll 2
  for (int v = 0; v < VECTORS; v++) {
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) {
#pragma GCC unroll 4
      for (int set = 1; set < SETS; set++) sums[0][v][r] += sums[set][v][r];
      store(lanes[v][r], sums[0][v][r]);
    }
  }
  for (int64_t c = 0; c < columns; c++) {
    const auto& here = lanes[c * WORDS / LANES];
    for (int r = 0; r < R; r++) {
      float total = 0;
      for (int word = 0; word < WORDS; word++) total += here[r][c * WORDS % LANES + word];
      out[c * stride + r] = total;
    }
  }
}

template <class T, class W>
void multiply_lanes(const W* weights, int64_t rows, const Activations& x, float* out, int64_t stride) {
  for_groups(x.columns, [&](auto words, auto vectors, int64_t first) {
    constexpr int ROWS = words == 4 ? 4 : 8;
    const T* group = static_cast<const T*>(x.packed) + first * round_up(x.depth, LINE_DEPTH<T>);
    const int64_t columns = std::min(x.columns - first, MOST_COLUMNS);
    auto block = [&](auto n, int64_t row) {
      multiply_lanes_block<T, n, words, vectors>(weights + row * x.depth, group, columns, x.depth,
                                                 out + first * stride + row, stride);
    };
    int64_t row = 0;
    for (; row + ROWS <= rows; row += ROWS) block(Constant<ROWS>{}, row);
    for (; row < rows; row++) block(Constant<1>{}, row);
  });
}
