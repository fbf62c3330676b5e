// The kernels of block_matmul.h for one set of instructions. Deliberately without an include guard: block_matmul.cpp
// includes it once per set, inside a namespace that defines kName, Vec, kLanes, kRows and kVecs (the register block is
// kRows x kVecs vectors) and load, store, broadcast, multiply, add, multiply_add, maximum (the second operand if one is
// NaN), reduce_add, reduce_maximum, first_lanes (the others become -inf), nearest (to an integer), power_of_two (of an
// integer in [-127, 0], 0 for -127), rounded (to BF16, ties to even) and transpose_block; and the macros ONEREC_ISA and
// ONEREC_ISA_INLINE, the attributes of the functions here.

template <int R, int V>
ONEREC_ISA void tile(const BlockMatmul& m, std::int64_t row, std::int64_t col, float scale, bool from_zero) {
  const float* a = m.a + row * m.a_stride;
  const float* b = m.b + col;
  float* c = m.c + row * m.c_stride + col;
  Vec sum[R][V];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) sum[r][v] = from_zero ? broadcast(0.0f) : load(c + r * m.c_stride + v * kLanes);
  }
  for (std::int64_t k = 0; k < m.inner; ++k) {
    Vec right[V];
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) right[v] = load(b + k * m.b_stride + v * kLanes);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const Vec left = broadcast(a[r * m.a_stride + k]);
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) sum[r][v] = multiply_add(left, right[v], sum[r][v]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) store(c + r * m.c_stride + v * kLanes, multiply(sum[r][v], broadcast(scale)));
  }
}

// Rows [row, m.rows) of V vectors of columns; R counts down to the rows that are left.
template <int R, int V>
ONEREC_ISA void strip(const BlockMatmul& m, std::int64_t row, std::int64_t col, float scale, bool from_zero) {
  for (; row + R <= m.rows; row += R) tile<R, V>(m, row, col, scale, from_zero);
  if constexpr (R > 1) {
    if (row < m.rows) strip<R - 1, V>(m, row, col, scale, from_zero);
  }
}

template <int V>
ONEREC_ISA void columns(const BlockMatmul& m, std::int64_t col, float scale, bool from_zero) {
  for (; col + V * kLanes <= m.cols; col += V * kLanes) strip<kRows, V>(m, 0, col, scale, from_zero);
  if constexpr (V > 1) {
    if (col < m.cols) columns<V - 1>(m, col, scale, from_zero);
  }
}

ONEREC_ISA void multiply_blocks(const BlockMatmul& m, float scale) { columns<kVecs>(m, 0, scale, true); }

ONEREC_ISA void accumulate_blocks(const BlockMatmul& m) { columns<kVecs>(m, 0, 1.0f, false); }

ONEREC_ISA void transpose_panels(const float* x, std::int64_t stride, std::int64_t rows, std::int64_t cols,
                                 float* panels) {
  const std::int64_t padded = pad_columns(rows);
  for (std::int64_t n = 0; n < padded; n += kLanes) {
    float* out = panels + n / kPanel * kPanel * cols + n % kPanel;
    std::int64_t d = 0;
    if (n + kLanes <= rows) {
      for (; d + kLanes <= cols; d += kLanes) transpose_block(x + n * stride + d, stride, out + d * kPanel);
    }
    const std::int64_t live = n >= rows ? 0 : (rows - n < kLanes ? rows - n : kLanes);
    for (; d < cols; ++d) {
      for (std::int64_t i = 0; i < live; ++i) out[d * kPanel + i] = x[(n + i) * stride + d];
      for (std::int64_t i = live; i < kLanes; ++i) out[d * kPanel + i] = 0.0f;
    }
  }
}

// exp(x) for x <= 0; 0 below the smallest normal number, NaN for NaN. The polynomial is the Cephes library's for |r| <=
// ln(2) / 2.
ONEREC_ISA_INLINE Vec exponential(Vec x) {
  x = maximum(broadcast(-88.0f), x);
  const Vec n = nearest(multiply(x, broadcast(1.44269504f)));
  Vec r = multiply_add(n, broadcast(-0.693359375f), x);
  r = multiply_add(n, broadcast(2.12194440e-4f), r);
  Vec y = multiply_add(broadcast(1.9875691500e-4f), r, broadcast(1.3981999507e-3f));
  y = multiply_add(y, r, broadcast(8.3334519073e-3f));
  y = multiply_add(y, r, broadcast(4.1665795894e-2f));
  y = multiply_add(y, r, broadcast(1.6666665459e-1f));
  y = multiply_add(y, r, broadcast(5.0000001201e-1f));
  y = multiply_add(multiply(y, r), r, r);
  return multiply(add(y, broadcast(1.0f)), power_of_two(n));
}

// Lanes behind `count` are masked in registers: a vector that is loaded behind scalar stores would wait for them.
ONEREC_ISA_INLINE float softmax_row(float* row, std::int64_t count, bool to_bf16) {
  const std::int64_t whole = count / kLanes * kLanes;
  Vec tail = broadcast(-INFINITY);
  if (whole < count) tail = first_lanes(load(row + whole), count - whole);
  Vec largest = tail;
  for (std::int64_t n = 0; n < whole; n += kLanes) largest = maximum(largest, load(row + n));
  const Vec shift = broadcast(-reduce_maximum(largest));
  Vec sum = broadcast(0.0f);
  for (std::int64_t n = 0; n < whole; n += kLanes) {
    const Vec p = exponential(add(load(row + n), shift));
    sum = add(sum, p);
    store(row + n, to_bf16 ? rounded(p) : p);
  }
  if (whole < count) {
    const Vec p = exponential(add(tail, shift));
    sum = add(sum, p);
    store(row + whole, to_bf16 ? rounded(p) : p);
  }
  return reduce_add(sum);
}

ONEREC_ISA float softmax_f32(float* row, std::int64_t count) { return softmax_row(row, count, false); }

ONEREC_ISA float softmax_bf16(float* row, std::int64_t count) { return softmax_row(row, count, true); }

constexpr BlockKernels kKernels = {.name = kName,
                                   .multiply = &multiply_blocks,
                                   .accumulate = &accumulate_blocks,
                                   .transpose = &transpose_panels,
                                   .softmax_f32 = &softmax_f32,
                                   .softmax_bf16 = &softmax_bf16};
