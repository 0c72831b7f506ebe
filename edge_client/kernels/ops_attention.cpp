// Attention and its gradient: softmax(Q K^T / sqrt(d)) V for each example and head, on tokens
// [B, C, 1, T, 16]. The channels of its input are those of Q, K and V, heads outermost in each.
#include <algorithm>
#include <cmath>
#include <memory>

#include "kernels.h"
#include "ops.h"
#include "shapes.h"

namespace sparsefleet {
namespace {

constexpr ElementType F32 = ElementType::FLOAT;

// A hand-over to another thread is worth this many tokens of one head.
constexpr int64_t TOKENS_PER_PIECE = 16;

struct AttentionCall {
    Blocked qkv;         // 3 * C channels, one row of T tokens, no halo
    int64_t heads;       // of features channels each
    int64_t features;    // C / heads
    int64_t num_tokens;  // T

    int64_t channels() const { return heads * features; }
    Shape y_shape() const { return {qkv.blocks, channels(), 1, num_tokens, LANES}; }
    Shape probability_shape() const { return {qkv.blocks, heads, num_tokens, num_tokens, LANES}; }
    int64_t scores(int64_t block, int64_t head) const {
        return (block * heads + head) * num_tokens * num_tokens * LANES;
    }
    // Offset of the first channel of a head in Q, K, V (part 0, 1, 2) and in y.
    int64_t part(int64_t block, int64_t head, int64_t part) const {
        return block * qkv.block + (part * channels() + head * features) * qkv.plane;
    }
    int64_t result(int64_t block, int64_t head) const {
        return (block * channels() + head * features) * qkv.plane;
    }
};

AttentionCall call_of(const Tensor& qkv, int64_t heads) {
    const Blocked g = blocked_of(qkv, 0);
    require(g.height == 1, "qkv has shape " + to_string(qkv.shape) + ", expected [B, 3 C, 1, T, 16]");
    require(g.channels % (3 * heads) == 0, "qkv has " + std::to_string(g.channels) +
                                               " channels, which are not 3 parts of " +
                                               std::to_string(heads) + " heads");
    return {g, heads, g.channels / 3 / heads, g.width};
}

// fn(block, head, first token, number of tokens) for pieces that write different tokens.
template <class Function>
void over_tokens(Context& context, const AttentionCall& a, const Function& fn) {
    const int64_t pieces = (a.num_tokens + TOKENS_PER_PIECE - 1) / TOKENS_PER_PIECE;
    context.parallel(a.qkv.blocks * a.heads * pieces, [&](int64_t i) {
        const int64_t begin = i % pieces * TOKENS_PER_PIECE;
        fn(i / pieces / a.heads, i / pieces % a.heads, begin,
           std::min(TOKENS_PER_PIECE, a.num_tokens - begin));
    });
}

// result[t, f] = factor * sum over u of weight[t, u] * tokens[f, u] for `count` tokens t.
void mix(const Kernels& k, const AttentionCall& a, int64_t count, const float* weight, int64_t weight_t,
         int64_t weight_u, const float* tokens, float factor, float* result) {
    k.lane_product({count, a.features, a.num_tokens, weight, weight_t, weight_u, tokens, a.qkv.plane, LANES,
                    result, LANES, a.qkv.plane, factor});
}

// score[t, u] = factor * sum over f of left[f, t] * right[f, u] for `count` tokens t.
void compare(const Kernels& k, const AttentionCall& a, int64_t count, const float* left, const float* right,
             float factor, float* score) {
    k.lane_product({count, a.num_tokens, a.features, left, LANES, a.qkv.plane, right, LANES, a.qkv.plane,
                    score, a.num_tokens * LANES, LANES, factor});
}

float scale_of(const AttentionCall& a) { return 1.0f / std::sqrt(static_cast<float>(a.features)); }

struct Attention {
    static constexpr const char* name = "Attention";
    static constexpr Port inputs[] = {{"qkv", F32}};
    static constexpr Port outputs[] = {{"y", F32}, {"probability", F32}};

    explicit Attention(const Attributes& a) : heads(a.integer("heads", 1)) {}

