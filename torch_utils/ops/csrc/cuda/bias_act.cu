// Bias, leaky ReLU, gain and clamp, and the derivative from the result; one element a thread.

// So that the result shows whether it was clamped, what was not but rounds to the bound becomes the number below it.
__device__ __forceinline__ element clamped(scalar v, scalar clamp) {
  const element bound = narrow(clamp);
  if (v >= clamp || v <= -clamp) return v > 0 ? bound : narrow(-clamp);
#if ELEMENT != 0
  const scalar below = widen((element)(bound - 1));
  if (clamp < (scalar)3e38 && (v > below || v < -below)) return narrow(v > 0 ? below : -below);
#endif
  return narrow(v);
}

SPIDER_KERNEL bias_act(const element* x, const element* bias, element* y, long long numel, int channels, long long inner,
                       scalar positive, scalar negative, scalar clamp) {
  const long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= numel) return;
  scalar v = widen(x[i]);
  if (bias) v += widen(bias[i / inner % channels]);
  v *= v > 0 ? positive : negative;
  y[i] = clamped(v, clamp);
}

SPIDER_KERNEL bias_act_derivative(const element* dy, const element* y, element* dx, long long numel, scalar positive,
                                  scalar negative, scalar clamp) {
  const long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= numel) return;
  const scalar v = widen(y[i]);
  const scalar slope = v > 0 ? positive : negative, bound = widen(narrow(clamp));
  dx[i] = narrow(widen(dy[i]) * (-bound < v && v < bound ? slope : (scalar)0));
}
