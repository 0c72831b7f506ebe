// SoftmaxCrossEntropy and its gradient. [N, K] is small, so this is plain code without vectors.
#include <algorithm>
#include <cmath>

#include "ops.h"
#include "shapes.h"

namespace sparsefleet {
namespace {

constexpr ElementType F32 = ElementType::FLOAT;
constexpr ElementType I64 = ElementType::INT64;

void check_scores(const Tensor& scores) {
    const Shape& s = scores.shape;
    require(s.size() == 2 && s[0] >= 1 && s[1] >= 1,
            std::string(scores.name) + " has shape " + to_string(s) + ", expected [N, K] with N, K >= 1");
}

const int64_t* labels_of(const Tensor& labels, int64_t num_examples, int64_t num_classes) {
    require_shape(labels, {num_examples});
    const int64_t* label = labels.as<int64_t>();
    for (int64_t n = 0; n < num_examples; n++) {
        if (label[n] < 0 || label[n] >= num_classes) {
            throw OpError("label " + std::to_string(label[n]) + " in row " + std::to_string(n) +
                          " is not one of the " + std::to_string(num_classes) + " classes");
        }
    }
    return label;
}

struct SoftmaxCrossEntropy {
    static constexpr const char* name = "SoftmaxCrossEntropy";
    static constexpr Port inputs[] = {{"scores", F32}, {"labels", I64}};
    static constexpr Port outputs[] = {{"loss", F32}, {"log_prob", F32}};

    explicit SoftmaxCrossEntropy(const Attributes&) {}

    void compute(Context& context) {
        const Tensor scores = context.input(0), labels = context.input(1);
        check_scores(scores);
        const int64_t num_examples = scores.shape[0], num_classes = scores.shape[1];
        const int64_t* label = labels_of(labels, num_examples, num_classes);
        float* loss = context.output(0, {});
        float* log_prob = context.output(1, scores.shape);
        if (log_prob == nullptr) return;
        double total = 0.0;
        for (int64_t n = 0; n < num_examples; n++) {
            const float* score = scores.as<float>() + n * num_classes;
            const double highest = static_cast<double>(*std::max_element(score, score + num_classes));
            double sum = 0.0;
            for (int64_t c = 0; c < num_classes; c++)
                sum += std::exp(static_cast<double>(score[c]) - highest);
            const double log_sum = highest + std::log(sum);
            for (int64_t c = 0; c < num_classes; c++) {
                log_prob[n * num_classes + c] = static_cast<float>(static_cast<double>(score[c]) - log_sum);
            }
            total += log_sum - static_cast<double>(score[label[n]]);
        }
        if (loss != nullptr) *loss = static_cast<float>(total / static_cast<double>(num_examples));
    }

    static void infer(ShapeContext& s) {
        s.set(0, {});
        if (const auto scores = s.input(0, 2)) s.set(1, *scores);
    }
};

struct SoftmaxCrossEntropyGrad {
    static constexpr const char* name = "SoftmaxCrossEntropyGrad";
    static constexpr Port inputs[] = {{"dloss", F32}, {"log_prob", F32}, {"labels", I64}};
    static constexpr Port outputs[] = {{"dscores", F32, true}};

    explicit SoftmaxCrossEntropyGrad(const Attributes&) {}

    void compute(Context& context) {
        const Tensor dloss = context.input(0), log_prob = context.input(1), labels = context.input(2);
        require(dloss.size() == 1, "dloss has shape " + to_string(dloss.shape) + ", expected a scalar");
        check_scores(log_prob);
        const int64_t num_examples = log_prob.shape[0], num_classes = log_prob.shape[1];
        const int64_t* label = labels_of(labels, num_examples, num_classes);
        float* d_scores = context.output(0, log_prob.shape);
        if (d_scores == nullptr) return;
        const float share = *dloss.as<float>() / static_cast<float>(num_examples);
        for (int64_t n = 0; n < num_examples; n++) {
            for (int64_t c = 0; c < num_classes; c++) {
                const float probability = std::exp(log_prob.as<float>()[n * num_classes + c]);
                d_scores[n * num_classes + c] = share * (probability - (c == label[n] ? 1.0f : 0.0f));
            }
        }
    }

    static void infer(ShapeContext& s) {
        if (const auto log_prob = s.input(1, 2)) s.set(0, *log_prob);
    }
};

}  // namespace

std::vector<const OrtCustomOp*> loss_ops() {
    return {custom_op<SoftmaxCrossEntropy>(), custom_op<SoftmaxCrossEntropyGrad>()};
}

}  // namespace sparsefleet
