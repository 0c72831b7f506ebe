// The table of kernels: the contract between the ops, which are compiled once, and isa/, which is
// compiled once per instruction set.
//
// Every kernel does one independent piece of the work, named by its last argument (a chunk, a
// plane, a channel). Pieces may run at the same time and in any order; what a piece writes does not
// depend on which others run. That makes results identical for any number of threads. Kernels do
// not allocate, do not fail, own nothing, and trust their arguments: the ops check them first.
// Buffers of one call must not overlap unless said otherwise. No alignment beyond float's is needed.
#pragma once

#include <cstdint>

#include "blocked.h"

// Before a function that the shared library exports.
#define SPARSEFLEET_EXPORT extern "C" __attribute__((visibility("default")))

namespace sparsefleet {

// A point or a pair of strides in the grid of output pixels. Tiles extend over tall and wide.
struct Triple {
    int64_t outer;
    int64_t tall;
    int64_t wide;
};

// How a grid of pixels is cut into tiles, and the work into chunks: a share of the tiles times a
// share of the rows of the matrix. Sharing out tiles is better, because all rows that meet a tile of
// x find it in cache; rows are shared out where there are too few tiles.
struct Tiling {
    Triple extent;       // number of output pixels in each direction
    int64_t tall;        // tile height, at most TILE_TALL_MAX
    int64_t wide;        // tile width, at most TILE_WIDE_MAX; tall * wide within the kernel's limit
    int64_t bands;       // ceil(extent.tall / tall)
    int64_t stripes;     // ceil(extent.wide / wide)
    int64_t tile_groups;
    int64_t row_groups;
};

constexpr int64_t TILE_TALL_MAX = 8;
constexpr int64_t TILE_WIDE_MAX = 16;

// One visit to a row within a column block: its entries end before `end` and begin where those of
// the previous visit end. Their values are consecutive, from `value` on.
struct Visit {
    int32_t row;
    int32_t end;
    int32_t value;
};

// How many visits ahead their values, and what they write, are asked for: visits jump about in both, where no
// processor foresees them.
constexpr int64_t VISITS_AHEAD = 4;
// How many entries ahead their offsets are read.
constexpr int OFFSETS_AHEAD = 4;

// A sparse matrix whose columns are places in a blocked tensor. Entries are stored in the order in
// which they are visited: row group by row group, in each the column blocks one after the other (so
// that a tile of x stays in cache), in each the rows that have entries there, sorted by how many
// (so that the length of the inner loop can be predicted). Block 0 visits every row.
struct SparseRows {
    int64_t col_blocks;
    const int32_t* first;   // [row_groups * col_blocks + 1]: segment s owns visits [first[s], first[s + 1])
    const Visit* visits;    // visits[-1] exists and ends at entry 0; VISITS_AHEAD more follow the last one
    const int32_t* offset;  // in floats, from a pixel of x to the one that this entry multiplies; OFFSETS_AHEAD more follow
};

// y[pixel, row] = bias[row] + sum over the entries of the row of value * x[pixel + offset].
// chunk = tile group * row_groups + row group; every pixel of y is overwritten.
struct Spmm {
    SparseRows matrix;
    Tiling tiling;
    const float* value;  // one per entry, where its visit says
    const int32_t* order;  // where each entry's value is instead, only for tiles one pixel wide; or null
    const float* bias;   // one per row, or null
    const float* x;      // the pixel (0, 0, 0) of the source
    Triple x_stride;     // in floats
    float* y;            // the pixel (0, 0, 0) of row 0
    Triple y_stride;     // in floats
    int64_t y_row;       // floats from one row to the next
};

// d_value[entry] = sum over pixels and lanes of dy[pixel, row] * x[pixel + offset]: the product of two
// dense matrices, sampled at the mask. The chunk tile group * row_groups + row group overwrites the
// values of its rows in d_value[tile group]; the sum over the tile groups is left to the caller.
// A row group's values lie where its entries do: from the first to the last of them.
struct Sddmm {
    SparseRows matrix;
    Tiling tiling;
    const float* x;
    Triple x_stride;
    const float* dy;  // the pixel (0, 0, 0) of row 0
    Triple dy_stride;
    int64_t dy_row;  // floats from one row to the next
    float* d_value;   // [tile_groups, entries]
    int64_t entries;
};

// y[pixel, row] = bias[row] + sum over taps of value[row * row_step + place[tap]] * x[pixel + offset[tap]]:
// the product with a matrix that stores every entry. Tiles of the tiling are single pixels; chunks as
// in Spmm.
struct Dense {
    Tiling tiling;
    int64_t rows, taps;
    int64_t tap_block;  // so many taps of a tile's pixels fit L1
    const int32_t* offset;
    const int32_t* place;
    const float* value;
    int64_t row_step;
    const float* bias;
    const float* x;
    Triple x_stride;
    float* y;
    Triple y_stride;
    int64_t y_row;
};

// d_value[row, tap] = sum over pixels and lanes of dy[pixel, row] * x[pixel + offset[tap]]. A tap group
// overwrites its taps; there must be pixels.
struct DenseGrad {
    Triple extent;
    int64_t rows, taps, tap_groups;
    const int32_t* offset;
    const float* x;
    Triple x_stride;
    const float* dy;
    Triple dy_stride;
    int64_t dy_row;
    float* d_value;
};

// The weights of a 3x3 convolution in the form that isa/winograd.inc multiplies: u[place, row, channel], with 36 places.
// Those of row and channel begin at value[row * row_step + channel * channel_step].
struct WinogradWeights {
    int64_t channels;
    const float* value;
    int64_t row_step, channel_step;
    bool is_turned;  // each by half a turn, as the input gradient needs them
    float* u = nullptr;      // of a gradient: channels filled up to a multiple of 16
    int64_t place_step = 0;  // floats from one place to the next in u
};

// Some tiles of 4x4 pixels of a 3x3 convolution of stride 1, in three phases: x and the result go through buffers of 36
// places for each tile.
struct Winograd {
    Blocked source, target;
    int64_t rows;  // some of the target's channels
    int64_t first_tile, num_tiles;
    int64_t room;       // for so many tiles in of_x and of_y
    int64_t step;       // floats from one channel or row to the next there
    const float* bias;  // one per row, or null
    const float* x;     // what the window of y's first pixel begins with
    float* y;           // the first pixel of the first row; of a gradient dy
    float* of_x;        // [channel, place, tile, 16]; of a gradient [16 channels, place, tile, 16, 16], 16 steps apart
    float* of_y;        // [row, place, tile, 16]
    float* u;           // see WinogradWeights
    int64_t place_step;
};

// Where a value of one example lies in a plain tensor, in floats: [C, H, W] has (H * W, 1), tokens [T, D]
// have (1, D).
struct PlainStrides {
    int64_t channel, pixel;
};

// c[i, j] = factor * sum over k of a[i, k] * b[k, j], for each of 16 lanes by itself. Strides in floats.
struct LaneProduct {
    int64_t rows, cols, depth;
    const float* a;
    int64_t a_row, a_depth;
    const float* b;
    int64_t b_col, b_depth;
    float* c;
    int64_t c_row, c_col;
    float factor;
};

// What follows the normalization within the same op. ADD_RELU adds another tensor of y's geometry first;
// RELU_MAX_POOL takes the largest of each 2x2 pixels.
enum class After { NOTHING, RELU, ADD_RELU, RELU_MAX_POOL };

// Batch normalization, one channel at a time. The geometries are the same but for the halo, and for y's half
// height and width under RELU_MAX_POOL.
struct BatchNorm {
    Blocked x;
    Blocked y;   // also of dy, and of what is added
    Blocked dx;  // the convolution that reads dx may need a halo that x itself does without
    int64_t num_examples;  // N
    After after;
};

// Normalized is (x - mean) * factor + shift.
struct Affine {
    float mean, factor, shift;
};

struct BatchNormGradient {
    Affine affine;
    const float* dy;
    const float* dy_other;  // added to dy: the other branch that reads y; or null
    Blocked other;          // its geometry: that of y, or only every other_step-th row and column of it
    int64_t other_step;     // 1 or 2
    const float* x;
    const float* y;         // ADD_RELU only
    float* d_skip;          // ADD_RELU only: the gradient of what was added; null if nobody wants it
};

// Normalization of each example by itself. mean and invstd are [B, statistics, 16].
struct GroupNorm {
    Blocked x;       // geometry of x and dx
    Blocked y;       // geometry of y and dy: the same but for the halo
    int64_t groups;  // channels / groups of them share their statistics, over all pixels
    float epsilon;
};

// The same where a pixel's channels share their statistics, not those of other pixels. No halo.
struct LayerNorm {
    Blocked x;  // geometry of x, dx, y and dy
    float epsilon;
};

// Where the statistics of a value lie, in floats. 0 where it does not depend on the pixel.
struct StatisticStrides {
    int64_t block, group, pixel;
    int64_t group_channels;
};

// Pooling, one plane (block * C + channel) at a time.
struct Pool {
    Blocked x;  // geometry of x and dx
    Blocked y;  // geometry of y and dy
    int64_t kernel_h, kernel_w, stride, pad;
    bool count_include_pad;  // average pooling: divide by the whole window, not by its part inside x
};

struct SgdRates {
    float learning_rate, momentum, weight_decay;
};

struct Kernels {
    const char* isa;       // "avx512", "avx2", "baseline" or "neon"
    int64_t spmm_pixels;   // largest tile area of spmm: what keeps its accumulators in registers
    int64_t one_set_pixels;  // tiles of spmm with so many pixels or more add a row's entries in one order
    int64_t sddmm_pixels;  // largest tile area of sddmm
    int64_t dense_pixels;  // and of dense
    int64_t dense_grad_taps;  // so many taps of dense_grad go together
    int64_t winograd_tiles;  // so many tiles of Winograd's go together
    double dense_from;     // a layer of so high a density usually runs faster dense
    double winograd_from;  // and one that Winograd's algorithm suits, by that

