// Float bits. Include first, inside the body's namespace.
#pragma once

LOWBIT_INLINE float WidenBF16(uint16_t h) {
  const uint32_t u = uint32_t{h} << 16;
  float f;
  __builtin_memcpy(&f, &u, 4);
  return f;
}

LOWBIT_INLINE uint32_t Bits(float f) {
  uint32_t u;
  __builtin_memcpy(&u, &f, 4);
  return u;
}

LOWBIT_INLINE float FromBits(uint32_t u) {
  float f;
  __builtin_memcpy(&f, &u, 4);
  return f;
}
