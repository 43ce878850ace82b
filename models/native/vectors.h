/* Sixteen floats at a time, in the compiler's own vector types: one source for AVX-512, AVX2, NEON and plain code. */
#pragma once

#include <cstdint>
#include <cstring>
#ifdef __AVX512F__
#include <immintrin.h>
#endif

typedef float Floats __attribute__((vector_size(64)));
typedef uint32_t Words __attribute__((vector_size(64)));
typedef uint16_t Halves __attribute__((vector_size(32)));

constexpr int64_t LANES = 16;

#ifdef __AVX512F__
constexpr int ACCUMULATORS = 24;  // vectors that a product may keep in registers, of 32
#else
constexpr int ACCUMULATORS = 4;
#endif

constexpr int64_t round_up(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }

/* The upper half of a float: the same range, 8 bits of mantissa. */
struct BFloat {
  uint16_t bits;
};

inline float widen(float value) { return value; }

inline float widen(BFloat value) {
  uint32_t bits = uint32_t(value.bits) << 16;
  float wide;
  memcpy(&wide, &bits, 4);
  return wide;
}

inline float widen(int8_t value) { return value; }

inline void narrow(float value, float& to) { to = value; }

inline void narrow(float value, int8_t& to) { to = int8_t(value); }

/* Rounds to nearest, ties to even; NaN stays NaN. */
inline void narrow(float value, BFloat& to) {
  uint32_t bits;
  memcpy(&bits, &value, 4);
  to.bits = value == value ? uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16) : 0x7fc0;
}

inline Floats load(const float* from) {
  Floats wide;
  memcpy(&wide, from, sizeof wide);
  return wide;
}

inline Floats load(const BFloat* from) {
  Halves halves;
  memcpy(&halves, from, sizeof halves);
  return (Floats)(__builtin_convertvector(halves, Words) << 16);
}

inline Floats load(const int8_t* from) {
#ifdef __AVX512F__
  return (Floats)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)from)));
#else
  Floats wide;
  for (int lane = 0; lane < LANES; lane++) wide[lane] = from[lane];
  return wide;
#endif
}

/* 32 numbers at once. Of bf16 the even ones come first and then the odd ones: two instructions instead of four. */
inline void load_two(const float* from, Floats& first, Floats& second) {
  first = load(from);
  second = load(from + LANES);
}

inline void load_two(const BFloat* from, Floats& first, Floats& second) {
  Words pairs;
  memcpy(&pairs, from, sizeof pairs);
  first = (Floats)(pairs << 16);
  second = (Floats)(pairs & 0xffff0000u);
}

/* Where number i of n stands when all are loaded by ``load_two`` and the rest, fewer than 32, one by one. */
template <class T>
int64_t place(int64_t i, int64_t n) {
  if (sizeof(T) == sizeof(float)) return i;
  int64_t block = i / (2 * LANES) * 2 * LANES;
  return block + 2 * LANES > n ? i : block + i % 2 * LANES + i % (2 * LANES) / 2;
}

inline void store(float* to, Floats values) { memcpy(to, &values, sizeof values); }

inline void store(BFloat* to, Floats values) {
#ifdef __AVX512BF16__
  _mm256_storeu_si256((__m256i*)to, (__m256i)_mm512_cvtneps_pbh((__m512)values));
#else
  for (int64_t i = 0; i < LANES; i++) narrow(values[i], to[i]);
#endif
}

inline Floats broadcast(float value) { return value - Floats{}; }

inline float sum(Floats values) {
#ifdef __AVX512F__
  return _mm512_reduce_add_ps((__m512)values);
#else
  float total = 0;
  for (int lane = 0; lane < LANES; lane++) total += values[lane];
  return total;
#endif
}

inline void prefetch(const void* address) { __builtin_prefetch(address); }