    void (*spmm)(const Spmm&, int64_t chunk);
    void (*sddmm)(const Sddmm&, int64_t chunk);
    void (*dense)(const Dense&, int64_t chunk);
    void (*dense_grad)(const DenseGrad&, int64_t tap_group);
    // Forward: all channels of x, then all places, then all rows of y. The input gradient is the same with turned weights.
    void (*winograd_weights)(const WinogradWeights&, int64_t row);
    void (*winograd_x)(const Winograd&, int64_t channel);
    void (*winograd_product)(const Winograd&, int64_t place);
    void (*winograd_y)(const Winograd&, int64_t row);
    // The weight gradient: all groups of 16 channels of x, all rows of dy, then all places, which tiles from 0 on overwrite
    // in u and others add to; at last the weights.
    void (*winograd_grad_x)(const Winograd&, int64_t group);
    void (*winograd_grad_y)(const Winograd&, int64_t row);
    void (*winograd_grad)(const Winograd&, int64_t place);
    void (*winograd_weights_grad)(const WinogradWeights&, float* d_value, int64_t row);
    // Sum of dy over pixels, lanes and blocks.
    float (*channel_sum)(const float* dy, const Blocked&, int64_t channel);
    // Write zeros to the halo of a plane: for all planes of a block, to all of it (isa/layout.inc).
    void (*zero_halo)(float* y, const Blocked&, int64_t plane);

