// Batch norm with its gradient; alone, followed by a ReLU, by a residual addition and a ReLU, or by a ReLU and 2x2 maxima.
//
// The fused forms exist because these steps are bound by memory: a separate ReLU and addition read
// and write every activation again.
#include <cmath>

#include "kernels.h"
#include "ops.h"
#include "shapes.h"

namespace sparsefleet {
namespace {

constexpr ElementType F32 = ElementType::FLOAT;
constexpr ElementType I64 = ElementType::INT64;

struct NormAttributes {
    float epsilon;
    bool is_training;
    int64_t in_halo, out_halo, grad_halo;

    explicit NormAttributes(const Attributes& a)
        : epsilon(a.real("epsilon")),
          is_training(a.integer("training", 0, 1) == 1),
          in_halo(a.integer("in_halo", 0)),
          out_halo(a.integer("out_halo", 0)),
          grad_halo(a.integer_or("grad_halo", in_halo, 0, INT32_MAX)) {
        require(epsilon >= 0.0f, "epsilon is negative");
    }

    BatchNorm call(const Tensor& x, const Tensor& count, After after) const {
        const Blocked in = blocked_of(x, in_halo);
        const auto map_of = [&](int64_t divisor, int64_t halo) {
            return make_blocked(in.blocks, in.channels, in.height / divisor, in.width / divisor, halo);
        };
        const int64_t pooled = after == After::RELU_MAX_POOL ? 2 : 1;
        require(in.height % pooled == 0 && in.width % pooled == 0, "a map of odd height or width under 2x2 windows");
        return {in, map_of(pooled, out_halo), map_of(1, grad_halo), examples_of(count, in.blocks), after};
    }
};

int64_t values_per_channel(const BatchNorm& call) { return call.num_examples * call.x.height * call.x.width; }

// A vector input with one value per channel.
const float* per_channel(const Tensor& tensor, const BatchNorm& call) {
    require_shape(tensor, {call.x.channels});
    return tensor.as<float>();
}

// The gradient computes the factor again, from invstd as forward returned it: so it is the same one.
Affine affine(float mean, float scale, float invstd, float bias) {
    return {mean, static_cast<float>(static_cast<double>(scale) * static_cast<double>(invstd)), bias};
}

constexpr Port OUTPUTS[] = {{"y", F32}, {"mean", F32, true}, {"var", F32, true}, {"invstd", F32, true}};

template <After AFTER>
struct Forward {
    static constexpr const auto& outputs = OUTPUTS;
    static constexpr size_t COUNT = 5, SKIP = 6;

    explicit Forward(const Attributes& a) : attributes(a) {}

    void compute(Context& context) {
        const Tensor x = context.input(0);
        const BatchNorm call = attributes.call(x, context.input(COUNT), AFTER);
        const Tensor scales = context.input(1), biases = context.input(2);
        const Tensor means = context.input(3), vars = context.input(4);
        const float* scale = per_channel(scales, call);
        const float* bias = per_channel(biases, call);
        const float* running_mean = per_channel(means, call);
        const float* running_var = per_channel(vars, call);
        const float* skip = nullptr;
        if (AFTER == After::ADD_RELU) {
            const Tensor added = context.input(SKIP);
            require_shape(added, shape_of(call.y));
            skip = added.as<float>();
        }
        const double count = static_cast<double>(values_per_channel(call));
        require(!attributes.is_training || count >= 2,
                "training needs two values per channel or more, there are " +
                    std::to_string(values_per_channel(call)));
        float* y = context.output(0, shape_of(call.y));
        float* mean_out = context.output(1, {call.x.channels});
        float* var_out = context.output(2, {call.x.channels});
        float* invstd_out = context.output(3, {call.x.channels});
        const Kernels& k = kernels();
        context.parallel(call.x.channels, [&](int64_t c) {
            double mean = static_cast<double>(running_mean[c]),
                   unbiased = static_cast<double>(running_var[c]);
            double biased = unbiased;
            if (attributes.is_training) {
                k.moments(call, x.as<float>(), c, &mean, &biased);
                unbiased = biased * count / (count - 1.0);
            }
            const float invstd =
                static_cast<float>(1.0 / std::sqrt(biased + static_cast<double>(attributes.epsilon)));
            if (mean_out != nullptr) mean_out[c] = static_cast<float>(mean);
            if (var_out != nullptr) var_out[c] = static_cast<float>(unbiased);
            if (invstd_out != nullptr) invstd_out[c] = invstd;
            if (y == nullptr) return;
            const Affine f = affine(static_cast<float>(mean), scale[c], invstd, bias[c]);
            k.normalize(call, f, x.as<float>(), skip, y, c);
        });
    }

    static void infer(ShapeContext& s) {
        const auto x = s.input(0, 5);
        if (!x) return;
        const auto in = s.attribute("in_halo"), out = s.attribute("out_halo");
        if (!in || !out) return;
        MapDims y = maps_of(*x, *in);
        if (AFTER == After::RELU_MAX_POOL) {
            y.height = window_dim(y.height, 2, 2, 0);
            y.width = window_dim(y.width, 2, 2, 0);
        }
        s.set(0, y.with(*out));
    }

