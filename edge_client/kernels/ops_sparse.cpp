// SparseConv and SparseGemm with their gradients: what they check, and in which order they do what.
#include "ops.h"
#include "passes.h"
#include "shapes.h"

namespace sparsefleet {
namespace {

constexpr ElementType F32 = ElementType::FLOAT;
constexpr ElementType I32 = ElementType::INT32;

Weights weights_of(const Tensor& values, const Tensor& indices) {
    require(values.shape.size() == 1, "values has shape " + to_string(values.shape) + ", expected [nnz]");
    require_shape(indices, values.shape);
    require(values.shape[0] <= INT32_MAX, "values has 2^31 elements or more");
    return {values.as<float>(), indices.as<int32_t>(), values.shape[0]};
}

void zero_halos(Context& context, float* y, const Blocked& g) {
    if (g.halo == 0) return;
    const Kernels& k = kernels();
    context.parallel(g.blocks, [&](int64_t block) {
        for (int64_t c = 0; c < g.channels; c++) k.zero_halo(y, g, block * g.channels + c);
    });
}

void forward(Context& context, PlanCache& cache, const ConvGeometry& g, bool has_bias, bool clear_halo) {
    const Weights w = weights_of(context.input(1), context.input(has_bias ? 3 : 2));
    const float* bias = nullptr;
    if (has_bias) {
        const Tensor tensor = context.input(2);
        require_shape(tensor, {g.y.channels});
        bias = tensor.as<float>();
    }
    const auto plan = cache.get(g, w.indices, w.nnz, forward_plan);
    const Tensor x = context.input(0);
    float* y = context.output(0, shape_of(g.y));
    if (y == nullptr) return;
    if (clear_halo) zero_halos(context, y, g.y);
    multiply(context, *plan, g.x.blocks, w.values, bias, x.as<float>(), y);
}

// Inputs dy, x, values, indices; outputs dx, dvalues, dbias, each only if somebody wants it.
void backward(Context& context, PlanCache& cache, ConvGeometry g, bool clear_halo) {
    const Kernels& k = kernels();
    const Tensor dy = context.input(0), x = context.input(1);
    require_shape(dy, shape_of(g.y));
    const Weights w = weights_of(context.input(2), context.input(3));
    const Blocked of_dx = g.of_dx().x;
    float* dx = context.output(0, shape_of(of_dx));
    float* d_values = context.output(1, {w.nnz});
    float* d_bias = context.output(2, {g.y.channels});
    g.wants_dx = dx != nullptr ? 1 : 0;
    const auto plan = cache.get(g, w.indices, w.nnz, backward_plan);
    if (dx != nullptr) {
        if (clear_halo) zero_halos(context, dx, of_dx);
        multiply(context, *plan, g.x.blocks, w.values, nullptr, dy.as<float>(), dx);
    }
    if (d_values != nullptr) {
        weight_gradient(context, *plan, g.x.blocks, x.as<float>(), dy.as<float>(), d_values);
    }
    if (d_bias != nullptr) {
        context.parallel(g.y.channels, [&](int64_t channel) {
            d_bias[channel] = k.channel_sum(dy.as<float>(), g.y, channel);
        });
    }
}

struct ConvAttributes {
    int64_t out_channels, kernel_h, kernel_w, stride, pad, in_halo, out_halo, group, dx_step;
    bool clear_halo;  // of the result; not where everybody reads only what lies inside

    explicit ConvAttributes(const Attributes& a)
        : out_channels(a.integer("out_channels", 1)),
          kernel_h(a.integer("kernel_h", 1)),
          kernel_w(a.integer("kernel_w", 1)),
          stride(a.integer("stride", 1)),
          pad(a.integer("pad", 0)),
          in_halo(a.integer("in_halo", 0)),
          out_halo(a.integer("out_halo", 0)),
          group(a.integer_or("group", 1, 1, INT32_MAX)),
          dx_step(a.integer_or("dx_step", 1, 1, INT32_MAX)),
          clear_halo(a.integer_or("clear_halo", 1, 0, 1) == 1) {
        require(in_halo >= pad,
                "in_halo is " + std::to_string(in_halo) + ", less than pad " + std::to_string(pad));
        require(dx_step == 1 || (dx_step == stride && kernel_h == 1 && kernel_w == 1 && pad == 0),
                "dx_step is " + std::to_string(dx_step) + ", which needs a 1x1 kernel of that stride, not padded");
    }

    ConvGeometry geometry(const Tensor& input) const {
        const Blocked x = blocked_of(input, in_halo);
        require(x.channels % group == 0 && out_channels % group == 0,
                "group is " + std::to_string(group) + ", which does not divide " +
                    std::to_string(x.channels) + " input and " + std::to_string(out_channels) +
                    " output channels");
        const int64_t height = x.height + 2 * pad - kernel_h, width = x.width + 2 * pad - kernel_w;
        require(height >= 0 && width >= 0,
                "x has shape " + to_string(input.shape) + ", smaller than the kernel");
        const Blocked y =
            make_blocked(x.blocks, out_channels, height / stride + 1, width / stride + 1, out_halo);
        return {x, y, kernel_h, kernel_w, stride, pad, 0, group, dx_step};
    }
};

ConvGeometry gemm_geometry(const Tensor& input, int64_t out_features) {
    const Blocked x = vectors_of(input);
    return {x, make_blocked(x.blocks, out_features, 1, 1, 0), 1, 1, 1, 0, 0};
}

// The ops with a bias have names of their own, and bias stands before the indices, for two limits of
// onnxruntime-training 1.19.2: its gradient builder finds the gradients of a custom op's first three
// inputs only, and its shape inference dereferences the null type of an input that is left out.
constexpr Port INPUTS[] = {{"x", F32}, {"values", F32}, {"indices", I32}};
constexpr Port INPUTS_WITH_BIAS[] = {{"x", F32}, {"values", F32}, {"bias", F32}, {"indices", I32}};
constexpr Port OUTPUTS[] = {{"y", F32}};

struct SparseConv {
    static constexpr const char* name = "SparseConv";
    static constexpr const auto& inputs = INPUTS;
    static constexpr const auto& outputs = OUTPUTS;

