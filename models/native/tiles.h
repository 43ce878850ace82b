/* Products of bf16 matrices in blocks of 32 x 32 sums in float32: by AMX, or by vectors of AVX512-BF16 elsewhere.

A matrix is kept as tiles of 1 KiB, one after the other, in one of three layouts; all sides are multiples of 32:
- left  (M, D): the left operand. Tile (m, d) is 16 rows of 32 numbers; the tiles of a row of tiles are neighbours.
- right (D, N): the right operand. Tile (d, n) is 16 pairs of rows of 16 columns, the two of a pair side by side; the
  tiles of a column of tiles are neighbours.
- sums  (M, N): float32, in blocks of 32 x 32, each four tiles of 16 x 16: (0, 0), (0, 1), (1, 0), (1, 1).
Seen as 16 x 16 words of two numbers, a tile of X as left operand is the transpose of that of X^T as right operand. */
#pragma once

#include <algorithm>

#include "vectors.h"
#ifdef __AMX_BF16__
#include <sys/syscall.h>
#include <unistd.h>
#endif

constexpr int64_t TILE_ROWS = 16, TILE_DEPTH = 32;  // of a tile of bf16

/* Whether this processor has what products of tiles are made of, and the kernel lets us use it. */
inline bool has_tiles() {
#ifdef __AMX_BF16__
  constexpr int REQUEST_PERMISSION = 0x1023, TILE_DATA = 18;
  static const bool granted = syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0;
  return granted;
#elif defined(__AVX512BF16__)
  return true;
#else
  return false;
#endif
}

#ifdef __AMX_BF16__

/* What the eight registers hold: rows and the bytes of each. */
struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};

  void set(int tile, int64_t height, int64_t bytes) {
    if (height == 0 || bytes == 0) return;  // not used; a tile that is empty one way only is an error
    rows[tile] = uint8_t(height);
    row_bytes[tile] = uint16_t(bytes);
  }
};

/* Makes the compiler write ``data`` out: it does not know that tile instructions read and write memory. */
inline void publish(const void* data) { asm volatile("" : : "r"(data) : "memory"); }
inline void publish_all() { asm volatile("" : : : "memory"); }

#endif

#ifdef __AVX512BF16__

constexpr int64_t SIDE = 2 * TILE_ROWS;                   // rows and columns of a block of sums
constexpr int64_t TILE_NUMBERS = TILE_ROWS * TILE_DEPTH;  // of bf16
constexpr int64_t TILE_SUMS = TILE_ROWS * TILE_ROWS;

/* An operand in its layout; ``depth`` in tiles. */
struct Operand {
  BFloat* tiles;
  int64_t depth;

  BFloat* tile(int64_t across, int64_t along) const { return tiles + (across * depth + along) * TILE_NUMBERS; }
};

#ifdef __AMX_BF16__

/* What a thread does before and after products. */
inline void begin_products() {
  TileConfig config;  // 0-3 sums of 2 x 2 tiles, 4-5 left operand, 6-7 right operand
  for (int tile = 0; tile < 8; tile++) config.set(tile, TILE_ROWS, 64);
  publish(&config);
  _tile_loadconfig(&config);
}

inline void end_products() { _tile_release(); }

/* A block of sums while products are added to it. One at a time: it is kept in registers. */
class Block {
 public:
  /* Goes on from what ``sums`` holds or, ``fresh``, from zeros. */
  Block(float* sums, bool fresh) : sums_(sums) {
    publish_all();
    if (fresh) {
      _tile_zero(0);
      _tile_zero(1);
      _tile_zero(2);
      _tile_zero(3);
    } else {
      _tile_loadd(0, sums, 64);
      _tile_loadd(1, sums + TILE_SUMS, 64);
      _tile_loadd(2, sums + 2 * TILE_SUMS, 64);
      _tile_loadd(3, sums + 3 * TILE_SUMS, 64);
    }
  }

