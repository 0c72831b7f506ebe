// MaxPool, AveragePool and GlobalAveragePool with their gradients.
#include "kernels.h"
#include "ops.h"
#include "shapes.h"

namespace sparsefleet {
namespace {

constexpr ElementType F32 = ElementType::FLOAT;
constexpr ElementType U8 = ElementType::UINT8;

struct PoolAttributes {
    int64_t kernel_h, kernel_w, stride, pad, in_halo, out_halo, in_height, in_width;

    explicit PoolAttributes(const Attributes& a)
        : kernel_h(a.integer("kernel_h", 1)),
          kernel_w(a.integer("kernel_w", 1)),
          stride(a.integer("stride", 1)),
          pad(a.integer("pad", 0)),
          in_halo(a.integer("in_halo", 0)),
          out_halo(a.integer("out_halo", 0)),
          in_height(a.integer("in_height", 1)),
          in_width(a.integer("in_width", 1)) {
        // As in torch; so no window lies wholly in the padding, where there is no maximum.
        require(2 * pad <= kernel_h && 2 * pad <= kernel_w, "pad must be at most half of the kernel");
        require(in_height + 2 * pad >= kernel_h && in_width + 2 * pad >= kernel_w,
                "the kernel is larger than the map");
    }

    Pool call(int64_t blocks, int64_t channels, bool count_include_pad) const {
        const Blocked x = make_blocked(blocks, channels, in_height, in_width, in_halo);
        const Blocked y = make_blocked(blocks, channels, (in_height + 2 * pad - kernel_h) / stride + 1,
                                       (in_width + 2 * pad - kernel_w) / stride + 1, out_halo);
        return {x, y, kernel_h, kernel_w, stride, pad, count_include_pad};
    }

    Pool call_on_x(const Tensor& tensor, bool count_include_pad) const {
        const Blocked g = blocked_of(tensor, in_halo);
        const Pool pool = call(g.blocks, g.channels, count_include_pad);
        require_shape(tensor, shape_of(pool.x));
        return pool;
    }

    Pool call_on_dy(const Tensor& tensor, bool count_include_pad) const {
        const Blocked g = blocked_of(tensor, out_halo);
        const Pool pool = call(g.blocks, g.channels, count_include_pad);
        require_shape(tensor, shape_of(pool.y));
        return pool;
    }
};

Shape argmax_shape(const Pool& pool) {
    return {pool.y.blocks, pool.y.channels, pool.y.height, pool.y.width, LANES};
}

// The map of y; with_halo false gives the shape of argmax.
void infer_pool(ShapeContext& s, size_t output, bool with_halo) {
    const auto x = s.input(0, 5);
    const auto kh = s.attribute("kernel_h"), kw = s.attribute("kernel_w");
    const auto stride = s.attribute("stride"), pad = s.attribute("pad");
    const auto in = s.attribute("in_halo"), out = s.attribute("out_halo");
    const auto h = s.attribute("in_height"), w = s.attribute("in_width");
    if (!x || !kh || !kw || !stride || !pad || !in || !out || !h || !w || *stride < 1) return;
    const MapDims y{(*x)[0], maps_of(*x, *in).channels, window_dim(known(*h), *kh, *stride, *pad),
                    window_dim(known(*w), *kw, *stride, *pad)};
    s.set(output, y.with(with_halo ? *out : 0));
}

// The gradient of the input: blocks and channels of dy, height and width from the attributes.
void infer_pool_grad(ShapeContext& s, const std::optional<int64_t>& dy_halo) {
    const auto dy = s.input(0, 5);
    const auto h = s.attribute("in_height"), w = s.attribute("in_width"), halo = s.attribute("in_halo");
    if (!dy || !h || !w || !halo || !dy_halo) return;
    s.set(0, MapDims{(*dy)[0], maps_of(*dy, *dy_halo).channels, known(*h), known(*w)}.with(*halo));
}

struct MaxPool {
    static constexpr const char* name = "MaxPool";
    static constexpr Port inputs[] = {{"x", F32}};
    static constexpr Port outputs[] = {{"y", F32}, {"argmax", U8}};

    explicit MaxPool(const Attributes& a) : attributes(a) {
        require(attributes.kernel_h * attributes.kernel_w <= 256, "a window of more than 256 pixels");
    }
    void compute(Context& context) {
        const Tensor x = context.input(0);
        const Pool pool = attributes.call_on_x(x, false);
        float* y = context.output(0, shape_of(pool.y));
        uint8_t* argmax = context.output<uint8_t>(1, argmax_shape(pool));
        if (y == nullptr || argmax == nullptr) return;
        const Kernels& k = kernels();
        context.parallel(num_planes(pool.y),
                         [&](int64_t plane) { k.max_pool(pool, x.as<float>(), y, argmax, plane); });
    }
    static void infer(ShapeContext& s) {
        infer_pool(s, 0, true);
        infer_pool(s, 1, false);
    }

    PoolAttributes attributes;
};

struct MaxPoolGrad {
    static constexpr const char* name = "MaxPoolGrad";
    static constexpr Port inputs[] = {{"dy", F32}, {"argmax", U8}};
    static constexpr Port outputs[] = {{"dx", F32, true}};

