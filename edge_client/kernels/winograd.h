// Convolutions of 3x3 weights by Winograd's algorithm (isa/winograd.inc): which, and how their work is shared out.
#pragma once

#include "op.h"
#include "plan.h"

namespace sparsefleet {

// Whether it has so many fewer multiplications that they pay for what it adds.
bool suits_winograd(const ConvGeometry& geometry);

// `values` and `d_values` are of all weights, stored or not.
void winograd_forward(Context& context, const ConvGeometry& geometry, const float* values, const float* bias,
                      const float* x, float* y);
void winograd_input_gradient(Context& context, const ConvGeometry& geometry, const float* values, const float* dy,
                             float* dx);
void winograd_weight_gradient(Context& context, const ConvGeometry& geometry, const float* x, const float* dy,
                              float* d_values);

}  // namespace sparsefleet