    // x has N plain examples (vectors: H = W = 1); fills one plane of y, padding lanes and halo with zeros.
    void (*pack)(const float* x, const PlainStrides&, int64_t num_examples, float* y,
                 const Blocked& y_geometry, int64_t plane);
    // And back: one plane of x to its places in the N plain examples of y.
    void (*unpack)(const float* x, const Blocked& x_geometry, int64_t num_examples, float* y,
                   const PlainStrides&, int64_t plane);
    // One plane of x to its place in the vectors y, and back (the halo of dx is zeroed).
    void (*flatten)(const float* x, const Blocked& x_geometry, float* y, int64_t plane);
    void (*flatten_grad)(const float* dy, float* dx, const Blocked& dx_geometry, int64_t plane);

    // Over the floats [begin, end) of whole buffers. y may be x.
    void (*relu)(const float* x, float* y, int64_t begin, int64_t end);
    void (*relu_grad)(const float* dy, const float* y, float* dx, int64_t begin, int64_t end);
    void (*add)(const float* a, const float* b, float* y, int64_t begin, int64_t end);
    // Over stored weights, not activations.
    void (*sgd)(float* weight, const float* gradient, float* velocity, int64_t count, const SgdRates&);
    void (*leaky_relu)(const float* x, float alpha, float* y, int64_t begin, int64_t end);
    void (*leaky_relu_grad)(const float* dy, const float* y, float alpha, float* dx, int64_t begin,
                            int64_t end);
    // begin and end are multiples of 16. use_tanh: the approximation by tanh instead of erf.
    void (*gelu)(const float* x, bool use_tanh, float* y, int64_t begin, int64_t end);
    void (*gelu_grad)(const float* dy, const float* x, bool use_tanh, float* dx, int64_t begin, int64_t end);
    // y = x + w, where w is one plain example, for one plane; halo zero.
    void (*add_weight)(const float* x, const float* w, const PlainStrides&, float* y, const Blocked&,
                       int64_t plane);
    // dw = sum of dy over blocks and lanes, for one channel.
    void (*add_weight_grad)(const float* dy, const Blocked&, float* dw, const PlainStrides&, int64_t channel);

