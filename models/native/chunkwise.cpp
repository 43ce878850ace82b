/* Chunkwise retention (eq. 7) and its gradients in bf16 by tiles, one head after the other, the state in float32.

A thread takes a head and goes through its chunks with the state S in its cache. Rotation and decay are applied while a
chunk is put into tiles, so that nothing is written but results. The backward pass computes the states again: a pass
from the first chunk to the last with S gives the gradient of q, one from the last to the first with the gradient of S
those of k and v.

  B batch, T positions, H heads, K key dim, V value dim, C positions of a chunk
  A (n, m) = q_n k_m gamma^(n-m) for n >= m;  xi (n) = gamma^(n+1);  zeta (m) = gamma^(C-1-m)
  forward   o = A v + (xi q) S;  S <- gamma^C S + (zeta k)^T v
  backward  dA as A of do and v;  dq = dA k + (xi do) S^T;  dv = A^T do + (zeta k) dS;  dk = dA^T q + (zeta v) dS^T;
            dS <- gamma^C dS + (xi q)^T do */

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "pointwise.h"
#include "team.h"
#include "tiles.h"
#include "vectors.h"

/* What to compute. models/native/chunkwise.py has the same fields in the same order; all are 8 bytes wide. */
struct RetentionShape {
  int64_t batch, length, n_heads, d_k, d_v, chunk_size, rotary;
  double scale;  // of k
};

/* q, k (B, T, H, K), v (B, T, H, V), cos and sin (T, K / 2), states (B, H, K, V). The gradient of the last state may be
null. */
struct RetentionTensors {
  const BFloat *q, *k, *v;
  const float *cos, *sin;
  const double* log_gamma;  // (H,)
  const float* state;
  BFloat* out;
  float* last;
  const BFloat* grad_out;
  const float* grad_last;
  BFloat *grad_q, *grad_k, *grad_v;
  float* grad_state;
};

#ifdef __AVX512BF16__

namespace {

constexpr int64_t MOST_PARTS = 4;  // of the values of a head, for more threads than heads

/* Hands out pieces of one allocation. */
class Pieces {
 public:
  explicit Pieces(void* base) : base_(static_cast<char*>(base)) {}

  Operand operand(int64_t across, int64_t depth) {
    return {reinterpret_cast<BFloat*>(take(across * depth * int64_t(sizeof(BFloat)))), depth / TILE_DEPTH};
  }

  float* floats(int64_t count) { return reinterpret_cast<float*>(take(count * int64_t(sizeof(float)))); }

  int64_t used() const { return used_; }

 private:
  char* take(int64_t bytes) {
    char* piece = base_ + used_;
    used_ += round_up(bytes, 64);
    return piece;
  }

  char* base_;
  int64_t used_ = 0;
};

/* Powers of one head's gamma up to that of a chunk's length, 0 for negative exponents, as rows for vectors to load. */
class Decay {
 public:
  Decay(Pieces& pieces, int64_t chunk)
      : chunk_(chunk), rising_(pieces.floats(2 * chunk + LANES)), falling_(pieces.floats(2 * chunk + LANES)) {}

  void set(double log_gamma) {
    for (int64_t i = -chunk_; i < chunk_ + LANES; i++) {
      rising_[chunk_ + i] = i < 0 ? 0.0f : power(log_gamma, i);
      falling_[chunk_ + i] = i > 0 ? 0.0f : power(log_gamma, -i);
    }
  }

  /* gamma^first, gamma^(first + 1) .. */
  const float* rising(int64_t first) const { return rising_ + chunk_ + first; }

  /* gamma^first, gamma^(first - 1) .. */
  const float* falling(int64_t first) const { return falling_ + chunk_ - first; }

 private:
  static float power(double log_gamma, int64_t exponent) {
    return exponent ? float(std::exp(log_gamma * double(exponent))) : 1.0f;  // 0^0 is 1
  }

