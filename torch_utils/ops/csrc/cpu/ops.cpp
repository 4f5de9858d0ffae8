// The CPU kernels behind the operators `spider_stylegan::*`, whose schemas torch_utils/ops/kernels.py defines.

#include <ATen/ATen.h>
#include <ATen/Dispatch.h>
#include <torch/library.h>

#include <tuple>

#include "bias_act.h"
#include "resample.h"

namespace spider {
namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

#define SPIDER_DISPATCH(TYPE, NAME, ...) \
  AT_DISPATCH_FLOATING_TYPES_AND(at::ScalarType::BFloat16, TYPE, NAME, __VA_ARGS__)

// Taps in the order of a correlation, times `gain`.
template <class A>
Filter<A> make_filter(const OptionalTensor& f, Axis x, Axis y, bool flip, double gain) {
  Filter<A> filter;
  const bool exists = f.has_value();
  const Tensor taps = exists ? f->contiguous() : Tensor();
  const int height = exists ? int(taps.size(0)) : 1, width = exists ? int(taps.size(-1)) : 1;
  filter.x = x;
  filter.y = y;
  filter.x.taps = width;
  filter.y.taps = height;
  const float* data = exists ? taps.data_ptr<float>() : nullptr;
  auto tap = [&](int64_t k, int64_t count) { return A(data[flip ? k : count - 1 - k]); };
  if (!exists || taps.dim() == 1) {
    const A root = A(std::sqrt(std::abs(gain)));
    filter.taps_x.assign(width, 1);
    filter.taps_y.assign(height, 1);
    for (int k = 0; exists && k < width; k++) filter.taps_x[k] = filter.taps_y[k] = tap(k, width);
    for (A& t : filter.taps_x) t *= gain < 0 ? -root : root;
    for (A& t : filter.taps_y) t *= root;
    return filter;
  }
  filter.taps.resize(height * width);
  for (int64_t k = 0; k < height * width; k++) filter.taps[k] = tap(k, int64_t(height) * width) * A(gain);
  separate(filter);
  return filter;
}

int64_t taps_of(const OptionalTensor& f, int axis) { return f.has_value() ? f->size(axis) : 1; }

int64_t output_size(int64_t size, int64_t up, int64_t down, int64_t pads, int64_t taps) {
  return (size * up + pads - taps) / down + 1;
}

Tensor empty_like_image(const Tensor& x, int64_t h, int64_t w) {
  return at::empty({x.size(0), x.size(1), h, w}, x.options().memory_format(x.suggest_memory_format()));
}

// Filters across images where the channels of one do not fill the lanes and are not adjacent.
bool goes_across(const Tensor& x) { return x.stride(1) != 1 && x.size(1) % kLanes != 0; }

Tensor upfirdn2d(const Tensor& x, const OptionalTensor& f, at::IntArrayRef up, at::IntArrayRef down, at::IntArrayRef padding,
                 bool flip, double gain) {
  const int64_t height = taps_of(f, 0), width = taps_of(f, -1);
  const int64_t out_w = output_size(x.size(3), up[0], down[0], padding[0] + padding[1], width);
  const int64_t out_h = output_size(x.size(2), up[1], down[1], padding[2] + padding[3], height);
  Tensor y = empty_like_image(x, out_h, out_w);
  if (y.numel() == 0) return y;
  if (x.numel() == 0) return y.zero_();
  const bool upsamples = up[0] > 1 || up[1] > 1;
  SPIDER_DISPATCH(x.scalar_type(), "upfirdn2d", [&] {
    using A = ScalarOf<scalar_t>;
    Filter<A> before, after;
    int64_t mid_h = x.size(2), mid_w = x.size(3);
    if (upsamples) {  // filter on the way up, then keep every `down`-th pixel
      before = make_filter<A>(f, {int(up[0]), 1, padding[0]}, {int(up[1]), 1, padding[2]}, flip, gain);
      after = make_filter<A>(std::nullopt, {int(down[0]), 1, 0}, {int(down[1]), 1, 0}, flip, 1);
      mid_h = output_size(x.size(2), up[1], 1, padding[2] + padding[3], height);
      mid_w = output_size(x.size(3), up[0], 1, padding[0] + padding[1], width);
    } else {
      after = make_filter<A>(f, {int(down[0]), 1, padding[0]}, {int(down[1]), 1, padding[2]}, flip, gain);
    }
    run_pipeline<scalar_t>(Planes<scalar_t>(x), Planes<scalar_t>(y), nullptr, before, after, mid_h, mid_w, {}, nullptr,
                           goes_across(x));
  });
  return y;
}

std::tuple<Tensor, Tensor> filtered_lrelu(const Tensor& x, const OptionalTensor& fu, const OptionalTensor& fd,
                                          const OptionalTensor& b, int64_t up, int64_t down, at::IntArrayRef padding,
                                          double gain, double slope, double clamp, bool flip, bool note_signs) {
  const int64_t mid_w = output_size(x.size(3), up, 1, padding[0] + padding[1], taps_of(fu, -1));
  const int64_t mid_h = output_size(x.size(2), up, 1, padding[2] + padding[3], taps_of(fu, 0));
  Tensor y = empty_like_image(x, output_size(mid_h, 1, down, 0, taps_of(fd, 0)), output_size(mid_w, 1, down, 0, taps_of(fd, -1)));
  const int64_t groups = Group::number(x.size(0), x.size(1), false);
  Tensor mask = at::empty({note_signs ? groups : 0, mid_h, mid_w}, x.options().dtype(at::kInt));
  if (y.numel() == 0) return {y, mask};
  const Tensor bias = b.has_value() ? b->contiguous() : Tensor();
  SPIDER_DISPATCH(x.scalar_type(), "filtered_lrelu", [&] {
    using A = ScalarOf<scalar_t>;
    const auto before = make_filter<A>(fu, {int(up), 1, padding[0]}, {int(up), 1, padding[2]}, flip, double(up * up));
    const auto after = make_filter<A>(fd, {int(down), 1, 0}, {int(down), 1, 0}, flip, 1);
    Pointwise<A> pointwise{note_signs ? Act::lrelu_noting : Act::lrelu, A(gain), A(gain * slope), A(clamp)};
    run_pipeline<scalar_t>(Planes<scalar_t>(x), Planes<scalar_t>(y), b.has_value() ? bias.data_ptr<scalar_t>() : nullptr,
                           before, after, mid_h, mid_w, pointwise, reinterpret_cast<uint32_t*>(mask.data_ptr<int>()),
                           false);
  });
  return {y, mask};
}

// Down(fd) mask Up(fu), linear in x: the derivative of filtered_lrelu, its transpose, and the derivative of that.
Tensor filtered_lrelu_derivative(const Tensor& x, const Tensor& mask, const OptionalTensor& fu, const OptionalTensor& fd,
                                 int64_t up, int64_t down, at::IntArrayRef before_up, at::IntArrayRef before_down,
                                 at::IntArrayRef size, double gain, double slope, bool flip_up, bool flip_down,
                                 at::IntArrayRef mid_size) {
  Tensor y = empty_like_image(x, size[0], size[1]);
  if (y.numel() == 0) return y;
  SPIDER_DISPATCH(x.scalar_type(), "filtered_lrelu_derivative", [&] {
    using A = ScalarOf<scalar_t>;
    const auto before = make_filter<A>(fu, {int(up), 1, before_up[0]}, {int(up), 1, before_up[1]}, flip_up, 1);
    const auto after = make_filter<A>(fd, {int(down), 1, before_down[0]}, {int(down), 1, before_down[1]}, flip_down, 1);
    const Pointwise<A> pointwise{Act::derivative, A(gain), A(gain * slope), INFINITY};
    run_pipeline<scalar_t>(Planes<scalar_t>(x), Planes<scalar_t>(y), nullptr, before, after, mid_size[0], mid_size[1],
                           pointwise, reinterpret_cast<uint32_t*>(mask.data_ptr<int>()), false);
  });
  return y;
}

// Of a tensor that is dense in memory: channels along dimension `dim`, and the elements from one to the next.
std::pair<int64_t, int64_t> sides_of(const Tensor& x, int64_t dim) {
  if (x.size(dim) == 1) return {1, x.numel()};  // the stride of such a dimension means nothing
  return {x.size(dim), x.stride(dim)};
}

Tensor dense(const Tensor& x) { return x.is_non_overlapping_and_dense() ? x : x.contiguous(); }

std::tuple<Tensor, Tensor> bias_act_op(const Tensor& x_, const OptionalTensor& b, int64_t dim, double alpha, double gain,
                                       double clamp, bool note_signs) {
  const Tensor x = dense(x_);
  Tensor y = at::empty_like(x);
  Tensor mask = at::empty({note_signs ? number_of_words(x.numel()) : 0}, x.options().dtype(at::kInt));
  if (x.numel() == 0) return {y, mask};
  const auto [channels, inner] = b.has_value() ? sides_of(x, dim) : std::make_pair(int64_t(1), x.numel());
  const Tensor bias = b.has_value() ? b->contiguous() : Tensor();
  SPIDER_DISPATCH(x.scalar_type(), "bias_act", [&, channels = channels, inner = inner] {
    using A = ScalarOf<scalar_t>;
    bias_act<scalar_t>(x.data_ptr<scalar_t>(), b.has_value() ? bias.data_ptr<scalar_t>() : nullptr,
                       y.data_ptr<scalar_t>(), note_signs ? reinterpret_cast<uint32_t*>(mask.data_ptr<int>()) : nullptr,
                       x.numel(), channels, inner, {A(gain), A(gain * alpha), A(clamp)});
  });
  return {y, mask};
}

// dx has the strides of the forward pass' y, in whose order the mask is.
Tensor bias_act_derivative_op(const Tensor& dy_, const Tensor& mask, at::IntArrayRef strides, double alpha, double gain) {
  Tensor dx = at::empty_strided(dy_.sizes(), strides, dy_.options());
  if (dx.numel() == 0) return dx;
  const Tensor dy = dy_.strides() == strides ? dy_ : at::empty_like(dx).copy_(dy_);
  SPIDER_DISPATCH(dx.scalar_type(), "bias_act_derivative", [&] {
    using A = ScalarOf<scalar_t>;
    bias_act_derivative<scalar_t>(dy.data_ptr<scalar_t>(), reinterpret_cast<uint32_t*>(mask.data_ptr<int>()),
                                  dx.data_ptr<scalar_t>(), dx.numel(), A(gain), A(gain * alpha));
  });
  return dx;
}

}  // namespace

TORCH_LIBRARY_IMPL(spider_stylegan, CPU, m) {
  m.impl("bias_act", &bias_act_op);
  m.impl("bias_act_derivative", &bias_act_derivative_op);
  m.impl("upfirdn2d", &upfirdn2d);
  m.impl("filtered_lrelu", &filtered_lrelu);
  m.impl("filtered_lrelu_derivative", &filtered_lrelu_derivative);
}

}  // namespace spider
