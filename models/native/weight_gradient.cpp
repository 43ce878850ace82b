/* The gradient of a linear layer's weights in bf16 by tiles: W (O, I) from the gradient of its output (N, O) and its
input (N, I), summed over N in float32. Libraries are slow here, since both operands lie along the wrong side.

One operand is put into tiles once, the other a block of its columns at a time: no copy of it is ever whole. */

#include <cstdint>
#include <utility>

#include "team.h"
#include "tiles.h"

/* models/native/weight_gradient.py has the same fields in the same order. */
struct ProductShape {
  int64_t rows, outputs, inputs;  // N, O, I
};

#ifdef __AVX512BF16__

namespace {

constexpr int64_t DEPTH = 512;      // of N, multiplied at once: 32 columns of them are in the first cache
constexpr int64_t MOST_LEFT = 256;  // columns of the left operand in a block: their sums are in the second cache

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

/* The wider of the two is the left operand and is taken block by block, so that the right one stays in cache: where the
input is wider, W^T is computed, and transposed as it is written. */
class WeightGradient {
 public:
  WeightGradient(const ProductShape& s, int64_t threads)
      : s_(s),
        is_transposed_(s.inputs > s.outputs),
        left_(std::max(s.outputs, s.inputs)),
        right_(std::min(s.outputs, s.inputs)),
        depth_((s.rows + TILE_DEPTH - 1) / TILE_DEPTH) {
    block_ = MOST_LEFT;
    while (block_ > SIDE && blocks() % threads && blocks() < 8 * threads) block_ /= 2;
  }

  int64_t blocks() const { return (left_ + block_ - 1) / block_; }

  /* The right operand in tiles, and of each thread a block's sums and its left operand. */
  int64_t shared_bytes() const { return depth_ * TILE_DEPTH * right_ * int64_t(sizeof(BFloat)); }
  int64_t private_bytes() const {
    return block_ * (right_ * int64_t(sizeof(float)) + DEPTH * int64_t(sizeof(BFloat)));
  }

  void run(const BFloat* grad_out, const BFloat* input, BFloat* gradient, char* scratch, Team& team, int thread) const {
    const BFloat *wide = is_transposed_ ? input : grad_out, *narrow = is_transposed_ ? grad_out : input;
    Operand right{reinterpret_cast<BFloat*>(scratch), depth_};
    char* mine = scratch + shared_bytes() + thread * private_bytes();
    float* sums = reinterpret_cast<float*>(mine);
    Operand left{reinterpret_cast<BFloat*>(mine + block_ * right_ * int64_t(sizeof(float))), DEPTH / TILE_DEPTH};
    for (int64_t d; (d = team.claim()) < depth_;) put_right(narrow, d, right);
    team.barrier();
    if (thread >= blocks()) return;
    begin_products();
    for (int64_t block; (block = team.claim()) < blocks();) {
      int64_t first = block * block_, width = std::min(block_, left_ - first);
      for (int64_t d = 0; d < depth_; d += left.depth) {
        int64_t count = std::min(left.depth, depth_ - d);
        put_left(wide + first, d, count, width, left);
        Operand part{right.tile(0, d), depth_};
        for (int64_t n = 0; n < right_; n += SIDE) {
          for (int64_t m = 0; m < width; m += SIDE) {
            float* square = sums + n * width + m * SIDE;
            Block product(square, d == 0);
            product.add(left, m / TILE_ROWS, part, n / TILE_ROWS, n / TILE_ROWS + 1, 0, count);
            product.store();
            if (d + count == depth_) write(square, first + m, n, gradient);
          }
        }
      }
    }
    end_products();
  }

 private:
  /* Rows 32 d .. of (N, right_) as right operand. */
  void put_right(const BFloat* from, int64_t d, const Operand& right) const {
    Pairs low[16], high[16];
    for (int64_t n = 0; n < right_; n += SIDE) {
      load_square(from + d * TILE_DEPTH * right_ + n, right_, s_.rows - d * TILE_DEPTH, low, high);
      store_tile(low, right.tile(n / TILE_ROWS, d));
      store_tile(high, right.tile(n / TILE_ROWS + 1, d));
    }
  }

  /* The transpose of ``width`` columns of (N, left_), rows 32 d .. 32 (d + count), as left operand. */
  void put_left(const BFloat* from, int64_t d, int64_t count, int64_t width, const Operand& left) const {
    Pairs low[16], high[16];
    for (int64_t part = 0; part < count; part++) {
      int64_t row = (d + part) * TILE_DEPTH;
      for (int64_t m = 0; m < width; m += SIDE) {
        load_square(from + row * left_ + m, left_, s_.rows - row, low, high);
        transpose_words(low);
        transpose_words(high);
        store_tile(low, left.tile(m / TILE_ROWS, part));
        store_tile(high, left.tile(m / TILE_ROWS + 1, part));
      }
    }
  }

  /* Sums of 32 x 32 of the product, from row m and column n on -> W. */
  void write(float* square, int64_t m, int64_t n, BFloat* gradient) const {
    if (is_transposed_) {
      transpose_sums(square);
      std::swap(m, n);
    }
    for (int64_t r = 0; r < SIDE; r++) {
      const float* sums = square + row_of_sums(r);
      store_pairs(gradient + (m + r) * s_.inputs + n, narrow_two(load(sums), load(sums + TILE_SUMS)));
    }
  }

  const ProductShape& s_;
  bool is_transposed_;
  int64_t left_, right_;  // columns of the operands
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
