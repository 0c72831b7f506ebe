// Plans of layers that store most of their weights: one list of taps serves all rows of the matrix.
#include <algorithm>

#include "windows.h"
#include "winograd.h"

namespace sparsefleet {
namespace {

// The taps of a tile's pixels should stay in L1 (32 KB on the smallest cores we know); and so many of
// them pay for loading and storing the tile.
constexpr int64_t TILE_BYTES_MAX = 24 * 1024;
constexpr int64_t TAPS_ENOUGH = 128;
constexpr int64_t CHUNKS_WANTED = 8;  // see plan.cpp
constexpr int64_t ROWS_PER_CHUNK_MIN = 4;

// Pixels are tiles of their own here, and shared out by the stretch.
void lay_out(Pass& pass, const Grid& grid, int64_t rows) {
    pass.taps.rows = rows;
    pass.source_stride = grid.source_stride;
    pass.target_stride = grid.target_stride;
    Tiling& t = pass.tiling;
    t.extent = grid.extent;
    t.tall = t.wide = 1;
    t.bands = grid.extent.tall;
    t.stripes = grid.extent.wide;
    const int64_t pixels = grid.extent.outer * grid.extent.tall * grid.extent.wide;
    t.tile_groups = std::min(ceil_div(pixels, DENSE_STRETCH), CHUNKS_WANTED);
    if (t.tile_groups == 0) return;
    const int64_t row_groups = std::max<int64_t>(1, rows / ROWS_PER_CHUNK_MIN);
    t.row_groups = std::min(CHUNKS_WANTED / t.tile_groups, row_groups);
}

int64_t tap_block(const Grid& grid, int64_t taps_h, int64_t taps_w) {
    const int64_t step = grid.source_stride.wide / LANES;
    const int64_t wide = (kernels().dense_pixels - 1) * step + taps_w;
    const int64_t bytes = wide * taps_h * LANES * static_cast<int64_t>(sizeof(float));
    const int64_t taps = std::max<int64_t>(1, taps_h * taps_w);
    return taps * std::max<int64_t>(1, std::min(TILE_BYTES_MAX / bytes, ceil_div(TAPS_ENOUGH, taps)));
}

}  // namespace

Path path_of(const ConvGeometry& g, int64_t nnz) {
    if (g.group != 1 || nnz == 0) return Path::SPARSE;
    const double density = static_cast<double>(nnz) / static_cast<double>(g.weight_size());
    if (density >= winograd_from() && suits_winograd(g)) return Path::WINOGRAD;
    return density >= dense_from() ? Path::DENSE : Path::SPARSE;
}

Pass dense_forward_pass(const ConvGeometry& g) {
    Pass pass;
    const Grid grid = forward_grid(g);
    lay_out(pass, grid, g.y.channels);
    aim_forward(pass, g);
    DenseTaps& taps = pass.taps;
    taps.row_step = g.x.channels * g.kernel_h * g.kernel_w;
    taps.block = tap_block(grid, g.kernel_h, g.kernel_w);
    for (int64_t c = 0; c < g.x.channels; c++) {
        for (int64_t r = 0; r < g.kernel_h; r++) {
            for (int64_t s = 0; s < g.kernel_w; s++) {
                taps.add(c * g.x.plane + r * g.x.row + s * LANES, (c * g.kernel_h + r) * g.kernel_w + s);
            }
        }
    }
    return pass;
}

Pass dense_input_gradient_pass(const ConvGeometry& g, int64_t phase_h, int64_t phase_w) {
    Pass pass;
    const Grid grid = input_gradient_grid(g, phase_h, phase_w);
    lay_out(pass, grid, g.x.channels);
    aim_input_gradient(pass, g, phase_h, phase_w);
    DenseTaps& taps = pass.taps;
    taps.row_step = g.kernel_h * g.kernel_w;
    int64_t taps_h = 0, taps_w = 0;
    for (int64_t k = 0; k < g.y.channels; k++) {
        taps_h = 0;
        for (int64_t r = 0; r < g.kernel_h; r++) {
            const Axis h = axis_of(r, g.stride, g.pad);
            if (h.phase != phase_h) continue;
            taps_h++;
            taps_w = 0;
            for (int64_t s = 0; s < g.kernel_w; s++) {
                const Axis w = axis_of(s, g.stride, g.pad);
                if (w.phase != phase_w) continue;
                taps_w++;
                taps.add(k * g.y.plane + h.shift * g.y.row + w.shift * LANES,
                         (k * g.x.channels * g.kernel_h + r) * g.kernel_w + s);
            }
        }
    }
    taps.block = tap_block(grid, std::max<int64_t>(1, taps_h), std::max<int64_t>(1, taps_w));
    return pass;
}

}  // namespace sparsefleet
