// Activations that wait for the backward pass, stored smaller: SaveActivation keeps what is not zero
// and not below a threshold, SaveSigns which lanes are positive, SaveHalf everything at half precision.
// Each has an op that restores the blocked tensor right before its reader.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "kernels.h"
#include "ops.h"
#include "shapes.h"

namespace sparsefleet {
namespace {

constexpr ElementType F32 = ElementType::FLOAT;
constexpr ElementType I64 = ElementType::INT64;
constexpr ElementType U16 = ElementType::UINT16;

// Planes of vectors are one pixel, too little for a hand-over to another thread.
constexpr int64_t PIXELS_PER_PIECE = 256;

template <class Function>
void each_plane(Context& context, const Blocked& g, const Function& fn) {
    const int64_t per_piece = std::max<int64_t>(1, PIXELS_PER_PIECE / (g.height * g.width));
    const int64_t planes = num_planes(g);
    context.parallel((planes + per_piece - 1) / per_piece, [&](int64_t piece) {
        const int64_t end = std::min((piece + 1) * per_piece, planes);
        for (int64_t plane = piece * per_piece; plane < end; plane++) fn(plane);
    });
}

Shape bits_shape(const Blocked& g) { return {g.blocks, g.channels, g.height, g.width}; }

// The geometry of what a bitmap [B, C, H, W] restores.
Blocked restored(const Tensor& bits, int64_t halo) {
    const Shape& s = bits.shape;
    require(s.size() == 4 && s[1] >= 1 && s[2] >= 1 && s[3] >= 1,
            std::string(bits.name) + " has shape " + to_string(s) + ", expected [B, C, H, W]");
    return make_blocked(s[0], s[1], s[2], s[3], halo);
}

float scalar(const Tensor& tensor) {
    require(tensor.size() == 1,
            std::string(tensor.name) + " has shape " + to_string(tensor.shape) + ", expected one value");
    return *tensor.as<float>();
}

// The k-th largest magnitude of valid lanes, k = ceil(max(keep, 1e-7) * all of them): found by its
// bits, the upper 16 of 31 first, because magnitudes order as their bits do.
float kth_magnitude(const float* x, const Blocked& g, int64_t num_examples, float keep) {
    const auto count_bits = [&](std::vector<int64_t>& histogram, const auto& bin_of) {
        for (int64_t plane = 0; plane < num_planes(g); plane++) {
            const int64_t valid = std::min(LANES, num_examples - plane / g.channels * LANES);
            for (int64_t pixel = 0; pixel < g.height * g.width; pixel++) {
                const float* lanes =
                    x + map_of(g, plane) + pixel / g.width * g.row + pixel % g.width * LANES;
                for (int64_t lane = 0; lane < valid; lane++) {
                    uint32_t bits;
                    std::memcpy(&bits, lanes + lane, sizeof bits);
                    const int64_t bin = bin_of(bits & 0x7fffffffu);
                    if (bin >= 0) histogram[static_cast<size_t>(bin)]++;
                }
            }
        }
    };
    const int64_t size = num_examples * g.channels * g.height * g.width;
    const double wanted = std::max(static_cast<double>(keep), 1e-7) * static_cast<double>(size);
    int64_t left = std::max<int64_t>(1, static_cast<int64_t>(std::ceil(wanted)));
    // The bin in which the count from above reaches `left`, which then counts within that bin.
    const auto reached = [&](const std::vector<int64_t>& histogram) {
        size_t bin = histogram.size() - 1;
        while (bin > 0 && histogram[bin] < left) left -= histogram[bin--];
        return static_cast<uint32_t>(bin);
    };
    std::vector<int64_t> upper(1u << 16), lower(1u << 15);
    count_bits(upper, [](uint32_t bits) { return static_cast<int64_t>(bits >> 15); });
    const uint32_t high = reached(upper);
    count_bits(lower, [&](uint32_t bits) {
        return bits >> 15 == high ? static_cast<int64_t>(bits & 0x7fffu) : int64_t{-1};
    });
    const uint32_t found = high << 15 | reached(lower);
    float magnitude;
    std::memcpy(&magnitude, &found, sizeof magnitude);
    return magnitude;
}

// Inputs x, count, keep, threshold: with keep below 1 only magnitudes from a threshold on are kept, which
// is the given one, or is found if that is negative.
float threshold_of(Context& context, const Tensor& x, const Blocked& g, int64_t num_examples) {
    const float keep = scalar(context.input(2)), given = scalar(context.input(3));
    require(keep > 0.0f, "keep is " + std::to_string(keep) + ", must be above 0");
    if (keep >= 1.0f || num_examples == 0) return 0.0f;
    return given < 0.0f ? kth_magnitude(x.as<float>(), g, num_examples, keep) : given;
}

// Outputs bits, begin (per plane, of its values), values, used (the threshold).
template <class Value>
struct Save {
    explicit Save(const Attributes& a) : in_halo(a.integer("in_halo", 0)) {}

