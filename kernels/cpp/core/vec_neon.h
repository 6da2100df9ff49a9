// Sixteen channels in four 128-bit registers, with the aarch64 dot product. Include inside the body's namespace.
#pragma once

struct Vec {
  struct I { int32x4_t v[4]; };
  struct F { float32x4_t v[4]; };
  struct W { uint8x16_t v[4]; };
  static constexpr int kRowTile = 4;
  static constexpr int kTileTile = 1;
  static constexpr int32_t kSeen8 = 128;  // sdot is signed by signed: 8-bit codes enter with the top bit flipped
  static constexpr int kDirectInputs = 2;  // not used: codes of gathered windows are faster (body_direct.h)
  static constexpr bool kTails = false;  // a tail is done in memory
  static constexpr bool kExpands = false;

  template <typename R, typename Fn>
  static R Each(Fn fn) {
    R r;
    for (int i = 0; i < 4; ++i) r.v[i] = fn(i);
    return r;
  }
  static I Set(int32_t x) { return Each<I>([&](int) { return vdupq_n_s32(x); }); }
  static I Load(const int32_t* p) { return Each<I>([&](int i) { return vld1q_s32(p + 4 * i); }); }
  static I Load16(const int16_t* p) { return Each<I>([&](int i) { return vmovl_s16(vld1_s16(p + 4 * i)); }); }
  static I Load8(const int8_t* p) {
    const int8x16_t v = vld1q_s8(p);
    const int16x8_t low = vmovl_s8(vget_low_s8(v)), high = vmovl_s8(vget_high_s8(v));
    return {{vmovl_s16(vget_low_s16(low)), vmovl_s16(vget_high_s16(low)), vmovl_s16(vget_low_s16(high)),
             vmovl_s16(vget_high_s16(high))}};
  }
  static I Add(I a, I b) { return Each<I>([&](int i) { return vaddq_s32(a.v[i], b.v[i]); }); }
  static I Sub(I a, I b) { return Each<I>([&](int i) { return vsubq_s32(a.v[i], b.v[i]); }); }
  static I Mul(I a, I b) { return Each<I>([&](int i) { return vmulq_s32(a.v[i], b.v[i]); }); }

  static void StoreI(int32_t* p, I a) {
    for (int i = 0; i < 4; ++i) vst1q_s32(p + 4 * i, a.v[i]);
  }
  static I Whole(F a) { return Each<I>([&](int i) { return vcvtq_s32_f32(a.v[i]); }); }
  static constexpr bool kFixes = false;  // fixed point is done in memory

  static F SetF(float x) { return Each<F>([&](int) { return vdupq_n_f32(x); }); }
  static F Convert(I a) { return Each<F>([&](int i) { return vcvtq_f32_s32(a.v[i]); }); }
  static F LoadF(const float* p) { return Each<F>([&](int i) { return vld1q_f32(p + 4 * i); }); }
  static F LoadBF16(const uint16_t* p) {
    return Each<F>([&](int i) { return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(p + 4 * i), 16)); });
  }
  static F MulF(F a, F b) { return Each<F>([&](int i) { return vmulq_f32(a.v[i], b.v[i]); }); }
  static F AddF(F a, F b) { return Each<F>([&](int i) { return vaddq_f32(a.v[i], b.v[i]); }); }
  static F SubF(F a, F b) { return Each<F>([&](int i) { return vsubq_f32(a.v[i], b.v[i]); }); }
  static F Fma(F a, F b, F c) { return Each<F>([&](int i) { return vfmaq_f32(c.v[i], a.v[i], b.v[i]); }); }
  // Saturates as `rounded_product` does. NaN passes.
  static F Saturate(F a) {
    const float32x4_t most = vdupq_n_f32(3.402823466e38f);
    return Each<F>([&](int i) { return vminq_f32(most, vmaxq_f32(vnegq_f32(most), a.v[i])); });
  }
  static void Store(float* p, F a) {
    for (int i = 0; i < 4; ++i) vst1q_f32(p + 4 * i, a.v[i]);
  }

  // Sum of n codes.
  static int32_t Sum(const int8_t* q, int64_t n) {
    int32x4_t sum = vdupq_n_s32(0);
    for (; n >= 16; n -= 16, q += 16) sum = vdotq_s32(sum, vld1q_s8(q), vdupq_n_s8(1));
    int32_t total = vaddvq_s32(sum);
    for (int64_t k = 0; k < n; ++k) total += q[k];
    return total;
  }

  static W LoadW(const uint8_t* p) { return Each<W>([&](int i) { return vld1q_u8(p + 16 * i); }); }
  template <int kBits>
  static W Field(W w, int s) {
    if constexpr (kBits == 8) return Each<W>([&](int i) { return veorq_u8(w.v[i], vdupq_n_u8(128)); });
    const uint8x16_t mask = vdupq_n_u8((1 << kBits) - 1);
    const int8x16_t shift = vdupq_n_s8(static_cast<int8_t>(-kBits * s));
    return Each<W>([&](int i) { return vandq_u8(vshlq_u8(w.v[i], shift), mask); });
  }
  template <int kBits>
  static constexpr int kNarrowFields = 0;
  template <int kBits>
  static I Dot(I acc, W w, int32_t x) {
    const int8x16_t v = vreinterpretq_s8_s32(vdupq_n_s32(x));
    return Each<I>([&](int i) { return vdotq_s32(acc.v[i], vreinterpretq_s8_u8(w.v[i]), v); });
  }

  template <int kBits, bool kBook>
  struct Decoder {
    float32x4_t offset;
    const float* book;
    explicit Decoder(const float* codebook, int32_t shift)
        : offset(vdupq_n_f32(static_cast<float>(shift))), book(codebook) {}
    F operator()(W w, int i) const {
      const int32x4_t right = vdupq_n_s32(-kBits * i);
      return Each<F>([&](int q) {
        const uint32x4_t code =
            vandq_u32(vshlq_u32(vreinterpretq_u32_u8(w.v[q]), right), vdupq_n_u32((1 << kBits) - 1));
        if constexpr (!kBook) return vsubq_f32(vcvtq_f32_u32(code), offset);
        const float entries[4] = {book[vgetq_lane_u32(code, 0)], book[vgetq_lane_u32(code, 1)],
                                  book[vgetq_lane_u32(code, 2)], book[vgetq_lane_u32(code, 3)]};
        return vld1q_f32(entries);
      });
    }
  };
};
