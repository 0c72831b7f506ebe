// Reading, checking and inferring the shapes of blocked tensors.
#pragma once

#include "blocked.h"
#include "op.h"

namespace sparsefleet {

Blocked make_blocked(int64_t blocks, int64_t channels, int64_t height, int64_t width, int64_t halo);

// Read the geometry off a tensor with the given halo. Throws OpError if it is not a blocked tensor,
// if nothing is left inside the halo, or if a block has 2^31 floats or more.
Blocked blocked_of(const Tensor& tensor, int64_t halo);
Blocked vectors_of(const Tensor& tensor);  // the same for [B, F, 1, 1, 16]

Shape shape_of(const Blocked& geometry);
int64_t num_planes(const Blocked& geometry);  // B * C
int64_t num_floats(const Blocked& geometry);

int64_t num_blocks(int64_t num_examples);

// The number of examples N, as Pack wrote it. Throws OpError unless it fits the number of blocks.
int64_t examples_of(const Tensor& count, int64_t blocks);

// Shape inference: the same computations on dimensions that may be names.
Dim known(int64_t value);
Dim blocks_of(const Dim& num_examples);  // batch -> "ceil(batch/16)"
Dim examples_of(const Dim& blocks);      // and back
// The extent of a map behind a window op.
Dim window_dim(const Dim& input, int64_t kernel, int64_t stride, int64_t pad);
// The dimensions of a blocked tensor without what the halo adds to them, and with it.
struct MapDims {
    Dim blocks, channels, height, width;

    Dims with(int64_t halo) const;
};
MapDims maps_of(const Dims& blocked, int64_t halo);
Dims vector_dims(const Dim& blocks, const Dim& features);

}  // namespace sparsefleet