  int64_t chunk_;
  float *rising_, *falling_;
};

struct Chunk {
  int64_t first, count, padded;  // its positions; padded to whole blocks
  const float *xi, *zeta;        // (C,)
};

/* Operands to put rows into: as they are, and each row times a factor of its own. Either may be missing. */
struct Targets {
  const Operand* plain;
  const Operand* scaled = nullptr;
  const float* factors = nullptr;
};

/* What both passes do with one head of one sequence. */
class Head {
 public:
  Head(const RetentionShape& s, const RetentionTensors& t, Pieces& pieces)
      : s(s), t(t), chunk_(padded_chunk(s)), decay(pieces, chunk_), block_(pieces.floats(SIDE * SIDE)) {}

  /* Positions of a whole chunk, in whole blocks. */
  static int64_t padded_chunk(const RetentionShape& s) { return round_up(chunk_size(s), SIDE); }

 protected:
  const RetentionShape& s;
  const RetentionTensors& t;
  int64_t chunk_;
  Decay decay;
  float* block_;  // (32, 32) sums

  void choose(int64_t index) {
    b_ = index / s.n_heads;
    h_ = index % s.n_heads;
    decay.set(t.log_gamma[h_]);
  }

  int64_t chunks() const { return (s.length + chunk_size(s) - 1) / chunk_size(s); }

  Chunk chunk(int64_t index) const {
    int64_t first = index * chunk_size(s), count = std::min(chunk_size(s), s.length - first);
    return {first, count, round_up(count, SIDE), decay.rising(1), decay.falling(count - 1)};
  }

  template <class T>
  T* state_of(T* tensor) const { return tensor + (b_ * s.n_heads + h_) * s.d_k * s.d_v; }

  template <class T>
  T* key_row(T* tensor, int64_t position) const { return row(tensor, position, s.d_k); }

  template <class T>
  T* value_row(T* tensor, int64_t position) const { return row(tensor, position, s.d_v); }

  /* Puts rows of q or k, times ``scale`` and rotated, into left operands. */
  void put_keys(const Chunk& c, const BFloat* tensor, float scale, Targets to) const {
    int64_t half = s.d_k / 2;
    for (int64_t r = 0; r < c.padded; r++) {
      if (r >= c.count) {
        put_zeros(to, r);
        continue;
      }
      const BFloat* from = key_row(tensor, c.first + r);
      const float *cos = t.cos + (c.first + r) * half, *sin = t.sin + (c.first + r) * half;
      for (int64_t j = 0; j < half; j += LANES) {
        Floats first, second;
        if (s.rotary == INTERLEAVED) {
          load_two(from + 2 * j, first, second);
        } else {
          first = load(from + j);
          second = load(from + half + j);
        }
        if (s.rotary != NO_ROTARY) turn(first, second, load(cos + j) * scale, load(sin + j) * scale);
        else first *= scale, second *= scale;
        if (to.plain) put_pairs(*to.plain, r, j, first, second);
        if (to.scaled) put_pairs(*to.scaled, r, j, first * to.factors[r], second * to.factors[r]);
      }
    }
  }

  /* Puts rows of v or of the gradient of o into left operands, from channel ``from`` on as many as these are deep. */
  void put_values(const Chunk& c, const BFloat* tensor, int64_t from, Targets to) const {
    int64_t depth = (to.plain ? to.plain : to.scaled)->depth;
    for (int64_t r = 0; r < c.padded; r++) {
      if (r >= c.count) {
        put_zeros(to, r);
        continue;
      }
      const BFloat* row = value_row(tensor, c.first + r) + from;
      for (int64_t d = 0; d < depth; d++) {
        Pairs numbers = load_pairs(row + d * TILE_DEPTH);
        if (to.plain) store_pairs(place(*to.plain, r, d), numbers);
        if (!to.scaled) continue;
        Floats even, odd;
        load_two(row + d * TILE_DEPTH, even, odd);
        store_pairs(place(*to.scaled, r, d), narrow_pairs(even * to.factors[r], odd * to.factors[r]));
      }
    }
  }

