/* The gradient of a linear layer's weights in bf16 by tiles: W (O, I) from the gradient of its output (N, O) and its
input (N, I), summed over N in float32. Libraries are slow here, since both operands lie along the wrong side.

The input is put into tiles once, the other operand a block of outputs at a time: no copy of it is ever whole. */

#include <cstdint>

#include "team.h"
#include "tiles.h"

/* models/native/weight_gradient.py has the same fields in the same order. */
struct ProductShape {
  int64_t rows, outputs, inputs;  // N, O, I
};

#ifdef __AMX_BF16__

namespace {

constexpr int64_t DEPTH = 512;         // of N, multiplied at once: 32 columns of them are in the first cache
constexpr int64_t MOST_OUTPUTS = 256;  // of a block: their sums are in the second cache

/* 32 rows of 32 numbers, zeros from ``count`` on, as pairs of rows: of columns 0 to 15 and of 16 to 31. */
inline void load_square(const BFloat* from, int64_t pitch, int64_t count, Pairs low[16], Pairs high[16]) {
  for (int64_t pair = 0; pair < TILE_ROWS; pair++) {
    const BFloat* row = from + 2 * pair * pitch;
    Pairs zeros = _mm512_setzero_si512();
    Pairs first = 2 * pair < count ? load_pairs(row) : zeros;
    Pairs second = 2 * pair + 1 < count ? load_pairs(row + pitch) : zeros;
    interleave(first, second, low[pair], high[pair]);
  }
}

inline void store_tile(const Pairs rows[16], BFloat* to) {
  for (int64_t r = 0; r < TILE_ROWS; r++) store_pairs(to + r * TILE_DEPTH, rows[r]);
}

class WeightGradient {
 public:
  WeightGradient(const ProductShape& s, int64_t threads) : s_(s), depth_((s.rows + TILE_DEPTH - 1) / TILE_DEPTH) {
    block_ = MOST_OUTPUTS;
    while (block_ > SIDE && blocks() % threads && blocks() < 8 * threads) block_ /= 2;
  }

  int64_t blocks() const { return (s_.outputs + block_ - 1) / block_; }

  /* The input in tiles, and of each thread a block's sums and its other operand. */
  int64_t shared_bytes() const { return depth_ * TILE_DEPTH * s_.inputs * int64_t(sizeof(BFloat)); }
  int64_t private_bytes() const {
    return block_ * (s_.inputs * int64_t(sizeof(float)) + DEPTH * int64_t(sizeof(BFloat)));
  }

  void run(const BFloat* grad_out, const BFloat* input, BFloat* gradient, char* scratch, Team& team, int thread) const {
    Operand right{reinterpret_cast<BFloat*>(scratch), depth_};
    char* mine = scratch + shared_bytes() + thread * private_bytes();
    float* sums = reinterpret_cast<float*>(mine);
    Operand left{reinterpret_cast<BFloat*>(mine + block_ * s_.inputs * int64_t(sizeof(float))), DEPTH / TILE_DEPTH};
    for (int64_t d; (d = team.claim()) < depth_;) put_input(input, d, right);
    team.barrier();
    if (thread >= blocks()) return;
    configure_whole_tiles();
    for (int64_t block; (block = team.claim()) < blocks();) {
      int64_t first = block * block_, outputs = std::min(block_, s_.outputs - first);
      for (int64_t d = 0; d < depth_; d += left.depth) {
        int64_t count = std::min(left.depth, depth_ - d);
        put_gradient(grad_out + first, d, count, outputs, left);
        Operand part{right.tile(0, d), depth_};
        for (int64_t i = 0; i < s_.inputs; i += SIDE) {
          for (int64_t o = 0; o < outputs; o += SIDE) {
            float* square = sums + i * outputs + o * SIDE;
            if (d) load_sums(square);
            else zero_sums();
            add_product(left, o / TILE_ROWS, part, i / TILE_ROWS, i / TILE_ROWS + 1, 0, count);
            store_sums(square);
            if (d + count == depth_) write(square, gradient + (first + o) * s_.inputs + i);
          }
        }
      }
    }
    _tile_release();
  }

 private:
  /* Rows 32 d .. of the input as right operand. */
  void put_input(const BFloat* input, int64_t d, const Operand& right) const {
    Pairs low[16], high[16];
    for (int64_t i = 0; i < s_.inputs; i += SIDE) {
      load_square(input + d * TILE_DEPTH * s_.inputs + i, s_.inputs, s_.rows - d * TILE_DEPTH, low, high);
      store_tile(low, right.tile(i / TILE_ROWS, d));
      store_tile(high, right.tile(i / TILE_ROWS + 1, d));
    }
  }

  /* The transpose of ``outputs`` columns of the output's gradient, rows 32 d .. 32 (d + count), as left operand. */
  void put_gradient(const BFloat* grad_out, int64_t d, int64_t count, int64_t outputs, const Operand& left) const {
    Pairs low[16], high[16];
    for (int64_t part = 0; part < count; part++) {
      int64_t row = (d + part) * TILE_DEPTH;
      for (int64_t o = 0; o < outputs; o += SIDE) {
        load_square(grad_out + row * s_.outputs + o, s_.outputs, s_.rows - row, low, high);
        transpose_words(low);
        transpose_words(high);
        store_tile(low, left.tile(o / TILE_ROWS, part));
        store_tile(high, left.tile(o / TILE_ROWS + 1, part));
      }
    }
  }

  void write(const float* square, BFloat* gradient) const {
    for (int64_t r = 0; r < SIDE; r++) {
      const float* sums = square + row_of_sums(r);
      store_pairs(gradient + r * s_.inputs, narrow_two(load(sums), load(sums + TILE_SUMS)));
    }
  }

  const ProductShape& s_;
  int64_t depth_, block_;
};

}  // namespace

extern "C" {

/* Bytes of memory that ``retbench_weight_gradient`` needs for what it computes on the way. */
int64_t retbench_weight_gradient_bytes(const ProductShape* shape, int64_t threads) {
  WeightGradient product(*shape, threads);
  return product.shared_bytes() + std::min(threads, product.blocks()) * product.private_bytes();
}

void retbench_weight_gradient(const ProductShape* shape, const BFloat* grad_out, const BFloat* input, BFloat* gradient,
                              char* scratch, int64_t threads) {
  WeightGradient product(*shape, threads);
  OnTeam on{int(threads)};
  on.team.run([&](int thread) { product.run(grad_out, input, gradient, scratch, on.team, thread); });
}

}

#endif
