// What a sparse op derives from its indices, once per mask: the order in which the stored weights
// are visited, where each finds its input, and how the pixels are cut into tiles.
//
// A fully connected layer is a 1x1 convolution over a map of one pixel, so there is one plan for both.
#pragma once

#include <cstring>
#include <memory>
#include <mutex>
#include <vector>

#include "fixed_indices.h"
#include "kernels.h"
#include "op.h"

namespace sparsefleet {

// Plain int64 fields, so that two of them compare with memcmp.
struct ConvGeometry {
    Blocked x;
    Blocked y;
    int64_t kernel_h, kernel_w, stride, pad;
    int64_t wants_dx;   // gradient only: whether the transposed matrix is needed
    int64_t group = 1;  // output channels in this many groups, each of which reads its own input channels
    int64_t dx_step = 1;  // gradient only: the stride, if dx has only the pixels that windows of one pixel meet

    int64_t weight_size() const { return y.channels * (x.channels / group) * kernel_h * kernel_w; }

    // The same convolution for its input gradient: as if x had no other pixels than dx.
    ConvGeometry of_dx() const;
};

// The owner of the arrays that a SparseRows borrows.
struct SparseMatrix {
    int64_t col_blocks = 1;
    std::vector<int32_t> first;
    std::vector<Visit> visits;    // one before entry 0, those of the segments, then VISITS_AHEAD without entries
    std::vector<int32_t> offset;  // one per entry, then OFFSETS_AHEAD of none
    // Where each entry's value is, for passes whose values are put into the order of the entries; else empty.
    std::vector<int32_t> order;

    size_t entries() const { return offset.size() - OFFSETS_AHEAD; }
    SparseRows view() const { return {col_blocks, first.data(), visits.data() + 1, offset.data()}; }
};

// What the rows of a matrix that stores all its entries have in common.
struct DenseTaps {
    int64_t rows = 0, row_step = 0, block = 1;  // see Dense
    std::vector<int32_t> offset, place;        // one per tap

    void add(int64_t offset_of_tap, int64_t place_of_tap) {
        offset.push_back(static_cast<int32_t>(offset_of_tap));
        place.push_back(static_cast<int32_t>(place_of_tap));
    }
    int64_t count() const { return static_cast<int64_t>(offset.size()); }
};

// One call of spmm or sddmm, or of dense or dense_grad, less its buffers. Bases are offsets of the pixel (0, 0, 0).
struct Pass {
    SparseMatrix matrix;     // of a sparse pass
    DenseTaps taps;          // of a dense one
    Tiling tiling;           // for the blocks of the geometry that the plan was made for
    bool is_across = false;  // tiles extend over blocks and columns, instead of rows and columns
    Triple source_stride, target_stride;  // source: what offsets point into; target: y, or dy for sddmm
    int64_t source_base = 0, target_base = 0;
    int64_t target_row = 0;  // floats from one row of the matrix to the next in the target

    Tiling tiling_of(int64_t blocks) const;  // for as many blocks or fewer
};

// The kernels that a layer runs on, in all of its passes. Dense ones take the weights that are not stored for zeros.
enum class Path { SPARSE, DENSE, WINOGRAD };

Path path_of(const ConvGeometry& geometry, int64_t nnz);

struct Plan {
    ConvGeometry geometry;         // what it was made for; fewer blocks will do
    int64_t nnz;
    // An exact copy, unless all weights are stored, which is one mask only, or the array is fixed (fixed_indices.h).
    std::vector<int32_t> indices;
    std::vector<Pass> passes;      // forward: one; input gradient: one per parity class of the stride; WINOGRAD: none
    Pass weight_gradient;          // gradient only
    Path path;
    bool is_full() const { return nnz == geometry.weight_size(); }
};

// All three throw OpError if the indices are not strictly increasing or out of range; backward_plan
// also if the halo of dy is too small for the taps that reach beyond its border.
Plan forward_plan(const ConvGeometry& geometry, const int32_t* indices, int64_t nnz);
Plan backward_plan(const ConvGeometry& geometry, const int32_t* indices, int64_t nnz);

// For any mask. Forward is the weight gradient, too.
Pass dense_forward_pass(const ConvGeometry& geometry);
Pass dense_input_gradient_pass(const ConvGeometry& geometry, int64_t phase_h, int64_t phase_w);

// The last plan of a kernel instance. It also serves fewer blocks than it was made for: the ragged
// last batch of an epoch must not make all plans anew, twice. get() may be called from several
// threads; a plan that is in use stays alive when another thread replaces it.
class PlanCache {
  public:
    template <class Build>
    std::shared_ptr<const Plan> get(const ConvGeometry& geometry, const int32_t* indices, int64_t nnz,
                                    const Build& build) {
        const uint64_t fixed = number_of_fixed(indices, nnz);
        const std::lock_guard<std::mutex> lock(mutex_);
        if (!plan_ || !matches(geometry, indices, nnz, fixed)) {
            plan_ = nullptr;  // free the old one first: on a small board both may not fit
            Plan made = build(geometry, indices, nnz);
            if (fixed != 0 && made.path == Path::SPARSE) made.indices = {};
            plan_ = std::make_shared<const Plan>(std::move(made));
        }
        fixed_ = fixed;
        return plan_;
    }

  private:
    bool matches(const ConvGeometry& geometry, const int32_t* indices, int64_t nnz, uint64_t fixed) const {
        const Plan& plan = *plan_;
        ConvGeometry with_its_blocks = geometry;
        with_its_blocks.x.blocks = with_its_blocks.y.blocks = plan.geometry.x.blocks;
        if (geometry.x.blocks > plan.geometry.x.blocks ||
            std::memcmp(&plan.geometry, &with_its_blocks, sizeof geometry) != 0 || plan.nnz != nnz ||
            plan.path != path_of(plan.geometry, nnz)) {
            return false;
        }
        if (plan.is_full() || (fixed != 0 && fixed == fixed_)) return true;
        return plan.indices.size() == static_cast<size_t>(nnz) &&
               std::memcmp(plan.indices.data(), indices, plan.indices.size() * sizeof(int32_t)) == 0;
    }

    std::mutex mutex_;
    std::shared_ptr<const Plan> plan_;
    uint64_t fixed_ = 0;  // the number of the array that the plan was last made for or compared with
};

}  // namespace sparsefleet
