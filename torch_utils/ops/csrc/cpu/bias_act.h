// Bias, leaky ReLU, gain and clamp in one pass, and their derivative from the signs of the result.

#pragma once

#include <ATen/Parallel.h>

#include <cmath>

#include "lanes.h"

namespace spider {

constexpr int64_t kGrain = 1 << 15;  // elements worth a thread

// The derivative reads from the result whether it was clamped. So that it can, what was not clamped but rounds to the
// bound in the storage type becomes the number below it.
template <class A> struct LeakyRelu {
  A positive, negative, clamp;
  A bound;  // clamp, as it is stored
  A below;  // the largest number below that is stored
};

inline float next_below(float bound) { return std::nextafter(bound, 0.0f); }
inline double next_below(double bound) { return std::nextafter(bound, 0.0); }
inline float next_below(at::BFloat16 bound) {
  bound.x -= bound.x > 0;
  return bound;
}

template <class T> LeakyRelu<ScalarOf<T>> leaky_relu_of(double alpha, double gain, double clamp) {
  using A = ScalarOf<T>;
  const T bound = static_cast<T>(A(clamp));
  const A below = std::isinf(clamp) ? A(INFINITY) : A(next_below(bound));
  return {A(gain), A(gain * alpha), A(clamp), A(bound), below};
}

// Calls body(i, count) for sixteen elements at a time, the last ones fewer.
template <class F> void in_lanes(int64_t begin, int64_t end, const F& body) {
  for (int64_t i = begin; i < end; i += kLanes) body(i, int(std::min<int64_t>(kLanes, end - i)));
}

template <class T> inline LanesOf<T> load(const T* p, int count) {
  return count == kLanes ? widen(p) : widen_some(p, count);
}

template <class T> inline void store(T* p, const LanesOf<T>& v, int count) {
  if (count == kLanes)
    narrow(p, v);
  else
    narrow_some(p, v, count);
}

template <class V, class A> inline V leaky_relu(V v, const LeakyRelu<A>& p) {
  const V zero = {}, clamp = broadcast<V>(p.clamp), bound = broadcast<V>(p.bound), below = broadcast<V>(p.below);
  v *= v > zero ? broadcast<V>(p.positive) : broadcast<V>(p.negative);
  V y = v > below ? below : v;
  y = y < -below ? -below : y;
  y = v >= clamp ? bound : y;
  return v <= -clamp ? -bound : y;
}

// x is [outer, channels, inner] in memory; bias of each channel, or nullptr.
template <class T>
void bias_act(const T* x, const T* bias, T* y, int64_t outer, int64_t channels, int64_t inner,
              const LeakyRelu<ScalarOf<T>>& p) {
  using V = LanesOf<T>;
  if (bias == nullptr) {  // one long row
    inner *= outer * channels;
    outer = channels = 1;
  }
  if (inner == 1 && bias != nullptr) {  // the bias runs along with x
    at::parallel_for(0, outer, std::max<int64_t>(1, kGrain / channels), [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; row++)
        in_lanes(0, channels, [&](int64_t i, int count) {
          store(y + row * channels + i, leaky_relu(load(x + row * channels + i, count) + load(bias + i, count), p), count);
        });
    });
    return;
  }
  const int64_t pieces = (inner + kGrain - 1) / kGrain;  // of a row
  at::parallel_for(0, outer * channels * pieces, std::max<int64_t>(1, kGrain / inner), [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; task++) {
      const int64_t row = task / pieces, piece = task % pieces;
      const V b = bias == nullptr ? V{} : broadcast<V>(static_cast<ScalarOf<T>>(bias[row % channels]));
      in_lanes(piece * kGrain, std::min(inner, (piece + 1) * kGrain), [&](int64_t i, int count) {
        store(y + row * inner + i, leaky_relu(load(x + row * inner + i, count) + b, p), count);
      });
    }
  });
}

// dx = dy times the slope that y shows: y has the sign of what was activated, and is at its bound where it was clamped.
template <class T>
void bias_act_derivative(const T* dy, const T* y, T* dx, int64_t numel, const LeakyRelu<ScalarOf<T>>& p) {
  using V = LanesOf<T>;
  at::parallel_for(0, numel, kGrain, [&](int64_t begin, int64_t end) {
    const V zero = {}, upper = broadcast<V>(p.bound), lower = -upper;
    const V positive = broadcast<V>(p.positive), negative = broadcast<V>(p.negative);
    in_lanes(begin, end, [&](int64_t i, int count) {
      const V v = load(y + i, count);
      const V slope = v > zero ? positive : negative;
      store(dx + i, load(dy + i, count) * ((v > lower) & (v < upper) ? slope : zero), count);
    });
  });
}

}  // namespace spider
