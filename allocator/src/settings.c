#include <stdlib.h>

#ifdef __GLIBC__
#include <malloc.h>

/* Before main, because threads take their arena when they first allocate. */
__attribute__((constructor)) static void syncd_allocator_settings(void) {
    /* Environment variables of whoever knows better win. */
    if (getenv("GLIBC_TUNABLES") || getenv("MALLOC_ARENA_MAX"))
        return;
    mallopt(M_ARENA_MAX, 2);
    /* Setting it also keeps it from growing with what is freed. */
    mallopt(M_MMAP_THRESHOLD, 1024 * 1024);
    /* Or each message's memory goes back to the kernel and is faulted in again for the next one. */
    mallopt(M_TRIM_THRESHOLD, 4 * 1024 * 1024);
}

void syncd_allocator_give_back(void) {
    malloc_trim(0);
}
#else
void syncd_allocator_give_back(void) {
}
#endif
