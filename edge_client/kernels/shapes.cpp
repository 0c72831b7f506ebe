#include "shapes.h"

namespace sparsefleet {
namespace {

// The plane of zeros that ends a block.
int64_t last_plane(int64_t halo) { return halo > 0 ? 1 : 0; }

}  // namespace

Blocked make_blocked(int64_t blocks, int64_t channels, int64_t height, int64_t width, int64_t halo) {
    // Offsets of stored weights are int32; they point anywhere into one block. In floating point, for attributes of a
    // graph may be so large that their product overflows.
    const double floats = static_cast<double>(channels + last_plane(halo)) * static_cast<double>(height + halo) *
                          static_cast<double>(width + halo) * static_cast<double>(LANES);
    require(floats <= INT32_MAX, "a block of 16 examples has 2^31 floats or more");
    Blocked g{blocks, channels, height, width, halo, 0, 0, 0, 0};
    g.row = (width + halo) * LANES;
    g.plane = (height + halo) * g.row;
    g.block = (channels + last_plane(halo)) * g.plane;
    g.origin = halo * (g.row + LANES);
    return g;
}

Blocked blocked_of(const Tensor& tensor, int64_t halo) {
    const Shape& s = tensor.shape;
    require(s.size() == 5 && s[4] == LANES,
            std::string(tensor.name) + " has shape " + to_string(s) + ", expected [B, C, H, W, 16]");
    require(s[1] > last_plane(halo) && s[2] > halo && s[3] > halo, std::string(tensor.name) + " has shape " +
                                                                       to_string(s) + ", too small for a halo of " +
                                                                       std::to_string(halo));
    return make_blocked(s[0], s[1] - last_plane(halo), s[2] - halo, s[3] - halo, halo);
}

Blocked vectors_of(const Tensor& tensor) {
    const Shape& s = tensor.shape;
    require(s.size() == 5 && s[1] >= 1 && s[2] == 1 && s[3] == 1 && s[4] == LANES,
            std::string(tensor.name) + " has shape " + to_string(s) + ", expected [B, F, 1, 1, 16]");
    return make_blocked(s[0], s[1], 1, 1, 0);
}

Shape shape_of(const Blocked& g) {
    return {g.blocks, g.channels + last_plane(g.halo), g.height + g.halo, g.width + g.halo, LANES};
}

int64_t num_planes(const Blocked& g) { return g.blocks * g.channels; }

int64_t num_floats(const Blocked& g) { return g.blocks * g.block; }

int64_t num_blocks(int64_t num_examples) { return (num_examples + LANES - 1) / LANES; }

int64_t examples_of(const Tensor& count, int64_t blocks) {
    require_shape(count, {1});
    const int64_t num_examples = *count.as<int64_t>();
    require(num_examples >= 0 && num_examples <= blocks * LANES && num_blocks(num_examples) == blocks,
            "count is " + std::to_string(num_examples) + ", which does not make " + std::to_string(blocks) +
                " blocks of 16");
    return num_examples;
}

Dim known(int64_t value) { return Dim{value, ""}; }

namespace {
const std::string CEIL_BEGIN = "ceil(";
const std::string CEIL_END = "/16)";
}  // namespace

// Equal names make the runtime believe that sizes are equal, so a name is derived from its source.
Dim blocks_of(const Dim& num_examples) {
    if (num_examples.value >= 0) return known(num_blocks(num_examples.value));
    if (num_examples.symbol.empty()) return {};
    return Dim{-1, CEIL_BEGIN + num_examples.symbol + CEIL_END};
}

Dim examples_of(const Dim& blocks) {
    if (blocks.value >= 0) return Dim{-1, "examples_of_" + std::to_string(blocks.value) + "_blocks"};
    const std::string& s = blocks.symbol;
    const size_t around = CEIL_BEGIN.size() + CEIL_END.size();
    if (s.size() > around && s.compare(0, CEIL_BEGIN.size(), CEIL_BEGIN) == 0 &&
        s.compare(s.size() - CEIL_END.size(), CEIL_END.size(), CEIL_END) == 0) {
        return Dim{-1, s.substr(CEIL_BEGIN.size(), s.size() - around)};
    }
    if (s.empty()) return {};
    return Dim{-1, "examples_of_" + s};
}

Dim window_dim(const Dim& input, int64_t kernel, int64_t stride, int64_t pad) {
    const int64_t room = input.value + 2 * pad - kernel;
    return input.value >= 0 && room >= 0 ? known(room / stride + 1) : Dim{};
}

namespace {
Dim grown(const Dim& dim, int64_t by) {
    if (by == 0) return dim;
    return dim.value >= 0 && dim.value + by >= 0 ? known(dim.value + by) : Dim{};
}
}  // namespace

Dims MapDims::with(int64_t halo) const {
    return {blocks, grown(channels, last_plane(halo)), grown(height, halo), grown(width, halo), known(LANES)};
}

MapDims maps_of(const Dims& blocked, int64_t halo) {
    return {blocked[0], grown(blocked[1], -last_plane(halo)), grown(blocked[2], -halo), grown(blocked[3], -halo)};
}

Dims vector_dims(const Dim& blocks, const Dim& features) {
    return {blocks, features, known(1), known(1), known(LANES)};
}

}  // namespace sparsefleet
