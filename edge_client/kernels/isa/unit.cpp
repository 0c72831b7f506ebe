// The kernels for one instruction set. The build compiles this file once per set, with
//     SPARSEFLEET_TABLE  the name of the table it defines
//     SPARSEFLEET_NAME   what that instruction set is called
//     WIDTH              floats per register
//     SPMM_PIXELS, SDDMM_PIXELS   tile areas whose sums and operands fit the registers
//     DENSE_PIXELS, DENSE_ROWS, DENSE_GRAD_ROWS, DENSE_GRAD_TAPS   the same for tiles of dense and dense_grad
//     WINOGRAD_TILES     so many tiles of Winograd's go together
//     DENSE_FROM, WINOGRAD_FROM   the densities from which on a layer usually runs faster dense
//
// Everything but the table is in an unnamed namespace, and no header of the standard library that
// defines functions is included: an inline function compiled here for AVX-512 and elsewhere for any
// machine would be merged by the linker into whichever copy comes first.
#include <cstddef>
#include <cstdint>

#include "../kernels.h"

// T x W for every tile with T <= 8, W <= 16.
#define EACH_WIDE(F, T)                                                                                 \
    F(T, 1)                                                                                             \
    F(T, 2) F(T, 3) F(T, 4) F(T, 5) F(T, 6) F(T, 7) F(T, 8) F(T, 9) F(T, 10) F(T, 11) F(T, 12) F(T, 13) \
        F(T, 14) F(T, 15) F(T, 16)
#define EACH_TILE(F)                                                                                \
    EACH_WIDE(F, 1)                                                                                 \
    EACH_WIDE(F, 2) EACH_WIDE(F, 3) EACH_WIDE(F, 4) EACH_WIDE(F, 5) EACH_WIDE(F, 6) EACH_WIDE(F, 7) \
        EACH_WIDE(F, 8)

namespace sparsefleet {
namespace {

#include "vector.inc"
// vector.inc first, layout.inc before those that zero a halo, elementary.inc before those that need exp, moments.inc before
// those of batch norm.
#include "layout.inc"
#include "elementary.inc"
#include "activation.inc"
#include "attention.inc"
#include "groupnorm.inc"
#include "layernorm.inc"
#include "moments.inc"
#include "normpool.inc"
#include "norm.inc"
#include "pointwise.inc"
#include "pool.inc"
#include "saved.inc"
// spmm.inc first, for each_tile, each_piece, distance and Offsets; product.inc before winograd.inc.
#include "spmm.inc"
#include "dense_grad.inc"
#include "dense.inc"
#include "sddmm.inc"
#include "roofline.inc"
#include "product.inc"
#include "winograd_lines.inc"
#include "winograd.inc"

}  // namespace

extern const Kernels SPARSEFLEET_TABLE;
const Kernels SPARSEFLEET_TABLE = {
    SPARSEFLEET_NAME,
    SPMM_PIXELS,
    (ONE_SET_REGISTERS + REGS - 1) / REGS,
    SDDMM_PIXELS,
    DENSE_PIXELS,
    TURNED_TAPS,
    WINOGRAD_TILES,
    DENSE_FROM,
    WINOGRAD_FROM,
    spmm,
    sddmm,
    dense,
    dense_grad,
    winograd_weights,
    winograd_x,
    winograd_product,
    winograd_y,
    winograd_grad_x,
    winograd_grad_y,
    winograd_grad,
    winograd_weights_grad,
    channel_sum,
    zero_halo,
    pack,
    unpack,
    flatten,
    flatten_grad,
    relu,
    relu_grad,
    add,
    sgd,
    leaky_relu,
    leaky_relu_grad,
    gelu,
    gelu_grad,
    add_weight,
    add_weight_grad,
    lane_product,
    softmax,
    softmax_grad,
    moments,
    normalize,
    normalize_sums,
    normalize_grad,
    group_norm,
    group_norm_grad,
    layer_norm,
    layer_norm_grad,
    example_norm_sums,
    max_pool,
    max_pool_grad,
    average_pool,
    average_pool_grad,
    global_average,
    global_average_grad,
    peak_fma,
    peak_gather,
    stream_read,
    stream_scale,
    kept_bits,
    prune,
    save_values<float>,
    save_values<uint16_t>,
    restore_values<float>,
    restore_values<uint16_t>,
    restore_signs,
    save_halves,
    restore_halves,
};

}  // namespace sparsefleet
