#include "plan.h"

#include <algorithm>

namespace sparsefleet {
namespace {

// A tile of x should leave room in L1 (32 KB on the smallest cores we know) for weights and y.
constexpr int64_t TILE_BYTES_MAX = 24 * 1024;
// Visiting a row costs a load and a store of the tile, which some entries must pay for.
constexpr int64_t ENTRIES_PER_SEGMENT_MIN = 16;
// Enough chunks to keep eight cores busy, few enough that a chunk is worth a hand-over. Constants,
// because results must not depend on the number of threads.
constexpr int64_t CHUNKS_WANTED = 16;
constexpr int64_t ROWS_PER_CHUNK_MIN = 8;
constexpr int64_t WEIGHT_CHUNKS_MAX = 12;

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// A stored weight, taken apart.
struct Tap {
    int64_t k, c, r, s;
};

Tap tap_of(const ConvGeometry& g, int32_t index) {
    const int64_t s = index % g.kernel_w, rest = index / g.kernel_w;
    const int64_t r = rest % g.kernel_h, channel = rest / g.kernel_h;
    return {channel / g.x.channels, channel % g.x.channels, r, s};
}

void check_indices(const ConvGeometry& g, const int32_t* indices, int64_t nnz) {
    const int64_t size = g.y.channels * g.x.channels * g.kernel_h * g.kernel_w;
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

// The tile size that covers the grid with the fewest tiles; of those, the one nearest to a square,
// because it reads the fewest distinct pixels of x.
Tiling choose_tiling(const Triple& extent, bool is_unit_step, int64_t pixels_max) {
    Tiling best{extent, 1, 1, extent.tall, 1};
    int64_t best_tiles = INT64_MAX, best_rim = INT64_MAX;
    for (int64_t tall = 1; tall <= std::min({TILE_TALL_MAX, extent.tall, pixels_max}); tall++) {
        const int64_t widest = is_unit_step ? std::min({TILE_WIDE_MAX, extent.wide, pixels_max / tall}) : 1;
        for (int64_t wide = 1; wide <= widest; wide++) {
            const int64_t tiles = ceil_div(extent.tall, tall) * ceil_div(extent.wide, wide);
            const int64_t rim = tall + wide;
            if (tiles < best_tiles || (tiles == best_tiles && rim < best_rim)) {
                best = Tiling{extent, tall, wide, ceil_div(extent.tall, tall), 1};
                best_tiles = tiles;
                best_rim = rim;
            }
        }
    }
    return best;
}

// How the pixels of a pass lie in source and target, in both readings: tiles over rows and columns
// of one map, or, where maps are smaller than a tile, over blocks and columns.
struct Grid {
    Triple extent;  // blocks, rows, columns
    Triple source_stride, target_stride;
};

int64_t tiles_of(const Tiling& t) { return t.extent.outer * t.bands * ceil_div(t.extent.wide, t.wide); }

Triple swapped(const Triple& t) { return {t.tall, t.outer, t.wide}; }

// Fill in tiling and strides. `reach` is how many pixels of the source one pixel meets per channel
// in height and width; returns how many channels of a source tile fit into TILE_BYTES_MAX.
int64_t lay_out(Pass& pass, const Grid& grid, int64_t reach_h, int64_t reach_w, int64_t pixels_max) {
    const int64_t step = grid.source_stride.wide / LANES;
    const bool is_unit_step = step <= 2;
    const Tiling upright = choose_tiling(grid.extent, is_unit_step, pixels_max);
    const Tiling across = choose_tiling(swapped(grid.extent), is_unit_step, pixels_max);
    const bool is_across = tiles_of(across) < tiles_of(upright);
    pass.tiling = is_across ? across : upright;
    pass.source_stride = is_across ? swapped(grid.source_stride) : grid.source_stride;
    pass.target_stride = is_across ? swapped(grid.target_stride) : grid.target_stride;
    const int64_t tall = is_across ? pass.tiling.tall * reach_h : (pass.tiling.tall - 1) * step + reach_h;
    const int64_t wide = (pass.tiling.wide - 1) * step + reach_w;
    const int64_t bytes = tall * wide * LANES * static_cast<int64_t>(sizeof(float));
    return std::max<int64_t>(1, TILE_BYTES_MAX / bytes);
}

// Channels per column block: as many as fit, but at least what makes a row's visit worth it.
int64_t block_size(int64_t fitting, int64_t channels, int64_t rows, int64_t nnz) {
    if (nnz == 0) return channels;
    const int64_t enough = ceil_div(ENTRIES_PER_SEGMENT_MIN * rows * channels, nnz);
    return std::min(channels, std::max(fitting, enough));
}

void share_out_rows(Pass& pass) {
    const int64_t chunks = pass.tiling.extent.outer * pass.tiling.bands;
    if (chunks == 0) return;
    const int64_t groups = std::min(ceil_div(CHUNKS_WANTED, chunks), pass.matrix.rows / ROWS_PER_CHUNK_MIN);
    pass.tiling.row_groups = std::max<int64_t>(1, groups);
}

// Rows are output channels, in the order in which the weights are stored.
void by_output_channel(SparseMatrix& matrix, const ConvGeometry& g, const int32_t* indices, int64_t nnz,
                       int64_t block_channels) {
    matrix.rows = g.y.channels;
    matrix.col_blocks = ceil_div(g.x.channels, block_channels);
    matrix.begin.assign(static_cast<size_t>(matrix.rows * matrix.col_blocks + 1), 0);
    matrix.offset.resize(static_cast<size_t>(nnz));
    for (int64_t i = 0; i < nnz; i++) {
        const Tap tap = tap_of(g, indices[i]);
        matrix.begin[static_cast<size_t>(tap.k * matrix.col_blocks + tap.c / block_channels + 1)]++;
        matrix.offset[static_cast<size_t>(i)] =
            static_cast<int32_t>(tap.c * g.x.plane + tap.r * g.x.row + tap.s * LANES);
    }
    for (size_t s = 1; s < matrix.begin.size(); s++) matrix.begin[s] += matrix.begin[s - 1];
}

Grid forward_grid(const ConvGeometry& g) {
    return {{g.y.blocks, g.y.height, g.y.width},
            {g.x.block, g.stride * g.x.row, g.stride * LANES},
            {g.y.block, g.y.row, LANES}};
}

// Where the window of the output pixel (0, 0) begins in a block of x; inside it, as halo >= pad.
int64_t window_base(const ConvGeometry& g) { return g.x.origin - g.pad * (g.x.row + LANES); }

// Along one axis, the input pixel i = stride * u + phase meets tap r at the output u + shift, where
// shift = (phase + pad - r) / stride, if that divides. So every tap belongs to one phase.
struct Axis {
    int64_t phase, shift;
};

Axis axis_of(int64_t r, int64_t stride, int64_t pad) {
    const int64_t phase = ((r - pad) % stride + stride) % stride;
    return {phase, (phase + pad - r) / stride};
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
    const Grid grid = {
        {g.x.blocks, ceil_div(g.x.height - phase_h, g.stride), ceil_div(g.x.width - phase_w, g.stride)},
        {g.y.block, g.y.row, LANES},
        {g.x.block, g.stride * g.x.row, g.stride * LANES}};
    const int64_t fitting = lay_out(pass, grid, ceil_div(g.kernel_h, g.stride),
                                    ceil_div(g.kernel_w, g.stride), kernels().spmm_pixels);
    pass.source_base = g.y.origin;
    pass.target_base = g.x.origin + phase_h * g.x.row + phase_w * LANES;
    pass.target_row = g.x.plane;

    std::vector<int32_t> taps;  // positions of this phase's weights, in stored order
    for (int64_t i = 0; i < nnz; i++) {
        const Tap tap = tap_of(g, indices[i]);
        if (axis_of(tap.r, g.stride, g.pad).phase == phase_h &&
            axis_of(tap.s, g.stride, g.pad).phase == phase_w) {
            taps.push_back(static_cast<int32_t>(i));
        }
    }
    SparseMatrix& m = pass.matrix;
    const int64_t size = block_size(fitting, g.y.channels, g.x.channels, static_cast<int64_t>(taps.size()));
    m.rows = g.x.channels;
    m.col_blocks = ceil_div(g.y.channels, size);
    m.begin.assign(static_cast<size_t>(m.rows * m.col_blocks + 1), 0);
    m.offset.resize(taps.size());
    pass.order.resize(taps.size());
    const auto segment = [&](const Tap& tap) {
        return static_cast<size_t>(tap.c * m.col_blocks + tap.k / size);
    };
    for (const int32_t i : taps) m.begin[segment(tap_of(g, indices[i])) + 1]++;
    for (size_t s = 1; s < m.begin.size(); s++) m.begin[s] += m.begin[s - 1];
    std::vector<int32_t> next(m.begin.begin(), m.begin.end() - 1);
    for (const int32_t i : taps) {
        const Tap tap = tap_of(g, indices[i]);
        const size_t to = static_cast<size_t>(next[segment(tap)]++);
        const int64_t shift_h = axis_of(tap.r, g.stride, g.pad).shift;
        const int64_t shift_w = axis_of(tap.s, g.stride, g.pad).shift;
        m.offset[to] = static_cast<int32_t>(tap.k * g.y.plane + shift_h * g.y.row + shift_w * LANES);
        pass.order[to] = i;
    }
    share_out_rows(pass);
    return pass;
}

}  // namespace

Plan forward_plan(const ConvGeometry& g, const int32_t* indices, int64_t nnz) {
    check_indices(g, indices, nnz);
    Pass pass;
    const int64_t fitting = lay_out(pass, forward_grid(g), g.kernel_h, g.kernel_w, kernels().spmm_pixels);
    pass.source_base = window_base(g);
    pass.target_base = g.y.origin;
    pass.target_row = g.y.plane;
    by_output_channel(pass.matrix, g, indices, nnz, block_size(fitting, g.x.channels, g.y.channels, nnz));
    share_out_rows(pass);
    return {g, {indices, indices + nnz}, {std::move(pass)}, {}};
}

Plan backward_plan(const ConvGeometry& g, const int32_t* indices, int64_t nnz) {
    check_indices(g, indices, nnz);
    Plan plan{g, {indices, indices + nnz}, {}, {}};
    if (g.wants_dx != 0) {
        check_halo(g.x.height, g.y.height, g.kernel_h, g, "height");
        check_halo(g.x.width, g.y.width, g.kernel_w, g, "width");
        // A phase beyond the map has no pixels; a phase without taps still has zeros to write.
        for (int64_t h = 0; h < std::min(g.stride, g.x.height); h++) {
            for (int64_t w = 0; w < std::min(g.stride, g.x.width); w++) {
                plan.passes.push_back(input_gradient_pass(g, indices, nnz, h, w));
            }
        }
    }
    Pass& pass = plan.weight_gradient;
    const int64_t fitting = lay_out(pass, forward_grid(g), g.kernel_h, g.kernel_w, kernels().sddmm_pixels);
    pass.source_base = window_base(g);
    pass.target_base = g.y.origin;
    pass.target_row = g.y.plane;
    by_output_channel(pass.matrix, g, indices, nnz, block_size(fitting, g.x.channels, g.y.channels, nnz));
    const int64_t rows = pass.matrix.rows;
    pass.tiling.row_groups =
        std::max(std::min<int64_t>(rows, 4), std::min(rows / ROWS_PER_CHUNK_MIN, WEIGHT_CHUNKS_MAX));
    return plan;
}

}  // namespace sparsefleet