    void compute(Context& context) {
        const Tensor x = context.input(0);
        const Blocked g = blocked_of(x, in_halo);
        const int64_t num_examples = examples_of(context.input(1), g.blocks);
        const float threshold = threshold_of(context, x, g, num_examples);
        uint16_t* bits = context.output<uint16_t>(0, bits_shape(g));
        int64_t* begin = context.output<int64_t>(1, {num_planes(g) + 1});
        const Kernels& k = kernels();
        begin[0] = 0;
        if (num_planes(g) > 0) {
            each_plane(context, g, [&](int64_t plane) {
                begin[plane + 1] = k.kept_bits(x.as<float>(), g, num_examples, threshold, bits, plane);
            });
        }
        for (int64_t plane = 0; plane < num_planes(g); plane++) begin[plane + 1] += begin[plane];
        Value* values = context.output<Value>(2, {begin[num_planes(g)]});
        if (float* used = context.output(3, {})) *used = threshold;
        each_plane(context, g, [&](int64_t plane) {
            const int64_t count = begin[plane + 1] - begin[plane];
            if constexpr (sizeof(Value) == sizeof(float)) {
                k.save_values(x.as<float>(), g, bits, values + begin[plane], count, plane);
            } else {
                k.save_values_half(x.as<float>(), g, bits, values + begin[plane], count, plane);
            }
        });
    }

    static void infer(ShapeContext& s) { s.set(3, {}); }

    int64_t in_halo;
};

template <class Value>
struct Restore {
    explicit Restore(const Attributes& a) : out_halo(a.integer("out_halo", 0)) {}

    void compute(Context& context) {
        const Tensor bits = context.input(0), begins = context.input(1), values = context.input(2);
        const Blocked g = restored(bits, out_halo);
        require_shape(begins, {num_planes(g) + 1});
        const int64_t* begin = begins.as<int64_t>();
        check_ranges(bits.as<uint16_t>(), begin, g, values);
        float* y = context.output(0, shape_of(g));
        const Kernels& k = kernels();
        each_plane(context, g, [&](int64_t plane) {
            const int64_t count = begin[plane + 1] - begin[plane];
            const Value* from = values.as<Value>() + begin[plane];
            if constexpr (sizeof(Value) == sizeof(float)) {
                k.restore_values(bits.as<uint16_t>(), from, count, y, g, plane);
            } else {
                k.restore_values_half(bits.as<uint16_t>(), from, count, y, g, plane);
            }
        });
    }

    static void infer(ShapeContext&) {}

    int64_t out_halo;

  private:
    // What the bits of a plane name must be there; a graph may connect anything.
    static void check_ranges(const uint16_t* bits, const int64_t* begin, const Blocked& g,
                             const Tensor& values) {
        const int64_t pixels = g.height * g.width;
        int64_t total = 0;
        for (int64_t plane = 0; plane <= num_planes(g); plane++) {
            require(begin[plane] == total, "begin[" + std::to_string(plane) + "] is " +
                                               std::to_string(begin[plane]) + ", the bits before it name " +
                                               std::to_string(total) + " values");
            if (plane == num_planes(g)) break;
            for (int64_t i = 0; i < pixels; i++) total += __builtin_popcount(bits[plane * pixels + i]);
        }
        require_shape(values, {total});
    }
};

constexpr Port SAVE_INPUTS[] = {{"x", F32}, {"count", I64}, {"keep", F32}, {"threshold", F32}};

struct SaveActivation : Save<float> {
    static constexpr const char* name = "SaveActivation";
    static constexpr const auto& inputs = SAVE_INPUTS;
    static constexpr Port outputs[] = {{"bits", U16}, {"begin", I64}, {"values", F32}, {"used", F32}};
    using Save::Save;
};

struct SaveActivationHalf : Save<uint16_t> {
    static constexpr const char* name = "SaveActivationHalf";
    static constexpr const auto& inputs = SAVE_INPUTS;
    static constexpr Port outputs[] = {{"bits", U16}, {"begin", I64}, {"values", U16}, {"used", F32}};
    using Save::Save;
};

struct RestoreActivation : Restore<float> {
    static constexpr const char* name = "RestoreActivation";
    static constexpr Port inputs[] = {{"bits", U16}, {"begin", I64}, {"values", F32}};
    static constexpr Port outputs[] = {{"y", F32}};
    using Restore::Restore;
};

struct RestoreActivationHalf : Restore<uint16_t> {
    static constexpr const char* name = "RestoreActivationHalf";
    static constexpr Port inputs[] = {{"bits", U16}, {"begin", I64}, {"values", U16}};
    static constexpr Port outputs[] = {{"y", F32}};
    using Restore::Restore;
};

// What SaveActivation and RestoreActivation do together, for a tensor that does not wait.
struct PruneActivation {
    static constexpr const char* name = "PruneActivation";
    static constexpr const auto& inputs = SAVE_INPUTS;
    static constexpr Port outputs[] = {{"y", F32}, {"used", F32}};

