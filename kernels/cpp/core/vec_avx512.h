// Sixteen channels in one 512-bit register; the dot product is AVX512-VNNI's. Include inside the body's namespace.
#pragma once

struct Vec {
  using I = __m512i;  // 16 int32
  using F = __m512;   // 16 float32
  using W = __m512i;  // a block of weights
  static constexpr int kRowTile = 8;     // rows computed together
  static constexpr int kTileTile = 2;    // tiles computed together
  static constexpr int32_t kSeen8 = 0;   // 8-bit stored codes enter the dot product less this

  static I Set(int32_t v) { return _mm512_set1_epi32(v); }
  static I Load(const int32_t* p) { return _mm512_loadu_si512(p); }
  static I Load16(const int16_t* p) { return _mm512_cvtepi16_epi32(_mm256_loadu_si256((const __m256i*)p)); }
  static I Load8(const int8_t* p) { return _mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)p)); }
  static I Add(I a, I b) { return _mm512_add_epi32(a, b); }
  static I Sub(I a, I b) { return _mm512_sub_epi32(a, b); }
  static I Mul(I a, I b) { return _mm512_mullo_epi32(a, b); }

  static void StoreI(int32_t* p, I a) { _mm512_storeu_si512(p, a); }
  static I Whole(F a) { return _mm512_cvttps_epi32(a); }

  // A multiplier q 2^-31 2^-right of every channel, its even lanes and its odd ones as 64 bits each. What is added before a
  // shift by `s` rounds half up; less one, and one more where the quotient is odd, half to even.
  static constexpr bool kFixes = true;
  struct Multiplier { I q[2], s[2], half[2], odd; };
  static Multiplier MultiplierOf(I q, I s, bool even) {
    Multiplier m;
    const I one = _mm512_set1_epi64(1);
    m.odd = even ? one : _mm512_setzero_si512();
    m.q[0] = q, m.q[1] = _mm512_srli_epi64(q, 32);
    m.s[0] = _mm512_and_si512(s, _mm512_set1_epi64(0xffffffff)), m.s[1] = _mm512_srli_epi64(s, 32);
    for (int i = 0; i < 2; ++i) m.half[i] = _mm512_sub_epi64(_mm512_sllv_epi64(one, _mm512_sub_epi64(m.s[i], one)), m.odd);
    return m;
  }
  static I Rounded(I v, const Multiplier& m, int i) {
    const I most = _mm512_set1_epi64(1 << 30), product = _mm512_mul_epi32(v, m.q[i]);
    const I half = _mm512_add_epi64(m.half[i], _mm512_and_si512(_mm512_srav_epi64(product, m.s[i]), m.odd));
    const I rounded = _mm512_srav_epi64(_mm512_add_epi64(product, half), m.s[i]);
    return _mm512_min_epi64(most, _mm512_max_epi64(_mm512_set1_epi64(-(1 << 30)), rounded));
  }
  static I Multiplied(I v, const Multiplier& m) {
    const I even = Rounded(v, m, 0), odd = Rounded(_mm512_srli_epi64(v, 32), m, 1);
    return _mm512_mask_mov_epi32(even, 0xaaaa, _mm512_slli_epi64(odd, 32));
  }
  // The same half to even by floats, of multipliers of 24 bits and sums up to 2^24: both are floats then, and their product is
  // rounded once, to an integer, where kMagic is added to it. Bounds are the codes' less the offset, plus kMagic; they hold what
  // lies too far out for that. `more` makes a code of the bits.
  struct Single { F scale, low, high; I more; };
  static constexpr float kMagic = 12582912.0f;  // 1.5 2^23: even, and the next float is one more
  static constexpr int32_t kMostSingle = 1 << 24;
  static bool SingleOf(I q, I right, I offset, I low, I high, Single* s) {
    s->scale = MulF(Convert(q), _mm512_castsi512_ps(_mm512_slli_epi32(Sub(Set(127 - 31), right), 23)));
    s->low = AddF(Convert(Sub(low, offset)), SetF(kMagic));
    s->high = AddF(Convert(Sub(high, offset)), SetF(kMagic));
    s->more = Sub(offset, Bits(SetF(kMagic)));
    const I largest = _mm512_max_epu32(_mm512_max_epu32(_mm512_abs_epi32(low), _mm512_abs_epi32(high)), _mm512_abs_epi32(offset));
    return _mm512_test_epi32_mask(q, Set(127)) == 0 && IsWithin(largest, 1 << 20);
  }
  static bool IsWithin(I v, int32_t most) { return _mm512_cmpgt_epu32_mask(_mm512_abs_epi32(v), Set(most)) == 0; }
  static I MultipliedSingle(I v, const Single& s) {
    const F moved = Fma(Convert(v), s.scale, SetF(kMagic));
    return Add(Bits(_mm512_min_ps(_mm512_max_ps(moved, s.low), s.high)), s.more);
  }
  // The same half to even by doubles, where the product has 53 bits at most: of multipliers of 24 bits, and sums below 2^29.
  // Bounds are the codes', less the offset that is added afterwards.
  struct Real { __m512d scale[2], low[2], high[2]; };
  static __m512d Doubles(I v, int half) {
    return _mm512_cvtepi32_pd(half == 0 ? _mm512_castsi512_si256(v) : _mm512_extracti64x4_epi64(v, 1));
  }
  static bool RealOf(I q, I right, I offset, I low, I high, Real* r) {
    for (int i = 0; i < 2; ++i) {
      r->scale[i] = _mm512_scalef_pd(Doubles(q, i), Doubles(Sub(Set(-31), right), i));
      r->low[i] = _mm512_sub_pd(Doubles(low, i), Doubles(offset, i));
      r->high[i] = _mm512_sub_pd(Doubles(high, i), Doubles(offset, i));
    }
    return _mm512_test_epi32_mask(q, Set(127)) == 0;
  }
  static bool IsSmall(I v) { return _mm512_cmplt_epu32_mask(Add(v, Set(1 << 29)), Set(1 << 30)) == 0xffff; }
  static I MultipliedReal(I v, const Real& r) {
    __m256i parts[2];
    for (int i = 0; i < 2; ++i) {
      const __m512d product = _mm512_mul_pd(Doubles(v, i), r.scale[i]);
      const __m512d bounded = _mm512_min_pd(_mm512_max_pd(product, r.low[i]), r.high[i]);
      parts[i] = _mm512_cvt_roundpd_epi32(bounded, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    }
    return _mm512_inserti64x4(_mm512_castsi256_si512(parts[0]), parts[1], 1);
  }
  static I Between(I v, I low, I high) { return _mm512_min_epi32(_mm512_max_epi32(v, low), high); }
  static __mmask16 First(int64_t count) { return static_cast<__mmask16>((1u << count) - 1); }
  static void StoreBytes(int8_t* to, I v, int64_t count) {
    __m128i bytes = _mm512_cvtepi32_epi8(v);
    if (count == kLanes) return _mm_storeu_si128((__m128i*)to, bytes);
    if (count == kLanes / 2) return _mm_storel_epi64((__m128i*)to, bytes);
    asm("" : "+x"(bytes));  // not one instruction with the store: narrowing to memory under a mask is microcode on AMD
    _mm_mask_storeu_epi8(to, First(count), bytes);
  }
  static I LoadBytes(const int8_t* p, int64_t count) {
    if (count == kLanes) return Load8(p);
    return _mm512_cvtepi8_epi32(_mm_maskz_loadu_epi8(First(count), p));
  }

  // What joins two codes. A shift rounds up where the bit `half` is set, and any of `which`: those that break a tie, or all.
  struct Joiner { I own, by, own_zero, other_zero, half, which, offset, low, high; __m128i shift; };
  static Joiner JoinerOf(const int32_t* n, bool even) {
    const int32_t k = n[kJoinShift] < 0 ? 0 : n[kJoinShift] > 31 ? 31 : n[kJoinShift];
    const uint32_t half = k > 0 ? 1u << (k - 1) : 0;
    return {Set(n[kOwn]), Set(n[kOther]), Set(n[kOwnZero]), Set(n[kOtherZero]), Set(static_cast<int32_t>(half)),
            Set(static_cast<int32_t>(even ? (half - 1) | 1u << k : ~0u)), Set(n[kJoinOffset]), Set(n[kJoinLow]),
            Set(n[kJoinHigh]), _mm_cvtsi32_si128(k)};
  }
  static I Joined(I v, I other, const Joiner& j, Join how) {
    const I left = Mul(Sub(v, j.own_zero), j.own), right = Mul(Sub(other, j.other_zero), j.by);
    const I x = how == Join::kSum   ? Add(left, right)
                : how == Join::kMax ? _mm512_max_epi32(left, right)
                                    : _mm512_min_epi32(left, right);
    const I floor = _mm512_sra_epi32(x, j.shift);
    const __mmask16 up = _mm512_mask_test_epi32_mask(_mm512_test_epi32_mask(x, j.half), x, j.which);
    return Between(Add(_mm512_mask_add_epi32(floor, up, floor, Set(1)), j.offset), j.low, j.high);
  }

  static F SetF(float v) { return _mm512_set1_ps(v); }
  static F Convert(I a) { return _mm512_cvtepi32_ps(a); }
  static F LoadF(const float* p) { return _mm512_loadu_ps(p); }
  static F LoadBF16(const uint16_t* p) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p)), 16));
  }
  static F MulF(F a, F b) { return _mm512_mul_ps(a, b); }
  static F AddF(F a, F b) { return _mm512_add_ps(a, b); }
  static F SubF(F a, F b) { return _mm512_sub_ps(a, b); }
  static F Fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
  // Saturates as `rounded_product` does. The second operand is what min and max return for NaN: it passes.
  static F Saturate(F v) { return _mm512_min_ps(SetF(3.402823466e38f), _mm512_max_ps(SetF(-3.402823466e38f), v)); }
  static void Store(float* p, F v) { _mm512_storeu_ps(p, v); }

  // XLA's maximum and minimum, as `Larger` and `Smaller` of body_store.h: NaN wins, the second one's first, and 0.0 is above -0.0.
  static F Larger(F a, F b) { return Chosen(a, b, _mm512_max_ps(a, b), _mm512_and_si512(Bits(a), Bits(b))); }
  static F Smaller(F a, F b) { return Chosen(a, b, _mm512_min_ps(a, b), _mm512_or_si512(Bits(a), Bits(b))); }
  static I Bits(F v) { return _mm512_castps_si512(v); }
  static F Chosen(F a, F b, F chosen, I equal) {
    chosen = _mm512_mask_mov_ps(chosen, _mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ), _mm512_castsi512_ps(equal));
    chosen = _mm512_mask_mov_ps(chosen, _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q), a);
    return _mm512_mask_mov_ps(chosen, _mm512_cmp_ps_mask(b, b, _CMP_UNORD_Q), b);
  }

  // A tail is done in registers, as `StoreSlowly` and `EmitCodes` of body_store.h do it in memory.
  static constexpr bool kTails = true;
  // Codes of 16 values; returns whether one is NaN.
  static bool StoreCodes(int8_t* to, F v, F inverse, F lo, F hi, I add) {
    F r = MulF(v, inverse);
    const __mmask16 number = _mm512_cmp_ps_mask(r, r, _CMP_ORD_Q);
    bool nan = false;
    if (__builtin_expect(number != 0xffff, 0)) {
      r = _mm512_maskz_mov_ps(number, r);
      nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q) != 0;
    }
    r = _mm512_min_ps(hi, _mm512_max_ps(lo, r));  // bounds are integers: what is rounded afterwards is the same
    const I code = _mm512_cvt_roundps_epi32(r, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    __m128i bytes = _mm512_cvtepi32_epi8(_mm512_add_epi32(code, add));
    asm("" : "+x"(bytes));  // as in StoreBytes
    _mm_storeu_si128((__m128i*)to, bytes);
    return nan;
  }
  // Whether the machine's maximum and minimum with `w` as the first operand are XLA's: it is no NaN, and no zero.
  static bool IsPlain(F w) { return _mm512_cmp_ps_mask(w, _mm512_setzero_ps(), _CMP_NEQ_OQ) == 0xffff; }
  static bool IsZero(F w) { return _mm512_test_epi32_mask(Bits(w), Bits(w)) == 0; }  // not -0.0
  static F PlainLarger(F v, F w) { return _mm512_max_ps(w, v); }
  static F PlainSmaller(F v, F w) { return _mm512_min_ps(w, v); }

  // Whether no factor is negative, or more than what 15 can be multiplied by in a byte.
  static bool IsShort(I factors) { return _mm512_cmple_epu16_mask(factors, _mm512_set1_epi16(17)) == 0xffffffffu; }
  // (code - offset) * factor + 128 of 64 codes of at most 4 bits, each a byte modulo 256. Factors come from `Factors`, `add` from `Shifts`.
  static constexpr bool kExpands = true;
  static I Factors(const int8_t* p) {
    const I f = Load8(p);
    return _mm512_or_si512(_mm512_and_si512(f, Set(0xffff)), _mm512_slli_epi32(f, 16));
  }
  static I Shifts(I factors, int32_t offset) {
    return _mm512_sub_epi16(_mm512_set1_epi16(128), _mm512_mullo_epi16(factors, _mm512_set1_epi16(static_cast<short>(offset))));
  }
  static W Expanded(W codes, I factors, I add) {
    if (IsShort(factors)) {  // products are bytes: both of a word at once, without a carry
      const I both = _mm512_or_si512(_mm512_and_si512(add, _mm512_set1_epi16(255)), _mm512_slli_epi16(add, 8));
      return _mm512_add_epi8(_mm512_mullo_epi16(codes, factors), both);
    }
    const I low = _mm512_mullo_epi16(_mm512_and_si512(codes, _mm512_set1_epi16(255)), factors);
    const I high = _mm512_mullo_epi16(_mm512_srli_epi16(codes, 8), factors);
    return _mm512_mask_blend_epi8(0xaaaaaaaaaaaaaaaa, _mm512_add_epi16(low, add),
                                  _mm512_slli_epi16(_mm512_add_epi16(high, add), 8));
  }

  // Sum of n codes.
  static int32_t Sum(const int8_t* q, int64_t n) {
    const __m512i ones = _mm512_set1_epi8(1);
    __m512i sum = _mm512_setzero_si512();
    for (; n >= 64; n -= 64, q += 64) sum = _mm512_dpbusd_epi32(sum, ones, _mm512_loadu_si512(q));
    if (n > 0) sum = _mm512_dpbusd_epi32(sum, ones, _mm512_maskz_loadu_epi8((1ull << n) - 1, q));
    return _mm512_reduce_add_epi32(sum);
  }

  static W LoadW(const uint8_t* p) { return _mm512_loadu_si512(p); }
  template <int kBits>
  static W Field(W w, int s) {
    if constexpr (kBits == 8) return w;
    return _mm512_and_si512(_mm512_srli_epi16(w, kBits * s), _mm512_set1_epi8((1 << kBits) - 1));
  }
  template <int kBits>
  static constexpr int kNarrowFields = 0;
  template <int kBits>
  static I Dot(I acc, W w, int32_t x) {
    // Not the intrinsic: around it GCC 12 copies and spills accumulators in the innermost loop (3 times slower).
    const I word = _mm512_set1_epi32(x);
    asm("vpdpbusd %2, %1, %0" : "+v"(acc) : "v"(w), "v"(word));
    return acc;
  }

  // acc += of each channel four products of an unsigned input and a signed weight (body_direct.h).
  static constexpr int kDirectInputs = 4;
  static W Flipped(W w, I flip) { return _mm512_xor_si512(w, flip); }
  static W Held(W w) { return w; }
  template <bool kHalf>
  static I DotDirect(I acc, W w, int32_t x) {
    const I word = _mm512_set1_epi32(x);
    asm("vpdpbusd %1, %2, %0" : "+v"(acc) : "v"(w), "v"(word));
    return acc;
  }

  // Of every channel one byte from each of kRows rows, the first the lowest; of `count` channels (kWhole: of all 16).
  template <int kRows, bool kWhole>
  static I Stacked(const int8_t* const* rows, int64_t count) {
    I word = Bytes<kWhole>(rows[0], count);
    if constexpr (kRows > 1) word = _mm512_or_si512(word, _mm512_slli_epi32(Bytes<kWhole>(rows[1], count), 8));
    if constexpr (kRows > 2) word = _mm512_or_si512(word, _mm512_slli_epi32(Bytes<kWhole>(rows[2], count), 16));
    if constexpr (kRows > 3) word = _mm512_or_si512(word, _mm512_slli_epi32(Bytes<kWhole>(rows[3], count), 24));
    return word;
  }
  template <bool kWhole>
  static I Bytes(const int8_t* p, int64_t count) {
    if constexpr (kWhole) return _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)p));
    return _mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(First(count), p));
  }
  // acc += of each channel four products of an unsigned byte and a signed one.
  static I DotBytes(I acc, I x, I w) {
    asm("vpdpbusd %1, %2, %0" : "+v"(acc) : "v"(w), "v"(x));
    return acc;
  }

  // Levels of input i of a block as floats: stored code less the offset, or the codebook's entry.
  template <int kBits, bool kBook>
  struct Decoder {
    F table;  // 16 entries; for 2 bits the neighbour's bits in the index do not matter
    F offset;
    const float* book;
    explicit Decoder(const float* codebook, int32_t shift) : offset(SetF(static_cast<float>(shift))), book(codebook) {
      float entries[16];
      for (int i = 0; i < 16; ++i) {
        const int code = kBits == 2 ? i & 3 : i;
        entries[i] = kBook && kBits < 8 ? codebook[code] : static_cast<float>(code - shift);
      }
      table = _mm512_loadu_ps(entries);
    }
    F operator()(W w, int i) const {
      if constexpr (kBits < 8) return _mm512_permutexvar_ps(_mm512_srli_epi32(w, kBits * i), table);
      const I code = _mm512_and_si512(_mm512_srli_epi32(w, 8 * i), _mm512_set1_epi32(255));
      if constexpr (kBook) return _mm512_i32gather_ps(code, book, 4);
      return SubF(Convert(code), offset);
    }
  };
};
