#include "winograd.h"

#include <algorithm>
#include <memory>
#include <new>

#include "windows.h"

namespace sparsefleet {
namespace {

constexpr int64_t KERNEL = 3, WEIGHTS = KERNEL * KERNEL;
constexpr int64_t SIDE = 4, REACH = 6, PLACES = REACH * REACH;  // see isa/winograd.inc
// What each channel and row costs beside its products must be small beside them.
constexpr int64_t CHANNELS_MIN = 16;
// Of each map, whatever the batch, or the bits of a step would depend on the batches before it: the weights' other form
// must pay for itself.
constexpr int64_t TILES_MIN = 4;
// A map's pixels, at least, of those that its tiles have.
constexpr double COVERED_MIN = 0.5;
// At a time, so that the weights' other form stays small. Each block of rows makes that of the pixels again.
constexpr int64_t ROWS_MAX = 128;
// Tiles that the weight gradient takes together: more would not stay in L2.
constexpr int64_t GRAD_TILES = 4;
// Without it channels, or places, would meet in a few sets of L1.
constexpr int64_t STEP_APART = LANES;

int64_t tiles_of_map(const Blocked& y) { return ceil_div(y.height, SIDE) * ceil_div(y.width, SIDE); }

// Floats from the beginning of a cache line on, as loads that cross lines take twice as long, and not initialised. A thread
// keeps them for its next call: what was given back to the system would have to be had again, page by page.
class Scratch {
  public:
    float* get(int64_t count) {
        if (count > count_) {
            floats_.reset();
            count_ = 0;
            floats_.reset(static_cast<float*>(::operator new(static_cast<size_t>(count) * sizeof(float), LINE)));
            count_ = count;
        }
        return floats_.get();
    }

  private:
    static constexpr std::align_val_t LINE{64};
    struct Delete {
        void operator()(float* floats) const { ::operator delete(floats, LINE); }
    };
    std::unique_ptr<float[], Delete> floats_;
    int64_t count_ = 0;
};

// What a call needs besides its tensors: see Winograd.
struct Buffers {
    int64_t room, step, place_step;
    float *of_x, *of_y, *u;

    Buffers(int64_t tiles, int64_t channels, int64_t rows)
        : room(tiles), step(PLACES * tiles * LANES + STEP_APART), place_step(rows * channels + STEP_APART) {
        thread_local Scratch scratch;
        of_x = scratch.get(step * channels + step * rows + PLACES * place_step);
        of_y = of_x + step * channels;
        u = of_y + step * rows;
    }

    Winograd call(const Blocked& source, const Blocked& target, int64_t rows, int64_t first_tile, int64_t num_tiles,
                  const float* bias, const float* x, float* y) const {
        return {source, target, rows, first_tile, num_tiles, room, step, bias, x, y, of_x, of_y, u, place_step};
    }
};

// Run fn(first, how many) over pieces of at most `most` that are about as long: short ones leave registers empty.
template <class Function>
void in_pieces(int64_t count, int64_t most, const Function& fn) {
    const int64_t pieces = ceil_div(count, most);
    for (int64_t i = 0; i < pieces; i++) fn(count * i / pieces, count * (i + 1) / pieces - count * i / pieces);
}

// From `source` to `target`, each window `pad` pixels before its pixel.
void product(Context& context, const Blocked& source, const Blocked& target, int64_t pad, const WinogradWeights& all,
             const float* bias, const float* x, float* y) {
    const Kernels& k = kernels();
    const int64_t tiles = target.blocks * tiles_of_map(target), room = std::min(tiles, k.winograd_tiles);
    const int64_t channels = source.channels, most_rows = std::min(target.channels, ROWS_MAX);
    if (tiles == 0) return;
    const Buffers buffers(room, channels, most_rows);
    in_pieces(target.channels, ROWS_MAX, [&](int64_t first, int64_t rows) {
        WinogradWeights weights = all;
        weights.value += first * weights.row_step;
        weights.u = buffers.u;
        weights.place_step = buffers.place_step;
        context.parallel(rows, [&](int64_t row) { k.winograd_weights(weights, row); });
        in_pieces(tiles, room, [&](int64_t first_tile, int64_t num_tiles) {
            const Winograd call =
                buffers.call(source, target, rows, first_tile, num_tiles, bias != nullptr ? bias + first : nullptr,
                             x + source.origin - pad * (source.row + LANES), y + target.origin + first * target.plane);
            context.parallel(channels, [&](int64_t channel) { k.winograd_x(call, channel); });
            context.parallel(PLACES, [&](int64_t p) { k.winograd_product(call, p); });
            context.parallel(rows, [&](int64_t row) { k.winograd_y(call, row); });
        });
    });
}

}  // namespace

bool suits_winograd(const ConvGeometry& g) {
    if (g.kernel_h != KERNEL || g.kernel_w != KERNEL || g.stride != 1) return false;
    const int64_t tiles = tiles_of_map(g.y);
    return std::min(g.x.channels, g.y.channels) >= CHANNELS_MIN && tiles >= TILES_MIN &&
           static_cast<double>(g.y.height * g.y.width) >= COVERED_MIN * static_cast<double>(tiles * SIDE * SIDE);
}

void winograd_forward(Context& context, const ConvGeometry& g, const float* values, const float* bias, const float* x,
                      float* y) {
    product(context, g.x, g.y, g.pad, {g.x.channels, values, g.x.channels * WEIGHTS, WEIGHTS, false}, bias, x, y);
}

void winograd_input_gradient(Context& context, const ConvGeometry& g, const float* values, const float* dy, float* dx) {
    product(context, g.y, g.x, KERNEL - 1 - g.pad,
            {g.y.channels, values, WEIGHTS, g.x.channels * WEIGHTS, true}, nullptr, dy, dx);
}

void winograd_weight_gradient(Context& context, const ConvGeometry& g, const float* x, const float* dy, float* d_values) {
    const Kernels& k = kernels();
    const int64_t tiles = g.y.blocks * tiles_of_map(g.y), room = std::min(tiles, GRAD_TILES);
    const int64_t groups = ceil_div(g.x.channels, LANES), filled = groups * LANES;
    const int64_t most_rows = std::min(g.y.channels, ROWS_MAX), row_step = g.x.channels * WEIGHTS;
    const Buffers buffers(room, filled, most_rows);
    if (tiles == 0) std::fill_n(buffers.u, PLACES * buffers.place_step, 0.0f);
    in_pieces(g.y.channels, ROWS_MAX, [&](int64_t first, int64_t rows) {
        in_pieces(tiles, GRAD_TILES, [&](int64_t first_tile, int64_t num_tiles) {
            const Winograd call = buffers.call(g.x, g.y, rows, first_tile, num_tiles, nullptr,
                                               x + g.x.origin - g.pad * (g.x.row + LANES),
                                               const_cast<float*>(dy) + g.y.origin + first * g.y.plane);  // only read
            context.parallel(groups, [&](int64_t group) { k.winograd_grad_x(call, group); });
            context.parallel(rows, [&](int64_t row) { k.winograd_grad_y(call, row); });
            context.parallel(PLACES, [&](int64_t p) { k.winograd_grad(call, p); });
        });
        const WinogradWeights weights{g.x.channels, nullptr, row_step, WEIGHTS, false, buffers.u, buffers.place_step};
        float* const to = d_values + first * row_step;
        context.parallel(rows, [&](int64_t row) { k.winograd_weights_grad(weights, to, row); });
    });
}

}  // namespace sparsefleet