    explicit PruneActivation(const Attributes& a) : in_halo(a.integer("in_halo", 0)) {}

    void compute(Context& context) {
        const Tensor x = context.input(0);
        const Blocked g = blocked_of(x, in_halo);
        const float threshold = threshold_of(context, x, g, examples_of(context.input(1), g.blocks));
        float* y = context.output(0, x.shape);
        if (float* used = context.output(1, {})) *used = threshold;
        const Kernels& k = kernels();
        const Blocked all = blocked_of(x, 0);  // with the halo as if it were pixels
        each_plane(context, all, [&](int64_t plane) {
            k.prune(x.as<float>(), threshold, y, plane * all.plane, (plane + 1) * all.plane);
        });
    }

    static void infer(ShapeContext& s) { s.set(1, {}); }

    int64_t in_halo;
};

// Of an output of ReLU, which has nothing below zero.
struct SaveSigns {
    static constexpr const char* name = "SaveSigns";
    static constexpr Port inputs[] = {{"x", F32}, {"count", I64}};
    static constexpr Port outputs[] = {{"bits", U16}};

    explicit SaveSigns(const Attributes& a) : in_halo(a.integer("in_halo", 0)) {}

    void compute(Context& context) {
        const Tensor x = context.input(0);
        const Blocked g = blocked_of(x, in_halo);
        const int64_t num_examples = examples_of(context.input(1), g.blocks);
        uint16_t* bits = context.output<uint16_t>(0, bits_shape(g));
        const Kernels& k = kernels();
        each_plane(context, g,
                   [&](int64_t plane) { k.kept_bits(x.as<float>(), g, num_examples, 0.0f, bits, plane); });
    }

    static void infer(ShapeContext&) {}

    int64_t in_halo;
};

// One where the activation was positive, zero elsewhere.
struct RestoreSigns {
    static constexpr const char* name = "RestoreSigns";
    static constexpr Port inputs[] = {{"bits", U16}};
    static constexpr Port outputs[] = {{"y", F32}};

    explicit RestoreSigns(const Attributes& a) : out_halo(a.integer("out_halo", 0)) {}

    void compute(Context& context) {
        const Tensor bits = context.input(0);
        const Blocked g = restored(bits, out_halo);
        float* y = context.output(0, shape_of(g));
        const Kernels& k = kernels();
        each_plane(context, g, [&](int64_t plane) { k.restore_signs(bits.as<uint16_t>(), y, g, plane); });
    }

    static void infer(ShapeContext&) {}

    int64_t out_halo;
};

struct SaveHalf {
    static constexpr const char* name = "SaveHalf";
    static constexpr Port inputs[] = {{"x", F32}};
    static constexpr Port outputs[] = {{"halves", U16}};

    explicit SaveHalf(const Attributes& a) : in_halo(a.integer("in_halo", 0)) {}

    void compute(Context& context) {
        const Tensor x = context.input(0);
        const Blocked g = blocked_of(x, in_halo);
        uint16_t* halves = context.output<uint16_t>(0, {g.blocks, g.channels, g.height, g.width, LANES});
        const Kernels& k = kernels();
        each_plane(context, g, [&](int64_t plane) { k.save_halves(x.as<float>(), g, halves, plane); });
    }

    static void infer(ShapeContext&) {}

    int64_t in_halo;
};

struct RestoreHalf {
    static constexpr const char* name = "RestoreHalf";
    static constexpr Port inputs[] = {{"halves", U16}};
    static constexpr Port outputs[] = {{"y", F32}};

    explicit RestoreHalf(const Attributes& a) : out_halo(a.integer("out_halo", 0)) {}

    void compute(Context& context) {
        const Tensor halves = context.input(0);
        const Shape& s = halves.shape;
        require(s.size() == 5 && s[1] >= 1 && s[2] >= 1 && s[3] >= 1 && s[4] == LANES,
                "halves has shape " + to_string(s) + ", expected [B, C, H, W, 16]");
        const Blocked g = make_blocked(s[0], s[1], s[2], s[3], out_halo);
        float* y = context.output(0, shape_of(g));
        const Kernels& k = kernels();
        each_plane(context, g, [&](int64_t plane) { k.restore_halves(halves.as<uint16_t>(), y, g, plane); });
    }

    static void infer(ShapeContext&) {}

    int64_t out_halo;
};

}  // namespace

std::vector<const OrtCustomOp*> saved_ops() {
    return {custom_op<SaveActivation>(),    custom_op<SaveActivationHalf>(),    custom_op<SaveSigns>(),
            custom_op<RestoreActivation>(), custom_op<RestoreActivationHalf>(), custom_op<RestoreSigns>(),
            custom_op<SaveHalf>(),          custom_op<RestoreHalf>(),           custom_op<PruneActivation>()};
}

}  // namespace sparsefleet
