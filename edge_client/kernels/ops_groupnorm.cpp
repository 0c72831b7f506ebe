// GroupNorm and LayerNorm with their gradients: each example is normalized by its own statistics, so
// training and evaluation are the same and no count of examples is needed.
#include <algorithm>

#include "kernels.h"
#include "ops.h"
#include "shapes.h"

namespace sparsefleet {
namespace {

constexpr ElementType F32 = ElementType::FLOAT;

constexpr Port INPUTS[] = {{"x", F32}, {"scale", F32}, {"bias", F32}};
constexpr Port OUTPUTS[] = {{"y", F32}, {"mean", F32}, {"invstd", F32}};
constexpr Port GRADIENT_INPUTS[] = {{"dy", F32}, {"x", F32}, {"scale", F32}, {"mean", F32}, {"invstd", F32}};
constexpr Port GRADIENT_OUTPUTS[] = {{"dx", F32, true}, {"dscale", F32, true}, {"dbias", F32, true}};

// A hand-over to another thread is worth this many pixels of all channels.
constexpr int64_t PIXELS_PER_PIECE = 8;

float epsilon_of(const Attributes& a) {
    const float epsilon = a.real("epsilon");
    require(epsilon >= 0.0f, "epsilon is negative");
    return epsilon;
}

// A vector input with one value per channel.
const float* per_channel(const Tensor& tensor, const Blocked& x) {
    require_shape(tensor, {x.channels});
    return tensor.as<float>();
}

// dscale and dbias, channel by channel, from what the forward pass left.
void affine_gradients(Context& context, const Blocked& dy_geometry, const Blocked& x_geometry,
                      const StatisticStrides& strides, const float* dy, const float* x, const float* mean,
                      const float* invstd) {
    float* d_scale = context.output(1, {x_geometry.channels});
    float* d_bias = context.output(2, {x_geometry.channels});
    if (d_scale == nullptr && d_bias == nullptr) return;
    const Kernels& k = kernels();
    context.parallel(x_geometry.channels, [&](int64_t c) {
        double scale_sum = 0.0, bias_sum = 0.0;
        k.example_norm_sums(dy_geometry, x_geometry, strides, dy, x, mean, invstd, c, &scale_sum, &bias_sum);
        if (d_scale != nullptr) d_scale[c] = static_cast<float>(scale_sum);
        if (d_bias != nullptr) d_bias[c] = static_cast<float>(bias_sum);
    });
}

struct GroupNormAttributes {
    float epsilon;
    int64_t groups, in_halo, out_halo;

    explicit GroupNormAttributes(const Attributes& a)
        : epsilon(epsilon_of(a)),
          groups(a.integer("groups", 1)),
          in_halo(a.integer("in_halo", 0)),
          out_halo(a.integer("out_halo", 0)) {}

    GroupNorm call(const Tensor& x) const {
        const Blocked in = blocked_of(x, in_halo);
        require(in.channels % groups == 0, "groups is " + std::to_string(groups) +
                                               ", which does not divide " + std::to_string(in.channels) +
                                               " channels");
        return {in, make_blocked(in.blocks, in.channels, in.height, in.width, out_halo), groups, epsilon};
    }
};

Shape statistics_shape(const GroupNorm& call) { return {call.x.blocks, call.groups, LANES}; }

struct GroupNormOp {
    static constexpr const char* name = "GroupNorm";
    static constexpr const auto& inputs = INPUTS;
    static constexpr const auto& outputs = OUTPUTS;

    explicit GroupNormOp(const Attributes& a) : attributes(a) {}

    void compute(Context& context) {
        const Tensor x = context.input(0), scales = context.input(1), biases = context.input(2);
        const GroupNorm call = attributes.call(x);
        const float *scale = per_channel(scales, call.x), *bias = per_channel(biases, call.x);
        float* y = context.output(0, shape_of(call.y));
        float* mean = context.output(1, statistics_shape(call));
        float* invstd = context.output(2, statistics_shape(call));
        const Kernels& k = kernels();
        context.parallel(call.x.blocks * call.groups, [&](int64_t piece) {
            k.group_norm(call, x.as<float>(), scale, bias, y, mean, invstd, piece);
        });
    }

    static void infer(ShapeContext& s) {
        const auto x = s.input(0, 5);
        const auto in = s.attribute("in_halo"), out = s.attribute("out_halo"), groups = s.attribute("groups");
        if (!x || !in || !out || !groups) return;
        s.set(0, maps_of(*x, *in).with(*out));
        s.set(1, {(*x)[0], known(*groups), known(LANES)});
        s.set(2, {(*x)[0], known(*groups), known(LANES)});
    }

    GroupNormAttributes attributes;
};

struct GroupNormGradOp {
    static constexpr const char* name = "GroupNormGrad";
    static constexpr const auto& inputs = GRADIENT_INPUTS;
    static constexpr const auto& outputs = GRADIENT_OUTPUTS;

    explicit GroupNormGradOp(const Attributes& a) : attributes(a) {}

