// What Python calls, as kernels/native/ mirrors it. All is plain C; a library that was compiled with another version of
// this file is not used. Sizes are counts of elements. Functions that return an int give 0 if all is done and, unless it
// says otherwise, 1 if memory ran out.
#pragma once

#include <cstdint>

enum NumberType : int64_t { kFloat32 = 0, kBFloat16 = 1, kFloat16 = 2 };

// Weights that all positions share. Maps lie as [B, H, W, C], weight as [B or 1, C, K].
struct SharedWeightProblem {
  int64_t batch, height, width, channels;
  int64_t kernel_height, kernel_width, dilation_height, dilation_width;
  int64_t weights;  // 1, or one of each image
  int64_t adjoint;  // the gradient of x: taps in reverse order
  int64_t dtype;    // NumberType
  // set by the dispatch: strips of the rows of an image or, for the gradient of the weights, shares of the images; and
  // parts of the blocks of channels
  int64_t strips, parts;
};

// Weights of its own at every position. x and y lie as [B, H, W, G, D]; weight as [B, H, W, ...] with G * K numbers at
// each position, or, to be made of them, hidden as [B, H, W, R] and projection as [G, K, R].
struct LocalWeightProblem {
  int64_t batch, height, width, groups, dim;
  int64_t kernel_height, kernel_width, dilation_height, dilation_width;
  int64_t weight_group_stride, weight_tap_stride;
  int64_t rank;
  int64_t dtype;  // NumberType
};

// What the backward pass of weights that are made of features reads and writes; null for a gradient that is not needed.
struct ProjectedGradients {
  const void *gradient, *x, *hidden, *projection, *bias;
  void *of_x, *of_hidden, *of_projection, *of_bias;
  // set by the dispatch: `projection` as `pack` and as `turn` have arranged it, for of_x and for of_hidden alone; sums of
  // projection and bias, [threads][K][R + 1][lanes]; and how many threads there were
  const float *packed, *turned;
  const float* sums;
  int64_t threads;
};

// [B, H, W, heads, D] wherever it lies: strides of images, rows, columns and heads, channels side by side.
struct PairwiseMap {
  const void* data;
  int64_t strides[4];
};

// Weights that are the softmax of dot products. What is null is not there or not wanted. Results lie densely.
struct PairwiseProblem {
  int64_t batch, height, width, heads, dim;
  int64_t places;                           // of all images: windows, or lines of neighborhoods
  int64_t size_height, size_width;          // of a window or of a neighborhood
  int64_t before_height, before_width;      // windows: empty slots before the map
  int64_t dilation_height, dilation_width;  // neighborhoods
  int64_t kernel_height, kernel_width;      // windows: 0, or of the neighborhood whose biases go by distance
  int64_t dtype;                            // NumberType
  double scale;
  PairwiseMap query, key, value, gradient;
  const float* bias;  // windows [heads, N, N], by distance [heads, 2 h - 1, 2 w - 1]
  void *output, *of_query, *of_key, *of_value;
  float* of_bias;
  // set by the dispatch: parts of the heads, of which threads take one after the other
  int64_t parts;
};

// Weights from each slot of a window to each slot, alike in all windows. Maps lie as [B, H, W, G, D], weight as
// [G, N, N], and bias as [G, N] in float. What is null is not there or not wanted.
struct WindowWeightProblem {
  int64_t batch, height, width, groups, dim;
  int64_t size_height, size_width;      // of a window
  int64_t before_height, before_width;  // empty slots before the map
  int64_t windows;                      // of all images
  int64_t dtype;                        // NumberType
  const void *x, *gradient, *weight;
  const float* bias;
  void *y, *of_x;
  // set by the dispatch: weights of whole windows, as `pack` leaves them, and the parts of the groups
  const float* packed;
  int64_t parts;
};

#pragma GCC visibility push(default)
extern "C" {

// Of this file, as it was when the library was compiled: SHA-256, hexadecimal.
const char* localmix_interface();

// "generic", "avx2", "avx512" or "avx512_bf16": the one in use.
const char* localmix_instruction_set();

// 1 if AMD, or Hygon by its licence, made this processor.
int localmix_is_amd();

// For tests: 0 if the set of that name runs here from now on, 1 if this processor has none such.
int localmix_use_instruction_set(const char* name);

// GOMP_parallel, omp_get_thread_num and omp_get_num_threads of the OpenMP runtime that PyTorch has loaded; without them
// all runs on one thread.
void localmix_use_threads(
    void (*parallel)(void (*)(void*), void*, unsigned, unsigned), int (*thread_number)(), int (*number_of_threads)());

// y by weights that all positions share; or, of an adjoint problem, the gradient of x. `bias` may be null.
int localmix_shared_weight(
    SharedWeightProblem* problem, const void* x, const void* weight, const void* bias, void* y, int64_t threads);

// Gradients of weight [B or 1, C, K] and bias [C].
int localmix_shared_weight_backward(
    SharedWeightProblem* problem, const void* x, const void* gradient, float* of_weight, float* of_bias,
    int64_t threads);

// For lines [begin, end) of the batch * height rows of all images, by `kernel`:
//   0: out = y of a = x and b = weight
//   1: out = gradient of x, of a = gradient and b = weight
//   2: out = gradient of weight, of a = gradient and b = x
int localmix_local_weight(
    int64_t kernel, const LocalWeightProblem* problem, const void* a, const void* b, void* out, int64_t begin,
    int64_t end, int64_t threads);

// y for all lines; `bias` may be null.
int localmix_projected_local_weight(
    const LocalWeightProblem* problem, const void* x, const void* hidden, const void* projection, const void* bias,
    void* y, int64_t threads);

// The gradients that `gradients` wants, for all lines.
int localmix_projected_local_weight_backward(
    const LocalWeightProblem* problem, ProjectedGradients* gradients, int64_t threads);

// Attention in windows or neighborhoods: the output, or the gradients.
int localmix_pairwise_weight(
    int64_t is_neighborhood, int64_t is_backward, PairwiseProblem* problem, int64_t threads);

// y; or, of a problem with `gradient`, those of x, weight [G, N, N] and bias [G, N] that are not null.
int localmix_window_weight(WindowWeightProblem* problem, float* of_weight, float* of_bias, int64_t threads);

// x = GELU of x, by the error function and not by its approximation, for `count` numbers in order of a NumberType.
int localmix_gelu(void* x, int64_t dtype, int64_t count, int64_t threads);

}
#pragma GCC visibility pop
