// Included before everything else on Linux: the library then loads where the oldest supported system is
// (glibc 2.27 and libstdc++ 8, JetPack 4), whichever system compiled it. Four symbols ask for newer ones:
//
//   exp, log                       2.29 has versions that do not set errno, which nobody reads here; the
//                                  older ones are the same functions behind a check of their argument
//   __libc_single_threaded         2.32; shared_ptr counts without atomics where it is set. Ours says
//                                  that there may be threads, which is always right
//   __throw_bad_array_new_length   libstdc++ 11; ours throws the same
//
// Linking libstdc++ statically is no way out: it asks for arc4random (2.36) and _dl_find_object (2.35).
// tests/test_wheels.py reads the versions that a built library asks for.
#pragma once

#include <features.h>

#if defined(__GLIBC__) && defined(__aarch64__)
__asm__(".symver exp, exp@GLIBC_2.17");
__asm__(".symver log, log@GLIBC_2.17");
#elif defined(__GLIBC__) && defined(__x86_64__)
__asm__(".symver exp, exp@GLIBC_2.2.5");
__asm__(".symver log, log@GLIBC_2.2.5");
#endif
