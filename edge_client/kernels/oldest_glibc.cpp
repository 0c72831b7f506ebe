// The symbols that oldest_glibc.h promises not to ask for.
#include <new>

// libstdc++ 11 (GLIBCXX_3.4.29) moved this out of line; std::vector calls it for absurd sizes.
namespace std {
[[noreturn]] __attribute__((visibility("hidden"))) void __throw_bad_array_new_length() {
    throw bad_array_new_length();
}
}  // namespace std

#if __has_include(<sys/single_threaded.h>)
#include <sys/single_threaded.h>

extern "C" {
__attribute__((visibility("hidden"))) char __libc_single_threaded = 0;
}
#endif
