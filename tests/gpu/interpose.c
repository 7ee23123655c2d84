/* Records what a process asks of the real libcuda.so.1: preloaded (LD_PRELOAD), it puts itself in the place of the calls that a guest of a
 * server must not make while that serves, whoever looks them up: by dlsym, or by cuGetProcAddress, as the CUDA runtime and NCCL do.
 *
 *     cc -O1 -fPIC -shared -o libinterpose.so interpose.c -ldl
 *     EPLB_CALLS=calls.log LD_PRELOAD=./libinterpose.so eplb bench exchange ..
 *
 * Each line of the log: `NAME by=LIBRARY stream=.. bytes=..`; `audit.py` reads it. The library is that from which the call came.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef int CUresult;
typedef void *(*Dlsym)(void *, const char *);

/* The one that this file hides. Its version is that of the oldest x86-64 glibc, or that of the merge of libdl into libc. */
static void *real_dlsym(void *handle, const char *name) {
  static Dlsym real;
  if (!real) real = (Dlsym)dlvsym(RTLD_NEXT, "dlsym", "GLIBC_2.34");
  if (!real) real = (Dlsym)dlvsym(RTLD_NEXT, "dlsym", "GLIBC_2.2.5");
  return real ? real(handle, name) : NULL;
}

static void say(void *caller, const char *format, ...) {
  static int file = -2;
  static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
  char line[256];
  va_list arguments;
  va_start(arguments, format);
  int length = vsnprintf(line, sizeof line, format, arguments);
  va_end(arguments);
  Dl_info facts;
  const char *library = caller && dladdr(caller, &facts) && facts.dli_fname ? facts.dli_fname : "?";
  const char *base = strrchr(library, '/');
  if (length > 0 && length < (int)sizeof line)
    length += snprintf(line + length, sizeof line - length, " by=%s\n", base ? base + 1 : library);
  if (length > (int)sizeof line - 1) length = sizeof line - 1;
  pthread_mutex_lock(&lock);
  const char *path = getenv("EPLB_CALLS");
  if (file == -2) file = path && *path ? open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644) : -1;
  if (file >= 0 && write(file, line, length) < 0) file = -1;
  pthread_mutex_unlock(&lock);
}

