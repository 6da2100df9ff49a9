// Sixteen channels in two 256-bit registers, with or without AVX-VNNI. Include inside the body's namespace.
#pragma once

struct Vec {
  struct I { __m256i a, b; };
  struct F { __m256 a, b; };
  struct W { __m256i a, b; };
  static constexpr int kRowTile = 4;
  static constexpr int kTileTile = 1;
  static constexpr int32_t kSeen8 = 0;
  static constexpr bool kTails = false;  // a tail is done in memory
  static constexpr bool kExpands = false;

  static I Set(int32_t v) { return {_mm256_set1_epi32(v), _mm256_set1_epi32(v)}; }
  static I Load(const int32_t* p) {
    return {_mm256_loadu_si256((const __m256i*)p), _mm256_loadu_si256((const __m256i*)(p + 8))};
  }
  static I Load16(const int16_t* p) {
    return {_mm256_cvtepi16_epi32(_mm_loadu_si128((const __m128i*)p)),
            _mm256_cvtepi16_epi32(_mm_loadu_si128((const __m128i*)(p + 8)))};
  }
  static I Load8(const int8_t* p) {
    const __m128i v = _mm_loadu_si128((const __m128i*)p);
    return {_mm256_cvtepi8_epi32(v), _mm256_cvtepi8_epi32(_mm_srli_si128(v, 8))};
  }
  static I Add(I x, I y) { return {_mm256_add_epi32(x.a, y.a), _mm256_add_epi32(x.b, y.b)}; }
  static I Sub(I x, I y) { return {_mm256_sub_epi32(x.a, y.a), _mm256_sub_epi32(x.b, y.b)}; }
  static I Mul(I x, I y) { return {_mm256_mullo_epi32(x.a, y.a), _mm256_mullo_epi32(x.b, y.b)}; }

  static void StoreI(int32_t* p, I x) {
    _mm256_storeu_si256((__m256i*)p, x.a);
    _mm256_storeu_si256((__m256i*)(p + 8), x.b);
  }
  static I Whole(F x) { return {_mm256_cvttps_epi32(x.a), _mm256_cvttps_epi32(x.b)}; }
  static constexpr bool kFixes = false;  // fixed point is done in memory

  static F SetF(float v) { return {_mm256_set1_ps(v), _mm256_set1_ps(v)}; }
  static F Convert(I x) { return {_mm256_cvtepi32_ps(x.a), _mm256_cvtepi32_ps(x.b)}; }
  static F LoadF(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
  static __m256 Widen(const uint16_t* p) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p)), 16));
  }
  static F LoadBF16(const uint16_t* p) { return {Widen(p), Widen(p + 8)}; }
  static F MulF(F x, F y) { return {_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)}; }
  static F AddF(F x, F y) { return {_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)}; }
  static F SubF(F x, F y) { return {_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)}; }
  static F Fma(F x, F y, F z) { return {_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)}; }
  // Saturates as `rounded_product` does. The second operand is what min and max return for NaN: it passes.
  static __m256 Saturate1(__m256 v) {
    return _mm256_min_ps(_mm256_set1_ps(3.402823466e38f), _mm256_max_ps(_mm256_set1_ps(-3.402823466e38f), v));
  }
  static F Saturate(F v) { return {Saturate1(v.a), Saturate1(v.b)}; }
  static void Store(float* p, F v) {
    _mm256_storeu_ps(p, v.a);
    _mm256_storeu_ps(p + 8, v.b);
  }

  // Sum of n codes.
  static int32_t Sum(const int8_t* q, int64_t n) {
    const __m256i flip = _mm256_set1_epi8(-128), zero = _mm256_setzero_si256();
    __m256i sum = zero;
    int32_t total = 0;
    for (; n >= 32; n -= 32, q += 32, total -= 32 * 128) {
      const __m256i u = _mm256_xor_si256(_mm256_loadu_si256((const __m256i*)q), flip);
      sum = _mm256_add_epi64(sum, _mm256_sad_epu8(u, zero));
    }
    for (int64_t k = 0; k < n; ++k) total += q[k];
    const __m128i half = _mm_add_epi64(_mm256_castsi256_si128(sum), _mm256_extracti128_si256(sum, 1));
    return total + _mm_cvtsi128_si32(half) + _mm_cvtsi128_si32(_mm_unpackhi_epi64(half, half));
  }

  static W LoadW(const uint8_t* p) {
    return {_mm256_loadu_si256((const __m256i*)p), _mm256_loadu_si256((const __m256i*)(p + 32))};
  }
  template <int kBits>
  static W Field(W w, int s) {
    if constexpr (kBits == 8) return w;
    const __m256i mask = _mm256_set1_epi8((1 << kBits) - 1);
    return {_mm256_and_si256(_mm256_srli_epi16(w.a, kBits * s), mask),
            _mm256_and_si256(_mm256_srli_epi16(w.b, kBits * s), mask)};
  }
  template <int kBits>
  static __m256i Dot1(__m256i acc, __m256i w, __m256i x) {
#if defined(__AVXVNNI__)
    return _mm256_dpbusd_avx_epi32(acc, w, x);
#else
    if constexpr (kBits < 8) {  // 15 * 128 * 2 fits in 16 bits
      return _mm256_add_epi32(acc, _mm256_madd_epi16(_mm256_maddubs_epi16(w, x), _mm256_set1_epi16(1)));
    }
    // 255 * 128 * 2 does not, and maddubs would saturate: widen both and multiply even and odd bytes.
    const __m256i even = _mm256_madd_epi16(_mm256_and_si256(w, _mm256_set1_epi16(255)),
                                           _mm256_srai_epi16(_mm256_slli_epi16(x, 8), 8));
    const __m256i odd = _mm256_madd_epi16(_mm256_srli_epi16(w, 8), _mm256_srai_epi16(x, 8));
    return _mm256_add_epi32(acc, _mm256_add_epi32(even, odd));
#endif
  }
  // Products of two inputs each are summed in 16 bits as long as they fit, and only then widened: so many fields long, 0 never.
