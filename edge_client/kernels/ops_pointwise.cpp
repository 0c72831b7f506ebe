// Activation functions with their gradients; Add, whose gradient is the identity and needs no op; and
// AddWeight, which adds a weight of one example's shape to every example.
#include <algorithm>

#include "kernels.h"
#include "ops.h"
#include "shapes.h"

namespace sparsefleet {
namespace {

constexpr ElementType F32 = ElementType::FLOAT;

// Run kernel(begin, end) over the floats of a tensor, in pieces of 64 KB: half of an L2 of the smallest
// board for two inputs and an output.
template <class Kernel>
void over(Context& context, int64_t size, const Kernel& kernel) {
    constexpr int64_t PIECE = 16 * 1024;
    context.parallel((size + PIECE - 1) / PIECE,
                     [&](int64_t i) { kernel(i * PIECE, std::min((i + 1) * PIECE, size)); });
}

void infer_same_as(ShapeContext& s, size_t input) {
    if (const auto x = s.input(input, 5)) s.set(0, *x);
}
void infer_same(ShapeContext& s) { infer_same_as(s, 0); }

struct Relu {
    static constexpr const char* name = "Relu";
    static constexpr Port inputs[] = {{"x", F32}};
    static constexpr Port outputs[] = {{"y", F32}};

    explicit Relu(const Attributes&) {}
    void compute(Context& context) {
        const Tensor x = context.input(0);
        blocked_of(x, 0);
        float* y = context.output(0, x.shape);
        if (y == nullptr) return;
        const Kernels& k = kernels();
        over(context, x.size(), [&](int64_t begin, int64_t end) { k.relu(x.as<float>(), y, begin, end); });
    }
    static void infer(ShapeContext& s) { infer_same(s); }
};

struct ReluGrad {
    static constexpr const char* name = "ReluGrad";
    static constexpr Port inputs[] = {{"dy", F32}, {"y", F32}};
    static constexpr Port outputs[] = {{"dx", F32, true}};

    explicit ReluGrad(const Attributes&) {}
    void compute(Context& context) {
        const Tensor dy = context.input(0), y = context.input(1);
        blocked_of(dy, 0);
        require_shape(y, dy.shape);
        float* dx = context.output(0, dy.shape);
        if (dx == nullptr) return;
        const Kernels& k = kernels();
        over(context, dy.size(),
             [&](int64_t begin, int64_t end) { k.relu_grad(dy.as<float>(), y.as<float>(), dx, begin, end); });
    }
    static void infer(ShapeContext& s) { infer_same_as(s, 1); }
};

struct Add {
    static constexpr const char* name = "Add";
    static constexpr Port inputs[] = {{"a", F32}, {"b", F32}};
    static constexpr Port outputs[] = {{"y", F32}};

    explicit Add(const Attributes&) {}
    void compute(Context& context) {
        const Tensor a = context.input(0), b = context.input(1);
        blocked_of(a, 0);
        require_shape(b, a.shape);
        float* y = context.output(0, a.shape);
        if (y == nullptr) return;
        const Kernels& k = kernels();
        over(context, a.size(),
             [&](int64_t begin, int64_t end) { k.add(a.as<float>(), b.as<float>(), y, begin, end); });
    }
    static void infer(ShapeContext& s) { infer_same(s); }
};

struct LeakyRelu {
    static constexpr const char* name = "LeakyRelu";
    static constexpr Port inputs[] = {{"x", F32}};
    static constexpr Port outputs[] = {{"y", F32}};

    explicit LeakyRelu(const Attributes& a) : alpha(slope_of(a)) {}
    void compute(Context& context) {
        const Tensor x = context.input(0);
        blocked_of(x, 0);
        float* y = context.output(0, x.shape);
        if (y == nullptr) return;
        const Kernels& k = kernels();
        over(context, x.size(),
             [&](int64_t begin, int64_t end) { k.leaky_relu(x.as<float>(), alpha, y, begin, end); });
    }
    static void infer(ShapeContext& s) { infer_same(s); }

    // The gradient reads the sign of x off y, so the slope must be positive.
    static float slope_of(const Attributes& a) {
        const float alpha = a.real("alpha");
        require(alpha > 0.0f, "alpha is not positive");
        return alpha;
    }

    float alpha;
};

struct LeakyReluGrad {
    static constexpr const char* name = "LeakyReluGrad";
    static constexpr Port inputs[] = {{"dy", F32}, {"y", F32}};
    static constexpr Port outputs[] = {{"dx", F32, true}};

    explicit LeakyReluGrad(const Attributes& a) : alpha(LeakyRelu::slope_of(a)) {}
    void compute(Context& context) {
        const Tensor dy = context.input(0), y = context.input(1);
        blocked_of(dy, 0);
        require_shape(y, dy.shape);
        float* dx = context.output(0, dy.shape);
        if (dx == nullptr) return;
        const Kernels& k = kernels();
        over(context, dy.size(), [&](int64_t begin, int64_t end) {
            k.leaky_relu_grad(dy.as<float>(), y.as<float>(), alpha, dx, begin, end);
        });
    }
    static void infer(ShapeContext& s) { infer_same_as(s, 1); }

