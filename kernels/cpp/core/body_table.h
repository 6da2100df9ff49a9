// Chooses the instance for a problem and makes the body's table. Include last, inside the body's namespace.
#pragma once

void MultiplyRange(const Matmul& p, int64_t row_begin, int64_t row_end, int64_t tile_begin, int64_t tile_end) {
  if (p.factors != nullptr) {
    return p.bits == 4 ? FactorRange<4>(p, row_begin, row_end, tile_begin, tile_end)
                       : FactorRange<2>(p, row_begin, row_end, tile_begin, tile_end);
  }
  const bool book = p.codebook != nullptr;
  auto run = p.activation != Activation::kFloat
                 ? (p.bits == 8 ? IntegerRange<8> : p.bits == 4 ? IntegerRange<4> : IntegerRange<2>)
             : p.bits == 8 ? (book ? FloatRange<8, true> : FloatRange<8, false>)
             : p.bits == 4 ? (book ? FloatRange<4, true> : FloatRange<4, false>)
                           : (book ? FloatRange<2, true> : FloatRange<2, false>);
  run(p, row_begin, row_end, tile_begin, tile_end);
}
