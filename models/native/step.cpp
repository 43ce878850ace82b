/* A decode step of RetNet or a Transformer in one call: tokens in, logits out, the state updated in place.

All threads run the same program, ``Step::run``. Between two barriers they claim pieces of one phase's work; what is
small (norms, packing) each thread computes for itself, which is cheaper than one more barrier. Activations are float32.

  B batch, D d_model, F d_ffn, H query heads, G key-value heads, K key dim, V value dim of a head, N rows of a matrix */

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <initializer_list>
#include <memory>

#include "attention.h"
#include "linear.h"
#include "pointwise.h"
#include "retention.h"
#include "self_test.h"
#include "team.h"
#include "vectors.h"

/* What to compute. models/native/decoder.py has the same fields in the same order; all are 8 bytes wide. */
struct Shape {
  int64_t batch, d_model, n_layers, vocab, d_ffn, n_heads, n_kv_heads, d_k, d_v;
  int64_t capacity, position;  // of a KV cache; tokens read before this one
  int64_t attention, bf16, rmsnorm, group_rmsnorm, swiglu, gate, rotary;
  double norm_eps, embedding_scale;
  const double* frequencies;  // (K / 2,)
  const double* log_gamma;    // (H,), null for attention
};

/* A matrix of a linear layer: of the model's type or, where there is a scale for each row, of int8. */
struct Matrix {
  const void *weights, *scales;
};

/* The weights of a layer and of the model, null where there is none. decoder.py lists them in this order. */
struct Layer {
  const void *mixer_norm, *mixer_norm_bias;
  Matrix q, k, v, g, out;
  const void *group_norm, *ffn_norm, *ffn_norm_bias;
  Matrix gate, up, down;
};

struct Model {
  const void *embedding, *norm, *norm_bias;
  Matrix head;
  Layer layers[];
};

namespace {

constexpr int64_t CHUNK_BYTES = 128 * 1024;  // of weights that a thread claims at once, at most
constexpr int64_t CHUNK_ROWS = 128;          // likewise

/* Hands out pieces of one allocation, each on a cache line of its own. */
class Arena {
 public:
  explicit Arena(void* base) : base_(static_cast<char*>(base)) {}

  template <class T>
  T* take(int64_t count) {
    T* piece = reinterpret_cast<T*>(base_ + used_);
    used_ += round_up(count * int64_t(sizeof(T)), 64);
    return piece;
  }

  int64_t used() const { return used_; }

 private:
  char* base_;
  int64_t used_ = 0;
};

/* What only one thread writes and reads. */
struct Private {
  int thread;
  float* values;   // (B, widest input of a product)
  void* packed;    // the same as packed products want it
  float* tile;     // (B, CHUNK_ROWS) results of a product
  float* q;        // (H / G, K) rotated
  float* k;        // (K,) one head of anything
};

/* Everything that a step writes besides state and logits. */
struct Scratch {
  float *cos, *sin;  // (K / 2,)
  float* residual;   // (B, D)
  float* wide;       // (B, width) projections of a layer: q, k, v, g or the hidden channels of the FFN
  float* mixed;      // (B, H, V) output of retention, or partial sums of attention (B, H, splits, 2 + K)
  int64_t width;     // of a row of ``wide``
  Arena arena;
  int64_t inputs;

  Scratch(const Shape& s, int64_t splits, void* base) : arena(base) {
    cos = arena.take<float>(s.d_k / 2);
    sin = arena.take<float>(s.d_k / 2);
    residual = arena.take<float>(s.batch * s.d_model);
    int64_t values = s.n_kv_heads * s.d_v;
    width = std::max((s.n_heads + s.n_kv_heads) * s.d_k + values * (s.gate ? 2 : 1), s.d_ffn * (s.swiglu ? 2 : 1));
    wide = arena.take<float>(s.batch * width);
    mixed = arena.take<float>(s.batch * s.n_heads * (s.attention ? splits * Partial::size(s.d_v) : s.d_v));
    inputs = std::max({s.d_model, s.n_heads * s.d_v, s.d_ffn});
  }

  template <class T>
  int64_t packed_room(int64_t columns) const {
    return use_packed<T>(columns) ? packed_bytes<T>(columns, inputs) : 0;
  }