    void (*lane_product)(const LaneProduct&);
    // p and dp are [rows, cols, 16]. Softmax over cols, in place; and dp becomes the gradient of what p was
    // made from.
    void (*softmax)(float* p, int64_t rows, int64_t cols);
    void (*softmax_grad)(const float* p, float* dp, int64_t rows, int64_t cols);

    // Mean and biased variance over valid lanes.
    void (*moments)(const BatchNorm&, const float* x, int64_t channel, double* mean, double* variance);
    // Every lane of y; halo zero. skip is added under ADD_RELU.
    void (*normalize)(const BatchNorm&, const Affine&, const float* x, const float* skip, float* y,
                      int64_t channel);
    // With d = dy behind the ReLU: the sum of d, and of d * (x - mean). Writes d_skip.
    void (*normalize_sums)(const BatchNorm&, const BatchNormGradient&, int64_t channel, double* dy_sum,
                           double* dy_x_sum);
    // dx = a * d + b * (x - mean) + c in valid lanes, zero in padding lanes and halo.
    void (*normalize_grad)(const BatchNorm&, const BatchNormGradient&, float a, float b, float c, float* dx,
                           int64_t channel);

    // One group of one block: piece = block * groups + group.
    void (*group_norm)(const GroupNorm&, const float* x, const float* scale, const float* bias, float* y,
                       float* mean, float* invstd, int64_t piece);
    void (*group_norm_grad)(const GroupNorm&, const float* dy, const float* x, const float* scale,
                            const float* mean, const float* invstd, float* dx, int64_t piece);
    // The pixels [begin, end) of one block.
    void (*layer_norm)(const LayerNorm&, const float* x, const float* scale, const float* bias, float* y,
                       float* mean, float* invstd, int64_t block, int64_t begin, int64_t end);
    void (*layer_norm_grad)(const LayerNorm&, const float* dy, const float* x, const float* scale,
                            const float* mean, const float* invstd, float* dx, int64_t block, int64_t begin,
                            int64_t end);
    // Sum of dy * (x - mean) * invstd and of dy, over one channel.
    void (*example_norm_sums)(const Blocked& dy_geometry, const Blocked& x_geometry, const StatisticStrides&,
                              const float* dy, const float* x, const float* mean, const float* invstd,
                              int64_t channel, double* d_scale, double* d_bias);

