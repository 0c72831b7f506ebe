// Pack, Unpack and Flatten with their gradients: between [N, C, H, W] and the blocked layout.
#include "kernels.h"
#include "ops.h"
#include "shapes.h"

namespace sparsefleet {
namespace {

constexpr ElementType F32 = ElementType::FLOAT;
constexpr ElementType I64 = ElementType::INT64;

// A tensor of N plain examples: [N, C, H, W], tokens [N, T, C], which are maps of one row, or [N, F].
struct Plain {
    int64_t num_examples, channels, height, width;
    PlainStrides strides;
};

constexpr int64_t RANK_MIN = 2, RANK_MAX = 4;

Plain plain_of(const Tensor& tensor) {
    const Shape& s = tensor.shape;
    const std::string what = std::string(tensor.name) + " has shape " + to_string(s);
    require(s.size() >= RANK_MIN && s.size() <= RANK_MAX,
            what + ", expected [N, C, H, W], [N, T, C] or [N, F]");
    for (size_t i = 1; i < s.size(); i++) require(s[i] >= 1, what + ", which is empty");
    if (s.size() == 4) return {s[0], s[1], s[2], s[3], {s[2] * s[3], 1}};
    if (s.size() == 3) return {s[0], s[2], 1, s[1], {1, s[2]}};
    return {s[0], s[1], 1, 1, {1, 1}};
}

// The plain examples that a blocked tensor holds.
Plain plain_of(const Tensor& tensor, const Blocked& g, int64_t num_examples, int64_t rank) {
    require(rank == 4 || g.height == 1, std::string(tensor.name) + " has shape " + to_string(tensor.shape) +
                                            ", which is no " + (rank == 3 ? "row of tokens" : "vector"));
    require(rank >= 3 || g.width == 1,
            std::string(tensor.name) + " has shape " + to_string(tensor.shape) + ", which is no vector");
    const int64_t pixels = g.height * g.width;
    return {num_examples, g.channels, g.height, g.width,
            rank == 4 ? PlainStrides{pixels, 1} : PlainStrides{1, g.channels}};
}

Shape shape_of(const Plain& p, int64_t rank) {
    if (rank == 4) return {p.num_examples, p.channels, p.height, p.width};
    if (rank == 3) return {p.num_examples, p.width, p.channels};
    return {p.num_examples, p.channels};
}

// fn(plane) for every plane. Those of vectors are one pixel, too little for a hand-over to a thread.
template <class Function>
void over_planes(Context& context, const Blocked& g, const Function& fn) {
    if (g.height * g.width > 1) return context.parallel(num_planes(g), fn);
    context.parallel(g.blocks, [&](int64_t block) {
        for (int64_t c = 0; c < g.channels; c++) fn(block * g.channels + c);
    });
}

// Output 0 = the blocked form of input 0.
Plain pack_into_output(Context& context, int64_t halo) {
    const Tensor x = context.input(0);
    const Plain plain = plain_of(x);
    require(x.shape.size() == 4 || halo == 0, "the halo must be 0 for tokens and vectors");
    const Blocked g =
        make_blocked(num_blocks(plain.num_examples), plain.channels, plain.height, plain.width, halo);
    if (float* y = context.output(0, shape_of(g))) {
        const Kernels& k = kernels();
        over_planes(context, g, [&](int64_t plane) {
            k.pack(x.as<float>(), plain.strides, plain.num_examples, y, g, plane);
        });
    }
    return plain;
}

// Output 0 = the plain form of input 0; input 1 is the number of examples.
void unpack_into_output(Context& context, int64_t halo, int64_t rank) {
    const Tensor x = context.input(0);
    const Blocked g = blocked_of(x, halo);
    const Plain plain = plain_of(x, g, examples_of(context.input(1), g.blocks), rank);
    float* y = context.output(0, shape_of(plain, rank));
    if (y == nullptr) return;
    const Kernels& k = kernels();
    over_planes(context, g, [&](int64_t plane) {
        k.unpack(x.as<float>(), g, plain.num_examples, y, plain.strides, plane);
    });
}

// rank is missing in artifacts that were exported before there were other ranks than 2.
int64_t rank_of(const Attributes& a) { return a.integer_or("rank", RANK_MIN, RANK_MIN, RANK_MAX); }

void infer_blocked(ShapeContext& s, const std::optional<int64_t>& halo) {
    if (const auto x = s.input(0, 4)) {
        if (!halo) return;
        s.set(0, MapDims{blocks_of((*x)[0]), (*x)[1], (*x)[2], (*x)[3]}.with(*halo));
    } else if (const auto tokens = s.input(0, 3)) {
        s.set(0, {blocks_of((*tokens)[0]), (*tokens)[2], known(1), (*tokens)[1], known(LANES)});
    } else if (const auto vectors = s.input(0, 2)) {
        s.set(0, vector_dims(blocks_of((*vectors)[0]), (*vectors)[1]));
    }
}

void infer_plain(ShapeContext& s, int64_t halo, int64_t rank) {
    const auto x = s.input(0, 5);
    if (!x) return;
    const Dim n = examples_of((*x)[0]);
    const MapDims maps = maps_of(*x, halo);
    if (rank == 4) s.set(0, {n, maps.channels, maps.height, maps.width});
    if (rank == 3) s.set(0, {n, (*x)[3], (*x)[1]});
    if (rank == 2) s.set(0, {n, (*x)[1]});
}

struct Pack {
    static constexpr const char* name = "Pack";
    static constexpr Port inputs[] = {{"x", F32}};
    static constexpr Port outputs[] = {{"y", F32}, {"count", I64}};

