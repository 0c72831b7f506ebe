// Index arrays that their owner leaves as they are. What they hold was compared with a plan's mask once, and need not be
// compared again; else every step reads the indices of each layer, and a copy of them, forward and backward.
#pragma once

#include <cstdint>

namespace sparsefleet {

// A number that stands for the contents of such an array, never given to others; 0 if nobody promised anything about it.
uint64_t number_of_fixed(const int32_t* indices, int64_t count);

}  // namespace sparsefleet
