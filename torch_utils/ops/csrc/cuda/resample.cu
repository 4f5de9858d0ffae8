// Upsample, act, downsample: a tile of one plane goes through all of it in shared memory. Planes are contiguous.
//
// Along an axis, with the offsets of csrc/cpu/resample.h:
//   u[m] = sum_k fu[k] x'[m + k - BEFORE_UP]      x' is the zero-stuffed x
//   y[j] = sum_k fd[k] a(u)[j DOWN + k - BEFORE_DOWN]
// The host fixes sizes at compile time: UP, DOWN in {1, 2, 4}, taps TU, TD (per axis the same), tile TW x TH of outputs,
// and what follows from them: origin of the tile in u is the multiple of 4 at or below its first sample, SHIFT_* samples
// before it; MID_* are the samples of u in a tile, IN_* the pixels of x. MODE is 0 no activation, 1 leaky ReLU and
// clamp, 2 the same and note the choices, 3 the derivative that the notes decide. Notes are 2 bits a sample of u, four
// samples a byte: not positive, clamped.

struct __align__(16) Quad {
  scalar v[4];
};

// Where the pixels that sample k of u sees begin, relative to those of sample 0 (both counted from the tile's origin).
__device__ __forceinline__ constexpr int phase(int k, int before) { return ((before - k) % UP + UP) % UP; }
__device__ __forceinline__ constexpr int first_pixel(int k, int before) {  // (k + phase - before) / UP, which is exact
  return (k + phase(k, before) - before) / UP;
}

constexpr int TAPS_PER_PHASE = (TU + UP - 1) / UP;
constexpr int IN_PITCH = (IN_W + 3) / 4 * 4;
constexpr int MID_PITCH = MID_W;  // a multiple of 4
constexpr int IN_SIZE = IN_H * IN_PITCH, MID_SIZE = MID_H * MID_PITCH;
constexpr int HALF_UP_SIZE = UP_2D ? 0 : IN_H * MID_PITCH;  // upsampled along x
constexpr int HALF_DOWN_SIZE = DOWN_2D ? 0 : MID_H * TW;    // downsampled along x
__device__ __forceinline__ constexpr int larger(int a, int b) { return a > b ? a : b; }

