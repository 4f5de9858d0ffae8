// Bias, leaky ReLU, gain and clamp, and the derivative from the signs of the result; one element a thread.

SPIDER_KERNEL bias_act(const element* x, const element* bias, element* y, long long numel, int channels, long long inner,
                       scalar positive, scalar negative, scalar clamp) {
  const long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= numel) return;
  scalar v = widen(x[i]);
  if (bias) v += widen(bias[i / inner % channels]);
  v *= v > 0 ? positive : negative;
  y[i] = narrow(v < -clamp ? -clamp : v > clamp ? clamp : v);
}

SPIDER_KERNEL bias_act_derivative(const element* dy, const element* y, element* dx, long long numel, scalar positive,
                                  scalar negative, scalar clamp) {
  const long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= numel) return;
  const scalar v = widen(y[i]);
  const scalar slope = v > 0 ? positive : negative;
  dx[i] = narrow(widen(dy[i]) * (-clamp < v && v < clamp ? slope : (scalar)0));
}