  /* The scores of a chunk as left operand: A of queries and keys or, ``transposed``, A^T of keys and queries. */
  void put_scores(const Chunk& c, const Operand& left, const Operand& right, bool transposed,
                  const Operand& scores) const {
    for (int64_t m = 0; m < c.padded; m += SIDE) {
      for (int64_t n = transposed ? m : 0; n < (transposed ? c.padded : m + SIDE); n += SIDE) {
        multiply(left, m, right, n);
        for (int64_t r = 0; r < SIDE; r++) {
          const float* sums = block_ + row_of_sums(r);
          const float* factors = transposed ? decay.rising(n - m - r) : decay.falling(m + r - n);
          Floats low = load(sums) * load(factors), high = load(sums + TILE_SUMS) * load(factors + LANES);
          store_pairs(place(scores, m + r, n / TILE_DEPTH), narrow_two(low, high));
        }
      }
    }
  }

  /* Sums of 32 x 32 that are gradients of rotated q or k, from row m and channels n and ``other`` -> of q or k. */
  void write_gradient(const Chunk& c, int64_t m, int64_t n, int64_t other, float scale, BFloat* tensor) const {
    for (int64_t r = 0; r < SIDE && m + r < c.count; r++) {
      const float* sums = block_ + row_of_sums(r);
      Floats first = load(sums) * scale, second = load(sums + TILE_SUMS) * scale;
      int64_t position = c.first + m + r;
      BFloat* to = key_row(tensor, position);
      if (s.rotary == INTERLEAVED) split_pairs(first, second);
      if (s.rotary != NO_ROTARY) {
        int64_t j = position * (s.d_k / 2) + (s.rotary == INTERLEAVED ? n / 2 : n);
        turn(first, second, load(t.cos + j), -load(t.sin + j));
      }
      if (s.rotary == INTERLEAVED) {
        store_pairs(to + n, narrow_pairs(first, second));
      } else {
        store(to + n, first);
        store(to + other, second);
      }
    }
  }

  /* Channels whose gradients are rotated together: of 32, in two groups of 16, the i-th. */
  void channels(int64_t i, int64_t& n, int64_t& other) const {
    n = s.rotary == HALF_SPLIT ? i * TILE_ROWS : i * SIDE;
    other = s.rotary == HALF_SPLIT ? n + s.d_k / 2 : n + TILE_ROWS;
  }

  /* Sums of 32 x 32 -> rows of a tensor of values, from row m and channel ``from`` on. */
  void write_values(const Chunk& c, int64_t m, int64_t from, BFloat* tensor) const {
    for (int64_t r = 0; r < SIDE && m + r < c.count; r++) {
      const float* sums = block_ + row_of_sums(r);
      store_pairs(value_row(tensor, c.first + m + r) + from, narrow_two(load(sums), load(sums + TILE_SUMS)));
    }
  }

  /* block = 32 rows of scores x right + 32 rows of scaled x state, in columns n and ``other``: what a chunk gives
  itself and what the state gives it. */
  void mix(const Chunk& c, int64_t m, const Operand& scores, bool transposed, const Operand& right,
           const Operand& scaled, const Operand& state, int64_t n, int64_t other) const {
    int64_t rows = m / TILE_ROWS, diagonal = m / TILE_DEPTH;
    int64_t from = transposed ? diagonal : 0, to = transposed ? c.padded / TILE_DEPTH : diagonal + 1;
    Block sums(block_, true);
    sums.add(scores, rows, right, n / TILE_ROWS, other / TILE_ROWS, from, to);
    sums.add(scaled, rows, state, n / TILE_ROWS, other / TILE_ROWS, 0, scaled.depth);
    sums.store();
  }

  /* block = 32 rows of left x 32 columns of right, over their whole depth. */
  void multiply(const Operand& left, int64_t m, const Operand& right, int64_t n) const {
    Block sums(block_, true);
    sums.add(left, m / TILE_ROWS, right, n / TILE_ROWS, n / TILE_ROWS + 1, 0, left.depth);
    sums.store();
  }

  static BFloat* place(const Operand& operand, int64_t r, int64_t d) {
    return operand.tile(r / TILE_ROWS, d) + r % TILE_ROWS * TILE_DEPTH;
  }

 private:
  static int64_t chunk_size(const RetentionShape& s) { return std::min(s.chunk_size, s.length); }