SPIDER_KERNEL resample(const element* x, element* y, const element* bias, const float* fu, const float* fd,
                       unsigned char* notes, int channels, int in_h, int in_w, int mid_h, int mid_w, int out_h,
                       int out_w, int tiles_x, int tiles_y, int flip_up, int flip_down, scalar gain_up, scalar gain_down,
                       scalar positive, scalar negative, scalar clamp) {
  // Each step reads one buffer and writes the other.
  __shared__ __align__(16) scalar first[larger(IN_SIZE, UP_2D ? HALF_DOWN_SIZE : MID_SIZE)];
  __shared__ __align__(16) scalar second[larger(UP_2D ? MID_SIZE : HALF_UP_SIZE, UP_2D ? 0 : HALF_DOWN_SIZE)];
  scalar* const mid = UP_2D ? second : first;
  scalar* const half_down = UP_2D ? first : second;
  __shared__ scalar taps_up[UP_2D ? TU * TU : TU];
  __shared__ scalar taps_down[DOWN_2D ? TD * TD : TD];

  const int tile = blockIdx.x % (tiles_x * tiles_y);
  const int plane = blockIdx.x / (tiles_x * tiles_y);
  const int out_x = tile % tiles_x * TW, out_y = tile / tiles_x * TH;
  const int mid_x = out_x * DOWN - BEFORE_DOWN_X - SHIFT_X, mid_y = out_y * DOWN - BEFORE_DOWN_Y - SHIFT_Y;
  const int in_x = mid_x / UP + first_pixel(0, BEFORE_UP_X), in_y = mid_y / UP + first_pixel(0, BEFORE_UP_Y);

  const int num_up = UP_2D ? TU * TU : TU, num_down = DOWN_2D ? TD * TD : TD;
  for (int k = threadIdx.x; k < num_up; k += blockDim.x) taps_up[k] = fu ? fu[flip_up ? k : num_up - 1 - k] * gain_up : gain_up;
  for (int k = threadIdx.x; k < num_down; k += blockDim.x)
    taps_down[k] = fd ? fd[flip_down ? k : num_down - 1 - k] * gain_down : gain_down;

  const element* source = x + (long long)plane * in_h * in_w;
  const scalar b = bias ? widen(bias[plane % channels]) : (scalar)0;
  for (int i = threadIdx.x; i < IN_H * IN_PITCH; i += blockDim.x) {
    const int row = in_y + i / IN_PITCH, column = in_x + i % IN_PITCH;
    const bool inside = 0 <= row && row < in_h && 0 <= column && column < in_w;
    first[i] = inside ? widen(source[(long long)row * in_w + column]) + b : (scalar)0;
  }
  __syncthreads();

#if !UP_2D
  // Along x: four samples of a row at a time.
  for (int i = threadIdx.x; i < IN_H * (MID_W / 4); i += blockDim.x) {
    const int row = i / (MID_W / 4), quad = i % (MID_W / 4);
    const scalar* s = first + row * IN_PITCH + quad * 4 / UP;
    Quad u;
#pragma unroll
    for (int k = 0; k < 4; k++) {
      scalar sum = 0;
      const int p = phase(k, BEFORE_UP_X), start = first_pixel(k, BEFORE_UP_X) - first_pixel(0, BEFORE_UP_X);
#pragma unroll
      for (int t = 0; t < TAPS_PER_PHASE; t++)
        if (p + t * UP < TU) sum += taps_up[p + t * UP] * s[start + t];
      u.v[k] = sum;
    }
    *(Quad*)(second + row * MID_PITCH + quad * 4) = u;
  }
  __syncthreads();
#endif

  // Along y (or both ways), then the activation.
  for (int i = threadIdx.x; i < MID_H * (MID_W / 4); i += blockDim.x) {
    const int row = i / (MID_W / 4), quad = i % (MID_W / 4);
    Quad u = {{0, 0, 0, 0}};
    const int p = phase(row, BEFORE_UP_Y), start = first_pixel(row, BEFORE_UP_Y) - first_pixel(0, BEFORE_UP_Y);
#if !UP_2D
#pragma unroll
    for (int t = 0; t < TAPS_PER_PHASE; t++)
      if (p + t * UP < TU) {
        const Quad s = *(const Quad*)(second + (start + t) * MID_PITCH + quad * 4);
        const scalar c = taps_up[p + t * UP];
#pragma unroll
        for (int k = 0; k < 4; k++) u.v[k] += c * s.v[k];
      }
#else
    for (int t = 0; t < TAPS_PER_PHASE; t++)
      if (p + t * UP < TU) {
        const scalar* s = first + (start + t) * IN_PITCH + quad * 4 / UP;
        const scalar* c = taps_up + (p + t * UP) * TU;
#pragma unroll
        for (int k = 0; k < 4; k++) {
          const int px = phase(k, BEFORE_UP_X), from = first_pixel(k, BEFORE_UP_X) - first_pixel(0, BEFORE_UP_X);
#pragma unroll
          for (int tx = 0; tx < TAPS_PER_PHASE; tx++)
            if (px + tx * UP < TU) u.v[k] += c[px + tx * UP] * s[from + tx];
        }
      }
#endif
    const int my = mid_y + row, mx = mid_x + quad * 4;
    const bool row_inside = 0 <= my && my < mid_h;
#if MODE == 1 || MODE == 2
    int byte = 0;
#pragma unroll
    for (int k = 0; k < 4; k++) {
      int note;
      u.v[k] = activate(u.v[k], positive, negative, clamp, note);
      byte |= note << (2 * k);
    }
#endif
#if MODE == 2
    // Each sample is noted by the tile whose own outputs start at or before it; the last tiles note what remains.
    const bool owns_x = quad * 4 < TW * DOWN || out_x + TW >= out_w, owns_y = row < TH * DOWN || out_y + TH >= out_h;
    if (owns_x && owns_y && row_inside && mx < mid_w)
      notes[((long long)plane * mid_h + my) * ((mid_w + 3) / 4) + mx / 4] = (unsigned char)byte;
#endif
#if MODE == 3
    const int byte = row_inside && 0 <= mx && mx < mid_w
                         ? notes[((long long)plane * mid_h + my) * ((mid_w + 3) / 4) + mx / 4] : 0;
#pragma unroll
    for (int k = 0; k < 4; k++) u.v[k] *= slope_of(byte >> (2 * k), positive, negative);
#endif
#pragma unroll
    for (int k = 0; k < 4; k++)
      if (!row_inside || mx + k < 0 || mx + k >= mid_w) u.v[k] = 0;  // what lies outside of u counts as zero
    *(Quad*)(mid + row * MID_PITCH + quad * 4) = u;
  }
  __syncthreads();

#if !DOWN_2D
  for (int i = threadIdx.x; i < MID_H * (TW / 4); i += blockDim.x) {
    const int row = i / (TW / 4), quad = i % (TW / 4);
    const scalar* s = mid + row * MID_PITCH + quad * 4 * DOWN + SHIFT_X;
    Quad sum = {{0, 0, 0, 0}};
#pragma unroll
    for (int t = 0; t < TD; t++)
#pragma unroll
      for (int k = 0; k < 4; k++) sum.v[k] += taps_down[t] * s[k * DOWN + t];
    *(Quad*)(half_down + row * TW + quad * 4) = sum;
  }
  __syncthreads();
#endif

  element* result = y + (long long)plane * out_h * out_w;
  for (int i = threadIdx.x; i < TH * (TW / 4); i += blockDim.x) {
    const int row = i / (TW / 4), quad = i % (TW / 4);
    Quad sum = {{0, 0, 0, 0}};
#if !DOWN_2D
#pragma unroll
    for (int t = 0; t < TD; t++) {
      const Quad s = *(const Quad*)(half_down + (row * DOWN + SHIFT_Y + t) * TW + quad * 4);
#pragma unroll
      for (int k = 0; k < 4; k++) sum.v[k] += taps_down[t] * s.v[k];
    }
#else
    for (int t = 0; t < TD; t++) {
      const scalar* s = mid + (row * DOWN + SHIFT_Y + t) * MID_PITCH + quad * 4 * DOWN + SHIFT_X;
#pragma unroll
      for (int tx = 0; tx < TD; tx++)
#pragma unroll
        for (int k = 0; k < 4; k++) sum.v[k] += taps_down[t * TD + tx] * s[k * DOWN + tx];
    }
#endif
    const int oy = out_y + row, ox = out_x + quad * 4;
    if (oy < out_h)
#pragma unroll
      for (int k = 0; k < 4; k++)
        if (ox + k < out_w) result[(long long)oy * out_w + ox + k] = narrow(sum.v[k]);
  }
}
