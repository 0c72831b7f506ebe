// Where the windows of a convolution lie: which pixels of the source each pixel of the target meets.
#pragma once

#include "plan.h"

namespace sparsefleet {

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// How the pixels of a pass lie in source and target.
struct Grid {
    Triple extent;  // blocks, rows, columns
    Triple source_stride, target_stride;
};

inline Grid forward_grid(const ConvGeometry& g) {
    return {{g.y.blocks, g.y.height, g.y.width},
            {g.x.block, g.stride * g.x.row, g.stride * LANES},
            {g.y.block, g.y.row, LANES}};
}

// From x to y; inside x, as halo >= pad. Of the weight gradient, too.
inline void aim_forward(Pass& pass, const ConvGeometry& g) {
    pass.source_base = g.x.origin - g.pad * (g.x.row + LANES);  // where the window of output (0, 0) begins
    pass.target_base = g.y.origin;
    pass.target_row = g.y.plane;
}

// Along one axis, the input pixel i = stride * u + phase meets tap r at the output u + shift, where
// shift = (phase + pad - r) / stride, if that divides. So every tap belongs to one phase.
struct Axis {
    int64_t phase, shift;
};

inline Axis axis_of(int64_t r, int64_t stride, int64_t pad) {
    const int64_t phase = ((r - pad) % stride + stride) % stride;
    return {phase, (phase + pad - r) / stride};
}

// The pixels of x in one phase of the stride.
inline Grid input_gradient_grid(const ConvGeometry& g, int64_t phase_h, int64_t phase_w) {
    return {{g.x.blocks, ceil_div(g.x.height - phase_h, g.stride), ceil_div(g.x.width - phase_w, g.stride)},
            {g.y.block, g.y.row, LANES},
            {g.x.block, g.stride * g.x.row, g.stride * LANES}};
}

// From dy to dx.
inline void aim_input_gradient(Pass& pass, const ConvGeometry& g, int64_t phase_h, int64_t phase_w) {
    pass.source_base = g.y.origin;
    pass.target_base = g.x.origin + phase_h * g.x.row + phase_w * LANES;
    pass.target_row = g.x.plane;
}

}  // namespace sparsefleet