  template <class T>
  T* row(T* tensor, int64_t position, int64_t width) const {
    return tensor + ((b_ * s.length + position) * s.n_heads + h_) * width;
  }

  static void turn(Floats& first, Floats& second, Floats cos, Floats sin) {
    Floats turned = first * cos - second * sin;
    second = second * cos + first * sin;
    first = turned;
  }

  /* Channels j .. of the first and of the second of each pair: side by side or, elsewhere, half of all apart. */
  void put_pairs(const Operand& operand, int64_t r, int64_t j, Floats first, Floats second) const {
    if (s.rotary == INTERLEAVED) return store_pairs(place(operand, r, j / LANES), narrow_pairs(first, second));
    int64_t other = j + s.d_k / 2;
    store(place(operand, r, j / TILE_DEPTH) + j % TILE_DEPTH, first);
    store(place(operand, r, other / TILE_DEPTH) + other % TILE_DEPTH, second);
  }

  static void put_zeros(Targets to, int64_t r) {
    for (const Operand* operand : {to.plain, to.scaled}) {
      if (!operand) continue;
      for (int64_t d = 0; d < operand->depth; d++) store_pairs(place(*operand, r, d), _mm512_setzero_si512());
    }
  }

  /* Numbers 0 to 15 and 16 to 31 -> the even ones and the odd ones. */
  static void split_pairs(Floats& first, Floats& second) {
    const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    __m512 a = (__m512)first, b = (__m512)second;
    first = (Floats)_mm512_permutex2var_ps(a, even, b);
    second = (Floats)_mm512_permutex2var_ps(a, _mm512_add_epi32(even, _mm512_set1_epi32(1)), b);
  }

  int64_t b_ = 0, h_ = 0;
};

/* S (K, V) of a head, or its gradient: some of its columns in float32, and as operand of products. */
class StateSums {
 public:
  StateSums(Pieces& pieces, int64_t d_k, int64_t width) : d_k_(d_k), width_(width), sums_(pieces.floats(d_k * width)) {}

  /* From and to (K, V), columns ``from`` on; null is zeros. */
  void read(const float* state, int64_t pitch, int64_t from) {
    for_rows([&](int64_t k, int64_t v, float* row) {
      store(row, state ? load(state + k * pitch + from + v) : Floats{});
      store(row + TILE_SUMS, state ? load(state + k * pitch + from + v + LANES) : Floats{});
    });
  }

  void write(float* state, int64_t pitch, int64_t from) {
    for_rows([&](int64_t k, int64_t v, float* row) {
      store(state + k * pitch + from + v, load(row));
      store(state + k * pitch + from + v + LANES, load(row + TILE_SUMS));
    });
  }

  /* Fills the operands that are there, (K, V) as right one or its transpose, and multiplies the sums by ``decay``. */
  void narrow(float decay, const Operand* right, const Operand* transposed) {
    for (int64_t k = 0; k < d_k_; k += SIDE) {
      for (int64_t v = 0; v < width_; v += SIDE) {
        float* sums = block(k, v);
        Pairs rows[SIDE];
        for (int64_t r = 0; r < SIDE; r++) {
          float* row = sums + row_of_sums(r);
          Floats low = load(row), high = load(row + TILE_SUMS);
          rows[r] = narrow_two(low, high);
          store(row, low * decay);
          store(row + TILE_SUMS, high * decay);
        }
        if (right) {
          BFloat* low = right->tile(v / TILE_ROWS, k / TILE_DEPTH);
          BFloat* high = right->tile(v / TILE_ROWS + 1, k / TILE_DEPTH);
          for (int64_t pair = 0; pair < TILE_ROWS; pair++) {
            Pairs first, second;
            interleave(rows[2 * pair], rows[2 * pair + 1], first, second);
            store_pairs(low + pair * TILE_DEPTH, first);
            store_pairs(high + pair * TILE_DEPTH, second);
          }
        }
        if (transposed) {
          for (int64_t half = 0; half < 2; half++) {
            transpose_words(rows + half * TILE_ROWS);
            BFloat* to = transposed->tile(k / TILE_ROWS + half, v / TILE_DEPTH);
            for (int64_t p = 0; p < TILE_ROWS; p++) store_pairs(to + p * TILE_DEPTH, rows[half * TILE_ROWS + p]);
          }
        }
      }
    }
  }

