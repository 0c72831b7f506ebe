// The yardsticks of isa/roofline.inc as plain functions, for `sparsefleet bench`: no runtime is needed
// to call them. Each returns how much work it did (operations or bytes); 0 if SPARSEFLEET_ISA names
// an instruction set that is not available.
#include <exception>

#include "kernels.h"

namespace sparsefleet {
namespace {

template <class Work>
int64_t done(const Work& work) {
    try {
        return work(kernels());
    } catch (const std::exception&) {
        return 0;
    }
}

}  // namespace
}  // namespace sparsefleet

using sparsefleet::Kernels;

// Floats that `sums` must hold below, for every instruction set.
SPARSEFLEET_EXPORT int64_t sparsefleet_roofline_sums() { return sparsefleet::ROOFLINE_SUMS; }

// How many offsets behind the last one the gather reads.
SPARSEFLEET_EXPORT int64_t sparsefleet_roofline_ahead() { return sparsefleet::OFFSETS_AHEAD; }

// Floats that one entry of the gather reads: the largest tile of spmm.
SPARSEFLEET_EXPORT int64_t sparsefleet_roofline_tile() {
    return sparsefleet::done([](const Kernels& k) { return k.spmm_pixels * sparsefleet::LANES; });
}

SPARSEFLEET_EXPORT int64_t sparsefleet_roofline_fma(int64_t rounds, float* sums) {
    return sparsefleet::done([&](const Kernels& k) { return k.peak_fma(rounds, sums); });
}

SPARSEFLEET_EXPORT int64_t sparsefleet_roofline_gather(const float* x, const float* value,
                                                       const int32_t* offset, int64_t entries,
                                                       int64_t rounds, float* sums) {
    return sparsefleet::done(
        [&](const Kernels& k) { return k.peak_gather(x, value, offset, entries, rounds, sums); });
}

SPARSEFLEET_EXPORT int64_t sparsefleet_roofline_read(const float* x, int64_t count, int64_t rounds,
                                                     float* sums) {
    return sparsefleet::done([&](const Kernels& k) { return k.stream_read(x, count, rounds, sums); });
}

SPARSEFLEET_EXPORT int64_t sparsefleet_roofline_scale(const float* x, float factor, int64_t count, float* y) {
    return sparsefleet::done([&](const Kernels& k) { return k.stream_scale(x, factor, count, y); });
}
