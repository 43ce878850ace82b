/* Softmax attention of single queries over a part of the KV cache, in one pass, with sums that can be combined. */
#pragma once

#include <algorithm>

#include "pointwise.h"
#include "vectors.h"

constexpr int64_t BLOCK = 16;  // positions whose scores are held at once

/* What a part of the positions contributes to a head: the weights' largest exponent, their sum, the weighted values,
whose channels stand in the order of ``place``. */
struct Partial {
  float* data;  // (2 + K)

  static int64_t size(int64_t dim) { return round_up(2 + dim, LANES); }
  float& largest() const { return data[0]; }
  float& total() const { return data[1]; }
  float* values() const { return data + 2; }
};

/* scores[h][i] = q[h] . keys[i] for R heads and ``count`` positions; fetches the values meanwhile. */
template <int R, class T>
void score(const float* q, const T* keys, const T* values, int64_t count, int64_t dim, float* scores) {
  for (int64_t i = 0; i < count; i++, keys += dim, values += dim) {
    Floats totals[R][2] = {};
    int64_t k = 0;
    for (; k + 2 * LANES <= dim; k += 2 * LANES) {
      Floats first, second;
      load_two(keys + k, first, second);
      prefetch(values + k);
      if (sizeof(T) == 4) prefetch(values + k + LANES);  // a cache line is 32 bf16 or 16 floats
#pragma GCC unroll 4
      for (int head = 0; head < R; head++) {
        totals[head][0] += load(q + head * dim + k) * first;
        totals[head][1] += load(q + head * dim + k + LANES) * second;
      }
    }
    for (int head = 0; head < R; head++) {
      float total = sum(totals[head][0] + totals[head][1]);
      for (int64_t rest = k; rest < dim; rest++) total += q[head * dim + rest] * widen(keys[rest]);
      scores[head * BLOCK + i] = total;
    }
  }
}

/* sums[h] += weights[h][i] values[i] for R heads and WIDE pairs of vectors of the values. */
template <int R, int WIDE, class T>
void add_values(const float* weights, const T* values, int64_t count, int64_t dim, float* sums, int64_t stride) {
  Floats totals[R][2 * WIDE];
  for (int head = 0; head < R; head++) {
    for (int part = 0; part < 2 * WIDE; part++) totals[head][part] = load(sums + head * stride + part * LANES);
  }
  for (int64_t i = 0; i < count; i++) {
#pragma GCC unroll 4
    for (int part = 0; part < 2 * WIDE; part += 2) {
      Floats first, second;
      load_two(values + i * dim + part * LANES, first, second);
#pragma GCC unroll 4
      for (int head = 0; head < R; head++) {
        totals[head][part] += weights[head * BLOCK + i] * first;
        totals[head][part + 1] += weights[head * BLOCK + i] * second;
      }
    }
  }
  for (int head = 0; head < R; head++) {
    for (int part = 0; part < 2 * WIDE; part++) store(sums + head * stride + part * LANES, totals[head][part]);
  }
}

/* The whole value dim, in pieces that stay in registers. */
template <int R, class T>
void add_all_values(const float* weights, const T* values, int64_t count, int64_t dim, float* sums, int64_t stride) {
  constexpr int WIDE = std::max(1, std::min(4, ACCUMULATORS / (3 * R)));  // 4 for one head, 2 for four
  int64_t k = 0;
  for (; k + 2 * WIDE * LANES <= dim; k += 2 * WIDE * LANES) {
    add_values<R, WIDE>(weights, values + k, count, dim, sums + k, stride);
  }
  for (; k + 2 * LANES <= dim; k += 2 * LANES) add_values<R, 1>(weights, values + k, count, dim, sums + k, stride);
  for (; k < dim; k++) {
    for (int head = 0; head < R; head++) {
      float& total = sums[head * stride + k];
      for (int64_t i = 0; i < count; i++) total += weights[head * BLOCK + i] * widen(values[i * dim + k]);
    }
  }
}

/* Turns scores into weights e^(score - largest) and rescales what was summed under an older largest score. */
inline void weigh(float* scores, int64_t count, int64_t dim, const Partial& sums) {
  float largest = sums.largest(), total = 0;
#pragma omp simd reduction(max : largest)
  for (int64_t i = 0; i < count; i++) largest = std::max(largest, scores[i]);
#pragma omp simd reduction(+ : total)
  for (int64_t i = 0; i < count; i++) {
    scores[i] = exponential(scores[i] - largest);
    total += scores[i];
  }
  if (largest > sums.largest()) {
    float scale = exponential(sums.largest() - largest);
    sums.largest() = largest;
    sums.total() *= scale;
    for (int64_t k = 0; k < dim; k++) sums.values()[k] *= scale;
  }
  sums.total() += total;
}

/* R query heads (R, K), channels in the order of ``place``, over ``count`` positions of one key-value head; sets
``partials``, R of them. */
template <int R, class T>
void attend_heads(const float* q, const T* keys, const T* values, int64_t count, int64_t dim, float* partials) {
  alignas(64) float scores[R * BLOCK];
  int64_t stride = Partial::size(dim);
  for (int head = 0; head < R; head++) {
    std::fill_n(partials + head * stride, stride, 0.0f);
    Partial{partials + head * stride}.largest() = -1e30f;
  }
  for (int64_t i = 0; i < count; i += BLOCK) {
    int64_t block = std::min(BLOCK, count - i);
    score<R>(q, keys + i * dim, values + i * dim, block, dim, scores);
    for (int head = 0; head < R; head++) weigh(scores + head * BLOCK, block, dim, Partial{partials + head * stride});
    add_all_values<R>(scores, values + i * dim, block, dim, partials + 2, stride);
  }
}

/* ``heads`` query heads that share a key-value head. */
template <class T>
void attend(const float* q, int64_t heads, const T* keys, const T* values, int64_t count, int64_t dim,
            float* partials) {
  int64_t stride = Partial::size(dim);
  for (; heads >= 4; heads -= 4, q += 4 * dim, partials += 4 * stride) {
    attend_heads<4>(q, keys, values, count, dim, partials);
  }
  for (; heads > 0; heads--, q += dim, partials += stride) attend_heads<1>(q, keys, values, count, dim, partials);
}
