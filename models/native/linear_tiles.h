/* Y = X W^T by AMX: 16 rows of W are one tile, loaded straight from the matrix, and 16 rows of X the other, packed. */
#pragma once

#include "activations.h"
#include "tiles.h"

/* Fills ``packed`` as (B / 16, K / 2, 16, 2), fewer than 16 in the last B / 16: a tile multiplies pairs of neighbours
along K, so these lie side by side. */
inline void pack_tiles(const Activations& x) {
  int64_t depth = round_up(x.depth, TILE_DEPTH);
  for (int64_t first = 0; first < x.columns; first += TILE_ROWS) {
    int64_t width = std::min(TILE_ROWS, x.columns - first);
    BFloat* tile = static_cast<BFloat*>(x.packed) + first * depth;
    for (int64_t column = 0; column < width; column++) {
      const float* from = x.values + (first + column) * x.depth;
      for (int64_t k = 0; k < depth; k++) {
        narrow(k < x.depth ? from[k] : 0.0f, tile[(k / 2 * width + column) * 2 + k % 2]);
      }
    }
  }
}

/* Sets the registers up, all zeros: 0-3 sums of 2 tiles of rows x 2 tiles of columns, 4-5 weights, 6-7 activations; for
rows_0 + rows_1 rows of weights and columns_0 + columns_1 columns, at most 16 each. */
inline void configure_tiles(int64_t rows_0, int64_t rows_1, int64_t columns_0, int64_t columns_1) {
  TileConfig config;
  config.set(0, rows_0, columns_0 * 4);
  config.set(1, rows_0, columns_1 * 4);
  config.set(2, rows_1, columns_0 * 4);
  config.set(3, rows_1, columns_1 * 4);
  config.set(4, rows_0, TILE_DEPTH * 2);
  config.set(5, rows_1, TILE_DEPTH * 2);
  config.set(6, TILE_DEPTH / 2, columns_0 * 4);
  config.set(7, TILE_DEPTH / 2, columns_1 * 4);
  publish(&config);
  _tile_loadconfig(&config);
}

/* One step along K: adds the products of the tiles at ``weights`` (rows ``pitch`` bytes apart) and at ``x``. */
template <bool TWO_ROWS, bool TWO_COLUMNS>
inline void add_tiles(const char* weights, int64_t pitch, const BFloat* x_0, int64_t width_0, const BFloat* x_1,
                      int64_t width_1) {
  _tile_loadd(6, x_0, width_0 * 4);
  _tile_loadd(4, weights, pitch);
  _tile_dpbf16ps(0, 4, 6);
  if constexpr (TWO_COLUMNS) {
    _tile_loadd(7, x_1, width_1 * 4);
    _tile_dpbf16ps(1, 4, 7);
  }
  if constexpr (TWO_ROWS) {
    _tile_loadd(5, weights + TILE_ROWS * pitch, pitch);
    _tile_dpbf16ps(2, 5, 6);
    if constexpr (TWO_COLUMNS) _tile_dpbf16ps(3, 5, 7);
  }
}

/* The sums of tile register ``SUMS`` (rows, width) to out[column][row]. */
#define STORE_TILE(SUMS, ROWS, WIDTH, OUT)                                            \
  do {                                                                                \
    alignas(64) float sums[TILE_ROWS * TILE_ROWS];                                    \
    _tile_stored(SUMS, sums, TILE_ROWS * 4);                                          \
    for (int64_t c = 0; c < (WIDTH); c++) {                                           \
      for (int64_t r = 0; r < (ROWS); r++) (OUT)[c * stride + r] = sums[r * TILE_ROWS + c]; \
    }                                                                                 \
  } while (0)

/* Weights of up to 32 rows as bf16, for the tiles of up to 8 steps along K: what a first cache holds easily. */
struct alignas(64) TileRows {
  static constexpr int64_t DEPTH = 8 * TILE_DEPTH;
  BFloat rows[2 * TILE_ROWS][DEPTH];
};

/* Weights in memory: where the first row starts, and the bytes from row to row. */
struct TileView {
  const char* start;
  int64_t pitch;
};

/* ``count`` weights of each row, whole tiles: where they lie, or turned into bf16 in ``room``. */
inline TileView tile_view(const BFloat* weights, int64_t, int64_t depth, int64_t, TileRows&) {
  return {(const char*)weights, depth * int64_t(sizeof(BFloat))};
}

