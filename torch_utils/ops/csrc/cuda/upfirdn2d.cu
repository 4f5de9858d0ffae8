// One output pixel a thread, for any factors, filters and layouts: what resample.cu does not take. Threads follow the
// memory of y, so that neighbours read what neighbours have cached.
//
//   y[m] = sum_k f[k] x'[m DOWN + k - before]     x' is the zero-stuffed x

SPIDER_KERNEL upfirdn2d(const element* x, element* y, const float* f, int channels, int in_h, int in_w, int out_h, int out_w,
                        long long numel, int is_channels_last, long long x_n, long long x_c, long long x_h, long long x_w,
                        int before_x, int before_y, int flip, scalar gain) {
  const long long index = (long long)blockIdx.x * blockDim.x + threadIdx.x;
  if (index >= numel) return;
  long long rest = index;
  int c, ox, oy;
  if (is_channels_last) {
    c = (int)(rest % channels), rest /= channels;
    ox = (int)(rest % out_w), rest /= out_w;
    oy = (int)(rest % out_h), rest /= out_h;
  } else {
    ox = (int)(rest % out_w), rest /= out_w;
    oy = (int)(rest % out_h), rest /= out_h;
    c = (int)(rest % channels), rest /= channels;
  }
  const element* source = x + rest * x_n + c * x_c;
  const int from_x = ox * DOWN_X - before_x, from_y = oy * DOWN_Y - before_y;
  const int phase_x = ((-from_x) % UP_X + UP_X) % UP_X, phase_y = ((-from_y) % UP_Y + UP_Y) % UP_Y;
  scalar sum = 0;
  for (int ky = phase_y; ky < TAPS_Y; ky += UP_Y) {
    const int iy = (from_y + ky) / UP_Y;  // exact
    if (from_y + ky < 0 || iy >= in_h) continue;
    for (int kx = phase_x; kx < TAPS_X; kx += UP_X) {
      const int ix = (from_x + kx) / UP_X;
      if (from_x + kx < 0 || ix >= in_w) continue;
      const int ty = flip ? ky : TAPS_Y - 1 - ky, tx = flip ? kx : TAPS_X - 1 - kx;
      const scalar tap = SEPARABLE ? (scalar)f[ty] * f[tx] : (scalar)f[ty * TAPS_X + tx];
      sum += tap * widen(source[iy * x_h + ix * x_w]);
    }
  }
  y[index] = narrow(sum * gain);
}
