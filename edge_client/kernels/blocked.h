// The layout of activations: float32 [B, C, H + 2h, W + 2h, 16], "blocked".
//
// 16 examples lie innermost, on every machine: example n is lane n % 16 of block n / 16, and
// B = ceil(N / 16). One stored weight then meets 16 neighbouring inputs; strides, odd maps and
// ragged batches cost nothing, and no loop branches at a border. h is the halo, a border of zeros
// that a tensor carries on all four sides. Vectors are [B, F, 1, 1, 16] with halo 0.
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
    int64_t row;       // floats from one row to the next: (W + 2h) * 16
    int64_t plane;     // floats from one channel to the next
    int64_t block;     // floats from one block to the next
    int64_t origin;    // offset of the first pixel inside the halo within a plane
};

}  // namespace sparsefleet
