#include "pages.h"

#if defined(__linux__)

#include <sys/mman.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <fstream>

namespace sparsefleet {
namespace {

// Bytes of a large page; 0 where the kernel has none, or SPARSEFLEET_LARGE_PAGES is 0.
uintptr_t page_bytes() {
    const char* wanted = std::getenv("SPARSEFLEET_LARGE_PAGES");
    if (wanted != nullptr && std::strcmp(wanted, "0") == 0) return 0;
    uintptr_t bytes = 0;
    std::ifstream file("/sys/kernel/mm/transparent_hugepage/hpage_pmd_size");
    return file >> bytes ? bytes : 0;
}

}  // namespace

void want_large_pages(void* data, size_t bytes) {
    static const uintptr_t page = page_bytes();
    if (page == 0 || bytes < page) return;
    const uintptr_t begin = (reinterpret_cast<uintptr_t>(data) + page - 1) / page * page;
    const uintptr_t end = (reinterpret_cast<uintptr_t>(data) + bytes) / page * page;
    if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
}

}  // namespace sparsefleet

#else

namespace sparsefleet {

void want_large_pages(void*, size_t) {}

}  // namespace sparsefleet

#endif
