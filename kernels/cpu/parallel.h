// Work shared out over threads.
#pragma once

#include <stdint.h>

#include <functional>

namespace pangu {

// Calls body(index, thread) for every index in [0, count), in any order, on up to `threads` threads; `thread` is below
// `threads`. Returns when all calls have. `body` must not throw.
void parallel_for(int64_t count, int threads, const std::function<void(int64_t, int)>& body);

}  // namespace pangu