  /* Adds left x right, only the tiles ``from`` .. ``to`` of their depth, for the 32 rows from tile m on and the columns
  of tiles n and ``other``. */
  void add(const Operand& left, int64_t m, const Operand& right, int64_t n, int64_t other, int64_t from, int64_t to) {
    const BFloat *a = left.tile(m, from), *b = right.tile(n, from);
    const int64_t next_a = left.depth * TILE_NUMBERS, next_b = (other - n) * right.depth * TILE_NUMBERS;
    for (int64_t d = from; d < to; d++, a += TILE_NUMBERS, b += TILE_NUMBERS) {
      _tile_loadd(4, a, 64);
      _tile_loadd(6, b, 64);
      _tile_dpbf16ps(0, 4, 6);
      _tile_loadd(7, b + next_b, 64);
      _tile_dpbf16ps(1, 4, 7);
      _tile_loadd(5, a + next_a, 64);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
  }

  /* Puts the sums where they were read. */
  void store() const {
    _tile_stored(0, sums_, 64);
    _tile_stored(1, sums_ + TILE_SUMS, 64);
    _tile_stored(2, sums_ + 2 * TILE_SUMS, 64);
    _tile_stored(3, sums_ + 3 * TILE_SUMS, 64);
    publish_all();
  }

 private:
  float* sums_;
};

#else

inline void begin_products() {}
inline void end_products() {}

/* The same by vectors: 8 rows of 32 sums are in registers at a time. */
class Block {
 public:
  Block(float* sums, bool fresh) : sums_(sums), fresh_(fresh) {}

  void add(const Operand& left, int64_t m, const Operand& right, int64_t n, int64_t other, int64_t from, int64_t to) {
    if (from >= to) return;
    for (int64_t r = 0; r < SIDE; r += ROWS) {
      const BFloat* a = left.tile(m + r / TILE_ROWS, from) + r % TILE_ROWS * TILE_DEPTH;
      add_rows(a, right.tile(n, from), right.tile(other, from), to - from, sums_ + row_of(r));
    }
    fresh_ = false;
  }

  void store() const {
    if (fresh_) std::fill(sums_, sums_ + SIDE * SIDE, 0.0f);
  }

 private:
  static constexpr int ROWS = 8;

  static int64_t row_of(int64_t r) { return r / TILE_ROWS * 2 * TILE_SUMS + r % TILE_ROWS * TILE_ROWS; }

  void add_rows(const BFloat* a, const BFloat* b, const BFloat* b_other, int64_t depth, float* sums) const {
    __m512 low[ROWS], high[ROWS];
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; r++) {
      low[r] = fresh_ ? _mm512_setzero_ps() : _mm512_loadu_ps(sums + r * TILE_ROWS);
      high[r] = fresh_ ? _mm512_setzero_ps() : _mm512_loadu_ps(sums + r * TILE_ROWS + TILE_SUMS);
    }
    for (int64_t d = 0; d < depth; d++, a += TILE_NUMBERS, b += TILE_NUMBERS, b_other += TILE_NUMBERS) {
      for (int pair = 0; pair < TILE_ROWS; pair++) {
        __m512bh first = (__m512bh)_mm512_loadu_si512(b + pair * TILE_DEPTH);
        __m512bh second = (__m512bh)_mm512_loadu_si512(b_other + pair * TILE_DEPTH);
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; r++) {
          int32_t word;
          memcpy(&word, a + r * TILE_DEPTH + 2 * pair, sizeof word);
          __m512bh both = (__m512bh)_mm512_set1_epi32(word);
          low[r] = _mm512_dpbf16_ps(low[r], both, first);
          high[r] = _mm512_dpbf16_ps(high[r], both, second);
        }
      }
    }
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; r++) {
      _mm512_storeu_ps(sums + r * TILE_ROWS, low[r]);
      _mm512_storeu_ps(sums + r * TILE_ROWS + TILE_SUMS, high[r]);
    }
  }

  float* sums_;
  bool fresh_;
};

#endif

/* Row r of such sums: of its first 16 columns; those of the others are TILE_SUMS further on. */
inline int64_t row_of_sums(int64_t r) { return r / TILE_ROWS * 2 * TILE_SUMS + r % TILE_ROWS * TILE_ROWS; }

/* 16 words of two numbers of bf16. */
typedef __m512i Pairs;

constexpr Words ORDER = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};

inline Pairs load_pairs(const void* from) { return _mm512_loadu_si512(from); }
inline void store_pairs(void* to, Pairs pairs) { _mm512_storeu_si512(to, pairs); }

/* 32 floats, ``first`` before ``second``, as bf16. */
inline Pairs narrow_two(Floats first, Floats second) {
  return (Pairs)_mm512_cvtne2ps_pbh((__m512)second, (__m512)first);
}

