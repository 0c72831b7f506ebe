// What the shared library exports.
#include <mutex>

#include "kernels.h"
#include "op.h"
#include "ops.h"

namespace sparsefleet {
namespace {

std::mutex mutex;
OrtCustomOpDomain* domain = nullptr;  // made once; sessions keep a pointer to it, so it is never released

void make_domain() {
    kernels();  // a wrong SPARSEFLEET_ISA is reported here, not by the first node that runs
    OrtCustomOpDomain* fresh = nullptr;
    check(ort().create_custom_op_domain("sparsefleet", &fresh));
    try {
        for (const auto& ops : {attention_ops(), groupnorm_ops(), layout_ops(), loss_ops(), norm_ops(),
                                pointwise_ops(), pool_ops(), saved_ops(), sparse_ops()}) {
            for (const OrtCustomOp* op : ops) check(ort().custom_op_domain_add(fresh, op));
        }
    } catch (...) {
        ort().release_custom_op_domain(fresh);
        throw;
    }
    domain = fresh;
}

}  // namespace
}  // namespace sparsefleet

// Called by ONNX Runtime when a session's options name this library; may be called many times.
SPARSEFLEET_EXPORT OrtStatus* RegisterCustomOps(OrtSessionOptions* options, const OrtApiBase* base) {
    using namespace sparsefleet;
    const std::lock_guard<std::mutex> lock(mutex);
    if (domain == nullptr) {
        if (OrtStatus* status = load_api(base)) return status;
        try {
            make_domain();
        } catch (const std::exception& error) {
            return status_of("library", error);
        }
    }
    return ort().add_custom_op_domain(options, domain);
}

// The instruction set of the kernels, or "" if SPARSEFLEET_ISA names one that is not available.
SPARSEFLEET_EXPORT const char* sparsefleet_isa() {
    try {
        return sparsefleet::kernels().isa;
    } catch (const std::exception&) {
        return "";
    }
}

// One step of SGD, in place; not an op, because weights and velocity belong to the caller.
SPARSEFLEET_EXPORT void sparsefleet_sgd(float* weight, const float* gradient, float* velocity, int64_t count,
                                        float learning_rate, float momentum, float weight_decay) {
    const sparsefleet::SgdRates rates{learning_rate, momentum, weight_decay};
    sparsefleet::kernels().sgd(weight, gradient, velocity, count, rates);
}

SPARSEFLEET_EXPORT const char* sparsefleet_ops_version() { return SPARSEFLEET_VERSION; }