inline TileView tile_view(const int8_t* weights, int64_t rows, int64_t depth, int64_t count, TileRows& room) {
  for (int64_t r = 0; r < rows; r++) {
    const int8_t* from = weights + r * depth;
    for (int64_t k = 0; k < count; k += TILE_DEPTH) {
      if (k % 64 == 0) prefetch(from + k + TileRows::DEPTH);
      __m512bh pairs = _mm512_cvtne2ps_pbh((__m512)load(from + k + LANES), (__m512)load(from + k));
      memcpy(room.rows[r] + k, &pairs, sizeof pairs);
    }
  }
  publish(&room);
  return {(const char*)room.rows, sizeof room.rows[0]};
}

/* The last ``count`` weights of each row, fewer than 32, with zeros after them. */
template <class W>
TileView tile_view_of_rest(const W* weights, int64_t rows, int64_t depth, int64_t count, TileRows& room) {
  for (int64_t r = 0; r < rows; r++) {
    for (int64_t k = 0; k < TILE_DEPTH; k++) {
      narrow(k < count ? widen(weights[r * depth + k]) : 0.0f, room.rows[r][k]);
    }
  }
  publish(&room);
  return {(const char*)room.rows, sizeof room.rows[0]};
}

/* Up to 32 rows of weights times up to 32 columns, the first of them ``first``. */
template <bool TWO_ROWS, bool TWO_COLUMNS, class W>
void multiply_tile_block(const W* weights, int64_t rows, const Activations& x, int64_t first, float* out,
                         int64_t stride) {
  int64_t rows_0 = std::min(rows, TILE_ROWS), rows_1 = rows - rows_0;
  int64_t width_0 = std::min(x.columns - first, TILE_ROWS), width_1 = std::min(x.columns - first - width_0, TILE_ROWS);
  configure_tiles(rows_0, rows_1, width_0, width_1);
  publish(x.packed);
  int64_t depth = round_up(x.depth, TILE_DEPTH), whole = x.depth / TILE_DEPTH * TILE_DEPTH;
  const BFloat *x_0 = static_cast<BFloat*>(x.packed) + first * depth, *x_1 = x_0 + TILE_ROWS * depth;
  TileRows room;
  for (int64_t from = 0, count; from < depth; from += count) {
    count = from < whole ? std::min(whole - from, TileRows::DEPTH) : TILE_DEPTH;
    TileView view = from < whole ? tile_view(weights + from, rows, x.depth, count, room)
                                 : tile_view_of_rest(weights + from, rows, x.depth, x.depth - from, room);
    for (int64_t k = 0; k < count; k += TILE_DEPTH) {
      if constexpr (sizeof(W) == sizeof(BFloat)) {  // 256 bytes ahead
        for (int64_t r = 0; r < rows; r++) prefetch(weights + r * x.depth + from + k + 128);
      }
      add_tiles<TWO_ROWS, TWO_COLUMNS>(view.start + k * int64_t(sizeof(BFloat)), view.pitch,
                                       x_0 + (from + k) * width_0, width_0, x_1 + (from + k) * width_1, width_1);
    }
  }
  STORE_TILE(0, rows_0, width_0, out);
  if constexpr (TWO_COLUMNS) STORE_TILE(1, rows_0, width_1, out + TILE_ROWS * stride);
  if constexpr (TWO_ROWS) STORE_TILE(2, rows_1, width_0, out + TILE_ROWS);
  if constexpr (TWO_ROWS && TWO_COLUMNS) STORE_TILE(3, rows_1, width_1, out + TILE_ROWS * stride + TILE_ROWS);
}

#undef STORE_TILE

/* By tiles: blocks of 32 rows, all columns of a block before the next block. */
template <class W>
void multiply_tiles(const W* weights, int64_t rows, const Activations& x, float* out, int64_t stride) {
  for (int64_t r = 0; r < rows; r += 2 * TILE_ROWS) {
    int64_t height = std::min(rows - r, 2 * TILE_ROWS);
    for (int64_t c = 0; c < x.columns; c += 2 * TILE_ROWS) {
      bool two_rows = height > TILE_ROWS, two_columns = x.columns - c > TILE_ROWS;
      auto block = two_rows ? two_columns ? multiply_tile_block<true, true, W> : multiply_tile_block<true, false, W>
                            : two_columns ? multiply_tile_block<false, true, W> : multiply_tile_block<false, false, W>;
      block(weights + r * x.depth, height, x, c, out + c * stride + r, stride);
    }
  }
  _tile_release();  // the kernel need not save them any more
}
