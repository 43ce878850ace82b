/* Functions of single numbers, norms and rotations, in float32; the loops are plain, for the compiler to vectorize. */
#pragma once

#include <cmath>

#include "vectors.h"

typedef int32_t Integers __attribute__((vector_size(64)));

inline int32_t to_integers(float x) { return int32_t(x); }
inline Integers to_integers(Floats x) { return __builtin_convertvector(x, Integers); }

/* e^x to 2e-7, of x clamped to what a float can hold: 2^n e^r with |r| < 0.35; of one number or of sixteen. */
template <class T>
inline T exponential(T x) {
  x = x < -87.0f ? T{} - 87.0f : x > 88.0f ? T{} + 88.0f : x;
  T n = (x * 1.44269504f + 12582912.0f) - 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  T r = x - n * 0.693359375f + n * 2.12194440e-4f;      // log 2, its first bits and the rest
  T p = T{} + 1 / 5040.0f;
  p = p * r + 1 / 720.0f;
  p = p * r + 1 / 120.0f;
  p = p * r + 1 / 24.0f;
  p = p * r + 1 / 6.0f;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  auto bits = (to_integers(n) + 127) << 23;
  T power;
  memcpy(&power, &bits, sizeof power);
  return p * power;
}

/* The error function to 2e-7: below 1 a polynomial of x^2, above it 1 - e^-p(x); fitted by reweighted least squares. */
inline float error_function(float x) {
  float t = x < 0 ? -x : x;
  t = t > 4 ? 4 : t;
  float s = t * t, near = 7.889121432e-05f, far = -1.915045359e-04f;
  near = near * s - 8.020841849e-04f;
  near = near * s + 5.189535403e-03f;
  near = near * s - 2.685444462e-02f;
  near = near * s + 1.128360018e-01f;
  near = near * s - 3.761262714e-01f;
  near = near * s + 1.128379166e+00f;
  far = far * t + 2.999544417e-03f;
  far = far * t - 2.205201152e-02f;
  far = far * t + 1.035669199e-01f;
  far = far * t + 6.376000085e-01f;
  far = far * t + 1.127426103e+00f;
  far = far * t + 2.564416646e-04f;
  float value = t < 1 ? near * t : 1 - exponential(-far);
  return x < 0 ? -value : value;
}

inline float silu(float x) { return x / (1 + exponential(-x)); }

inline float gelu(float x) { return 0.5f * x * (1 + error_function(x * 0.707106781f)); }

/* y = (x - mean) / sqrt(variance + eps), without ``centred`` x / sqrt(mean square + eps); weight, bias may be null. */
template <class T>
void normalise(const float* x, int64_t n, bool centred, float eps, const T* weight, const T* bias, float* y) {
  float total = 0, squares = 0;
  if (centred) {
#pragma omp simd reduction(+ : total)
    for (int64_t i = 0; i < n; i++) total += x[i];
  }
  float mean = total / float(n);
#pragma omp simd reduction(+ : squares)
  for (int64_t i = 0; i < n; i++) squares += (x[i] - mean) * (x[i] - mean);
  float scale = 1 / std::sqrt(squares / float(n) + eps);
  for (int64_t i = 0; i < n; i++) y[i] = (x[i] - mean) * scale;
  if (weight) {
    for (int64_t i = 0; i < n; i++) y[i] *= widen(weight[i]);
  }
  if (bias) {
    for (int64_t i = 0; i < n; i++) y[i] += widen(bias[i]);
  }
}

enum Rotary : int64_t { NO_ROTARY, INTERLEAVED, HALF_SPLIT };

/* x (K) rotated by cos and sin (K/2), times ``scale``: pairs are (2j, 2j + 1) or, half-split, (j, j + K/2). */
inline void rotate(const float* x, int64_t dim, Rotary style, const float* cos, const float* sin, float scale,
                   float* y) {
  if (style == NO_ROTARY) {
    for (int64_t i = 0; i < dim; i++) y[i] = x[i] * scale;
    return;
  }
  int64_t next = style == INTERLEAVED ? 2 : 1, partner = style == INTERLEAVED ? 1 : dim / 2;
  for (int64_t j = 0; j < dim / 2; j++) {
    float first = x[j * next], second = x[j * next + partner];
    y[j * next] = (first * cos[j] - second * sin[j]) * scale;
    y[j * next + partner] = (second * cos[j] + first * sin[j]) * scale;
  }
}
