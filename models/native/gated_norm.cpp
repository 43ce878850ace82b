/* The norm of each head and the swish gate of eq. 8, and their gradients, in one pass each over bf16 in memory.

  y = norm(o) silu(g) over rows of V numbers, norm(o) = (o - mean) r, r = 1 / sqrt(variance + eps), or without a mean */

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "pointwise.h"
#include "team.h"
#include "vectors.h"

/* models/native/gated_norm.py has the same fields in the same order; all are 8 bytes wide. */
struct NormShape {
  int64_t rows, width, centred;
  double eps;
};

namespace {

constexpr int64_t ROWS = 64;  // that a thread claims at once

/* One thread's row, as floats; its width is a multiple of the lanes. */
class Row {
 public:
  explicit Row(const NormShape& s) : s_(s), n_(s.width) {}

  void forward(const BFloat* o, const BFloat* g, BFloat* y) {
    float mean, r;
    measure(o, mean, r);
    for (int64_t i = 0; i < n_; i += LANES) {
      Floats gate = load(g + i);
      store(y + i, (load(o + i) - mean) * r * gate / (1.0f + exponential(-gate)));
    }
  }

  void backward(const BFloat* o, const BFloat* g, const BFloat* grad_y, BFloat* grad_o, BFloat* grad_g) {
    float mean, r, normed_row[n_], grad_row[n_];  // on the stack: there may be no memory left elsewhere
    measure(o, mean, r);
    Floats totals{}, alongs{};
    for (int64_t i = 0; i < n_; i += LANES) {
      Floats gate = load(g + i), grad = load(grad_y + i), normed = (load(o + i) - mean) * r;
      Floats sigmoid = 1.0f / (1.0f + exponential(-gate)), swish = gate * sigmoid;
      store(grad_g + i, grad * normed * (sigmoid + swish * (1.0f - sigmoid)));
      grad *= swish;
      totals += grad;
      alongs += grad * normed;
      store(normed_row + i, normed);
      store(grad_row + i, grad);
    }
    float total = s_.centred ? sum(totals) / float(n_) : 0, along = sum(alongs) / float(n_);
    for (int64_t i = 0; i < n_; i += LANES) {
      store(grad_o + i, (load(grad_row + i) - total - load(normed_row + i) * along) * r);
    }
  }

 private:
  /* The mean, 0 where it is not taken off, and 1 / sqrt(variance + eps). */
  void measure(const BFloat* o, float& mean, float& r) const {
    Floats total{}, squares{};
    if (s_.centred) {
      for (int64_t i = 0; i < n_; i += LANES) total += load(o + i);
    }
    mean = sum(total) / float(n_);
    for (int64_t i = 0; i < n_; i += LANES) {
      Floats off = load(o + i) - mean;
      squares += off * off;
    }
    r = 1 / std::sqrt(sum(squares) / float(n_) + float(s_.eps));
  }

  const NormShape& s_;
  int64_t n_;
};

template <class Do>
void for_rows(const NormShape& s, int64_t threads, const Do& what) {
  OnTeam on{int(threads)};
  on.team.run([&](int) {
    Row row(s);
    for (int64_t piece; (piece = on.team.claim()) * ROWS < s.rows;) {
      for (int64_t r = piece * ROWS; r < std::min(s.rows, (piece + 1) * ROWS); r++) what(row, r * s.width);
    }
  });
}

}  // namespace

extern "C" {

void retbench_gated_norm(const NormShape* shape, const BFloat* o, const BFloat* g, BFloat* y, int64_t threads) {
  for_rows(*shape, threads, [&](Row& row, int64_t at) { row.forward(o + at, g + at, y + at); });
}

void retbench_gated_norm_backward(const NormShape* shape, const BFloat* o, const BFloat* g, const BFloat* grad_y,
                                  BFloat* grad_o, BFloat* grad_g, int64_t threads) {
  for_rows(*shape, threads,
           [&](Row& row, int64_t at) { row.backward(o + at, g + at, grad_y + at, grad_o + at, grad_g + at); });
}

}