  /* Adds left (K, C) x right (C, V). */
  void add(const Operand& left, const Operand& right, int64_t depth) {
    for (int64_t v = 0; v < width_; v += SIDE) {
      for (int64_t k = 0; k < d_k_; k += SIDE) {
        Block sums(block(k, v), false);
        sums.add(left, k / TILE_ROWS, right, v / TILE_ROWS, v / TILE_ROWS + 1, 0, depth);
        sums.store();
      }
    }
  }

 private:
  float* block(int64_t k, int64_t v) const { return sums_ + (k / SIDE * (width_ / SIDE) + v / SIDE) * SIDE * SIDE; }

  template <class Do>
  void for_rows(const Do& what) {
    for (int64_t k = 0; k < d_k_; k++) {
      for (int64_t v = 0; v < width_; v += SIDE) what(k, v, block(k, v) + row_of_sums(k % SIDE));
    }
  }

  int64_t d_k_, width_;
  float* sums_;
};

/* Outputs and last state of a head, of some of its values. */
class Forward : Head {
 public:
  Forward(const RetentionShape& s, const RetentionTensors& t, Pieces& pieces, int64_t width)
      : Head(s, t, pieces),
        width_(width),
        q_(pieces.operand(chunk_, s.d_k)),
        q_xi_(pieces.operand(chunk_, s.d_k)),
        k_(pieces.operand(chunk_, s.d_k)),
        k_transposed_(pieces.operand(chunk_, s.d_k)),
        k_zeta_(pieces.operand(chunk_, s.d_k)),
        columns_(pieces.operand(std::max(s.d_k, width), chunk_)),
        k_zeta_transposed_(pieces.operand(s.d_k, chunk_)),
        v_(pieces.operand(chunk_, width)),
        v_right_(pieces.operand(width, chunk_)),
        scores_(pieces.operand(chunk_, chunk_)),
        state_right_(pieces.operand(width, s.d_k)),
        state_(pieces, s.d_k, width) {}

  void run(int64_t index, int64_t from) {
    choose(index);
    state_.read(state_of(t.state), s.d_v, from);
    for (int64_t i = 0; i < chunks(); i++) {
      Chunk c = chunk(i);
      put_keys(c, t.q, 1, {&q_, &q_xi_, c.xi});
      put_keys(c, t.k, float(s.scale), {&k_, &k_zeta_, c.zeta});
      put_values(c, t.v, from, {&v_});
      transpose_tiles(k_, c.padded / TILE_ROWS, k_transposed_);
      left_to_right(k_zeta_, c.padded, columns_);
      transpose_tiles(columns_, s.d_k / TILE_ROWS, k_zeta_transposed_);
      left_to_right(v_, c.padded, v_right_);
      put_scores(c, q_, k_transposed_, false, scores_);
      state_.narrow(*decay.rising(c.count), &state_right_, nullptr);
      for (int64_t m = 0; m < c.padded; m += SIDE) {
        for (int64_t v = 0; v < width_; v += SIDE) {
          mix(c, m, scores_, false, v_right_, q_xi_, state_right_, v, v + TILE_ROWS);
          write_values(c, m, from + v, t.out);
        }
      }
      state_.add(k_zeta_transposed_, v_right_, c.padded / TILE_DEPTH);
    }
    state_.write(state_of(t.last), s.d_v, from);
  }

