// Pack, Unpack and Flatten with their gradients: between [N, C, H, W] and the blocked layout.
#include "kernels.h"
#include "ops.h"
#include "shapes.h"

namespace sparsefleet {
namespace {

constexpr ElementType F32 = ElementType::FLOAT;
constexpr ElementType I64 = ElementType::INT64;

void pack_planes(Context& context, const float* x, int64_t num_examples, const Blocked& g, float* y) {
    if (y == nullptr) return;
    const Kernels& k = kernels();
    if (g.height * g.width > 1) {
        context.parallel(num_planes(g), [&](int64_t plane) { k.pack(x, num_examples, y, g, plane); });
        return;
    }
    // Vectors: a plane is one pixel, too little for a hand-over to another thread.
    context.parallel(g.blocks, [&](int64_t block) {
        for (int64_t c = 0; c < g.channels; c++) k.pack(x, num_examples, y, g, block * g.channels + c);
    });
}

struct Pack {
    static constexpr const char* name = "Pack";
    static constexpr Port inputs[] = {{"x", F32}};
    static constexpr Port outputs[] = {{"y", F32}, {"count", I64}};

    explicit Pack(const Attributes& a) : out_halo(a.integer("out_halo", 0)) {}

    void compute(Context& context) {
        const Tensor x = context.input(0);
        const Shape& s = x.shape;
        require(s.size() == 4 || s.size() == 2,
                "x has shape " + to_string(s) + ", expected [N, C, H, W] or [N, F]");
        for (size_t i = 1; i < s.size(); i++)
            require(s[i] >= 1, "x has shape " + to_string(s) + ", which is empty");
        require(s.size() == 4 || out_halo == 0, "out_halo must be 0 for vectors");
        const Blocked g = s.size() == 4 ? make_blocked(num_blocks(s[0]), s[1], s[2], s[3], out_halo)
                                        : make_blocked(num_blocks(s[0]), s[1], 1, 1, 0);
        pack_planes(context, x.as<float>(), s[0], g, context.output(0, shape_of(g)));
        if (int64_t* count = context.output<int64_t>(1, {1})) *count = s[0];
    }

    static void infer(ShapeContext& s) {
        s.set(1, {known(1)});
        const auto halo = s.attribute("out_halo");
        if (const auto x = s.input(0, 4)) {
            if (!halo) return;
            s.set(0, {blocks_of((*x)[0]), (*x)[1], grown((*x)[2], 2 * *halo), grown((*x)[3], 2 * *halo),
                      known(LANES)});
        } else if (const auto vectors = s.input(0, 2)) {
            s.set(0, vector_dims(blocks_of((*vectors)[0]), (*vectors)[1]));
        }
    }

    int64_t out_halo;
};

struct Unpack {
    static constexpr const char* name = "Unpack";
    static constexpr Port inputs[] = {{"x", F32}, {"count", I64}};
    static constexpr Port outputs[] = {{"y", F32}};

    explicit Unpack(const Attributes&) {}

    void compute(Context& context) {
        const Tensor x = context.input(0);
        const Blocked g = vectors_of(x);
        const int64_t num_examples = examples_of(context.input(1), g.blocks);
        float* y = context.output(0, {num_examples, g.channels});
        if (y == nullptr) return;
        const Kernels& k = kernels();
        context.parallel(g.blocks,
                         [&](int64_t block) { k.unpack(x.as<float>(), g.channels, num_examples, y, block); });
    }

    static void infer(ShapeContext& s) {
        if (const auto x = s.input(0, 5)) s.set(0, {examples_of((*x)[0]), (*x)[1]});
    }
};

struct UnpackGrad {
    static constexpr const char* name = "UnpackGrad";
    static constexpr Port inputs[] = {{"dy", F32}};
    static constexpr Port outputs[] = {{"dx", F32, true}};

    explicit UnpackGrad(const Attributes&) {}

