// Sixteen planes side by side: the vector type that the CPU kernels compute in, and rows of images in and out of it.
//
// A plane is one channel of one image. Filters act on every plane alike, so that a vector holds the same pixel of sixteen
// planes and no shuffle is needed however the taps lie. Channels-last images are read as they are; rows of NCHW images
// are transposed sixteen by sixteen on their way in and out.

#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#if defined(__AVX512F__) && defined(__AVX512DQ__)
#include <immintrin.h>
#define SPIDER_AVX512 1
#endif

namespace spider {

constexpr int kLanes = 16;

typedef float FloatLanes __attribute__((vector_size(kLanes * sizeof(float))));
typedef double DoubleLanes __attribute__((vector_size(kLanes * sizeof(double))));
typedef uint16_t HalfwordLanes __attribute__((vector_size(kLanes * sizeof(uint16_t))));
typedef uint32_t WordLanes __attribute__((vector_size(kLanes * sizeof(uint32_t))));

// What a storage type is computed in.
template <class T> struct Compute { using scalar = float; using lanes = FloatLanes; using bits = int32_t; };
template <> struct Compute<double> { using scalar = double; using lanes = DoubleLanes; using bits = int64_t; };
template <class T> using ScalarOf = typename Compute<T>::scalar;
template <class T> using LanesOf = typename Compute<T>::lanes;

template <class V, class S> inline V broadcast(S value) { return V{} + value; }

template <class V> inline V load_vector(const void* p) {
  V v;
  std::memcpy(&v, p, sizeof(V));
  return v;
}

template <class V> inline void store_vector(void* p, const V& v) { std::memcpy(p, &v, sizeof(V)); }

// Storage to lanes and back.

inline FloatLanes widen(const float* p) { return load_vector<FloatLanes>(p); }
inline DoubleLanes widen(const double* p) { return load_vector<DoubleLanes>(p); }
inline FloatLanes widen(const at::BFloat16* p) {
  const WordLanes words = __builtin_convertvector(load_vector<HalfwordLanes>(p), WordLanes) << 16;
  FloatLanes v;
  std::memcpy(&v, &words, sizeof(v));
  return v;
}

inline void narrow(float* p, const FloatLanes& v) { store_vector(p, v); }
inline void narrow(double* p, const DoubleLanes& v) { store_vector(p, v); }
inline void narrow(at::BFloat16* p, const FloatLanes& v) {
  WordLanes words;
  std::memcpy(&words, &v, sizeof(words));
  const WordLanes rounded = (words + 0x7fff + ((words >> 16) & 1)) >> 16;  // to nearest, ties to even
  const WordLanes quiet_nan = (words >> 16) | 0x40;  // rounding could carry a NaN into infinity
  const WordLanes is_nan = (WordLanes)((words & 0x7fffffff) > 0x7f800000);
  store_vector(p, __builtin_convertvector((is_nan & quiet_nan) | (~is_nan & rounded), HalfwordLanes));
}

template <class T> inline LanesOf<T> widen_some(const T* p, int count) {
  alignas(64) T some[kLanes] = {};
  std::memcpy(some, p, count * sizeof(T));
  return widen(some);
}

template <class T> inline void narrow_some(T* p, const LanesOf<T>& v, int count) {
  alignas(64) T some[kLanes];
  narrow(some, v);
  std::memcpy(p, some, count * sizeof(T));
}

// Transposition of sixteen vectors, in four rounds of exchanging blocks of 1, 2, 4, 8.

template <int S, class V, std::size_t... K>
inline void exchange(V& a, V& b, std::index_sequence<K...>) {
  const V low = __builtin_shufflevector(a, b, ((K & S) == 0 ? int(K) : int(kLanes + K - S))...);
  const V high = __builtin_shufflevector(a, b, ((K & S) == 0 ? int(K + S) : int(kLanes + K))...);
  a = low;
  b = high;
}

template <int S, class V> inline void exchange_all(V (&v)[kLanes]) {
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; i++)
    if ((i & S) == 0) exchange<S>(v[i], v[i + S], std::make_index_sequence<kLanes>());
}

template <class V> inline void transpose(V (&v)[kLanes]) {
  exchange_all<1>(v);
  exchange_all<2>(v);
  exchange_all<4>(v);
  exchange_all<8>(v);
}

// An NCHW tensor of any strides.
template <class T> struct Planes {
  T* data;
  int64_t n, c, h, w;
  int64_t stride_n, stride_c, stride_h, stride_w;

  explicit Planes(const at::Tensor& t)
      : data(static_cast<T*>(t.data_ptr())), n(t.size(0)), c(t.size(1)), h(t.size(2)), w(t.size(3)),
        stride_n(t.stride(0)), stride_c(t.stride(1)), stride_h(t.stride(2)), stride_w(t.stride(3)) {}
};

