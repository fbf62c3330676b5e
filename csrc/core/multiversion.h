// Function multiversioning: the library is built for the x86-64 baseline and the hot loops also for newer sets of
// instructions, chosen when the library is loaded. Put the macro on a leaf function: code that OpenMP outlines does not
// inherit it.
#pragma once

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && !defined(ONEREC_SANITIZE)
#define ONEREC_MULTIVERSION __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define ONEREC_MULTIVERSION
#endif