  Private next_private(const Shape& s, int thread) {
    Private mine;
    mine.thread = thread;
    mine.values = arena.take<float>(s.batch * inputs);
    mine.packed = arena.take<char>(s.bf16 ? packed_room<BFloat>(s.batch) : packed_room<float>(s.batch));
    mine.tile = arena.take<float>(s.batch * CHUNK_ROWS);
    mine.q = arena.take<float>(s.n_heads / s.n_kv_heads * s.d_k);
    mine.k = arena.take<float>(s.d_k);
    return mine;
  }
};

/* Into how many parts the work of a head is split so that there are so many pieces, each of at least ``least``. */
int64_t splits_of(int64_t heads, int64_t pieces, int64_t length, int64_t least) {
  return std::clamp<int64_t>((pieces + heads - 1) / heads, 1, std::max<int64_t>(1, length / least));
}

int64_t attention_splits(const Shape& s, int threads) {
  return splits_of(s.batch * s.n_kv_heads, 16 * threads, s.position + 1, 256);
}

/* What becomes of the results of a product. */
enum class Then { STORE, SILU, GELU, ADD };

/* Where a step's time goes: what each phase took in all steps of this process, in nanoseconds of its first thread. */
enum Phase { PROJECTIONS, MIXER, OUT, FFN, HEAD, PHASES };
int64_t phase_ns[PHASES];

class Stopwatch {
 public:
  explicit Stopwatch(bool running) : running_(running) {}

  /* The time since the last lap went to ``phase``. */
  void lap(Phase phase) {
    if (!running_) return;
    Clock::time_point now = Clock::now();
    phase_ns[phase] += std::chrono::nanoseconds(now - last_).count();
    last_ = now;
  }

 private:
  using Clock = std::chrono::steady_clock;
  bool running_;
  Clock::time_point last_ = Clock::now();
};

/* T is the type of weights (those of linear layers may be int8), KV cache and logits. */
template <class T>
class Step {
 public:
  Step(const Shape& shape, const Model& model, void* const* state, T* logits, void* memory, Team& team)
      : s_(shape), model_(model), state_(state), logits_(logits), team_(team),
        splits_(attention_splits(shape, team.size())), scratch_(shape, splits_, memory) {
    for (int thread = 0; thread < team.size(); thread++) private_.push_back(scratch_.next_private(shape, thread));
  }

  /* What one thread does in a moment before the others start: embeds the tokens, computes the rotation. */
  void begin(const int64_t* tokens) {
    for (int64_t b = 0; b < s_.batch; b++) {
      const T* row = weights(model_.embedding) + tokens[b] * s_.d_model;
      float* x = scratch_.residual + b * s_.d_model;
      for (int64_t i = 0; i < s_.d_model; i++) x[i] = widen(row[i]) * float(s_.embedding_scale);
    }
    for (int64_t j = 0; j < s_.d_k / 2; j++) {
      double angle = double(s_.position) * s_.frequencies[j];
      scratch_.cos[j] = float(std::cos(angle));
      scratch_.sin[j] = float(std::sin(angle));
    }
  }

  /* The whole step as one thread of the team sees it. */
  void run(int thread) {
    Private& mine = private_[thread];
    Stopwatch watch(thread == 0);
    for (int64_t index = 0; index < s_.n_layers; index++) {
      const Layer& layer = model_.layers[index];
      project_heads(layer, mine);
      watch.lap(PROJECTIONS);
      s_.attention ? attend_all(index, mine) : retain_all(index, mine);
      watch.lap(MIXER);
      Activations mixed = s_.attention ? combine(mine) : gate(layer, mine);
      project(mixed, mine, {{layer.out, s_.d_model, scratch_.residual, s_.d_model, Then::ADD}});
      watch.lap(OUT);
      feed_forward(layer, mine);
      watch.lap(FFN);
    }
    Activations x = norm(model_.norm, model_.norm_bias, mine);
    project(x, mine, {{model_.head, s_.vocab, logits_, s_.vocab, Then::STORE}});
    watch.lap(HEAD);
  }

 private:
  /* A matrix (rows, depth) whose product goes to out (B, stride): floats, but for the logits. */
  struct Projection {
    Matrix matrix;
    int64_t rows;
    void* out;
    int64_t stride;
    Then then;
  };

  static const T* weights(const void* pointer) { return static_cast<const T*>(pointer); }

  int64_t q_at() const { return 0; }
  int64_t k_at() const { return s_.n_heads * s_.d_k; }
  int64_t v_at() const { return k_at() + s_.n_kv_heads * s_.d_k; }
  int64_t g_at() const { return v_at() + s_.n_kv_heads * s_.d_v; }

