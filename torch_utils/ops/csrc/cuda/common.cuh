// What the CUDA kernels share. No header of CUDA or of the C++ library is needed, so that NVRTC alone compiles them.
//
// ELEMENT is the storage type: 0 float, 1 float16, 2 bfloat16. Arithmetic is in float.

#pragma once

#ifndef SPIDER_EMULATION  // the tests compile these kernels for the processor, with a header that stands in for CUDA
#define SPIDER_KERNEL extern "C" __global__ void
__device__ __forceinline__ float half_to_float(unsigned short h) {
  float f;
  asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(h));
  return f;
}
__device__ __forceinline__ unsigned short float_to_half(float f) {
  unsigned short h;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(h) : "f"(f));
  return h;
}
#endif

typedef float scalar;

#if ELEMENT == 0
typedef float element;
__device__ __forceinline__ scalar widen(element v) { return v; }
__device__ __forceinline__ element narrow(scalar v) { return v; }
#elif ELEMENT == 1
typedef unsigned short element;
__device__ __forceinline__ scalar widen(element v) { return half_to_float(v); }
__device__ __forceinline__ element narrow(scalar v) { return float_to_half(v); }
#else
typedef unsigned short element;
__device__ __forceinline__ scalar widen(element v) { return __uint_as_float((unsigned int)v << 16); }
__device__ __forceinline__ element narrow(scalar v) {
  const unsigned int bits = __float_as_uint(v);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return (element)((bits >> 16) | 0x40);  // NaN stays NaN
  return (element)((bits + 0x7fffu + ((bits >> 16) & 1)) >> 16);  // to nearest, ties to even
}
#endif

// Leaky ReLU with a gain for either sign, then the clamp; its two choices as bits: not positive, clamped.
__device__ __forceinline__ scalar activate(scalar v, scalar positive, scalar negative, scalar clamp, int& note) {
  const bool is_positive = v > 0;
  v *= is_positive ? positive : negative;
  note = (is_positive ? 0 : 1) | (v <= -clamp || v >= clamp ? 2 : 0);
  return v < -clamp ? -clamp : v > clamp ? clamp : v;
}

__device__ __forceinline__ scalar slope_of(int note, scalar positive, scalar negative) {
  return note & 2 ? (scalar)0 : note & 1 ? negative : positive;
}