#define CALLER __builtin_return_address(0)
/* A call that is told and passed on. `real_NAME` is set when somebody looks the call up. */
#define PASS(name, types, names, ...) \
  static CUresult(*real_##name) types; \
  static CUresult name types { \
    say(CALLER, __VA_ARGS__); \
    return real_##name names; \
  }

PASS(cuCtxSynchronize, (void), (), "cuCtxSynchronize")
PASS(cuStreamSynchronize, (void *s), (s), "cuStreamSynchronize stream=%p", s)
PASS(cuStreamSynchronize_ptsz, (void *s), (s), "cuStreamSynchronize stream=%p", s)
PASS(cuEventSynchronize, (void *e), (e), "cuEventSynchronize")
PASS(cuMemAlloc_v2, (uint64_t * at, size_t n), (at, n), "cuMemAlloc bytes=%zu", n)
PASS(cuMemAllocAsync, (uint64_t * at, size_t n, void *s), (at, n, s), "cuMemAllocAsync bytes=%zu", n)
PASS(cuMemAllocPitch_v2, (uint64_t * at, size_t *p, size_t w, size_t h, unsigned e), (at, p, w, h, e), "cuMemAllocPitch")
PASS(cuMemFree_v2, (uint64_t at), (at), "cuMemFree")
PASS(cuMemCreate, (void *h, size_t n, const void *p, unsigned long long f), (h, n, p, f), "cuMemCreate bytes=%zu", n)
PASS(cuMemRelease, (uint64_t h), (h), "cuMemRelease")
PASS(cuMemHostAlloc, (void **at, size_t n, unsigned f), (at, n, f), "cuMemHostAlloc bytes=%zu", n)
PASS(cuMemHostRegister_v2, (void *at, size_t n, unsigned f), (at, n, f), "cuMemHostRegister bytes=%zu", n)
PASS(cuMemFreeHost, (void *at), (at), "cuMemFreeHost")
PASS(cuMemcpyHtoDAsync_v2, (uint64_t to, const void *from, size_t n, void *s), (to, from, n, s), "cuMemcpyHtoDAsync stream=%p bytes=%zu", s, n)
PASS(cuMemcpyDtoHAsync_v2, (void *to, uint64_t from, size_t n, void *s), (to, from, n, s), "cuMemcpyDtoHAsync stream=%p bytes=%zu", s, n)
PASS(cuMemcpyAsync, (uint64_t to, uint64_t from, size_t n, void *s), (to, from, n, s), "cuMemcpyAsync stream=%p bytes=%zu", s, n)
PASS(cuMemcpyBatchAsync_v2, (uint64_t * to, uint64_t *from, size_t *n, size_t count, void *how, size_t *first, size_t kinds, void *s),
     (to, from, n, count, how, first, kinds, s), "cuMemcpyBatchAsync stream=%p copies=%zu", s, count)
PASS(cuMemcpy, (uint64_t to, uint64_t from, size_t n), (to, from, n), "cuMemcpy bytes=%zu", n)
PASS(cuMemcpyHtoD_v2, (uint64_t to, const void *from, size_t n), (to, from, n), "cuMemcpyHtoD bytes=%zu", n)
PASS(cuMemcpyDtoH_v2, (void *to, uint64_t from, size_t n), (to, from, n), "cuMemcpyDtoH bytes=%zu", n)
PASS(cuModuleLoadData, (void **m, const void *image), (m, image), "cuModuleLoadData")

static CUresult (*real_cuStreamCreateWithPriority)(void **, unsigned, int);
static CUresult cuStreamCreateWithPriority(void **stream, unsigned flags, int priority) {
  CUresult code = real_cuStreamCreateWithPriority(stream, flags, priority);
  say(CALLER, "cuStreamCreate stream=%p flags=%u", *stream, flags);
  return code;
}
static CUresult (*real_cuStreamCreate)(void **, unsigned);
static CUresult cuStreamCreate(void **stream, unsigned flags) {
  CUresult code = real_cuStreamCreate(stream, flags);
  say(CALLER, "cuStreamCreate stream=%p flags=%u", *stream, flags);
  return code;
}

static void *stand_in(const char *name, void *real);

static CUresult (*real_cuGetProcAddress_v2)(const char *, void **, int, uint64_t, void *);
static CUresult cuGetProcAddress_v2(const char *name, void **at, int version, uint64_t flags, void *status) {
  CUresult code = real_cuGetProcAddress_v2(name, at, version, flags, status);
  if (code == 0 && at && *at) {
    /* Names are given without a version there; the newest is meant. */
    char newest[128];
    snprintf(newest, sizeof newest, "%s_v2", name);
    void *found = stand_in(newest, *at);
    *at = found != *at ? found : stand_in(name, *at);
  }
  return code;
}
static CUresult (*real_cuGetProcAddress)(const char *, void **, int, uint64_t);
static CUresult cuGetProcAddress(const char *name, void **at, int version, uint64_t flags) {
  CUresult code = real_cuGetProcAddress(name, at, version, flags);
  if (code == 0 && at && *at) *at = stand_in(name, *at);
  return code;
}

/* The function of this file in the place of `real`, or `real`. A call has one real function, whoever looks it up. */
static void *stand_in(const char *name, void *real) {
#define TRY(call) \
  if (!strcmp(name, #call)) { \
    if (!real_##call) *(void **)&real_##call = real; \
    return (void *)call; \
  }
  TRY(cuCtxSynchronize) TRY(cuStreamSynchronize) TRY(cuStreamSynchronize_ptsz) TRY(cuEventSynchronize) TRY(cuMemAlloc_v2)
  TRY(cuMemAllocAsync) TRY(cuMemAllocPitch_v2) TRY(cuMemFree_v2) TRY(cuMemCreate) TRY(cuMemRelease) TRY(cuMemHostAlloc)
  TRY(cuMemHostRegister_v2) TRY(cuMemFreeHost) TRY(cuMemcpyHtoDAsync_v2) TRY(cuMemcpyDtoHAsync_v2) TRY(cuMemcpyAsync) TRY(cuMemcpyBatchAsync_v2)
  TRY(cuMemcpy)
  TRY(cuMemcpyHtoD_v2) TRY(cuMemcpyDtoH_v2) TRY(cuModuleLoadData) TRY(cuStreamCreateWithPriority) TRY(cuStreamCreate)
  TRY(cuGetProcAddress_v2) TRY(cuGetProcAddress)
  return real;
}

__attribute__((visibility("default"))) void *dlsym(void *handle, const char *name) {
  void *found = real_dlsym(handle, name);
  return found && name[0] == 'c' && name[1] == 'u' ? stand_in(name, found) : found;
}