 private:
  int64_t width_;
  Operand q_, q_xi_, k_, k_transposed_, k_zeta_, columns_, k_zeta_transposed_, v_, v_right_, scores_, state_right_;
  StateSums state_;
};

/* Gradients of a head. */
class Backward : Head {
 public:
  Backward(const RetentionShape& s, const RetentionTensors& t, Pieces& pieces)
      : Head(s, t, pieces),
        keys_(pieces.operand(chunk_, s.d_k)),
        keys_scaled_(pieces.operand(chunk_, s.d_k)),
        queries_(pieces.operand(chunk_, s.d_k)),
        queries_scaled_(pieces.operand(chunk_, s.d_k)),
        keys_right_(pieces.operand(s.d_k, chunk_)),
        keys_transposed_(pieces.operand(s.d_k, chunk_)),
        values_(pieces.operand(chunk_, s.d_v)),
        values_scaled_(pieces.operand(chunk_, s.d_v)),
        grads_(pieces.operand(chunk_, s.d_v)),
        values_right_(pieces.operand(s.d_v, chunk_)),
        scores_(pieces.operand(chunk_, chunk_)),
        grad_scores_(pieces.operand(chunk_, chunk_)),
        state_right_(pieces.operand(s.d_v, s.d_k)),
        state_transposed_(pieces.operand(s.d_k, s.d_v)),
        state_(pieces, s.d_k, s.d_v) {}

  /* dq, from the first chunk to the last. */
  void of_queries(int64_t index) {
    choose(index);
    state_.read(state_of(t.state), s.d_v, 0);
    for (int64_t i = 0; i < chunks(); i++) {
      Chunk c = chunk(i);
      put_keys(c, t.k, float(s.scale), {&keys_, &keys_scaled_, c.zeta});
      put_values(c, t.v, 0, {&values_});
      put_values(c, t.grad_out, 0, {&grads_, &values_scaled_, c.xi});
      put_scores(c, grads_, transposed(values_, c, values_right_), false, grad_scores_);
      state_.narrow(*decay.rising(c.count), nullptr, &state_transposed_);
      left_to_right(keys_, c.padded, keys_right_);
      for (int64_t m = 0; m < c.padded; m += SIDE) {
        for (int64_t i = 0; i < s.d_k / SIDE; i++) {
          int64_t n, other;
          channels(i, n, other);
          mix(c, m, grad_scores_, false, keys_right_, values_scaled_, state_transposed_, n, other);
          write_gradient(c, m, n, other, 1, t.grad_q);
        }
      }
      if (i + 1 == chunks()) break;
      left_to_right(keys_scaled_, c.padded, keys_right_);
      transpose_tiles(keys_right_, s.d_k / TILE_ROWS, keys_transposed_);
      left_to_right(values_, c.padded, values_right_);
      state_.add(keys_transposed_, values_right_, c.padded / TILE_DEPTH);
    }
  }

  /* dk, dv and the gradient of the first state, from the last chunk to the first. */
  void of_keys_and_values(int64_t index) {
    choose(index);
    state_.read(t.grad_last ? state_of(t.grad_last) : nullptr, s.d_v, 0);
    for (int64_t i = chunks() - 1; i >= 0; i--) {
      Chunk c = chunk(i);
      put_keys(c, t.q, 1, {&queries_, &queries_scaled_, c.xi});
      put_keys(c, t.k, float(s.scale), {&keys_, &keys_scaled_, c.zeta});
      put_values(c, t.v, 0, {&values_, &values_scaled_, c.zeta});
      put_values(c, t.grad_out, 0, {&grads_});
      put_scores(c, keys_, transposed(queries_, c, keys_right_), true, scores_);
      put_scores(c, values_, transposed(grads_, c, values_right_), true, grad_scores_);
      state_.narrow(*decay.rising(c.count), &state_right_, &state_transposed_);
      left_to_right(grads_, c.padded, values_right_);
      left_to_right(queries_, c.padded, keys_right_);
      for (int64_t m = 0; m < c.padded; m += SIDE) {
        for (int64_t v = 0; v < s.d_v; v += SIDE) {
          mix(c, m, scores_, true, values_right_, keys_scaled_, state_right_, v, v + TILE_ROWS);
          write_values(c, m, v, t.grad_v);
        }
      }
      for (int64_t m = 0; m < c.padded; m += SIDE) {
        for (int64_t i = 0; i < s.d_k / SIDE; i++) {
          int64_t n, other;
          channels(i, n, other);
          mix(c, m, grad_scores_, true, keys_right_, values_scaled_, state_transposed_, n, other);
          write_gradient(c, m, n, other, float(s.scale), t.grad_k);
        }
      }
      left_to_right(queries_scaled_, c.padded, keys_right_);
      transpose_tiles(keys_right_, s.d_k / TILE_ROWS, keys_transposed_);
      state_.add(keys_transposed_, values_right_, c.padded / TILE_DEPTH);
    }
    state_.write(state_of(t.grad_state), s.d_v, 0);
  }