  void project_heads(const Layer& layer, Private& mine) {
    Activations x = norm(layer.mixer_norm, layer.mixer_norm_bias, mine);
    float* wide = scratch_.wide;
    int64_t keys = s_.n_kv_heads * s_.d_k, values = s_.n_kv_heads * s_.d_v, width = scratch_.width;
    project(x, mine,
            {{layer.q, s_.n_heads * s_.d_k, wide + q_at(), width, Then::STORE},
             {layer.k, keys, wide + k_at(), width, Then::STORE},
             {layer.v, values, wide + v_at(), width, Then::STORE},
             {layer.g, s_.gate ? values : 0, wide + g_at(), width, Then::SILU}});
  }

  void feed_forward(const Layer& layer, Private& mine) {
    Activations x = norm(layer.ffn_norm, layer.ffn_norm_bias, mine);
    float *up = scratch_.wide, *gate = scratch_.wide + s_.d_ffn;
    int64_t width = scratch_.width;
    project(x, mine,
            {{layer.up, s_.d_ffn, up, width, s_.swiglu ? Then::STORE : Then::GELU},
             {layer.gate, s_.swiglu ? s_.d_ffn : 0, gate, width, Then::SILU}});
    Activations hidden = activations(s_.d_ffn, mine);
    for (int64_t b = 0; b < s_.batch; b++) multiply_or_copy(b, s_.d_ffn, up, s_.swiglu ? gate : nullptr, hidden);
    project(packed(hidden), mine, {{layer.down, s_.d_model, scratch_.residual, s_.d_model, Then::ADD}});
  }

  void multiply_or_copy(int64_t b, int64_t n, const float* left, const float* right, const Activations& to) {
    float* values = to.values + b * n;
    std::copy_n(left + b * scratch_.width, n, values);
    if (!right) return;
    for (int64_t i = 0; i < n; i++) values[i] *= right[b * scratch_.width + i];
  }

  /* The retention of every head, split over the values. */
  void retain_all(int64_t index, Private& mine) {
    int64_t heads = s_.batch * s_.n_heads, splits = splits_of(heads, 4 * team_.size(), s_.d_v, 128);
    for (int64_t piece; (piece = team_.claim_near(mine.thread, heads * splits)) < heads * splits;) {
      int64_t task = piece / splits, split = piece % splits, b = task / s_.n_heads, head = task % s_.n_heads;
      int64_t lines = round_up(s_.d_v, LANES) / LANES;  // a split starts on a cache line
      int64_t first = split * lines / splits * LANES, end = std::min((split + 1) * lines / splits * LANES, s_.d_v);
      const float* row = scratch_.wide + b * scratch_.width;
      rotate_head(row + q_at() + head * s_.d_k, 1, mine.q);
      rotate_head(row + k_at() + head * s_.d_k, 1 / std::sqrt(float(s_.d_k)), mine.k);
      float* state = static_cast<float*>(state_[index]) + task * s_.d_k * s_.d_v;
      float gamma = float(std::exp(s_.log_gamma[head]));
      retain(mine.q, mine.k, row + v_at() + head * s_.d_v, gamma, s_.d_k, s_.d_v, first, end, state,
             scratch_.mixed + task * s_.d_v);
    }
    team_.barrier();
  }

  /* The group norm of every head, times the gate -> (B, H V). */
  Activations gate(const Layer& layer, Private& mine) {
    int64_t heads = s_.n_heads * s_.d_v;
    Activations out = activations(heads, mine);
    for (int64_t task = 0; task < s_.batch * s_.n_heads; task++) {
      normalise<T>(scratch_.mixed + task * s_.d_v, s_.d_v, !s_.group_rmsnorm, float(s_.norm_eps),
                   weights(layer.group_norm), nullptr, out.values + task * s_.d_v);
    }
    for (int64_t b = 0; b < s_.batch && s_.gate; b++) {
      const float* gates = scratch_.wide + b * scratch_.width + g_at();
      for (int64_t i = 0; i < heads; i++) out.values[b * heads + i] *= gates[i];
    }
    return packed(out);
  }