    void compute(Context& context) {
        const Tensor dy = context.input(0), x = context.input(1), scales = context.input(2);
        const Tensor mean = context.input(3), invstd = context.input(4);
        const GroupNorm call = attributes.call(x);
        require_shape(dy, shape_of(call.y));
        require_shape(mean, statistics_shape(call));
        require_shape(invstd, statistics_shape(call));
        const float* scale = per_channel(scales, call.x);
        if (float* dx = context.output(0, x.shape)) {
            const Kernels& k = kernels();
            context.parallel(call.x.blocks * call.groups, [&](int64_t piece) {
                k.group_norm_grad(call, dy.as<float>(), x.as<float>(), scale, mean.as<float>(),
                                  invstd.as<float>(), dx, piece);
            });
        }
        const StatisticStrides strides = {call.groups * LANES, LANES, 0, call.x.channels / call.groups};
        affine_gradients(context, call.y, call.x, strides, dy.as<float>(), x.as<float>(), mean.as<float>(),
                         invstd.as<float>());
    }

    static void infer(ShapeContext& s) {
        if (const auto x = s.input(1, 5)) s.set(0, *x);
    }

    GroupNormAttributes attributes;
};

// Pieces of the pixels of all blocks.
template <class Function>
void over_pixels(Context& context, const Blocked& g, const Function& fn) {
    const int64_t pixels = g.height * g.width;
    const int64_t pieces = (pixels + PIXELS_PER_PIECE - 1) / PIXELS_PER_PIECE;
    context.parallel(g.blocks * pieces, [&](int64_t i) {
        const int64_t begin = i % pieces * PIXELS_PER_PIECE;
        fn(i / pieces, begin, std::min(begin + PIXELS_PER_PIECE, pixels));
    });
}

Shape statistics_shape(const LayerNorm& call) { return {call.x.blocks, call.x.height * call.x.width, LANES}; }

struct LayerNormOp {
    static constexpr const char* name = "LayerNorm";
    static constexpr const auto& inputs = INPUTS;
    static constexpr const auto& outputs = OUTPUTS;

    explicit LayerNormOp(const Attributes& a) : epsilon(epsilon_of(a)) {}

    void compute(Context& context) {
        const Tensor x = context.input(0), scales = context.input(1), biases = context.input(2);
        const LayerNorm call = {blocked_of(x, 0), epsilon};
        const float *scale = per_channel(scales, call.x), *bias = per_channel(biases, call.x);
        float* y = context.output(0, x.shape);
        float* mean = context.output(1, statistics_shape(call));
        float* invstd = context.output(2, statistics_shape(call));
        const Kernels& k = kernels();
        over_pixels(context, call.x, [&](int64_t block, int64_t begin, int64_t end) {
            k.layer_norm(call, x.as<float>(), scale, bias, y, mean, invstd, block, begin, end);
        });
    }

    static void infer(ShapeContext& s) {
        const auto x = s.input(0, 5);
        if (!x || (*x)[2].value < 0 || (*x)[3].value < 0) return;
        const Dim pixels = known((*x)[2].value * (*x)[3].value);
        s.set(0, *x);
        s.set(1, {(*x)[0], pixels, known(LANES)});
        s.set(2, {(*x)[0], pixels, known(LANES)});
    }

    float epsilon;
};

struct LayerNormGradOp {
    static constexpr const char* name = "LayerNormGrad";
    static constexpr const auto& inputs = GRADIENT_INPUTS;
    static constexpr const auto& outputs = GRADIENT_OUTPUTS;

    explicit LayerNormGradOp(const Attributes& a) : epsilon(epsilon_of(a)) {}

    void compute(Context& context) {
        const Tensor dy = context.input(0), x = context.input(1), scales = context.input(2);
        const Tensor mean = context.input(3), invstd = context.input(4);
        const LayerNorm call = {blocked_of(x, 0), epsilon};
        require_shape(dy, x.shape);
        require_shape(mean, statistics_shape(call));
        require_shape(invstd, statistics_shape(call));
        const float* scale = per_channel(scales, call.x);
        if (float* dx = context.output(0, x.shape)) {
            const Kernels& k = kernels();
            over_pixels(context, call.x, [&](int64_t block, int64_t begin, int64_t end) {
                k.layer_norm_grad(call, dy.as<float>(), x.as<float>(), scale, mean.as<float>(),
                                  invstd.as<float>(), dx, block, begin, end);
            });
        }
        const StatisticStrides strides = {call.x.height * call.x.width * LANES, 0, LANES, call.x.channels};
        affine_gradients(context, call.x, call.x, strides, dy.as<float>(), x.as<float>(), mean.as<float>(),
                         invstd.as<float>());
    }

    static void infer(ShapeContext& s) {
        if (const auto x = s.input(1, 5)) s.set(0, *x);
    }

    float epsilon;
};

}  // namespace

std::vector<const OrtCustomOp*> groupnorm_ops() {
    return {custom_op<GroupNormOp>(), custom_op<GroupNormGradOp>(), custom_op<LayerNormOp>(),
            custom_op<LayerNormGradOp>()};
}

}  // namespace sparsefleet