    explicit MaxPoolGrad(const Attributes& a) : attributes(a) {}
    void compute(Context& context) {
        const Tensor dy = context.input(0), argmax = context.input(1);
        const Pool pool = attributes.call_on_dy(dy, false);
        require_shape(argmax, argmax_shape(pool));
        float* dx = context.output(0, shape_of(pool.x));
        if (dx == nullptr) return;
        const Kernels& k = kernels();
        context.parallel(num_planes(pool.x), [&](int64_t plane) {
            k.max_pool_grad(pool, dy.as<float>(), argmax.as<uint8_t>(), dx, plane);
        });
    }
    static void infer(ShapeContext& s) { infer_pool_grad(s, s.attribute("out_halo")); }

    PoolAttributes attributes;
};

struct AveragePool {
    static constexpr const char* name = "AveragePool";
    static constexpr Port inputs[] = {{"x", F32}};
    static constexpr Port outputs[] = {{"y", F32}};

    explicit AveragePool(const Attributes& a)
        : attributes(a), count_include_pad(a.integer("count_include_pad", 0, 1) == 1) {}
    void compute(Context& context) {
        const Tensor x = context.input(0);
        const Pool pool = attributes.call_on_x(x, count_include_pad);
        float* y = context.output(0, shape_of(pool.y));
        if (y == nullptr) return;
        const Kernels& k = kernels();
        context.parallel(num_planes(pool.y),
                         [&](int64_t plane) { k.average_pool(pool, x.as<float>(), y, plane); });
    }
    static void infer(ShapeContext& s) { infer_pool(s, 0, true); }

    PoolAttributes attributes;
    bool count_include_pad;
};

struct AveragePoolGrad {
    static constexpr const char* name = "AveragePoolGrad";
    static constexpr Port inputs[] = {{"dy", F32}};
    static constexpr Port outputs[] = {{"dx", F32, true}};

    explicit AveragePoolGrad(const Attributes& a)
        : attributes(a), count_include_pad(a.integer("count_include_pad", 0, 1) == 1) {}
    void compute(Context& context) {
        const Tensor dy = context.input(0);
        const Pool pool = attributes.call_on_dy(dy, count_include_pad);
        float* dx = context.output(0, shape_of(pool.x));
        if (dx == nullptr) return;
        const Kernels& k = kernels();
        context.parallel(num_planes(pool.x),
                         [&](int64_t plane) { k.average_pool_grad(pool, dy.as<float>(), dx, plane); });
    }
    static void infer(ShapeContext& s) { infer_pool_grad(s, s.attribute("out_halo")); }

    PoolAttributes attributes;
    bool count_include_pad;
};

struct MapAttributes {
    int64_t in_halo, in_height, in_width;

    explicit MapAttributes(const Attributes& a)
        : in_halo(a.integer("in_halo", 0)),
          in_height(a.integer("in_height", 1)),
          in_width(a.integer("in_width", 1)) {}
};

struct GlobalAveragePool {
    static constexpr const char* name = "GlobalAveragePool";
    static constexpr Port inputs[] = {{"x", F32}};
    static constexpr Port outputs[] = {{"y", F32}};

    explicit GlobalAveragePool(const Attributes& a) : attributes(a) {}
    void compute(Context& context) {
        const Tensor x = context.input(0);
        const Blocked g = blocked_of(x, attributes.in_halo);
        require_shape(x, shape_of(make_blocked(g.blocks, g.channels, attributes.in_height,
                                               attributes.in_width, attributes.in_halo)));
        float* y = context.output(0, {g.blocks, g.channels, 1, 1, LANES});
        if (y == nullptr) return;
        const Kernels& k = kernels();
        context.parallel(num_planes(g), [&](int64_t plane) { k.global_average(x.as<float>(), g, y, plane); });
    }
    static void infer(ShapeContext& s) {
        const auto x = s.input(0, 5);
        const auto in = s.attribute("in_halo");
        if (x && in) s.set(0, vector_dims((*x)[0], maps_of(*x, *in).channels));
    }

    MapAttributes attributes;
};

struct GlobalAveragePoolGrad {
    static constexpr const char* name = "GlobalAveragePoolGrad";
    static constexpr Port inputs[] = {{"dy", F32}};
    static constexpr Port outputs[] = {{"dx", F32, true}};

    explicit GlobalAveragePoolGrad(const Attributes& a) : attributes(a) {}
    void compute(Context& context) {
        const Tensor dy = context.input(0);
        const Blocked vectors = vectors_of(dy);
        const Blocked g = make_blocked(vectors.blocks, vectors.channels, attributes.in_height,
                                       attributes.in_width, attributes.in_halo);
        float* dx = context.output(0, shape_of(g));
        if (dx == nullptr) return;
        const Kernels& k = kernels();
        context.parallel(num_planes(g),
                         [&](int64_t plane) { k.global_average_grad(dy.as<float>(), dx, g, plane); });
    }
    static void infer(ShapeContext& s) { infer_pool_grad(s, 0); }

    MapAttributes attributes;
};

}  // namespace

std::vector<const OrtCustomOp*> pool_ops() {
    return {custom_op<MaxPool>(),         custom_op<MaxPoolGrad>(),       custom_op<AveragePool>(),
            custom_op<AveragePoolGrad>(), custom_op<GlobalAveragePool>(), custom_op<GlobalAveragePoolGrad>()};
}

}  // namespace sparsefleet