  /* Attention of every group of heads, split over the positions; who has the last one writes it to the cache first. */
  void attend_all(int64_t index, Private& mine) {
    T *keys = static_cast<T*>(state_[2 * index]), *values = static_cast<T*>(state_[2 * index + 1]);
    int64_t tasks = s_.batch * s_.n_kv_heads, shared = s_.n_heads / s_.n_kv_heads, length = s_.position + 1;
    for (int64_t piece; (piece = team_.claim_near(mine.thread, tasks * splits_)) < tasks * splits_;) {
      int64_t task = piece / splits_, split = piece % splits_, b = task / s_.n_kv_heads, group = task % s_.n_kv_heads;
      int64_t first = split * length / splits_, end = (split + 1) * length / splits_;
      const float* row = scratch_.wide + b * scratch_.width;
      T *head_keys = keys + task * s_.capacity * s_.d_k, *head_values = values + task * s_.capacity * s_.d_k;
      if (end == length) append(row, group, head_keys, head_values, mine);
      for (int64_t head = 0; head < shared; head++) {
        rotate_head(row + q_at() + (group * shared + head) * s_.d_k, 1 / std::sqrt(float(s_.d_k)), mine.k);
        for (int64_t i = 0; i < s_.d_k; i++) mine.q[head * s_.d_k + place<T>(i, s_.d_k)] = mine.k[i];
      }
      float* partials = scratch_.mixed + piece * shared * Partial::size(s_.d_v);
      attend(mine.q, shared, head_keys + first * s_.d_k, head_values + first * s_.d_k, end - first, s_.d_k, partials);
    }
    team_.barrier();
  }

  void append(const float* row, int64_t group, T* keys, T* values, Private& mine) {
    rotate_head(row + k_at() + group * s_.d_k, 1, mine.k);
    const float* v = row + v_at() + group * s_.d_k;
    for (int64_t i = 0; i < s_.d_k; i++) {
      narrow(mine.k[i], keys[s_.position * s_.d_k + i]);
      narrow(v[i], values[s_.position * s_.d_k + i]);
    }
  }

  /* The parts of every head's positions put together -> (B, H V). */
  Activations combine(Private& mine) {
    Activations out = activations(s_.n_heads * s_.d_v, mine);
    int64_t size = Partial::size(s_.d_v), shared = s_.n_heads / s_.n_kv_heads;
    for (int64_t task = 0; task < s_.batch * s_.n_heads; task++) {
      float* parts = scratch_.mixed + (task / shared * splits_ * shared + task % shared) * size;
      float *sums = mine.k, largest = -1e30f, total = 0;
      for (int64_t split = 0; split < splits_; split++) {
        largest = std::max(largest, Partial{parts + split * shared * size}.largest());
      }
      std::fill_n(sums, s_.d_v, 0.0f);
      for (int64_t split = 0; split < splits_; split++) {
        Partial part{parts + split * shared * size};
        float scale = exponential(part.largest() - largest);
        total += part.total() * scale;
        for (int64_t i = 0; i < s_.d_v; i++) sums[i] += part.values()[i] * scale;
      }
      for (int64_t i = 0; i < s_.d_v; i++) {
        out.values[task * s_.d_v + i] = sums[place<T>(i, s_.d_v)] / total;
      }
    }
    return packed(out);
  }

  void rotate_head(const float* x, float scale, float* y) const {
    rotate(x, s_.d_k, Rotary(s_.rotary), scratch_.cos, scratch_.sin, scale, y);
  }

  Activations activations(int64_t depth, Private& mine) const { return {s_.batch, depth, mine.values, mine.packed}; }

  /* The norm of the residual stream (B, D). */
  Activations norm(const void* weight, const void* bias, Private& mine) {
    Activations x = activations(s_.d_model, mine);
    for (int64_t b = 0; b < s_.batch; b++) {
      normalise(scratch_.residual + b * s_.d_model, s_.d_model, !s_.rmsnorm, float(s_.norm_eps), weights(weight),
                weights(bias), x.values + b * s_.d_model);
    }
    return packed(x);
  }

  const Activations& packed(const Activations& x) const {
    if (use_packed<T>(s_.batch)) pack<T>(x);
    return x;
  }

