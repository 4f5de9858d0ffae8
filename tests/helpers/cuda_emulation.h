// Stands in for CUDA, so that the kernels run on a processor: every thread of a block is a fibre, and __syncthreads()
// lets the others catch up. Between two of them a fibre runs alone, so that a barrier that is missing gives wrong numbers.

#include <ucontext.h>

#include <cstring>
#include <utility>
#include <vector>

#define SPIDER_EMULATION
#define SPIDER_KERNEL static void
#define __device__
#define __forceinline__ inline
#define __shared__ static
#define __align__(n) __attribute__((aligned(n)))

struct Index { unsigned int x; };
static Index threadIdx, blockIdx, blockDim;

static ucontext_t scheduler;
static std::vector<ucontext_t> fibres;
static std::vector<char> finished;

static void __syncthreads() { swapcontext(&fibres[threadIdx.x], &scheduler); }

static float __uint_as_float(unsigned int v) { float f; std::memcpy(&f, &v, 4); return f; }
static unsigned int __float_as_uint(float v) { unsigned int u; std::memcpy(&u, &v, 4); return u; }
static float half_to_float(unsigned short h) { _Float16 f; std::memcpy(&f, &h, 2); return f; }
static unsigned short float_to_half(float v) { _Float16 f = v; unsigned short h; std::memcpy(&h, &f, 2); return h; }

template <class... P, std::size_t... I>
void call(void (*kernel)(P...), void** args, std::index_sequence<I...>) { kernel(*static_cast<P*>(args[I])...); }
template <class... P>
void call(void (*kernel)(P...), void** args) { call(kernel, args, std::index_sequence_for<P...>()); }

static void (*body)(void**);
static void** arguments;
static void fibre_main() {
  body(arguments);
  finished[threadIdx.x] = true;
}

static void run_blocks(void (*kernel)(void**), int blocks, int threads, void** args) {
  constexpr std::size_t kStack = 64 * 1024;
  static std::vector<std::vector<char>> stacks;
  stacks.resize(threads, std::vector<char>(kStack));
  fibres.resize(threads);
  body = kernel;
  arguments = args;
  blockDim.x = threads;
  for (int block = 0; block < blocks; block++) {
    blockIdx.x = block;
    finished.assign(threads, false);
    for (int t = 0; t < threads; t++) {
      getcontext(&fibres[t]);
      fibres[t].uc_stack = {stacks[t].data(), 0, kStack};
      fibres[t].uc_link = &scheduler;
      makecontext(&fibres[t], fibre_main, 0);
    }
    for (bool any = true; any;) {
      any = false;
      for (int t = 0; t < threads; t++) {
        if (finished[t]) continue;
        threadIdx.x = t;
        swapcontext(&scheduler, &fibres[t]);
        any |= !finished[t];
      }
    }
  }
}