// Which planes the lanes hold: sixteen channels of one image, the last group of an image fewer; or, `across` images,
// sixteen planes in order of image and channel, which wastes no lanes where there are few channels.
struct Group {
  int64_t image, channel;
  int count;
  bool across;

  static int64_t number(int64_t n, int64_t c, bool across) {
    return across ? (n * c + kLanes - 1) / kLanes : n * ((c + kLanes - 1) / kLanes);
  }

  Group(int64_t index, int64_t n, int64_t c, bool across_) : across(across_) {
    if (across) {
      image = index * kLanes / c;
      channel = index * kLanes % c;
      count = int(std::min<int64_t>(kLanes, n * c - index * kLanes));
    } else {
      const int64_t groups = (c + kLanes - 1) / kLanes;
      image = index / groups;
      channel = index % groups * kLanes;
      count = int(std::min<int64_t>(kLanes, c - channel));
    }
  }

  int64_t channel_of(int lane, int64_t c) const { return across ? (channel + lane) % c : channel + lane; }

  template <class T> int64_t offset(const Planes<T>& x, int lane) const {
    const int64_t plane = channel + lane;
    return across ? (image + plane / x.c) * x.stride_n + plane % x.c * x.stride_c
                  : image * x.stride_n + plane * x.stride_c;
  }
};

// One group of planes of an image, read and written by rows.
template <class T> class Rows {
 public:
  using V = LanesOf<T>;
  using A = ScalarOf<T>;

  Rows(const Planes<T>& x, const Group& group) : x_(x), count_(group.count) {
    for (int lane = 0; lane < kLanes; lane++) offset_[lane] = group.offset(x, lane < count_ ? lane : 0);
    lanes_adjacent_ = x.stride_c == 1 && !group.across;
  }

  // Pixels [begin, end) of row y into dst[begin..end), with `bias` added. Unused lanes hold anything finite.
  void load(int64_t y, int64_t begin, int64_t end, const V& bias, V* dst) const {
    const T* row = x_.data + y * x_.stride_h;
    if (lanes_adjacent_ && count_ == kLanes) {
      for (int64_t i = begin; i < end; i++) dst[i] = widen(row + offset_[0] + i * x_.stride_w) + bias;
    } else if (lanes_adjacent_) {
      for (int64_t i = begin; i < end; i++) dst[i] = widen_some(row + offset_[0] + i * x_.stride_w, count_) + bias;
    } else if (x_.stride_w == 1) {
      int64_t i = begin;
      for (; i + kLanes <= end; i += kLanes) {
        V block[kLanes];
#pragma GCC unroll 16
        for (int lane = 0; lane < kLanes; lane++) block[lane] = widen(row + offset_[lane] + i);
        transpose(block);
#pragma GCC unroll 16
        for (int k = 0; k < kLanes; k++) dst[i + k] = block[k] + bias;
      }
      gather(row, i, end, bias, dst);
    } else {
      gather(row, begin, end, bias, dst);
    }
  }

  // src[0..width) to row y.
  void store(int64_t y, int64_t width, V* src) const {
    T* row = x_.data + y * x_.stride_h;
    if (lanes_adjacent_ && count_ == kLanes) {
      for (int64_t i = 0; i < width; i++) narrow(row + offset_[0] + i * x_.stride_w, src[i]);
    } else if (lanes_adjacent_) {
      for (int64_t i = 0; i < width; i++) narrow_some(row + offset_[0] + i * x_.stride_w, src[i], count_);
    } else if (x_.stride_w == 1) {
      int64_t i = 0;
      for (; i + kLanes <= width; i += kLanes) {
        V block[kLanes];
#pragma GCC unroll 16
        for (int k = 0; k < kLanes; k++) block[k] = src[i + k];
        transpose(block);
        for (int lane = 0; lane < count_; lane++) narrow(row + offset_[lane] + i, block[lane]);
      }
      scatter(row, i, width, src);
    } else {
      scatter(row, 0, width, src);
    }
  }

 private:
  void gather(const T* row, int64_t begin, int64_t end, const V& bias, V* dst) const {
    for (int64_t i = begin; i < end; i++) {
      V v;
      for (int lane = 0; lane < kLanes; lane++) v[lane] = static_cast<A>(row[offset_[lane] + i * x_.stride_w]);
      dst[i] = v + bias;
    }
  }

  void scatter(T* row, int64_t begin, int64_t end, const V* src) const {
    for (int64_t i = begin; i < end; i++)
      for (int lane = 0; lane < count_; lane++) row[offset_[lane] + i * x_.stride_w] = static_cast<T>(src[i][lane]);
  }

  const Planes<T>& x_;
  int count_;
  bool lanes_adjacent_;
  int64_t offset_[kLanes];
};

}  // namespace spider