    NormAttributes attributes;
};

#define BATCH_NORM_INPUTS                                                                              \
    {"x", F32}, {"scale", F32}, {"bias", F32}, {"running_mean", F32}, {"running_var", F32}, {"count", I64}

struct BatchNormOp : Forward<After::NOTHING> {
    static constexpr const char* name = "BatchNorm";
    static constexpr Port inputs[] = {BATCH_NORM_INPUTS};
    using Forward::Forward;
};

struct BatchNormRelu : Forward<After::RELU> {
    static constexpr const char* name = "BatchNormRelu";
    static constexpr Port inputs[] = {BATCH_NORM_INPUTS};
    using Forward::Forward;
};

struct BatchNormAddRelu : Forward<After::ADD_RELU> {
    static constexpr const char* name = "BatchNormAddRelu";
    static constexpr Port inputs[] = {BATCH_NORM_INPUTS, {"skip", F32}};
    using Forward::Forward;
};

struct BatchNormReluMaxPool : Forward<After::RELU_MAX_POOL> {
    static constexpr const char* name = "BatchNormReluMaxPool";
    static constexpr Port inputs[] = {BATCH_NORM_INPUTS};
    using Forward::Forward;
};

// The output of BatchNormRelu once more, from its input and statistics: the same bits. Recomputing it
// for the weight gradient that reads it reads memory once, in order; storing it would write it, and
// read it back out of order, tile by tile. `after` is not read: it keeps the runtime from running
// this before the backward pass.
struct BatchNormReluAgain {
    static constexpr const char* name = "BatchNormReluAgain";
    static constexpr Port inputs[] = {{"x", F32},      {"scale", F32}, {"bias", F32}, {"mean", F32},
                                      {"invstd", F32}, {"count", I64}, {"after", F32}};
    static constexpr Port outputs[] = {{"y", F32}};

    explicit BatchNormReluAgain(const Attributes& a) : attributes(a) {}

    void compute(Context& context) {
        const Tensor x = context.input(0);
        const BatchNorm call = attributes.call(x, context.input(5), After::RELU);
        const auto vector = [&](size_t index) { return per_channel(context.input(index), call); };
        const float *scale = vector(1), *bias = vector(2), *mean = vector(3), *invstd = vector(4);
        float* y = context.output(0, shape_of(call.y));
        if (y == nullptr) return;
        const Kernels& k = kernels();
        context.parallel(call.x.channels, [&](int64_t c) {
            k.normalize(call, affine(mean[c], scale[c], invstd[c], bias[c]), x.as<float>(), nullptr, y, c);
        });
    }

    static void infer(ShapeContext& s) { Forward<After::RELU>::infer(s); }

    NormAttributes attributes;
};

// Inputs behind count: bias where the ReLU's side follows from x, y under ADD_RELU, then the other gradient
// where dy is a sum.
template <After AFTER, bool IS_SUM>
struct Backward {
    explicit Backward(const Attributes& a)
        : attributes(a), other_step(a.integer_or("other_step", 1, 1, IS_SUM ? 2 : 1)) {}

    // With g = dy behind the ReLU, n values per channel and xhat = (x - mean) * invstd:
    //   dbias = sum(g), dscale = sum(g * xhat), d_skip = g
    //   dx = scale * invstd * (g - dbias / n - xhat * dscale / n)   with batch statistics
    //   dx = scale * invstd * g                                     with running statistics
    void compute(Context& context) {
        const Tensor dy = context.input(0), x = context.input(1);
        const BatchNorm call = attributes.call(x, context.input(5), AFTER);
        const Shape shape = shape_of(call.y);
        require_shape(dy, shape);
        const auto like_y = [&](size_t index) {
            const Tensor tensor = context.input(index);
            require_shape(tensor, shape);
            return tensor.as<float>();
        };
        const auto vector = [&](size_t index) { return per_channel(context.input(index), call); };
        const float *scale = vector(2), *mean = vector(3), *invstd = vector(4);
        const bool needs_bias = AFTER == After::RELU || AFTER == After::RELU_MAX_POOL;
        const float* bias = needs_bias ? vector(6) : nullptr;
        const float* y = AFTER == After::ADD_RELU ? like_y(6) : nullptr;
        const Blocked other = other_of(call.y);
        const float* dy_other = nullptr;
        if (IS_SUM) {
            const Tensor tensor = context.input(7);
            require_shape(tensor, shape_of(other));
            dy_other = tensor.as<float>();
        }
        float* dx = context.output(0, shape_of(call.dx));
        float* d_scale = context.output(1, {call.x.channels});
        float* d_bias = context.output(2, {call.x.channels});
        float* d_skip = AFTER == After::ADD_RELU ? context.output(3, shape_of(call.y)) : nullptr;
        const double count = static_cast<double>(values_per_channel(call));
        const Kernels& k = kernels();
        context.parallel(call.x.channels, [&](int64_t c) {
            const Affine f = affine(mean[c], scale[c], invstd[c], bias != nullptr ? bias[c] : 0.0f);
            const BatchNormGradient gradient{f,     dy.as<float>(), dy_other, other, other_step,
                                             x.as<float>(), y,      d_skip};
            double sum = 0.0, sum_x = 0.0;
            k.normalize_sums(call, gradient, c, &sum, &sum_x);
            const double inv = static_cast<double>(invstd[c]);
            if (d_scale != nullptr) d_scale[c] = static_cast<float>(sum_x * inv);
            if (d_bias != nullptr) d_bias[c] = static_cast<float>(sum);
            if (dx == nullptr) return;
            const double factor = static_cast<double>(scale[c]) * inv;
            const double through = attributes.is_training && count > 0 ? factor / count : 0.0;
            k.normalize_grad(call, gradient, static_cast<float>(factor),
                             static_cast<float>(-through * sum_x * inv * inv),
                             static_cast<float>(-through * sum), dx, c);
        });
    }