    float alpha;
};

struct Gelu {
    static constexpr const char* name = "Gelu";
    static constexpr Port inputs[] = {{"x", F32}};
    static constexpr Port outputs[] = {{"y", F32}};

    explicit Gelu(const Attributes& a) : use_tanh(a.integer("tanh", 0, 1) == 1) {}
    void compute(Context& context) {
        const Tensor x = context.input(0);
        blocked_of(x, 0);
        float* y = context.output(0, x.shape);
        if (y == nullptr) return;
        const Kernels& k = kernels();
        over(context, x.size(),
             [&](int64_t begin, int64_t end) { k.gelu(x.as<float>(), use_tanh, y, begin, end); });
    }
    static void infer(ShapeContext& s) { infer_same(s); }

    bool use_tanh;
};

struct GeluGrad {
    static constexpr const char* name = "GeluGrad";
    static constexpr Port inputs[] = {{"dy", F32}, {"x", F32}};
    static constexpr Port outputs[] = {{"dx", F32, true}};

    explicit GeluGrad(const Attributes& a) : use_tanh(a.integer("tanh", 0, 1) == 1) {}
    void compute(Context& context) {
        const Tensor dy = context.input(0), x = context.input(1);
        blocked_of(dy, 0);
        require_shape(x, dy.shape);
        float* dx = context.output(0, dy.shape);
        if (dx == nullptr) return;
        const Kernels& k = kernels();
        over(context, dy.size(), [&](int64_t begin, int64_t end) {
            k.gelu_grad(dy.as<float>(), x.as<float>(), use_tanh, dx, begin, end);
        });
    }
    static void infer(ShapeContext& s) { infer_same_as(s, 1); }

    bool use_tanh;
};

// How the weight of AddWeight lies: [C, H, W], or [T, C] for tokens; dimensions of 1 may stand in front.
struct WeightAttributes {
    int64_t halo;
    bool is_channels_last;

    explicit WeightAttributes(const Attributes& a)
        : halo(a.integer("halo", 0)), is_channels_last(a.integer("channels_last", 0, 1) == 1) {}

    PlainStrides strides(const Blocked& g) const {
        return is_channels_last ? PlainStrides{1, g.channels} : PlainStrides{g.height * g.width, 1};
    }

    void check(const Tensor& weight, const Blocked& g) const {
        require(weight.size() == g.channels * g.height * g.width,
                "weight has shape " + to_string(weight.shape) + ", but an example has " +
                    std::to_string(g.channels * g.height * g.width) + " values");
    }
};

struct AddWeight {
    static constexpr const char* name = "AddWeight";
    static constexpr Port inputs[] = {{"x", F32}, {"weight", F32}};
    static constexpr Port outputs[] = {{"y", F32}};

    explicit AddWeight(const Attributes& a) : attributes(a) {}
    void compute(Context& context) {
        const Tensor x = context.input(0), weight = context.input(1);
        const Blocked g = blocked_of(x, attributes.halo);
        attributes.check(weight, g);
        float* y = context.output(0, x.shape);
        if (y == nullptr) return;
        const Kernels& k = kernels();
        context.parallel(num_planes(g), [&](int64_t plane) {
            k.add_weight(x.as<float>(), weight.as<float>(), attributes.strides(g), y, g, plane);
        });
    }
    static void infer(ShapeContext& s) { infer_same(s); }

    WeightAttributes attributes;
};

// weight gives its shape only.
struct AddWeightGrad {
    static constexpr const char* name = "AddWeightGrad";
    static constexpr Port inputs[] = {{"dy", F32}, {"weight", F32}};
    static constexpr Port outputs[] = {{"dweight", F32, true}};

    explicit AddWeightGrad(const Attributes& a) : attributes(a) {}
    void compute(Context& context) {
        const Tensor dy = context.input(0), weight = context.input(1);
        const Blocked g = blocked_of(dy, attributes.halo);
        attributes.check(weight, g);
        float* d_weight = context.output(0, weight.shape);
        if (d_weight == nullptr) return;
        const Kernels& k = kernels();
        context.parallel(g.channels, [&](int64_t channel) {
            k.add_weight_grad(dy.as<float>(), g, d_weight, attributes.strides(g), channel);
        });
    }
    static void infer(ShapeContext&) {}  // a weight may have any rank

    WeightAttributes attributes;
};

}  // namespace

std::vector<const OrtCustomOp*> pointwise_ops() {
    return {custom_op<Relu>(),      custom_op<ReluGrad>(),      custom_op<Add>(),
            custom_op<LeakyRelu>(), custom_op<LeakyReluGrad>(), custom_op<Gelu>(),
            custom_op<GeluGrad>(),  custom_op<AddWeight>(),     custom_op<AddWeightGrad>()};
}

}  // namespace sparsefleet
