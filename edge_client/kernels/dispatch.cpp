// Chooses the kernels for this machine, once, and between sparse and dense ones.
#include <atomic>
#include <cstdlib>
#include <string>
#include <vector>

#include "kernels.h"
#include "op.h"

namespace sparsefleet {

#if defined(SPARSEFLEET_X86)
extern const Kernels kernels_avx512;
extern const Kernels kernels_avx2;
#endif
extern const Kernels kernels_baseline;  // SSE2 on x86-64, NEON on aarch64

namespace {

// Fastest first.
std::vector<const Kernels*> available() {
    std::vector<const Kernels*> tables;
#if defined(SPARSEFLEET_X86)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("fma")) {
        tables.push_back(&kernels_avx512);
    }
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) tables.push_back(&kernels_avx2);
#endif
    tables.push_back(&kernels_baseline);
    return tables;
}

const Kernels& choose() {
    const std::vector<const Kernels*> tables = available();
    const char* wanted = std::getenv("SPARSEFLEET_ISA");
    if (wanted == nullptr || *wanted == '\0') return *tables.front();
    std::string names;
    for (const Kernels* table : tables) {
        if (std::string(table->isa) == wanted) return *table;
        names += std::string(names.empty() ? "" : ", ") + table->isa;
    }
    throw OpError(std::string("SPARSEFLEET_ISA=") + wanted + " is not available here; available: " + names);
}

std::atomic<double> calibrated_dense{0.0}, calibrated_winograd{0.0};  // 0: not set

}  // namespace

const Kernels& kernels() {
    static const Kernels& chosen = choose();
    return chosen;
}

double dense_from() {
    const double density = calibrated_dense;
    return density > 0.0 ? density : kernels().dense_from;
}

double winograd_from() {
    const double density = calibrated_winograd;
    return density > 0.0 ? density : kernels().winograd_from;
}

}  // namespace sparsefleet

// The densities from which on layers run dense, and those that Winograd's algorithm suits by that; 0 if SPARSEFLEET_ISA
// names what is not available.
SPARSEFLEET_EXPORT void sparsefleet_break_even(double* dense_from, double* winograd_from) {
    *dense_from = *winograd_from = 0.0;
    try {
        *dense_from = sparsefleet::dense_from();
        *winograd_from = sparsefleet::winograd_from();
    } catch (const sparsefleet::OpError&) {
    }
}

// For the whole process, from the next call of an op on. Above 1: never; 0: back to the default.
SPARSEFLEET_EXPORT void sparsefleet_set_break_even(double dense_from, double winograd_from) {
    sparsefleet::calibrated_dense = dense_from;
    sparsefleet::calibrated_winograd = winograd_from;
}