    static void infer(ShapeContext& s) {
        const auto x = s.input(1, 5);
        if (!x) return;
        const auto in = s.attribute("in_halo"), grad = s.attribute("grad_halo");
        if (in) s.set(0, maps_of(*x, *in).with(grad ? *grad : *in));
    }

    // The geometry of the other gradient: y's, or where a strided convolution met it (SparseConvGrad's dx_step).
    Blocked other_of(const Blocked& y) const {
        if (other_step == 1) return y;
        const auto met = [&](int64_t extent) { return (extent - 1) / other_step + 1; };
        return make_blocked(y.blocks, y.channels, met(y.height), met(y.width), 0);
    }

    NormAttributes attributes;
    int64_t other_step;
};

#define GRADIENT_INPUTS                                                                        \
    {"dy", F32}, {"x", F32}, {"scale", F32}, {"mean", F32}, {"invstd", F32}, {"count", I64}
#define GRADIENT_OUTPUTS {"dx", F32, true}, {"dscale", F32, true}, {"dbias", F32, true}

struct BatchNormGrad : Backward<After::NOTHING, false> {
    static constexpr const char* name = "BatchNormGrad";
    static constexpr Port inputs[] = {GRADIENT_INPUTS};
    static constexpr Port outputs[] = {GRADIENT_OUTPUTS};
    using Backward::Backward;
};

struct BatchNormReluGrad : Backward<After::RELU, false> {
    static constexpr const char* name = "BatchNormReluGrad";
    static constexpr Port inputs[] = {GRADIENT_INPUTS, {"bias", F32}};
    static constexpr Port outputs[] = {GRADIENT_OUTPUTS};
    using Backward::Backward;
};

struct BatchNormReluSumGrad : Backward<After::RELU, true> {
    static constexpr const char* name = "BatchNormReluSumGrad";
    static constexpr Port inputs[] = {GRADIENT_INPUTS, {"bias", F32}, {"dy_other", F32}};
    static constexpr Port outputs[] = {GRADIENT_OUTPUTS};
    using Backward::Backward;
};

struct BatchNormReluMaxPoolGrad : Backward<After::RELU_MAX_POOL, false> {
    static constexpr const char* name = "BatchNormReluMaxPoolGrad";
    static constexpr Port inputs[] = {GRADIENT_INPUTS, {"bias", F32}};
    static constexpr Port outputs[] = {GRADIENT_OUTPUTS};
    using Backward::Backward;
};

struct BatchNormAddReluGrad : Backward<After::ADD_RELU, false> {
    static constexpr const char* name = "BatchNormAddReluGrad";
    static constexpr Port inputs[] = {GRADIENT_INPUTS, {"y", F32}};
    static constexpr Port outputs[] = {GRADIENT_OUTPUTS, {"dskip", F32, true}};
    using Backward::Backward;
};

struct BatchNormAddReluSumGrad : Backward<After::ADD_RELU, true> {
    static constexpr const char* name = "BatchNormAddReluSumGrad";
    static constexpr Port inputs[] = {GRADIENT_INPUTS, {"y", F32}, {"dy_other", F32}};
    static constexpr Port outputs[] = {GRADIENT_OUTPUTS, {"dskip", F32, true}};
    using Backward::Backward;
};

}  // namespace

std::vector<const OrtCustomOp*> norm_ops() {
    return {custom_op<BatchNormOp>(),          custom_op<BatchNormGrad>(),
            custom_op<BatchNormRelu>(),        custom_op<BatchNormReluGrad>(),
            custom_op<BatchNormReluSumGrad>(), custom_op<BatchNormAddRelu>(),
            custom_op<BatchNormAddReluGrad>(), custom_op<BatchNormAddReluSumGrad>(),
            custom_op<BatchNormReluMaxPool>(), custom_op<BatchNormReluMaxPoolGrad>(),
            custom_op<BatchNormReluAgain>()};
}

}  // namespace sparsefleet
