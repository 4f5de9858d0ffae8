// Bias, leaky ReLU, gain and clamp in one pass, and their derivative from the choices that it noted.

#pragma once

#include <ATen/Parallel.h>

#include "signs.h"

namespace spider {

constexpr int64_t kGrain = 1 << 11;  // vectors worth a thread

template <class A> struct LeakyRelu {
  A positive, negative, clamp;
};

// The bias along a tensor that is [outer, channels, inner] in memory, sixteen elements at a time.
template <class T> class BiasRow {
 public:
  using V = LanesOf<T>;
  using A = ScalarOf<T>;

  BiasRow(const T* bias, int64_t channels, int64_t inner, int64_t start)
      : bias_(bias), channels_(channels), inner_(inner), channel_(start / inner % channels), place_(start % inner) {}

  V next() {
    if (bias_ == nullptr) return V{};
    V v;
    if (place_ + kLanes <= inner_)
      v = broadcast<V>(static_cast<A>(bias_[channel_]));
    else if (inner_ == 1 && channel_ + kLanes <= channels_)
      v = widen(bias_ + channel_);
    else
      return gather();
    step(kLanes);
    return v;
  }

 private:
  V gather() {
    V v;
    for (int lane = 0; lane < kLanes; lane++) {
      v[lane] = static_cast<A>(bias_[channel_]);
      step(1);
    }
    return v;
  }

  // By elements of one channel, or by channels of one element.
  void step(int count) {
    if (inner_ == 1) {
      channel_ += count;
    } else {
      place_ += count;
      if (place_ < inner_) return;
      place_ -= inner_;
      channel_++;
    }
    if (channel_ >= channels_) channel_ -= channels_;
  }

  const T* bias_;
  int64_t channels_, inner_, channel_, place_;
};

template <class T> inline LanesOf<T> load(const T* p, int count) {
  return count == kLanes ? widen(p) : widen_some(p, count);
}

template <class T> inline void store(T* p, const LanesOf<T>& v, int count) {
  if (count == kLanes)
    narrow(p, v);
  else
    narrow_some(p, v, count);
}

// Calls body(word, i, count) for sixteen elements at a time, the last ones fewer.
template <class F> void in_lanes(int64_t begin, int64_t end, int64_t numel, const F& body) {
  for (int64_t word = begin; word < end; word++)
    body(word, word * kLanes, int(std::min<int64_t>(kLanes, numel - word * kLanes)));
}

inline int64_t number_of_words(int64_t numel) { return (numel + kLanes - 1) / kLanes; }

// bias and mask may be nullptr.
template <class T>
void bias_act(const T* x, const T* bias, T* y, uint32_t* mask, int64_t numel, int64_t channels, int64_t inner,
              const LeakyRelu<ScalarOf<T>>& p) {
  using V = LanesOf<T>;
  at::parallel_for(0, number_of_words(numel), kGrain, [&](int64_t begin, int64_t end) {
    const V zero = {}, upper = broadcast<V>(p.clamp), lower = -upper;
    const V positive = broadcast<V>(p.positive), negative = broadcast<V>(p.negative);
    BiasRow<T> row(bias, channels, inner, begin * kLanes);
    in_lanes(begin, end, numel, [&](int64_t word, int64_t i, int count) {
      const V biased = load(x + i, count) + row.next();
      const auto is_positive = biased > zero;
      V v = biased * (is_positive ? positive : negative);
      if (mask != nullptr) mask[word] = noted(is_positive, (v <= lower) | (v >= upper));
      v = v < lower ? lower : v;
      store(y + i, v > upper ? upper : v, count);
    });
  });
}

// dx = dy times the slope that was noted.
template <class T>
void bias_act_derivative(const T* dy, const uint32_t* mask, T* dx, int64_t numel, ScalarOf<T> positive,
                         ScalarOf<T> negative) {
  using V = LanesOf<T>;
  at::parallel_for(0, number_of_words(numel), kGrain, [&](int64_t begin, int64_t end) {
    in_lanes(begin, end, numel, [&](int64_t word, int64_t i, int count) {
      const V v = load(dy + i, count);
      store(dx + i, v * slopes<V>(mask[word], broadcast<V>(positive), broadcast<V>(negative)), count);
    });
  });
}

}  // namespace spider
