#include "fixed_indices.h"

#include <map>
#include <mutex>
#include <utility>

#include "kernels.h"

namespace sparsefleet {
namespace {

struct Promise {
    uint64_t number;
    int64_t owners;
};

struct Promises {
    std::mutex mutex;
    std::map<std::pair<const int32_t*, int64_t>, Promise> by_array;
    uint64_t last_number = 0;
};

Promises& promises() {
    static Promises all;
    return all;
}

}  // namespace

uint64_t number_of_fixed(const int32_t* indices, int64_t count) {
    Promises& all = promises();
    const std::lock_guard<std::mutex> lock(all.mutex);
    const auto found = all.by_array.find({indices, count});
    return found != all.by_array.end() ? found->second.number : 0;
}

}  // namespace sparsefleet

// The caller promises that these indices stay alive and as they are until he releases them, as often as he fixed them.
SPARSEFLEET_EXPORT void sparsefleet_fix_indices(const int32_t* indices, int64_t count) {
    sparsefleet::Promises& all = sparsefleet::promises();
    const std::lock_guard<std::mutex> lock(all.mutex);
    const auto made = all.by_array.insert({{indices, count}, {all.last_number + 1, 0}});
    if (made.second) all.last_number++;
    made.first->second.owners++;
}

SPARSEFLEET_EXPORT void sparsefleet_release_indices(const int32_t* indices, int64_t count) {
    sparsefleet::Promises& all = sparsefleet::promises();
    const std::lock_guard<std::mutex> lock(all.mutex);
    const auto found = all.by_array.find({indices, count});
    if (found != all.by_array.end() && --found->second.owners == 0) all.by_array.erase(found);
}