    // argmax has the planes of y without halo: [H, W, 16] each. It holds r * kernel_w + s of the first
    // maximum.
    void (*max_pool)(const Pool&, const float* x, float* y, uint8_t* argmax, int64_t plane);
    void (*max_pool_grad)(const Pool&, const float* dy, const uint8_t* argmax, float* dx, int64_t plane);
    void (*average_pool)(const Pool&, const float* x, float* y, int64_t plane);
    void (*average_pool_grad)(const Pool&, const float* dy, float* dx, int64_t plane);
    // y and dy are [B, C, 1, 1, 16].
    void (*global_average)(const float* x, const Blocked& x_geometry, float* y, int64_t plane);
    void (*global_average_grad)(const float* dy, float* dx, const Blocked& dx_geometry, int64_t plane);

    // Yardsticks, not parts of a network (isa/roofline.inc). `sums` holds ROOFLINE_SUMS floats; the
    // work done is returned, in operations (peak) or bytes (stream). As in SparseRows OFFSETS_AHEAD offsets more follow.
    int64_t (*peak_fma)(int64_t rounds, float* sums);
    int64_t (*peak_gather)(const float* x, const float* value, const int32_t* offset, int64_t entries,
                           int64_t rounds, float* sums);
    int64_t (*stream_read)(const float* x, int64_t count, int64_t rounds, float* sums);
    int64_t (*stream_scale)(const float* x, float factor, int64_t count, float* y);

    // Saved activations: bits have the pixels of a plane without halo, bit n of each for lane n.
    // Valid lanes that are not zero and not below the threshold; returns how many.
    int64_t (*kept_bits)(const float* x, const Blocked&, int64_t num_examples, float threshold,
                         uint16_t* bits, int64_t plane);
    // Over the floats [begin, end) of whole buffers: zero where the magnitude is below the threshold.
    void (*prune)(const float* x, float threshold, float* y, int64_t begin, int64_t end);
    // values are the plane's own, `count` of them, which is what its bits name. Restoring zeroes the halo.
    void (*save_values)(const float* x, const Blocked&, const uint16_t* bits, float* values, int64_t count,
                        int64_t plane);
    void (*save_values_half)(const float* x, const Blocked&, const uint16_t* bits, uint16_t* values,
                             int64_t count, int64_t plane);
    void (*restore_values)(const uint16_t* bits, const float* values, int64_t count, float* y,
                           const Blocked&, int64_t plane);
    void (*restore_values_half)(const uint16_t* bits, const uint16_t* values, int64_t count, float* y,
                                const Blocked&, int64_t plane);
    void (*restore_signs)(const uint16_t* bits, float* y, const Blocked&, int64_t plane);  // 1 or 0
    // halves are [B, C, H, W, 16], without halo.
    void (*save_halves)(const float* x, const Blocked&, uint16_t* halves, int64_t plane);
    void (*restore_halves)(const uint16_t* halves, float* y, const Blocked&, int64_t plane);
};

// Pixels that dense() takes together; fewer than that are not shared out.
constexpr int64_t DENSE_STRETCH = 96;
constexpr int64_t ROOFLINE_SUMS = 32 * LANES;

// The fastest table that this machine can run, or the one that SPARSEFLEET_ISA names. Chosen once,
// at the first call. Throws OpError if SPARSEFLEET_ISA names one that is not available here.
const Kernels& kernels();

// From which density on a layer runs dense here, and by Winograd's algorithm where that suits: as sparsefleet_set_break_even
// says, else the table.
double dense_from();
double winograd_from();

}  // namespace sparsefleet