    void compute(Context& context) {
        const Tensor dy = context.input(0);
        const Shape& s = dy.shape;
        require(s.size() == 2 && s[1] >= 1, "dy has shape " + to_string(s) + ", expected [N, F]");
        const Blocked g = make_blocked(num_blocks(s[0]), s[1], 1, 1, 0);
        pack_planes(context, dy.as<float>(), s[0], g, context.output(0, shape_of(g)));
    }

    static void infer(ShapeContext& s) {
        if (const auto dy = s.input(0, 2)) s.set(0, vector_dims(blocks_of((*dy)[0]), (*dy)[1]));
    }
};

// in_height and in_width say how large the map is, so that FlattenGrad can rebuild it.
struct MapAttributes {
    int64_t channels, in_halo, in_height, in_width;

    explicit MapAttributes(const Attributes& a)
        : channels(a.integer("channels", 1)),
          in_halo(a.integer("in_halo", 0)),
          in_height(a.integer("in_height", 1)),
          in_width(a.integer("in_width", 1)) {}

    Blocked map(int64_t blocks) const { return make_blocked(blocks, channels, in_height, in_width, in_halo); }
    Blocked vectors(int64_t blocks) const {
        return make_blocked(blocks, channels * in_height * in_width, 1, 1, 0);
    }
};

struct Flatten {
    static constexpr const char* name = "Flatten";
    static constexpr Port inputs[] = {{"x", F32}};
    static constexpr Port outputs[] = {{"y", F32}};

    explicit Flatten(const Attributes& a) : attributes(a) {}

    void compute(Context& context) {
        const Tensor x = context.input(0);
        const Blocked g = attributes.map(blocked_of(x, attributes.in_halo).blocks);
        require_shape(x, shape_of(g));
        float* y = context.output(0, shape_of(attributes.vectors(g.blocks)));
        if (y == nullptr) return;
        const Kernels& k = kernels();
        context.parallel(num_planes(g), [&](int64_t plane) { k.flatten(x.as<float>(), g, y, plane); });
    }

    static void infer(ShapeContext& s) {
        const auto x = s.input(0, 5);
        const auto c = s.attribute("channels"), h = s.attribute("in_height"), w = s.attribute("in_width");
        if (x && c && h && w) s.set(0, vector_dims((*x)[0], known(*c * *h * *w)));
    }

    MapAttributes attributes;
};

struct FlattenGrad {
    static constexpr const char* name = "FlattenGrad";
    static constexpr Port inputs[] = {{"dy", F32}};
    static constexpr Port outputs[] = {{"dx", F32, true}};

    explicit FlattenGrad(const Attributes& a) : attributes(a) {}

    void compute(Context& context) {
        const Tensor dy = context.input(0);
        const Blocked g = attributes.map(vectors_of(dy).blocks);
        require_shape(dy, shape_of(attributes.vectors(g.blocks)));
        float* dx = context.output(0, shape_of(g));
        if (dx == nullptr) return;
        const Kernels& k = kernels();
        context.parallel(num_planes(g), [&](int64_t plane) { k.flatten_grad(dy.as<float>(), dx, g, plane); });
    }

    static void infer(ShapeContext& s) {
        const auto dy = s.input(0, 5);
        const auto c = s.attribute("channels"), halo = s.attribute("in_halo");
        const auto h = s.attribute("in_height"), w = s.attribute("in_width");
        if (!dy || !c || !halo || !h || !w) return;
        s.set(0, {(*dy)[0], known(*c), known(*h + 2 * *halo), known(*w + 2 * *halo), known(LANES)});
    }

    MapAttributes attributes;
};

}  // namespace

std::vector<const OrtCustomOp*> layout_ops() {
    return {custom_op<Pack>(), custom_op<Unpack>(), custom_op<UnpackGrad>(), custom_op<Flatten>(),
            custom_op<FlattenGrad>()};
}

}  // namespace sparsefleet
