#include <stdlib.h>

#ifdef __GLIBC__
#include <malloc.h>

/* Runs before main, because a thread picks its arena when it first allocates. */
__attribute__((constructor)) static void syncd_allocator_settings(void) {
    /* Environment variables set by an operator take precedence. */
    if (getenv("GLIBC_TUNABLES") || getenv("MALLOC_ARENA_MAX"))
        return;
    mallopt(M_ARENA_MAX, 2);
    /* An explicit threshold also stops glibc from raising it as large blocks are freed. */
    mallopt(M_MMAP_THRESHOLD, 1024 * 1024);
    /* The default would return the memory of each message and fault it in again for the next one. */
    mallopt(M_TRIM_THRESHOLD, 4 * 1024 * 1024);
}

void syncd_allocator_give_back(void) {
    malloc_trim(0);
}
#else
void syncd_allocator_give_back(void) {
}
#endif
