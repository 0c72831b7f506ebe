// BatchNorm and its gradient.
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
    int64_t in_halo, out_halo;

    explicit NormAttributes(const Attributes& a)
        : epsilon(a.real("epsilon")),
          is_training(a.integer("training", 0, 1) == 1),
          in_halo(a.integer("in_halo", 0)),
          out_halo(a.integer("out_halo", 0)) {
        require(epsilon >= 0.0f, "epsilon is negative");
    }

    BatchNorm call(const Tensor& x, const Tensor& count) const {
        const Blocked in = blocked_of(x, in_halo);
        const Blocked out = make_blocked(in.blocks, in.channels, in.height, in.width, out_halo);
        return {in, out, examples_of(count, in.blocks)};
    }
};

int64_t values_per_channel(const BatchNorm& call) { return call.num_examples * call.x.height * call.x.width; }

// A vector input with one value per channel.
const float* per_channel(const Tensor& tensor, const BatchNorm& call) {
    require_shape(tensor, {call.x.channels});
    return tensor.as<float>();
}

struct BatchNormOp {
    static constexpr const char* name = "BatchNorm";
    static constexpr Port inputs[] = {{"x", F32},           {"scale", F32},
                                      {"bias", F32},        {"running_mean", F32},
                                      {"running_var", F32}, {"count", I64}};
    static constexpr Port outputs[] = {
        {"y", F32}, {"mean", F32, true}, {"var", F32, true}, {"invstd", F32, true}};

    explicit BatchNormOp(const Attributes& a) : attributes(a) {}

    void compute(Context& context) {
        const Tensor x = context.input(0);
        const BatchNorm call = attributes.call(x, context.input(5));
        const Tensor scales = context.input(1), biases = context.input(2);
        const Tensor means = context.input(3), vars = context.input(4);
        const float* scale = per_channel(scales, call);
        const float* bias = per_channel(biases, call);
        const float* running_mean = per_channel(means, call);
        const float* running_var = per_channel(vars, call);
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
            const double invstd = 1.0 / std::sqrt(biased + static_cast<double>(attributes.epsilon));
            if (mean_out != nullptr) mean_out[c] = static_cast<float>(mean);
            if (var_out != nullptr) var_out[c] = static_cast<float>(unbiased);
            if (invstd_out != nullptr) invstd_out[c] = static_cast<float>(invstd);
            if (y == nullptr) return;
            const float factor = static_cast<float>(static_cast<double>(scale[c]) * invstd);
            k.normalize(call, x.as<float>(), static_cast<float>(mean), factor, bias[c], y, c);
        });
    }

    static void infer(ShapeContext& s) {
        const auto x = s.input(0, 5);
        if (!x) return;
        const auto in = s.attribute("in_halo"), out = s.attribute("out_halo");
        if (!in || !out) return;
        const int64_t by = 2 * (*out - *in);
        s.set(0, {(*x)[0], (*x)[1], grown((*x)[2], by), grown((*x)[3], by), known(LANES)});
    }

    NormAttributes attributes;
};

struct BatchNormGradOp {
    static constexpr const char* name = "BatchNormGrad";
    static constexpr Port inputs[] = {{"dy", F32},   {"x", F32},      {"scale", F32},
                                      {"mean", F32}, {"invstd", F32}, {"count", I64}};
    static constexpr Port outputs[] = {{"dx", F32, true}, {"dscale", F32, true}, {"dbias", F32, true}};

    explicit BatchNormGradOp(const Attributes& a) : attributes(a) {}

    // With g = dy, n values per channel and xhat = (x - mean) * invstd:
    //   dbias = sum(g), dscale = sum(g * xhat)
    //   dx = scale * invstd * (g - dbias / n - xhat * dscale / n)   with batch statistics
    //   dx = scale * invstd * g                                     with running statistics
    void compute(Context& context) {
        const Tensor dy = context.input(0), x = context.input(1);
        const BatchNorm call = attributes.call(x, context.input(5));
        require_shape(dy, shape_of(call.y));
        const Tensor scales = context.input(2), means = context.input(3), invstds = context.input(4);
        const float* scale = per_channel(scales, call);
        const float* mean = per_channel(means, call);
        const float* invstd = per_channel(invstds, call);
        float* dx = context.output(0, x.shape);
        float* d_scale = context.output(1, {call.x.channels});
        float* d_bias = context.output(2, {call.x.channels});
        const double count = static_cast<double>(values_per_channel(call));
        const Kernels& k = kernels();
        context.parallel(call.x.channels, [&](int64_t c) {
            double sum = 0.0, sum_x = 0.0;
            k.normalize_sums(call, dy.as<float>(), x.as<float>(), mean[c], c, &sum, &sum_x);
            const double inv = static_cast<double>(invstd[c]);
            if (d_scale != nullptr) d_scale[c] = static_cast<float>(sum_x * inv);
            if (d_bias != nullptr) d_bias[c] = static_cast<float>(sum);
            if (dx == nullptr) return;
            const double factor = static_cast<double>(scale[c]) * inv;
            const double through = attributes.is_training && count > 0 ? factor / count : 0.0;
            k.normalize_grad(call, dy.as<float>(), x.as<float>(), mean[c], static_cast<float>(factor),
                             static_cast<float>(-through * sum_x * inv * inv),
                             static_cast<float>(-through * sum), dx, c);
        });
    }

    static void infer(ShapeContext& s) {
        const auto x = s.input(1, 5);
        if (x) s.set(0, *x);
    }

    NormAttributes attributes;
};

}  // namespace

std::vector<const OrtCustomOp*> norm_ops() {
    return {custom_op<BatchNormOp>(), custom_op<BatchNormGradOp>()};
}

}  // namespace sparsefleet
