// Upsample, act, downsample in one pass over rows that stay in the cache: all that upfirdn2d and filtered_lrelu need.
//
// Along an axis, upsampling is  u[m] = sum_k taps[k] x'[m + k - before]  with x' the zero-stuffed x, and downsampling is
// y[m] = sum_k taps[k] u[m factor + k - before].  Only the taps that meet a pixel are multiplied: with phase
// p = (before - m) mod factor these are taps p, p + factor, ..., on pixels from (m + p - before) / factor on. `factor`
// consecutive outputs, of phases factor - 1 to 0, share the same pixels: a block.

#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include <ATen/Parallel.h>

#include "signs.h"

namespace spider {

inline int64_t floor_mod(int64_t a, int64_t b) { return (a % b + b) % b; }

struct Axis {
  int factor = 1;
  int taps = 1;
  int64_t before = 0;

  bool is_identity() const { return factor == 1 && taps == 1 && before == 0; }
};

// A filter along both axes: separable, or of two dimensions.
template <class A> struct Filter {
  Axis x, y;
  bool separable = true;
  std::vector<A> taps_x{1}, taps_y{1};  // if separable
  std::vector<A> taps;                  // [y][x] otherwise

  A at(int ky, int kx) const {
    if (ky >= y.taps || kx >= x.taps) return 0;
    return separable ? taps_y[ky] * taps_x[kx] : taps[ky * x.taps + kx];
  }
};

// Writes a filter of two dimensions as the product of two of one, where it is one: far fewer multiplications.
template <class A> void separate(Filter<A>& f) {
  const int height = f.y.taps, width = f.x.taps;
  const auto peak = std::max_element(f.taps.begin(), f.taps.end(), [](A a, A b) { return std::abs(a) < std::abs(b); });
  const int ky = int(peak - f.taps.begin()) / width, kx = int(peak - f.taps.begin()) % width;
  const A scale = *peak, tolerance = std::abs(scale) * A(1e-7);
  f.separable = false;
  if (scale == 0) return;
  for (int y = 0; y < height; y++)
    for (int x = 0; x < width; x++)
      if (std::abs(f.taps[y * width + x] - f.taps[y * width + kx] * f.taps[ky * width + x] / scale) > tolerance) return;
  f.taps_x.assign(f.taps.begin() + ky * width, f.taps.begin() + (ky + 1) * width);
  f.taps_y.resize(height);
  for (int y = 0; y < height; y++) f.taps_y[y] = f.taps[y * width + kx] / scale;
  f.separable = true;
}

// One output row from `num_rows` input rows, upsampled along x. Block b of `up` outputs comes from src[b .. b + taps).
// coef: [row][phase, last first][tap].
template <int UP, int TAPS, class V, class A>
void spread(const V* const* rows, int num_rows, int64_t first, const A* coef, int64_t blocks, V* dst, int, int) {
  constexpr int N = UP * TAPS > 12 ? 2 : 4;
  for (int64_t b = 0; b < blocks; b += N) {
    V acc[N][UP] = {};
    for (int r = 0; r < num_rows; r++) {
      const V* src = rows[r] + first + b;
      const A* c = coef + r * UP * TAPS;
      V s[N + TAPS - 1];
#pragma GCC unroll 32
      for (int i = 0; i < N + TAPS - 1; i++) s[i] = src[i];
#pragma GCC unroll 32
      for (int q = 0; q < UP; q++)
#pragma GCC unroll 32
        for (int t = 0; t < TAPS; t++)
#pragma GCC unroll 32
          for (int i = 0; i < N; i++) acc[i][q] += s[i + t] * c[q * TAPS + t];
    }
#pragma GCC unroll 32
    for (int i = 0; i < N; i++)
#pragma GCC unroll 32
      for (int q = 0; q < UP; q++) dst[(b + i) * UP + q] = acc[i][q];
  }
}

template <class V, class A>
void spread_any(const V* const* rows, int num_rows, int64_t first, const A* coef, int64_t blocks, V* dst, int up,
                int taps) {
  for (int64_t b = 0; b < blocks; b++)
    for (int q = 0; q < up; q++) {
      V acc = {};
      for (int r = 0; r < num_rows; r++)
        for (int t = 0; t < taps; t++) acc += rows[r][first + b + t] * coef[(r * up + q) * taps + t];
      dst[b * up + q] = acc;
    }
}

// One output row from `num_rows` input rows, downsampled along x: output j comes from src[j down .. j down + taps).
// coef: [row][tap].
template <int DOWN, int TAPS, class V, class A>
void gather(const V* const* rows, int num_rows, int64_t first, const A* coef, int64_t width, V* dst, int, int) {
  constexpr int N = 6;
  for (int64_t j = 0; j < width; j += N) {
    V acc[N] = {};
    for (int r = 0; r < num_rows; r++) {
      const V* src = rows[r] + first + j * DOWN;
      const A* c = coef + r * TAPS;
#pragma GCC unroll 32
      for (int t = 0; t < TAPS; t++)
#pragma GCC unroll 32
        for (int i = 0; i < N; i++) acc[i] += src[i * DOWN + t] * c[t];
    }
#pragma GCC unroll 32
    for (int i = 0; i < N; i++) dst[j + i] = acc[i];
  }
}

template <class V, class A>
void gather_any(const V* const* rows, int num_rows, int64_t first, const A* coef, int64_t width, V* dst, int down,
                int taps) {
  for (int64_t j = 0; j < width; j++) {
    V acc = {};
    for (int r = 0; r < num_rows; r++)
      for (int t = 0; t < taps; t++) acc += rows[r][first + j * down + t] * coef[r * taps + t];
    dst[j] = acc;
  }
}

// Weighted sums of rows, the vertical half of a separable filter: OUT sums of TAPS rows. coef: [out][tap].
template <int OUT, int TAPS, class V, class A>
void sum_rows(const V* const* rows, const A* coef, int64_t width, V* const* dst, int, int) {
  constexpr int N = OUT == 1 ? 4 : OUT == 2 ? 2 : 1;
  int64_t i = 0;
  for (; i + N <= width; i += N) {
    V acc[OUT][N] = {};
#pragma GCC unroll 32
    for (int t = 0; t < TAPS; t++)
#pragma GCC unroll 32
      for (int k = 0; k < N; k++) {
        const V s = rows[t][i + k];
#pragma GCC unroll 32
        for (int q = 0; q < OUT; q++) acc[q][k] += s * coef[q * TAPS + t];
      }
#pragma GCC unroll 32
    for (int q = 0; q < OUT; q++)
#pragma GCC unroll 32
      for (int k = 0; k < N; k++) dst[q][i + k] = acc[q][k];
  }
  for (; i < width; i++)
    for (int q = 0; q < OUT; q++) {
      V acc = {};
      for (int t = 0; t < TAPS; t++) acc += rows[t][i] * coef[q * TAPS + t];
      dst[q][i] = acc;
    }
}

template <class V, class A>
void sum_rows_any(const V* const* rows, const A* coef, int64_t width, V* const* dst, int out, int taps) {
  for (int q = 0; q < out; q++)
    for (int64_t i = 0; i < width; i++) {
      V acc = {};
      for (int t = 0; t < taps; t++) acc += rows[t][i] * coef[q * taps + t];
      dst[q][i] = acc;
    }
}

constexpr int kSpreadOverrun = 4;  // blocks that spread() may compute past the end
constexpr int kGatherOverrun = 6;  // outputs likewise of gather()

template <class V, class A> auto choose_spread(int up, int taps) {
  if (up == 1 && taps == 1) return &spread<1, 1, V, A>;
  if (up == 2 && taps == 2) return &spread<2, 2, V, A>;
  if (up == 2 && taps == 6) return &spread<2, 6, V, A>;
  if (up == 4 && taps == 6) return &spread<4, 6, V, A>;
  return &spread_any<V, A>;
}

template <class V, class A> auto choose_gather(int down, int taps) {
  if (down == 1 && taps == 1) return &gather<1, 1, V, A>;
  if (down == 1 && taps == 4) return &gather<1, 4, V, A>;
  if (down == 1 && taps == 12) return &gather<1, 12, V, A>;
  if (down == 2 && taps == 4) return &gather<2, 4, V, A>;
  if (down == 2 && taps == 12) return &gather<2, 12, V, A>;
  if (down == 4 && taps == 24) return &gather<4, 24, V, A>;
  return &gather_any<V, A>;
}

template <class V, class A> auto choose_sum(int out, int taps) {
  if (out == 1 && taps == 4) return &sum_rows<1, 4, V, A>;
  if (out == 1 && taps == 12) return &sum_rows<1, 12, V, A>;
  if (out == 1 && taps == 24) return &sum_rows<1, 24, V, A>;
  if (out == 2 && taps == 2) return &sum_rows<2, 2, V, A>;
  if (out == 2 && taps == 6) return &sum_rows<2, 6, V, A>;
  if (out == 4 && taps == 6) return &sum_rows<4, 6, V, A>;
  return &sum_rows_any<V, A>;
}

// What happens to an upsampled pixel u: nothing; lrelu with gains for either sign, then clamp, its choices noted in the
// mask or not; or the derivative of that, read from the mask.
enum class Act { none, lrelu, lrelu_noting, derivative };

template <class A> struct Pointwise {
  Act act = Act::none;
  A positive = 1, negative = 1, clamp = INFINITY;
};

template <class V, class A> void act_on_row(V* u, int64_t width, const Pointwise<A>& p, uint32_t* mask) {
  const V zero = {}, positive = broadcast<V>(p.positive), negative = broadcast<V>(p.negative);
  const V upper = broadcast<V>(p.clamp), lower = -upper;
  using I = decltype(zero > zero);
  switch (p.act) {
    case Act::none:
      break;
    case Act::lrelu:
      for (int64_t i = 0; i < width; i++) {
        V v = u[i] * (u[i] > zero ? positive : negative);
        v = v < lower ? lower : v;
        u[i] = v > upper ? upper : v;
      }
      break;
    case Act::lrelu_noting:
      for (int64_t i = 0; i < width; i++) {
        const I is_positive = u[i] > zero;
        V v = u[i] * (is_positive ? positive : negative);
        mask[i] = noted<I>(is_positive, (v <= lower) | (v >= upper));
        v = v < lower ? lower : v;
        u[i] = v > upper ? upper : v;
      }
      break;
    case Act::derivative:
      for (int64_t i = 0; i < width; i++) u[i] *= slopes<V>(mask[i], positive, negative);
      break;
  }
}

// The whole pass for one thread: rows are pulled through it from below.
template <class T> class Pipeline {
  using V = LanesOf<T>;
  using A = ScalarOf<T>;

 public:
  Pipeline(const Planes<T>& x, const Planes<T>& y, const T* bias, const Filter<A>& up, const Filter<A>& down,
           int64_t mid_h, int64_t mid_w, const Pointwise<A>& pointwise, uint32_t* mask, bool across)
      : x_(x), y_(y), bias_(bias), up_(up), down_(down), mid_h_(mid_h), mid_w_(mid_w), pointwise_(pointwise),
        mask_(mask), across_(across) {
    plan_x();
    plan_filters();
    allocate();
  }

  // Output rows [begin, end) of one group of planes; the mask is written for the rows that no other call owns.
  void run(int64_t group_index, int64_t begin, int64_t end) {
    const Group group(group_index, x_.n, x_.c, across_);
    const Rows<T> in(x_, group), out(y_, group);
    V bias = {};
    if (bias_ != nullptr)
      for (int lane = 0; lane < group.count; lane++) bias[lane] = static_cast<A>(bias_[group.channel_of(lane, x_.c)]);
    uint32_t* mask = mask_ == nullptr ? nullptr : mask_ + group_index * mid_h_ * mid_w_;
    next_raw_ = INT64_MIN;
    next_mid_ = first_needed(begin);
    owned_begin_ = begin == 0 ? 0 : first_needed(begin);
    owned_end_ = end == y_.h ? mid_h_ : first_needed(end);
    for (int64_t m = begin; m < end; m++) {
      const int64_t last = std::min(mid_h_ - 1, m * down_.y.factor + down_.y.taps - 1 - down_.y.before);
      while (next_mid_ <= last) make_mid_rows(in, bias, mask);
      make_output_row(m, out);
    }
  }

 private:
  int64_t first_needed(int64_t m) const {
    return std::clamp<int64_t>(m * down_.y.factor - down_.y.before, 0, mid_h_);
  }

  void plan_x() {
    const Axis& ux = up_.x;
    taps_per_phase_x_ = (ux.taps + ux.factor - 1) / ux.factor;
    taps_per_phase_y_ = (up_.y.taps + up_.y.factor - 1) / up_.y.factor;
    const int64_t start = floor_mod(ux.before + 1, ux.factor);  // where the first whole block starts
    mid_start_ = start == 0 ? 0 : start - ux.factor;
    first_raw_x_ = (mid_start_ + ux.factor - 1 - ux.before) / ux.factor;
    blocks_ = (mid_w_ - mid_start_ + ux.factor - 1) / ux.factor;
    raw_left_ = std::max<int64_t>(0, -first_raw_x_);
    const int64_t raw_end = first_raw_x_ + blocks_ + kSpreadOverrun + taps_per_phase_x_;
    raw_width_ = raw_left_ + std::max(raw_end, x_.w);
    mid_left_ = std::max<int64_t>(-mid_start_, std::max<int64_t>(0, down_.x.before));
    const int64_t mid_end = (y_.w + kGatherOverrun - 1) * down_.x.factor + down_.x.taps - down_.x.before;
    mid_right_ = std::max(mid_end, mid_start_ + (blocks_ + kSpreadOverrun) * ux.factor);
    mid_right_ = std::max(mid_right_, mid_w_);
    mid_width_ = mid_left_ + mid_right_;
    out_width_ = y_.w + kGatherOverrun;
  }

  void plan_filters() {
    const int fx = up_.x.factor, fy = up_.y.factor, tx = taps_per_phase_x_, ty = taps_per_phase_y_;
    if (up_.separable) {
      up_coef_x_.resize(fx * tx);
      for (int q = 0; q < fx; q++)
        for (int t = 0; t < tx; t++) up_coef_x_[q * tx + t] = tap(up_.taps_x, fx - 1 - q + fx * t);
      up_coef_y_.resize(fy * ty);
      for (int q = 0; q < fy; q++)
        for (int t = 0; t < ty; t++) up_coef_y_[q * ty + t] = tap(up_.taps_y, fy - 1 - q + fy * t);
    } else {
      up_coef_.resize(fy * ty * fx * tx);  // [phase y][row][phase x][tap]
      for (int qy = 0; qy < fy; qy++)
        for (int r = 0; r < ty; r++)
          for (int q = 0; q < fx; q++)
            for (int t = 0; t < tx; t++)
              up_coef_[((qy * ty + r) * fx + q) * tx + t] = up_.at(fy - 1 - qy + fy * r, fx - 1 - q + fx * t);
    }
    spread_ = choose_spread<V, A>(fx, tx);
    sum_up_ = choose_sum<V, A>(fy, ty);
    gather_ = choose_gather<V, A>(down_.x.factor, down_.x.taps);
    sum_down_ = choose_sum<V, A>(1, down_.y.taps);
  }

  static A tap(const std::vector<A>& taps, int k) { return k < int(taps.size()) ? taps[k] : A(0); }

  void allocate() {
    ring_ = down_.y.taps + up_.y.factor;
    num_mid_ = down_.separable ? 1 : ring_;
    const bool copies_rows = up_.separable && !vertical_is_identity();
    num_vertical_ = copies_rows ? up_.y.factor : 0;
    const int64_t raw = (taps_per_phase_y_ + 1 + num_vertical_) * raw_width_;  // one row more, of zeros
    const int64_t mid = num_mid_ * mid_width_;
    const int64_t out = (down_.separable ? ring_ : 0) * out_width_ + out_width_;
    storage_.assign((raw + mid + out + 1) * sizeof(V), 0);
    auto address = reinterpret_cast<uintptr_t>(storage_.data());
    raw_ = reinterpret_cast<V*>((address + sizeof(V) - 1) / sizeof(V) * sizeof(V));
    mid_ = raw_ + raw;
    out_ = mid_ + mid;
    for (int q = 0; q < num_vertical_; q++) vertical_.push_back(raw_row(taps_per_phase_y_ + 1 + q));
    pointers_.resize(std::max(taps_per_phase_y_, down_.y.taps));
    zero_mid_.assign(down_.separable ? 0 : (mid_width_ + 1) * sizeof(V), 0);
  }

  bool vertical_is_identity() const { return up_.y.factor == 1 && up_.y.taps == 1 && up_.taps_y[0] == A(1); }
  V* raw_row(int slot) { return raw_ + slot * raw_width_ + raw_left_; }
  V* mid_row(int64_t row) { return mid_ + floor_mod(row, num_mid_) * mid_width_ + mid_left_; }
  V* reduced_row(int64_t row) { return out_ + floor_mod(row, ring_) * out_width_; }
  V* zero_row() { return raw_row(taps_per_phase_y_); }

  // The block of upsampled rows that row next_mid_ belongs to.
  void make_mid_rows(const Rows<T>& in, const V& bias, uint32_t* mask) {
    const int fy = up_.y.factor;
    const int64_t start = next_mid_ - floor_mod(next_mid_ - (up_.y.before + 1), fy);
    const int64_t raw = (start + fy - 1 - up_.y.before) / fy;
    for (int64_t row = std::max(next_raw_, raw); row < raw + taps_per_phase_y_; row++)
      if (0 <= row && row < x_.h) in.load(row, 0, x_.w, bias, raw_row(int(row % taps_per_phase_y_)));
    next_raw_ = raw + taps_per_phase_y_;
    for (int t = 0; t < taps_per_phase_y_; t++) {
      const int64_t row = raw + t;
      pointers_[t] = 0 <= row && row < x_.h ? raw_row(int(row % taps_per_phase_y_)) : zero_row();
    }
    if (num_vertical_ > 0) sum_up_(pointers_.data(), up_coef_y_.data(), x_.w, vertical_.data(), fy, taps_per_phase_y_);
    const int64_t end = std::min(start + fy, mid_h_);
    for (; next_mid_ < end; next_mid_++) make_mid_row(next_mid_, int(next_mid_ - start), mask);
  }

  void make_mid_row(int64_t row, int q, uint32_t* mask) {
    const int fx = up_.x.factor, tx = taps_per_phase_x_;
    V* u = mid_row(row);
    if (up_.separable) {
      const V* source = num_vertical_ > 0 ? vertical_[q] : pointers_[0];
      spread_(&source, 1, first_raw_x_, up_coef_x_.data(), blocks_, u + mid_start_, fx, tx);
    } else {
      const A* coef = up_coef_.data() + q * taps_per_phase_y_ * fx * tx;
      spread_(pointers_.data(), taps_per_phase_y_, first_raw_x_, coef, blocks_, u + mid_start_, fx, tx);
    }
    std::fill(u - mid_left_, u, V{});  // what the blocks wrote outside
    std::fill(u + mid_w_, u + mid_right_, V{});
    act(row, u, mask);
    if (down_.separable) {
      const V* source = u;
      gather_(&source, 1, -down_.x.before, down_.taps_x.data(), y_.w, reduced_row(row), down_.x.factor, down_.x.taps);
    }
  }

  void act(int64_t row, V* u, uint32_t* mask) {
    Pointwise<A> p = pointwise_;
    if (p.act == Act::lrelu_noting && (row < owned_begin_ || row >= owned_end_)) p.act = Act::lrelu;
    act_on_row(u, mid_w_, p, mask == nullptr ? nullptr : mask + row * mid_w_);
  }

  void make_output_row(int64_t m, const Rows<T>& out) {
    const int64_t first = m * down_.y.factor - down_.y.before;
    V* result = out_ + (down_.separable ? ring_ : 0) * out_width_;
    V* zeros = down_.separable ? zero_reduced() : zero_mid();
    for (int t = 0; t < down_.y.taps; t++) {
      const int64_t row = first + t;
      const bool exists = 0 <= row && row < mid_h_;
      pointers_[t] = !exists ? zeros : down_.separable ? reduced_row(row) : mid_row(row);
    }
    if (!down_.separable) {
      gather_(pointers_.data(), down_.y.taps, -down_.x.before, down_.taps.data(), y_.w, result, down_.x.factor,
              down_.x.taps);
    } else if (down_.y.taps == 1 && down_.taps_y[0] == A(1)) {
      result = const_cast<V*>(pointers_[0]);
    } else {
      sum_down_(pointers_.data(), down_.taps_y.data(), y_.w, &result, 1, down_.y.taps);
    }
    out.store(m, y_.w, result);
  }

  V* zero_reduced() {
    if (zero_reduced_.empty()) zero_reduced_.assign((out_width_ + 1) * sizeof(V), 0);
    return aligned(zero_reduced_);
  }
  V* zero_mid() { return aligned(zero_mid_) + mid_left_; }
  static V* aligned(std::vector<char>& bytes) {
    auto address = reinterpret_cast<uintptr_t>(bytes.data());
    return reinterpret_cast<V*>((address + sizeof(V) - 1) / sizeof(V) * sizeof(V));
  }

  const Planes<T>&x_, &y_;
  const T* bias_;
  const Filter<A>&up_, &down_;
  const int64_t mid_h_, mid_w_;
  const Pointwise<A> pointwise_;
  uint32_t* const mask_;
  const bool across_;

  int taps_per_phase_x_, taps_per_phase_y_;
  int64_t mid_start_, first_raw_x_, blocks_, raw_left_, raw_width_, mid_left_, mid_right_, mid_width_, out_width_;
  std::vector<A> up_coef_x_, up_coef_y_, up_coef_;
  decltype(choose_spread<V, A>(1, 1)) spread_;
  decltype(choose_gather<V, A>(1, 1)) gather_;
  decltype(choose_sum<V, A>(1, 1)) sum_up_, sum_down_;

  int ring_, num_mid_, num_vertical_;
  std::vector<char> storage_, zero_reduced_, zero_mid_;
  V *raw_, *mid_, *out_;
  std::vector<V*> vertical_;
  std::vector<const V*> pointers_;
  int64_t next_raw_, next_mid_, owned_begin_, owned_end_;
};

// Runs the pass over all planes. Few planes are divided into bands of rows, so that every thread has work.
template <class T>
void run_pipeline(const Planes<T>& x, const Planes<T>& y, const T* bias, const Filter<ScalarOf<T>>& up,
                  const Filter<ScalarOf<T>>& down, int64_t mid_h, int64_t mid_w,
                  const Pointwise<ScalarOf<T>>& pointwise, uint32_t* mask, bool across) {
  constexpr int64_t kTasksPerThread = 4, kLeastRows = 16;
  const int64_t groups = Group::number(x.n, x.c, across);
  const int64_t wanted = (kTasksPerThread * at::get_num_threads() + groups - 1) / groups;
  const int64_t bands = std::clamp<int64_t>(y.h / kLeastRows, 1, wanted);
  at::parallel_for(0, groups * bands, 1, [&](int64_t begin, int64_t end) {
    Pipeline<T> pipeline(x, y, bias, up, down, mid_h, mid_w, pointwise, mask, across);
    for (int64_t task = begin; task < end; task++) {
      const int64_t band = task % bands;
      pipeline.run(task / bands, y.h * band / bands, y.h * (band + 1) / bands);
    }
  });
}

}  // namespace spider
