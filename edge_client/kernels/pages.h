// Large pages behind large tensors: a tile reads short pieces of many planes, each of them on other pages, and the
// processor remembers where only so many of those are.
#pragma once

#include <cstddef>

namespace sparsefleet {

// Ask the system to back a tensor with large pages, where it leaves that to programs (`madvise`): those that lie
// within it, so that nothing more becomes resident than what is written anyway. To be called before the memory is
// first written; afterwards it helps only in time. Does nothing where the system cannot.
void want_large_pages(void* data, size_t bytes);

}  // namespace sparsefleet
