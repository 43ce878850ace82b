/* AdamW on float32 master weights whose gradient and rounded copy are bf16: one pass over memory.

  m <- m + (1 - b1) (g - m);  v <- b2 v + (1 - b2) g^2;  w <- w - lr decay w - lr / c1 m / (sqrt(v) / sqrt(c2) + eps)
  with c1 = 1 - b1^step, c2 = 1 - b2^step */

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "team.h"
#include "vectors.h"

/* models/native/adamw.py has the same fields in the same order; all are 8 bytes wide. */
struct AdamWShape {
  int64_t count;
  double learning_rate, beta_1, beta_2, epsilon, weight_decay, step;  // step: 1 for the first
};

namespace {

constexpr int64_t PIECE = 1 << 14;  // numbers that a thread claims at once

inline Floats root(Floats values) {
#ifdef __AVX512F__
  return (Floats)_mm512_sqrt_ps((__m512)values);
#else
  for (int lane = 0; lane < LANES; lane++) values[lane] = std::sqrt(values[lane]);
  return values;
#endif
}

inline float root(float value) { return std::sqrt(value); }

/* The factors of a step, in float32. */
struct Factors {
  float added_1, kept_2, added_2, epsilon, kept, rate, correction;

  explicit Factors(const AdamWShape& s)
      : added_1(float(1 - s.beta_1)), kept_2(float(s.beta_2)), added_2(float(1 - s.beta_2)), epsilon(float(s.epsilon)),
        kept(float(1 - s.learning_rate * s.weight_decay)),
        rate(float(s.learning_rate / (1 - std::pow(s.beta_1, s.step)))),
        correction(float(1 / std::sqrt(1 - std::pow(s.beta_2, s.step)))) {}

  /* Of one number or of sixteen. */
  template <class T>
  void update(T gradient, T& master, T& m, T& v) const {
    m += (gradient - m) * added_1;
    v = v * kept_2 + gradient * gradient * added_2;
    master = master * kept - rate * m / (root(v) * correction + epsilon);
  }
};

}  // namespace

extern "C" {

/* Updates ``count`` numbers of each tensor. */
void retbench_adamw(const AdamWShape* shape, const BFloat* gradient, BFloat* weight, float* master, float* m, float* v,
                    int64_t threads) {
  Factors factors(*shape);
  OnTeam on{int(threads)};
  on.team.run([&](int) {
    for (int64_t piece; (piece = on.team.claim()) * PIECE < shape->count;) {
      int64_t i = piece * PIECE, end = std::min(shape->count, i + PIECE);
      for (; i + LANES <= end; i += LANES) {
        Floats new_master = load(master + i), new_m = load(m + i), new_v = load(v + i);
        factors.update(load(gradient + i), new_master, new_m, new_v);
        store(master + i, new_master);
        store(m + i, new_m);
        store(v + i, new_v);
        store(weight + i, new_master);
      }
      for (; i < end; i++) {
        factors.update(widen(gradient[i]), master[i], m[i], v[i]);
        narrow(master[i], weight[i]);
      }
    }
  });
}

}
