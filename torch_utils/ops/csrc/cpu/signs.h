// The choices of an activation in a word: what the derivative needs to know of the forward pass.

#pragma once

#include "lanes.h"

namespace spider {

// A word of the mask holds two bits for each lane: lane l was not positive in bit l, was clamped in bit 16 + l.
constexpr int kClampedBit = 16;

template <class I> inline I spread_bits(uint32_t word) {  // all bits of lane l set if bit l of word is
  const I bit = I{1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768};
  return (broadcast<I>(word) & bit) != 0;
}

template <class I> inline uint32_t gather_bits(const I& mask) {
  uint32_t word = 0;
  for (int lane = 0; lane < kLanes; lane++) word |= uint32_t(mask[lane] != 0) << lane;
  return word;
}

#ifdef SPIDER_AVX512
typedef int32_t IntLanes __attribute__((vector_size(kLanes * sizeof(int32_t))));
template <> inline uint32_t gather_bits<IntLanes>(const IntLanes& mask) {
  return _mm512_movepi32_mask((__m512i)mask);
}
#endif

template <class I> inline uint32_t noted(const I& is_positive, const I& is_clamped) {
  return gather_bits<I>(~is_positive) | gather_bits<I>(is_clamped) << kClampedBit;
}

template <class V> inline V slopes(uint32_t word, const V& positive, const V& negative) {
  using I = decltype(positive > positive);
  const V slope = spread_bits<I>(word & 0xffff) ? negative : positive;
  return spread_bits<I>(word >> kClampedBit) ? V{} : slope;
}

}  // namespace spider
