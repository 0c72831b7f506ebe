// The layout of activations: float32 [B, C, H, W, 16], "blocked"; with a halo [B, C + 1, H + h, W + h, 16].
//
// 16 examples lie innermost, on every machine: example n is lane n % 16 of block n / 16, and
// B = ceil(N / 16). One stored weight then meets 16 neighbouring inputs; strides, odd maps and
// ragged batches cost nothing, and no loop branches at a border. h is the halo, a border of zeros
// around each map. Neighbours share it: the h pixels before a row are behind the row before, the h rows above a map
// are below the one before, and one more plane of zeros ends the block. Vectors are [B, F, 1, 1, 16] with halo 0.
//
// Invariants, which every op may rely on and must preserve:
// 1. The halo of every blocked tensor, activation or gradient, is zero; but for the results of
//    convolutions with clear_halo = 0, of which only the inside is read (export/fuse.py).
// 2. A gradient has exactly the shape and the halo of its tensor.
// 3. Gradients are zero in padding lanes (n >= N). UnpackGrad starts it, every op preserves it,
//    BatchNormGrad restores it. Activations hold finite garbage there, which nobody reads into a
//    valid lane or into a statistic.
#pragma once

#include <cstdint>

namespace sparsefleet {

constexpr int64_t LANES = 16;

// Geometry of one blocked tensor. Plain data, because the kernels of every instruction set share it.
struct Blocked {
    int64_t blocks;    // B
    int64_t channels;  // C
    int64_t height;    // H, without halo
    int64_t width;     // W, without halo
    int64_t halo;      // h
    int64_t row;       // floats from one row to the next: (W + h) * 16
    int64_t plane;     // floats from one channel to the next
    int64_t block;     // floats from one block to the next
    int64_t origin;    // offset of the first pixel inside the halo within a plane: what lies between maps
};

// Where the map of a channel begins; `plane` counts through all B * C. Static: the instruction sets share no code.
static inline int64_t map_of(const Blocked& g, int64_t block, int64_t channel) {
    return block * g.block + channel * g.plane + g.origin;
}
static inline int64_t map_of(const Blocked& g, int64_t plane) {
    return map_of(g, plane / g.channels, plane % g.channels);
}

}  // namespace sparsefleet