  /* The products of matrices with the same input, as one phase: chunks of their rows. */
  void project(const Activations& x, Private& mine, std::initializer_list<Projection> projections) {
    int64_t rows = 0, pieces = 0;
    for (const Projection& p : projections) rows += p.rows;
    int64_t most = std::min(CHUNK_ROWS, CHUNK_BYTES / (x.depth * int64_t(sizeof(T))));
    int64_t chunk = round_up(std::max<int64_t>(1, std::min(most, rows / (8 * team_.size()))), 2 * TILE_ROWS);
    auto chunks = [&](const Projection& p) { return (p.rows + chunk - 1) / chunk; };
    for (const Projection& p : projections) pieces += chunks(p);
    for (int64_t piece; (piece = team_.claim_near(mine.thread, pieces)) < pieces;) {
      const Projection* p = projections.begin();
      for (; piece >= chunks(*p); p++) piece -= chunks(*p);
      int64_t start = piece * chunk, count = std::min(chunk, p->rows - start);
      multiply_rows(p->matrix, start, count, x, mine.tile);
      for (int64_t b = 0; b < s_.batch; b++) finish(*p, mine.tile + b * CHUNK_ROWS, count, b * p->stride + start);
    }
    team_.barrier();
  }

  /* tile[b][r] = W[start + r] . x[b] for ``count`` rows. */
  void multiply_rows(const Matrix& matrix, int64_t start, int64_t count, const Activations& x, float* tile) {
    int64_t first = start * x.depth;
    if (!matrix.scales) return multiply<T>(weights(matrix.weights) + first, count, x, tile, CHUNK_ROWS);
    multiply<T>(static_cast<const int8_t*>(matrix.weights) + first, count, x, tile, CHUNK_ROWS);
    const T* scales = weights(matrix.scales) + start;
    for (int64_t b = 0; b < x.columns; b++) {
      for (int64_t r = 0; r < count; r++) tile[b * CHUNK_ROWS + r] *= widen(scales[r]);
    }
  }

  /* Moves results of one sequence to where they belong, from ``at`` on. */
  void finish(const Projection& p, const float* results, int64_t count, int64_t at) {
    if (p.out == logits_) {
      for (int64_t i = 0; i < count; i++) narrow(results[i], logits_[at + i]);
      return;
    }
    float* out = static_cast<float*>(p.out) + at;
    switch (p.then) {
      case Then::STORE: std::copy_n(results, count, out); break;
      case Then::ADD: for (int64_t i = 0; i < count; i++) out[i] += results[i]; break;
      case Then::SILU: for (int64_t i = 0; i < count; i++) out[i] = silu(results[i]); break;
      case Then::GELU: for (int64_t i = 0; i < count; i++) out[i] = gelu(results[i]);
    }
  }

  const Shape& s_;
  const Model& model_;
  void* const* state_;
  T* logits_;
  Team& team_;
  int64_t splits_;
  Scratch scratch_;
  std::vector<Private> private_;
};

template <class T>
void run_step(const Shape& shape, const Model& model, void* const* state, const int64_t* tokens, void* logits,
              void* scratch, int threads) {
  OnTeam on(threads);
  Step<T> step(shape, model, state, static_cast<T*>(logits), scratch, on.team);
  step.begin(tokens);
  on.team.run([&](int thread) { step.run(thread); });
}

}  // namespace

extern "C" {

/* Bytes of memory that ``retbench_step`` needs for what it computes on the way. */
int64_t retbench_scratch_bytes(const Shape* shape, int64_t threads) {
  Scratch scratch(*shape, attention_splits(*shape, int(threads)), nullptr);
  for (int64_t thread = 0; thread < threads; thread++) scratch.next_private(*shape, int(thread));
  return scratch.arena.used();
}

/* state: a pointer a layer to S (B, H, K, V) float32, or two to keys and values (B, G, capacity, K); tokens (B,);
logits (B, vocab). Returns -1, or the index of a token that is not in the vocabulary; then nothing has changed. */
int64_t retbench_step(const Shape* shape, const Model* model, void* const* state, const int64_t* tokens, void* logits,
                      void* scratch, int64_t threads) {
  for (int64_t b = 0; b < shape->batch; b++) {
    if (tokens[b] < 0 || tokens[b] >= shape->vocab) return b;
  }
  (shape->bf16 ? run_step<BFloat> : run_step<float>)(*shape, *model, state, tokens, logits, scratch, int(threads));
  return -1;
}

/* What the phases of all steps so far took, in nanoseconds: projections, mixer, out, FFN, head. */
void retbench_phase_ns(int64_t* ns) { std::copy_n(phase_ns, int(PHASES), ns); }

/* Whether the kernels of chunkwise.cpp run here. */
int64_t retbench_has_tiles() { return has_tiles(); }

/* 0 where products are right on this processor. */
int64_t retbench_self_test() { return all_products_are_right() ? 0 : 1; }

}
