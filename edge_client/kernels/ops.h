// The ops, by file. Their meaning is in reference.py, op by op.
#pragma once

#include <vector>

#include "ort_api.h"

namespace sparsefleet {

std::vector<const OrtCustomOp*> attention_ops();  // Attention and gradient
std::vector<const OrtCustomOp*> groupnorm_ops();  // GroupNorm, LayerNorm and gradients
std::vector<const OrtCustomOp*> layout_ops();     // Pack, Unpack, Flatten and gradients
std::vector<const OrtCustomOp*> loss_ops();       // SoftmaxCrossEntropy and gradient
std::vector<const OrtCustomOp*> norm_ops();       // BatchNorm and gradient
std::vector<const OrtCustomOp*> pointwise_ops();  // Relu, LeakyRelu, Gelu and gradients, Add, AddWeight
std::vector<const OrtCustomOp*> pool_ops();       // MaxPool, AveragePool, GlobalAveragePool and gradients
std::vector<const OrtCustomOp*> saved_ops();      // SaveActivation, SaveSigns, SaveHalf and their restorers
std::vector<const OrtCustomOp*> sparse_ops();     // SparseConv, SparseGemm and gradients

}  // namespace sparsefleet
