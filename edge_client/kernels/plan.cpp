#include "plan.h"

#include <unistd.h>

#include <algorithm>
#include <cstdlib>

#include "shapes.h"
#include "visits.h"
#include "windows.h"

namespace sparsefleet {
namespace {

// What a tile of x may take of L1, so that there is room for weights and y: of the smallest L1 that we know, or of this
// machine's (SPARSEFLEET_L1_BYTES, or as the system says; many boards' does not).
constexpr int64_t TILE_BYTES = 24 * 1024;

int64_t tile_bytes_here() {
    const char* given = std::getenv("SPARSEFLEET_L1_BYTES");
    int64_t l1_bytes = given != nullptr ? std::atoll(given) : 0;
#ifdef _SC_LEVEL1_DCACHE_SIZE
    if (given == nullptr) l1_bytes = sysconf(_SC_LEVEL1_DCACHE_SIZE);
#endif
    return l1_bytes > 0 ? l1_bytes * 3 / 4 : TILE_BYTES;
}

// Whether the bits do not depend on the blocks of columns. Large tiles add a row's entries in one order, whatever the
// blocks; small ones in several sums for each block (SETS in spmm.inc), and so may those at the rim of a map.
bool is_free_of_blocks(const Pass& pass) {
    const Tiling& t = pass.tiling;
    const auto rim = [](int64_t extent, int64_t tile) { return (extent - 1) % tile + 1; };
    return !pass.is_across &&
           rim(t.extent.tall, t.tall) * rim(t.extent.wide, t.wide) >= kernels().one_set_pixels;
}

// Pixels of a row that the processor fetches ahead by itself.
constexpr int64_t LONG_RUN = 8;
// Visiting a row costs a load and a store of the tile, which some entries must pay for.
constexpr int64_t ENTRIES_PER_SEGMENT_MIN = 16;
// Enough chunks to keep eight cores busy. Constants, because results must not depend on the number
// of threads; few, because every group of rows loads the tiles of x again.
constexpr int64_t CHUNKS_WANTED = 8;
constexpr int64_t ROWS_PER_CHUNK_MIN = 8;

// A stored weight, taken apart.
struct Tap {
    int64_t k, c, r, s;
};

Tap tap_of(const ConvGeometry& g, int32_t index) {
    const int64_t s = index % g.kernel_w, rest = index / g.kernel_w;
    const int64_t r = rest % g.kernel_h, channel = rest / g.kernel_h;
    const int64_t group_inputs = g.x.channels / g.group, k = channel / group_inputs;
    return {k, k / (g.y.channels / g.group) * group_inputs + channel % group_inputs, r, s};
}

void check_indices(const ConvGeometry& g, const int32_t* indices, int64_t nnz) {
    const int64_t size = g.weight_size();
    require(size <= INT32_MAX, "the weight has 2^31 elements or more");
    int64_t previous = -1;
    for (int64_t i = 0; i < nnz; i++) {
        const int64_t index = indices[i];
        const auto what = [&] { return "indices[" + std::to_string(i) + "] = " + std::to_string(index); };
        require(index >= 0 && index < size,
                index >= 0 && index < size
                    ? ""
                    : what() + " is out of range, the weight has " + std::to_string(size) + " elements");
        if (index <= previous) {
            throw OpError(what() + " does not exceed its predecessor " + std::to_string(previous) +
                          ": indices must be strictly increasing");
        }
        previous = index;
    }
}

// The tile size that covers the grid with the fewest tiles, but for an eighth more of a single row than of several short
// ones; of those, one that is wider than tall: a square would read the fewest pixels of x (36 instead of 40 for 16 pixels
// under a 3x3 kernel), but longer runs of memory let the processor fetch ahead.
Tiling choose_tiling(const Triple& extent, bool is_wide, int64_t pixels_max) {
    Tiling best{extent, 1, 1, extent.tall, extent.wide, 1, 1};
    int64_t best_cost = INT64_MAX, best_rim = INT64_MAX;
    for (int64_t tall = 1; tall <= std::min({TILE_TALL_MAX, extent.tall, pixels_max}); tall++) {
        const int64_t widest = is_wide ? std::min({TILE_WIDE_MAX, extent.wide, pixels_max / tall}) : 1;
        for (int64_t wide = 1; wide <= widest; wide++) {
            const int64_t tiles = ceil_div(extent.tall, tall) * ceil_div(extent.wide, wide);
            const int64_t cost = tiles * (tall > 1 && wide < LONG_RUN ? 9 : 8), rim = 4 * tall + wide;
            if (cost < best_cost || (cost == best_cost && rim < best_rim)) {
                best.tall = tall;
                best.wide = wide;
                best_cost = cost;
                best_rim = rim;
            }
        }
    }
    best.bands = ceil_div(extent.tall, best.tall);
    best.stripes = ceil_div(extent.wide, best.wide);
    return best;
}

int64_t tiles_of(const Tiling& t) { return t.extent.outer * t.bands * t.stripes; }

Triple swapped(const Triple& t) { return {t.tall, t.outer, t.wide}; }

// Fill in tiling and strides. `reach` is how many pixels of the source one pixel meets per channel
// in height and width; returns how many channels of a source tile fit.
int64_t lay_out(Pass& pass, const Grid& grid, int64_t reach_h, int64_t reach_w, int64_t pixels_max) {
    const int64_t step = grid.source_stride.wide / LANES;
    const bool is_wide = step <= 2 && grid.target_stride.wide <= 2 * LANES;  // see spmm_tile_of
    const Tiling upright = choose_tiling(grid.extent, is_wide, pixels_max);
    const Tiling across = choose_tiling(swapped(grid.extent), is_wide, pixels_max);
    pass.is_across = tiles_of(across) < tiles_of(upright);
    pass.tiling = pass.is_across ? across : upright;
    pass.source_stride = pass.is_across ? swapped(grid.source_stride) : grid.source_stride;
    pass.target_stride = pass.is_across ? swapped(grid.target_stride) : grid.target_stride;
    const int64_t tall = pass.is_across ? pass.tiling.tall * reach_h : (pass.tiling.tall - 1) * step + reach_h;
    const int64_t wide = (pass.tiling.wide - 1) * step + reach_w;
    const int64_t bytes = tall * wide * LANES * static_cast<int64_t>(sizeof(float));
    static const int64_t here = tile_bytes_here();
    return std::max<int64_t>(1, (is_free_of_blocks(pass) ? here : TILE_BYTES) / bytes);
}

// Channels per column block: as many as fit, but at least what makes a row's visit worth it; in all blocks about as many,
// as those of a short last one would not.
int64_t block_size(int64_t fitting, int64_t channels, int64_t rows, int64_t nnz) {
    if (nnz == 0) return channels;
    const int64_t enough = ceil_div(ENTRIES_PER_SEGMENT_MIN * rows * channels, nnz);
    return ceil_div(channels, ceil_div(channels, std::max(fitting, enough)));
}

void share_out(Tiling& t, int64_t rows) {
    t.tile_groups = std::min(tiles_of(t), CHUNKS_WANTED);
    if (t.tile_groups == 0) return;
    t.row_groups =
        std::max<int64_t>(1, std::min(CHUNKS_WANTED / t.tile_groups, rows / ROWS_PER_CHUNK_MIN));
}

// The passes whose rows are output channels: forward and weight gradient.
void lay_out_by_output(Pass& pass, const ConvGeometry& g, const int32_t* indices, int64_t nnz, int64_t pixels_max) {
    const int64_t fitting = lay_out(pass, forward_grid(g), g.kernel_h, g.kernel_w, pixels_max);
    const int64_t block_channels = block_size(fitting, g.x.channels, g.y.channels, nnz);
    aim_forward(pass, g);
    share_out(pass.tiling, g.y.channels);
    build(pass.matrix, pass.tiling.row_groups, g.y.channels, {g.x.channels, block_channels, g.x.plane},
          Positions::ASCENDING, [&](const auto& emit) {
              for (int64_t i = 0; i < nnz; i++) {
                  const Tap tap = tap_of(g, indices[i]);
                  emit(tap.k, tap.c, tap.c * g.x.plane + tap.r * g.x.row + tap.s * LANES, i);
              }
          });
}

// The outputs that the input gradient reads must lie in dy or its halo, for any mask.
void check_halo(int64_t input, int64_t output, int64_t kernel, const ConvGeometry& g, const char* name) {
    for (int64_t r = 0; r < kernel; r++) {
        const Axis axis = axis_of(r, g.stride, g.pad);
        if (axis.phase >= input) continue;
        const int64_t last = (input - 1 - axis.phase) / g.stride + axis.shift;
        const int64_t needed = std::max(-axis.shift, last - (output - 1));
        require(needed <= g.y.halo, std::string("out_halo is ") + std::to_string(g.y.halo) +
                                        ", the input gradient needs " + std::to_string(needed) + " in " +
                                        name);
    }
}

// Rows are input channels of one phase; the entries come in another order than they are stored.
Pass input_gradient_pass(const ConvGeometry& g, const int32_t* indices, int64_t nnz, int64_t phase_h,
                         int64_t phase_w) {
    Pass pass;
    const auto each_tap = [&](const auto& visit) {
        for (int64_t i = 0; i < nnz; i++) {
            const Tap tap = tap_of(g, indices[i]);
            const Axis h = axis_of(tap.r, g.stride, g.pad), w = axis_of(tap.s, g.stride, g.pad);
            if (h.phase == phase_h && w.phase == phase_w) visit(tap, h.shift, w.shift, i);
        }
    };
    int64_t num_taps = 0;
    each_tap([&](const Tap&, int64_t, int64_t, int64_t) { num_taps++; });
    const int64_t fitting = lay_out(pass, input_gradient_grid(g, phase_h, phase_w), ceil_div(g.kernel_h, g.stride),
                                    ceil_div(g.kernel_w, g.stride), kernels().spmm_pixels);
    const int64_t block_channels = block_size(fitting, g.y.channels, g.x.channels, num_taps);
    aim_input_gradient(pass, g, phase_h, phase_w);
    share_out(pass.tiling, g.x.channels);
    build(pass.matrix, pass.tiling.row_groups, g.x.channels, {g.y.channels, block_channels, g.y.plane},
          Positions::IN_ANY_ORDER, [&](const auto& emit) {
              each_tap([&](const Tap& tap, int64_t shift_h, int64_t shift_w, int64_t i) {
                  emit(tap.c, tap.k, tap.k * g.y.plane + shift_h * g.y.row + shift_w * LANES, i);
              });
          });
    return pass;
}

Plan plan_without_passes(const ConvGeometry& g, const int32_t* indices, int64_t nnz) {
    check_indices(g, indices, nnz);
    Plan plan{g, nnz, {}, {}, {}, path_of(g, nnz)};
    if (!plan.is_full()) plan.indices.assign(indices, indices + nnz);
    return plan;
}

}  // namespace

ConvGeometry ConvGeometry::of_dx() const {
    if (dx_step == 1) return *this;
    const Blocked met = make_blocked(x.blocks, x.channels, y.height, y.width, 0);
    return {met, y, kernel_h, kernel_w, 1, pad, wants_dx, group};
}

Tiling Pass::tiling_of(int64_t blocks) const {
    Tiling t = tiling;
    (is_across ? t.extent.tall : t.extent.outer) = blocks;
    t.bands = ceil_div(t.extent.tall, t.tall);
    t.tile_groups = std::min(t.tile_groups, tiles_of(t));
    return t;
}

Plan forward_plan(const ConvGeometry& g, const int32_t* indices, int64_t nnz) {
    Plan plan = plan_without_passes(g, indices, nnz);
    if (plan.path == Path::WINOGRAD) return plan;
    if (plan.path == Path::DENSE) {
        plan.passes.push_back(dense_forward_pass(g));
        return plan;
    }
    Pass& pass = plan.passes.emplace_back();
    lay_out_by_output(pass, g, indices, nnz, kernels().spmm_pixels);
    return plan;
}

Plan backward_plan(const ConvGeometry& g, const int32_t* indices, int64_t nnz) {
    Plan plan = plan_without_passes(g, indices, nnz);
    if (g.wants_dx != 0) {
        const ConvGeometry of_dx = g.of_dx();
        check_halo(of_dx.x.height, g.y.height, g.kernel_h, of_dx, "height");
        check_halo(of_dx.x.width, g.y.width, g.kernel_w, of_dx, "width");
        if (plan.path == Path::WINOGRAD) return plan;
        // A phase beyond the map has no pixels; a phase without taps still has zeros to write.
        for (int64_t h = 0; h < std::min(of_dx.stride, of_dx.x.height); h++) {
            for (int64_t w = 0; w < std::min(of_dx.stride, of_dx.x.width); w++) {
                plan.passes.push_back(plan.path == Path::DENSE ? dense_input_gradient_pass(of_dx, h, w)
                                                               : input_gradient_pass(of_dx, indices, nnz, h, w));
            }
        }
    }
    if (plan.path == Path::WINOGRAD) return plan;
    if (plan.path == Path::DENSE) {
        plan.weight_gradient = dense_forward_pass(g);
        return plan;
    }
    Pass& pass = plan.weight_gradient;
    lay_out_by_output(pass, g, indices, nnz, kernels().sddmm_pixels);
    return plan;
}

}  // namespace sparsefleet