    explicit SparseConv(const Attributes& a) : conv(a) {}
    void compute(Context& context) { 
        forward(context, cache, conv.geometry(context.input(0)), false, conv.clear_halo);
    }

    static void infer(ShapeContext& s) {
        const auto x = s.input(0, 5);
        const auto k = s.attribute("out_channels"), kh = s.attribute("kernel_h"),
                   kw = s.attribute("kernel_w");
        const auto stride = s.attribute("stride"), pad = s.attribute("pad");
        const auto in = s.attribute("in_halo"), out = s.attribute("out_halo");
        if (!x || !k || !kh || !kw || !stride || !pad || !in || !out || *stride < 1) return;
        const MapDims from = maps_of(*x, *in);
        const MapDims y{from.blocks, known(*k), window_dim(from.height, *kh, *stride, *pad),
                        window_dim(from.width, *kw, *stride, *pad)};
        s.set(0, y.with(*out));
    }

    ConvAttributes conv;
    PlanCache cache;
};

struct SparseConvBias : SparseConv {
    static constexpr const char* name = "SparseConvBias";
    static constexpr const auto& inputs = INPUTS_WITH_BIAS;

    using SparseConv::SparseConv;
    void compute(Context& context) { 
        forward(context, cache, conv.geometry(context.input(0)), true, conv.clear_halo);
    }
};

// Only the first output: see ShapeContext::set.
void infer_gradients(ShapeContext& s) {
    const auto x = s.input(1, 5);
    const auto step = s.attribute("dx_step");
    if (!x || (step && *step < 1)) return;
    if (!step || *step == 1) return s.set(0, *x);
    const auto in = s.attribute("in_halo");
    if (!in) return;
    MapDims met = maps_of(*x, *in);
    met.height = window_dim(met.height, 1, *step, 0);
    met.width = window_dim(met.width, 1, *step, 0);
    s.set(0, met.with(0));
}

constexpr Port GRADIENT_INPUTS[] = {{"dy", F32}, {"x", F32}, {"values", F32}, {"indices", I32}};
constexpr Port GRADIENT_OUTPUTS[] = {{"dx", F32, true}, {"dvalues", F32, true}, {"dbias", F32, true}};

struct SparseConvGrad {
    static constexpr const char* name = "SparseConvGrad";
    static constexpr const auto& inputs = GRADIENT_INPUTS;
    static constexpr const auto& outputs = GRADIENT_OUTPUTS;

    explicit SparseConvGrad(const Attributes& a) : conv(a) {}
    void compute(Context& context) { 
        backward(context, cache, conv.geometry(context.input(1)), conv.clear_halo);
    }
    static void infer(ShapeContext& s) { infer_gradients(s); }

    ConvAttributes conv;
    PlanCache cache;
};

struct SparseGemm {
    static constexpr const char* name = "SparseGemm";
    static constexpr const auto& inputs = INPUTS;
    static constexpr const auto& outputs = OUTPUTS;

    explicit SparseGemm(const Attributes& a) : out_features(a.integer("out_features", 1)) {}
    void compute(Context& context) {
        forward(context, cache, gemm_geometry(context.input(0), out_features), false, false);
    }

    static void infer(ShapeContext& s) {
        const auto x = s.input(0, 5);
        const auto m = s.attribute("out_features");
        if (x && m) s.set(0, vector_dims((*x)[0], known(*m)));
    }

    int64_t out_features;
    PlanCache cache;
};

struct SparseGemmBias : SparseGemm {
    static constexpr const char* name = "SparseGemmBias";
    static constexpr const auto& inputs = INPUTS_WITH_BIAS;

    using SparseGemm::SparseGemm;
    void compute(Context& context) {
        forward(context, cache, gemm_geometry(context.input(0), out_features), true, false);
    }
};

struct SparseGemmGrad {
    static constexpr const char* name = "SparseGemmGrad";
    static constexpr const auto& inputs = GRADIENT_INPUTS;
    static constexpr const auto& outputs = GRADIENT_OUTPUTS;

    explicit SparseGemmGrad(const Attributes& a) : out_features(a.integer("out_features", 1)) {}
    void compute(Context& context) {
        backward(context, cache, gemm_geometry(context.input(1), out_features), false);
    }
    static void infer(ShapeContext& s) { infer_gradients(s); }

    int64_t out_features;
    PlanCache cache;
};

}  // namespace

std::vector<const OrtCustomOp*> sparse_ops() {
    return {custom_op<SparseConv>(), custom_op<SparseConvBias>(), custom_op<SparseConvGrad>(),
            custom_op<SparseGemm>(), custom_op<SparseGemmBias>(), custom_op<SparseGemmGrad>()};
}

}  // namespace sparsefleet