#if defined(__AVXVNNI__)
  template <int kBits>
  static constexpr int kNarrowFields = 0;
#else
  template <int kBits>
  static constexpr int kNarrowFields = kBits == 4 ? 8 : kBits == 2 ? 32 : 0;  // 8 * 2 * 15 * 128 and 32 * 2 * 3 * 128 fit
#endif
  using N = W;  // 16 channels of two 16-bit sums
  static N NarrowZero() { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
  static N NarrowDot(N sum, W w, int32_t x) {
    const __m256i v = _mm256_set1_epi32(x);
    return {_mm256_add_epi16(sum.a, _mm256_maddubs_epi16(w.a, v)), _mm256_add_epi16(sum.b, _mm256_maddubs_epi16(w.b, v))};
  }
  static I Widened(I acc, N sum) {
    const __m256i one = _mm256_set1_epi16(1);
    return {_mm256_add_epi32(acc.a, _mm256_madd_epi16(sum.a, one)), _mm256_add_epi32(acc.b, _mm256_madd_epi16(sum.b, one))};
  }
  template <int kBits>
  static I Dot(I acc, W w, int32_t x) {
    const __m256i v = _mm256_set1_epi32(x);
    return {Dot1<kBits>(acc.a, w.a, v), Dot1<kBits>(acc.b, w.b, v)};
  }

  static W Flipped(W w, I) { return w; }  // not used: words of 16 bits are written out
  // The same, in registers: the compiler would load a word again for every row.
  static W Held(W w) {
    asm("" : "+x"(w.a), "+x"(w.b));
    return w;
  }
  // acc += of each channel two int16 products; of the first 8 channels alone with kHalf.
  static constexpr int kDirectInputs = 2;
  template <bool kHalf>
  static I DotDirect(I acc, W w, int32_t x) {
    const __m256i v = _mm256_set1_epi32(x);
    acc.a = _mm256_add_epi32(acc.a, _mm256_madd_epi16(w.a, v));
    if constexpr (!kHalf) acc.b = _mm256_add_epi32(acc.b, _mm256_madd_epi16(w.b, v));
    return acc;
  }

  template <int kBits, bool kBook>
  struct Decoder {
    __m256 low, high;  // codebook entries 0..7, 8..15
    __m256 offset;
    const float* book;
    explicit Decoder(const float* codebook, int32_t shift)
        : offset(_mm256_set1_ps(static_cast<float>(shift))), book(codebook) {
      float entries[16] = {};
      if (kBook && kBits < 8) {
        for (int i = 0; i < 1 << kBits; ++i) entries[i] = codebook[i];
      }
      low = _mm256_loadu_ps(entries);
      high = _mm256_loadu_ps(entries + 8);
    }
    __m256 Half(__m256i w, int i) const {
      const __m256i code = _mm256_and_si256(_mm256_srli_epi32(w, kBits * i), _mm256_set1_epi32((1 << kBits) - 1));
      if constexpr (!kBook) return _mm256_sub_ps(_mm256_cvtepi32_ps(code), offset);
      if constexpr (kBits == 8) return _mm256_i32gather_ps(book, code, 4);
      return _mm256_blendv_ps(_mm256_permutevar8x32_ps(low, code), _mm256_permutevar8x32_ps(high, code),
                              _mm256_castsi256_ps(_mm256_slli_epi32(code, 28)));  // bit 3 to the sign
    }
    F operator()(W w, int i) const { return {Half(w.a, i), Half(w.b, i)}; }
  };
};
