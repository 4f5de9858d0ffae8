// Bias, leaky ReLU, gain and clamp, and the derivative from the choices that the forward pass noted: 2 bits an element, in
// the order of memory. A thread has the four elements of a byte.

constexpr int PER_BYTE = 4;

SPIDER_KERNEL bias_act(const element* x, const element* bias, element* y, unsigned char* notes, long long numel,
                       int channels, long long inner, scalar positive, scalar negative, scalar clamp) {
  const long long byte_index = (long long)blockIdx.x * blockDim.x + threadIdx.x;
  if (byte_index * PER_BYTE >= numel) return;
  int byte = 0;
#pragma unroll
  for (int k = 0; k < PER_BYTE; k++) {
    const long long i = byte_index * PER_BYTE + k;
    if (i < numel) {
      int note;
      const scalar v = bias ? widen(x[i]) + widen(bias[i / inner % channels]) : widen(x[i]);
      y[i] = narrow(activate(v, positive, negative, clamp, note));
      byte |= note << (2 * k);
    }
  }
  if (notes) notes[byte_index] = (unsigned char)byte;
}

SPIDER_KERNEL bias_act_derivative(const element* dy, const unsigned char* notes, element* dx, long long numel,
                                  scalar positive, scalar negative) {
  const long long byte_index = (long long)blockIdx.x * blockDim.x + threadIdx.x;
  if (byte_index * PER_BYTE >= numel) return;
  const int byte = notes[byte_index];
#pragma unroll
  for (int k = 0; k < PER_BYTE; k++) {
    const long long i = byte_index * PER_BYTE + k;
    if (i < numel) dx[i] = narrow(widen(dy[i]) * slope_of(byte >> (2 * k), positive, negative));
  }
}
