// Sixteen channels in plain C++: the body for any machine, and the plainest to read. Include inside the body's namespace.
#pragma once

struct Vec {
  struct I { int32_t v[16]; };
  struct F { float v[16]; };
  struct W { uint8_t v[64]; };
  static constexpr int kRowTile = 2;
  static constexpr int kTileTile = 1;
  static constexpr int32_t kSeen8 = 0;
  static constexpr bool kTails = false;  // a tail is done in memory
  static constexpr bool kExpands = false;

  template <typename R, typename Fn>
  static R Each(Fn fn) {
    R r;
    for (int i = 0; i < 16; ++i) r.v[i] = fn(i);
    return r;
  }
  // Unsigned arithmetic: sums wrap modulo 2^32, as every vector unit's do.
  static int32_t Wrap(uint32_t x) { return static_cast<int32_t>(x); }
  static I Set(int32_t x) { return Each<I>([&](int) { return x; }); }
  static I Load(const int32_t* p) { return Each<I>([&](int i) { return p[i]; }); }
  static I Load16(const int16_t* p) { return Each<I>([&](int i) { return int32_t{p[i]}; }); }
  static I Load8(const int8_t* p) { return Each<I>([&](int i) { return int32_t{p[i]}; }); }
  static I Add(I a, I b) { return Each<I>([&](int i) { return Wrap(uint32_t(a.v[i]) + uint32_t(b.v[i])); }); }
  static I Sub(I a, I b) { return Each<I>([&](int i) { return Wrap(uint32_t(a.v[i]) - uint32_t(b.v[i])); }); }
  static I Mul(I a, I b) { return Each<I>([&](int i) { return Wrap(uint32_t(a.v[i]) * uint32_t(b.v[i])); }); }

  static void StoreI(int32_t* p, I a) { __builtin_memcpy(p, a.v, sizeof a.v); }
  static I Whole(F a) { return Each<I>([&](int i) { return static_cast<int32_t>(a.v[i]); }); }
  static constexpr bool kFixes = false;  // fixed point is done in memory

  static F SetF(float x) { return Each<F>([&](int) { return x; }); }
  static F Convert(I a) { return Each<F>([&](int i) { return static_cast<float>(a.v[i]); }); }
  static F LoadF(const float* p) { return Each<F>([&](int i) { return p[i]; }); }
  static F LoadBF16(const uint16_t* p) { return Each<F>([&](int i) { return WidenBF16(p[i]); }); }
  static F MulF(F a, F b) { return Each<F>([&](int i) { return a.v[i] * b.v[i]; }); }
  static F AddF(F a, F b) { return Each<F>([&](int i) { return a.v[i] + b.v[i]; }); }
  static F SubF(F a, F b) { return Each<F>([&](int i) { return a.v[i] - b.v[i]; }); }
  static F Fma(F a, F b, F c) { return Each<F>([&](int i) { return a.v[i] * b.v[i] + c.v[i]; }); }
  // Saturates as `rounded_product` does. NaN passes.
  static F Saturate(F a) {
    constexpr float kMost = 3.402823466e38f;
    return Each<F>([&](int i) { return a.v[i] > kMost ? kMost : a.v[i] < -kMost ? -kMost : a.v[i]; });
  }
  static void Store(float* p, F a) {
    for (int i = 0; i < 16; ++i) p[i] = a.v[i];
  }

  // Sum of n codes.
  static int32_t Sum(const int8_t* q, int64_t n) {
    int32_t total = 0;
    for (int64_t k = 0; k < n; ++k) total += q[k];
    return total;
  }

  static W LoadW(const uint8_t* p) {
    W w;
    for (int i = 0; i < 64; ++i) w.v[i] = p[i];
    return w;
  }
  template <int kBits>
  static W Field(W w, int s) {
    for (int i = 0; i < 64; ++i) w.v[i] = static_cast<uint8_t>(w.v[i] >> (kBits * s) & ((1 << kBits) - 1));
    return w;
  }
  template <int kBits>
  static constexpr int kNarrowFields = 0;
  template <int kBits>
  static I Dot(I acc, W w, int32_t x) {
    int8_t v[4];
    __builtin_memcpy(v, &x, 4);
    return Each<I>([&](int i) {
      int32_t sum = 0;
      for (int j = 0; j < 4; ++j) sum += int32_t{w.v[4 * i + j]} * v[j];
      return Wrap(uint32_t(acc.v[i]) + uint32_t(sum));
    });
  }

  static constexpr int kDirectInputs = 2;
  static W Flipped(W w, I) { return w; }  // not used: words of 16 bits are written out
  static W Held(W w) { return w; }
  template <bool kHalf>
  static I DotDirect(I acc, W w, int32_t x) {
    int16_t v[2], pairs[32];
    __builtin_memcpy(v, &x, 4);
    __builtin_memcpy(pairs, w.v, 64);
    return Each<I>([&](int i) {
      const uint32_t sum = uint32_t(int32_t{pairs[2 * i]} * v[0]) + uint32_t(int32_t{pairs[2 * i + 1]} * v[1]);
      return Wrap(uint32_t(acc.v[i]) + sum);
    });
  }

  template <int kBits, bool kBook>
  struct Decoder {
    float offset;
    const float* book;
    explicit Decoder(const float* codebook, int32_t shift) : offset(static_cast<float>(shift)), book(codebook) {}
    F operator()(W w, int i) const {
      return Each<F>([&](int n) {
        const int bit = kBits * i;
        const int code = w.v[4 * n + bit / 8] >> (bit % 8) & ((1 << kBits) - 1);
        return kBook ? book[code] : static_cast<float>(code) - offset;
      });
    }
  };
};