/* 32 numbers whose even ones are ``even`` and whose odd ones are ``odd``. */
inline Pairs narrow_pairs(Floats even, Floats odd) {
  return _mm512_permutexvar_epi16((Pairs)(ORDER * 0x00010001u + 0x00100000u), narrow_two(even, odd));
}

/* Rows a and b of 32 numbers as pairs (a, b): of columns 0 to 15 and of columns 16 to 31. */
inline void interleave(Pairs a, Pairs b, Pairs& low, Pairs& high) {
  const Words order = ORDER * 0x00010001u + 0x00200000u;  // number i of a, number i of b
  low = _mm512_permutex2var_epi16(a, (Pairs)order, b);
  high = _mm512_permutex2var_epi16(a, (Pairs)(order + 0x00100010u), b);
}

/* Transposes 16 x 16 words in place. */
inline void transpose_words(Pairs rows[16]) {
  Pairs t[16];
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_epi32(rows[i], rows[i + 1]);
    t[i + 1] = _mm512_unpackhi_epi32(rows[i], rows[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {
    rows[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
    rows[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
    rows[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
    rows[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
  }
  for (int i = 0; i < 4; i++) {
    t[i] = _mm512_shuffle_i32x4(rows[i], rows[i + 4], 0x88);
    t[i + 4] = _mm512_shuffle_i32x4(rows[i], rows[i + 4], 0xdd);
    t[i + 8] = _mm512_shuffle_i32x4(rows[i + 8], rows[i + 12], 0x88);
    t[i + 12] = _mm512_shuffle_i32x4(rows[i + 8], rows[i + 12], 0xdd);
  }
  for (int i = 0; i < 4; i++) {
    rows[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
    rows[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd);
    rows[i + 4] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0x88);
    rows[i + 12] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0xdd);
  }
}

/* The transpose of a tile's words. */
inline void transpose_tile(const BFloat* from, BFloat* to) {
  Pairs rows[16];
  for (int r = 0; r < 16; r++) rows[r] = load_pairs(from + r * TILE_DEPTH);
  transpose_words(rows);
  for (int r = 0; r < 16; r++) store_pairs(to + r * TILE_DEPTH, rows[r]);
}

/* A block of sums -> its transpose, in place. */
inline void transpose_sums(float* sums) {
  Pairs tiles[4][TILE_ROWS];
  for (int tile = 0; tile < 4; tile++) {
    for (int64_t r = 0; r < TILE_ROWS; r++) tiles[tile][r] = load_pairs(sums + tile * TILE_SUMS + r * TILE_ROWS);
    transpose_words(tiles[tile]);
  }
  for (int tile = 0; tile < 4; tile++) {
    const Pairs* from = tiles[tile == 1 ? 2 : tile == 2 ? 1 : tile];
    for (int64_t r = 0; r < TILE_ROWS; r++) store_pairs(sums + tile * TILE_SUMS + r * TILE_ROWS, from[r]);
  }
}

/* X (rows, depth) as left operand -> X^T as right operand, or X^T as right operand -> X as left: the same tiles. */
inline void transpose_tiles(const Operand& from, int64_t across, const Operand& to) {
  for (int64_t tile = 0; tile < across * from.depth; tile++) {
    transpose_tile(from.tiles + tile * TILE_NUMBERS, to.tiles + tile * TILE_NUMBERS);
  }
}

/* X (rows, width) as left operand -> X as right operand, its depth the rows. */
inline void left_to_right(const Operand& left, int64_t rows, const Operand& right) {
  for (int64_t d = 0; d < rows / TILE_DEPTH; d++) {
    for (int64_t column = 0; column < left.depth; column++) {
      BFloat *low = right.tile(2 * column, d), *high = right.tile(2 * column + 1, d);
      for (int64_t pair = 0; pair < TILE_ROWS; pair++) {
        const BFloat* from = left.tile(2 * d + pair / 8, column) + pair % 8 * 2 * TILE_DEPTH;
        Pairs first, second;
        interleave(load_pairs(from), load_pairs(from + TILE_DEPTH), first, second);
        store_pairs(low + pair * TILE_DEPTH, first);
        store_pairs(high + pair * TILE_DEPTH, second);
      }
    }
  }
}

#endif