 private:
  /* X (C, K or V) -> X^T as right operand, in the memory of another one of that size. */
  static Operand transposed(const Operand& x, const Chunk& c, const Operand& room) {
    Operand to{room.tiles, x.depth};
    transpose_tiles(x, c.padded / TILE_ROWS, to);
    return to;
  }

  Operand keys_, keys_scaled_, queries_, queries_scaled_, keys_right_, keys_transposed_, values_, values_scaled_,
      grads_, values_right_, scores_, grad_scores_, state_right_, state_transposed_;
  StateSums state_;
};

/* Into how many parts the values of a head are split, so that all threads find equally much to do. */
int64_t parts_of(const RetentionShape& s, int64_t threads) {
  int64_t heads = s.batch * s.n_heads, parts = 1;
  auto is_uneven = [&] { return heads * parts % threads && heads * parts < 4 * threads; };
  while (parts < MOST_PARTS && is_uneven() && s.d_v % (2 * parts * SIDE) == 0) parts *= 2;
  return parts;
}

/* How a pass is shared out: tasks, the threads that find one, and the bytes of each. */
struct Work {
  int64_t tasks, workers, bytes;
};

Work forward_work(const RetentionShape& s, int64_t threads) {
  int64_t parts = parts_of(s, threads), tasks = s.batch * s.n_heads * parts;
  Pieces pieces(nullptr);
  Forward(s, {}, pieces, s.d_v / parts);
  return {tasks, std::min(threads, tasks), round_up(pieces.used(), 4096)};
}

Work backward_work(const RetentionShape& s, int64_t threads) {
  int64_t tasks = 2 * s.batch * s.n_heads;
  Pieces pieces(nullptr);
  Backward(s, {}, pieces);
  return {tasks, std::min(threads, tasks), round_up(pieces.used(), 4096)};
}

}  // namespace

extern "C" {

/* Bytes of memory that the forward and the backward pass need for what they compute on the way. */
int64_t retbench_retention_bytes(const RetentionShape* shape, int64_t threads) {
  Work work = forward_work(*shape, threads);
  return work.workers * work.bytes;
}

int64_t retbench_retention_backward_bytes(const RetentionShape* shape, int64_t threads) {
  Work work = backward_work(*shape, threads);
  return work.workers * work.bytes;
}

/* o and the last state. */
void retbench_retention(const RetentionShape* shape, const RetentionTensors* tensors, char* scratch, int64_t threads) {
  Work work = forward_work(*shape, threads);
  int64_t parts = parts_of(*shape, threads), width = shape->d_v / parts;
  OnTeam on{int(threads)};
  on.team.run([&](int thread) {
    if (thread >= work.workers) return;
    Pieces pieces(scratch + thread * work.bytes);
    Forward forward(*shape, *tensors, pieces, width);
    begin_products();
    for (int64_t task; (task = on.team.claim()) < work.tasks;) forward.run(task / parts, task % parts * width);
    end_products();
  });
}

/* Gradients of q, k, v and the first state. */
void retbench_retention_backward(const RetentionShape* shape, const RetentionTensors* tensors, char* scratch,
                                 int64_t threads) {
  Work work = backward_work(*shape, threads);
  OnTeam on{int(threads)};
  on.team.run([&](int thread) {
    if (thread >= work.workers) return;
    Pieces pieces(scratch + thread * work.bytes);
    Backward backward(*shape, *tensors, pieces);
    begin_products();
    for (int64_t task; (task = on.team.claim()) < work.tasks;) {
      if (task < work.tasks / 2) backward.of_keys_and_values(task);  // the longer ones first
      else backward.of_queries(task - work.tasks / 2);
    }
    end_products();
  });
}

}

#endif
