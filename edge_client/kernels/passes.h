// Running a plan's passes on a call's buffers.
#pragma once

#include "plan.h"

namespace sparsefleet {

struct Weights {
    const float* values;
    const int32_t* indices;
    int64_t nnz;
};

// All passes of the plan but the weight gradient: forward from x to y, or the input gradient from dy to dx.
void multiply(Context& context, const Plan& plan, int64_t blocks, const float* values, const float* bias,
              const float* x, float* y);

// One value for each stored weight.
void weight_gradient(Context& context, const Plan& plan, int64_t blocks, const float* x, const float* dy,
                     float* d_values);

}  // namespace sparsefleet