    void compute(Context& context) {
        const Tensor qkv = context.input(0);
        const AttentionCall a = call_of(qkv, heads);
        const float* x = qkv.as<float>();
        float* y = context.output(0, a.y_shape());
        float* probability = context.output(1, a.probability_shape());
        const Kernels& k = kernels();
        over_tokens(context, a, [&](int64_t block, int64_t head, int64_t first, int64_t count) {
            float* p = probability + a.scores(block, head) + first * a.num_tokens * LANES;
            compare(k, a, count, x + a.part(block, head, 0) + first * LANES, x + a.part(block, head, 1),
                    scale_of(a), p);
            k.softmax(p, count, a.num_tokens);
            mix(k, a, count, p, a.num_tokens * LANES, LANES, x + a.part(block, head, 2), 1.0f,
                y + a.result(block, head) + first * LANES);
        });
    }

    static void infer(ShapeContext& s) {
        const auto qkv = s.input(0, 5);
        const auto heads = s.attribute("heads");
        if (!qkv || !heads || (*qkv)[1].value < 0) return;
        s.set(0, {(*qkv)[0], known((*qkv)[1].value / 3), (*qkv)[2], (*qkv)[3], known(LANES)});
        s.set(1, {(*qkv)[0], known(*heads), (*qkv)[3], (*qkv)[3], known(LANES)});
    }

    int64_t heads;
};

struct AttentionGrad {
    static constexpr const char* name = "AttentionGrad";
    static constexpr Port inputs[] = {{"dy", F32}, {"qkv", F32}, {"probability", F32}};
    static constexpr Port outputs[] = {{"dqkv", F32, true}};

    explicit AttentionGrad(const Attributes& a) : heads(a.integer("heads", 1)) {}

    // With S = scale Q K^T, P = softmax(S):  dP = dY V^T,  dS = softmax'(dP),
    //   dQ = scale dS K,  dK = scale dS^T Q,  dV = P^T dY
    void compute(Context& context) {
        const Tensor dys = context.input(0), qkv = context.input(1), probabilities = context.input(2);
        const AttentionCall a = call_of(qkv, heads);
        require_shape(dys, a.y_shape());
        require_shape(probabilities, a.probability_shape());
        const float *dy = dys.as<float>(), *x = qkv.as<float>(), *p = probabilities.as<float>();
        float* dx = context.output(0, qkv.shape);
        if (dx == nullptr) return;
        const std::unique_ptr<float[]> d_scores(new float[static_cast<size_t>(probabilities.size()) + 1]);
        const int64_t row = a.num_tokens * LANES;
        const Kernels& k = kernels();
        over_tokens(context, a, [&](int64_t block, int64_t head, int64_t first, int64_t count) {
            const int64_t at = a.scores(block, head) + first * row;
            float* ds = d_scores.get() + at;
            compare(k, a, count, dy + a.result(block, head) + first * LANES, x + a.part(block, head, 2), 1.0f,
                    ds);
            k.softmax_grad(p + at, ds, count, a.num_tokens);
            mix(k, a, count, ds, row, LANES, x + a.part(block, head, 1), scale_of(a),
                dx + a.part(block, head, 0) + first * LANES);
        });
        over_tokens(context, a, [&](int64_t block, int64_t head, int64_t first, int64_t count) {
            const int64_t at = a.scores(block, head) + first * LANES;
            mix(k, a, count, d_scores.get() + at, LANES, row, x + a.part(block, head, 0), scale_of(a),
                dx + a.part(block, head, 1) + first * LANES);
            mix(k, a, count, p + at, LANES, row, dy + a.result(block, head), 1.0f,
                dx + a.part(block, head, 2) + first * LANES);
        });
    }

    static void infer(ShapeContext& s) {
        if (const auto qkv = s.input(1, 5)) s.set(0, *qkv);
    }

    int64_t heads;
};

}  // namespace

std::vector<const OrtCustomOp*> attention_ops() {
    return {custom_op<Attention>(), custom_op<AttentionGrad>()};
}

}  // namespace sparsefleet
