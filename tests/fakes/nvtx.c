/* A libnvToolsExt.so.1 that writes ranges into the log of the fakes. */
#include "record.h"

#include <stdint.h>

#define EXPORT __attribute__((visibility("default")))

EXPORT int nvtxRangePushA(const char *name) { record("nvtxRangePush name=%s", name); return 0; }
EXPORT int nvtxRangePop(void) { record("nvtxRangePop"); return 0; }
EXPORT uint64_t nvtxRangeStartA(const char *name) {
  static uint64_t last;
  uint64_t id = __atomic_add_fetch(&last, 1, __ATOMIC_RELAXED);
  record("nvtxRangeStart id=%lu name=%s", (unsigned long)id, name);
  return id;
}
EXPORT void nvtxRangeEnd(uint64_t id) { record("nvtxRangeEnd id=%lu", (unsigned long)id); }