    explicit Pack(const Attributes& a) : out_halo(a.integer("out_halo", 0)) {}

    void compute(Context& context) {
        const Plain plain = pack_into_output(context, out_halo);
        if (int64_t* count = context.output<int64_t>(1, {1})) *count = plain.num_examples;
    }

    static void infer(ShapeContext& s) {
        s.set(1, {known(1)});
        infer_blocked(s, s.attribute("out_halo"));
    }

    int64_t out_halo;
};

// The gradient of a Pack in the middle of the network: its halo is that of the tensor.
struct PackGrad {
    static constexpr const char* name = "PackGrad";
    static constexpr Port inputs[] = {{"dy", F32}, {"count", I64}};
    static constexpr Port outputs[] = {{"dx", F32, true}};

    explicit PackGrad(const Attributes& a) : halo(a.integer("out_halo", 0)), rank(rank_of(a)) {}
    void compute(Context& context) { unpack_into_output(context, halo, rank); }

    static void infer(ShapeContext& s) {
        const auto halo = s.attribute("out_halo"), rank = s.attribute("rank");
        if (halo && rank) infer_plain(s, *halo, *rank);
    }

    int64_t halo, rank;
};

struct Unpack {
    static constexpr const char* name = "Unpack";
    static constexpr Port inputs[] = {{"x", F32}, {"count", I64}};
    static constexpr Port outputs[] = {{"y", F32}};

    explicit Unpack(const Attributes& a) : halo(a.integer_or("in_halo", 0, 0, INT32_MAX)), rank(rank_of(a)) {}
    void compute(Context& context) { unpack_into_output(context, halo, rank); }

    static void infer(ShapeContext& s) {
        infer_plain(s, s.attribute("in_halo").value_or(0), s.attribute("rank").value_or(RANK_MIN));
    }

    int64_t halo, rank;
};

struct UnpackGrad {
    static constexpr const char* name = "UnpackGrad";
    static constexpr Port inputs[] = {{"dy", F32}};
    static constexpr Port outputs[] = {{"dx", F32, true}};

    explicit UnpackGrad(const Attributes& a) : halo(a.integer_or("in_halo", 0, 0, INT32_MAX)) {}
    void compute(Context& context) { pack_into_output(context, halo); }
    static void infer(ShapeContext& s) { infer_blocked(s, s.attribute("in_halo")); }

    int64_t halo;
};

// in_height and in_width say how large the map is, so that FlattenGrad can rebuild it.
struct MapAttributes {
    int64_t channels, in_halo, in_height, in_width;
    bool to_tokens;  // [B, C, 1, H * W, 16] instead of [B, C * H * W, 1, 1, 16]: the same floats

    explicit MapAttributes(const Attributes& a)
        : channels(a.integer("channels", 1)),
          in_halo(a.integer("in_halo", 0)),
          in_height(a.integer("in_height", 1)),
          in_width(a.integer("in_width", 1)),
          to_tokens(a.integer_or("tokens", 0, 0, 1) == 1) {}

    Blocked map(int64_t blocks) const { return make_blocked(blocks, channels, in_height, in_width, in_halo); }
    Blocked flat(int64_t blocks) const {
        const int64_t pixels = in_height * in_width;
        return to_tokens ? make_blocked(blocks, channels, 1, pixels, 0)
                         : make_blocked(blocks, channels * pixels, 1, 1, 0);
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
        float* y = context.output(0, shape_of(attributes.flat(g.blocks)));
        if (y == nullptr) return;
        const Kernels& k = kernels();
        context.parallel(num_planes(g), [&](int64_t plane) { k.flatten(x.as<float>(), g, y, plane); });
    }

    static void infer(ShapeContext& s) {
        const auto x = s.input(0, 5);
        const auto c = s.attribute("channels"), h = s.attribute("in_height"), w = s.attribute("in_width");
        if (!x || !c || !h || !w) return;
        if (s.attribute("tokens").value_or(0) == 1) {
            s.set(0, {(*x)[0], known(*c), known(1), known(*h * *w), known(LANES)});
        } else {
            s.set(0, vector_dims((*x)[0], known(*c * *h * *w)));
        }
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
        const Blocked g = attributes.map(blocked_of(dy, 0).blocks);
        require_shape(dy, shape_of(attributes.flat(g.blocks)));
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
        s.set(0, MapDims{(*dy)[0], known(*c), known(*h), known(*w)}.with(*halo));
    }

    MapAttributes attributes;
};

}  // namespace

std::vector<const OrtCustomOp*> layout_ops() {
    return {custom_op<Pack>(),       custom_op<PackGrad>(), custom_op<Unpack>(),
            custom_op<UnpackGrad>(), custom_op<Flatten>(),  custom_op<FlattenGrad>()};
}

}  // namespace sparsefleet
