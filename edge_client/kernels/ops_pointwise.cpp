// Relu with its gradient, and Add, whose gradient is the identity and needs no op.
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

void infer_same(ShapeContext& s) {
    if (const auto x = s.input(0, 5)) s.set(0, *x);
}

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
    static void infer(ShapeContext& s) {
        if (const auto y = s.input(1, 5)) s.set(0, *y);
    }
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

}  // namespace

std::vector<const OrtCustomOp*> pointwise_ops() {
    return {custom_op<Relu>(), custom_op<ReluGrad>(), custom_op<Add>()};
}

}  // namespace sparsefleet
