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

std::atomic<double> calibrated{0.0};  // 0: not set

}  // namespace

const Kernels& kernels() {
    static const Kernels& chosen = choose();
    return chosen;
}

double dense_from() {
    const double density = calibrated;
    return density > 0.0 ? density : kernels().dense_from;
}

}  // namespace sparsefleet

// The density from which on layers run dense; 0 if SPARSEFLEET_ISA names what is not available.
SPARSEFLEET_EXPORT double sparsefleet_dense_from() {
    try {
        return sparsefleet::dense_from();
    } catch (const sparsefleet::OpError&) {
        return 0.0;
    }
}

// For the whole process, from the next call of an op on. Above 1: never dense; 0: back to the default.
SPARSEFLEET_EXPORT void sparsefleet_set_dense_from(double density) { sparsefleet::calibrated = density; }
