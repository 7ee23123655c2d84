/* A libcuda.so.1 with no device: device memory is host memory, every stream is a thread that runs its operations in order.
 *
 * EPLB_FAKE_DEVICES  number of devices (default 4)
 * EPLB_FAKE_DELAY_US each operation of a stream first sleeps up to this long
 * EPLB_FAKE_UNSHARED 1: memory has no handles, as that of a stream-ordered pool
 * EPLB_FAKE_IPC      1: handles of others are refused, as between containers
 */
#define _GNU_SOURCE
#include "record.h"

#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>

typedef int CUresult;
typedef int CUdevice;
typedef uint64_t CUdeviceptr;
enum { SUCCESS = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, INVALID_CONTEXT = 201, NOT_READY = 600, PEER_ENABLED = 704, NOT_SUPPORTED = 801 };

#define EXPORT __attribute__((visibility("default")))
#define DEVICES 64
#define STACK 64

typedef struct Context { int device; } Context;
static Context contexts[DEVICES];
static __thread Context *stack[STACK];
static __thread int depth;

static int devices(void) {
  const char *count = getenv("EPLB_FAKE_DEVICES");
  int n = count ? atoi(count) : 4;
  return n > DEVICES ? DEVICES : n;
}

static Context *current(void) { return depth ? stack[depth - 1] : NULL; }

/* Blocks of "device" memory: whoever touches others' is found out. */
/* Each lies in a file of its own, so that other processes can open it. */
typedef struct Block {
  uint8_t *base;
  size_t bytes, mapped;
  int device, file;
  enum { PLAIN, VIRTUAL, OPENED } kind;
  uint64_t handles; /* kinds of handles that virtual memory was made with */
  struct Block *next;
} Block;
static Block *blocks;
static pthread_mutex_t blocks_lock = PTHREAD_MUTEX_INITIALIZER;

static int inside(const void *at, size_t bytes) {
  pthread_mutex_lock(&blocks_lock);
  int found = bytes == 0;
  for (Block *b = blocks; b && !found; b = b->next)
    found = (uint8_t *)at >= b->base && (uint8_t *)at + bytes <= b->base + b->bytes;
  pthread_mutex_unlock(&blocks_lock);
  if (!found) record("outside at=%p bytes=%zu", at, bytes);
  return found;
}

static void keep(Block block) {
  Block *kept = malloc(sizeof *kept);
  *kept = block;
  pthread_mutex_lock(&blocks_lock);
  kept->next = blocks;
  blocks = kept;
  pthread_mutex_unlock(&blocks_lock);
}

/* Forgets the block of a kind that begins at an address, and says what it was. */
static int take(const void *base, int kind, Block *out) {
  pthread_mutex_lock(&blocks_lock);
  Block **at = &blocks;
  while (*at && ((*at)->base != base || (int)(*at)->kind != kind)) at = &(*at)->next;
  Block *block = *at;
  if (block) *at = block->next;
  pthread_mutex_unlock(&blocks_lock);
  if (!block) return 0;
  *out = *block;
  free(block);
  return 1;
}

/* The block that an address lies in. */
static int find(const void *address, Block *out) {
  pthread_mutex_lock(&blocks_lock);
  Block *b = blocks;
  while (b && ((uint8_t *)address < b->base || (uint8_t *)address >= b->base + b->mapped)) b = b->next;
  if (b) *out = *b;
  pthread_mutex_unlock(&blocks_lock);
  return b != NULL;
}

/* For the fake of NCCL, whose buffers must be device memory too. */
EXPORT int eplb_fake_is_device_memory(const void *at, size_t bytes) { return inside(at, bytes); }

typedef struct Event { pthread_mutex_t lock; pthread_cond_t passed; uint64_t recorded, reached; struct timespec at; } Event;

typedef struct Op {
  enum { COPY, RECORD, WAIT, CALL } kind;
  uint8_t *to; const uint8_t *from;
  size_t rows, row_bytes, to_pitch, from_pitch;
  Event *event; uint64_t point;
  void (*function)(void *); void *argument;
  int skip, way;
  struct Op *next;
} Op;

typedef struct Stream {
  pthread_mutex_t lock; pthread_cond_t changed;
  Op *first, *last;
  int busy, closed, device;
  /* While it captures: operations go here and do not run. */
  struct Graph *captures;
} Stream;

typedef struct Graph { Op *first, *last; } Graph;

static void pause_a_little(unsigned *seed) {
  static long most = -1;
  if (most < 0) { const char *text = getenv("EPLB_FAKE_DELAY_US"); most = text ? atol(text) : 0; }
  if (most <= 0) return;
  *seed = *seed * 1103515245u + 12345u;
  usleep((*seed >> 8) % (unsigned)(most + 1));
}

/* Held copies, for a test in the same process: those to the host (1), to a device (2) or both (3) stop until the hold is over. */
static pthread_mutex_t hold_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t hold_over = PTHREAD_COND_INITIALIZER;
static int holds;
static long stopped_copies, under_way;

EXPORT void eplb_fake_hold(int which) {
  pthread_mutex_lock(&hold_lock);
  holds = which;
  pthread_cond_broadcast(&hold_over);
  pthread_mutex_unlock(&hold_lock);
}
/* How many copies have stopped at a hold so far. */
EXPORT long eplb_fake_stopped(void) {
  pthread_mutex_lock(&hold_lock);
  long count = stopped_copies;
  pthread_mutex_unlock(&hold_lock);
  return count;
}
/* How many operations are enqueued on streams and not over. */
EXPORT long eplb_fake_under_way(void) {
  pthread_mutex_lock(&hold_lock);
  long count = under_way;
  pthread_mutex_unlock(&hold_lock);
  return count;
}
static void count_under_way(int more) {
  pthread_mutex_lock(&hold_lock);
  under_way += more;
  pthread_mutex_unlock(&hold_lock);
}
static void pass_hold(int way) {
  pthread_mutex_lock(&hold_lock);
  if (holds & way) stopped_copies++;
  while (holds & way) pthread_cond_wait(&hold_over, &hold_lock);
  pthread_mutex_unlock(&hold_lock);
}

static void run(Op *op) {
  switch (op->kind) {
  case COPY:
    pass_hold(op->way);
    for (size_t row = 0; !op->skip && row < op->rows; row++)
      memcpy(op->to + row * op->to_pitch, op->from + row * op->from_pitch, op->row_bytes);
    break;
  case RECORD:
    pthread_mutex_lock(&op->event->lock);
    if (op->point > op->event->reached) op->event->reached = op->point;
    clock_gettime(CLOCK_MONOTONIC, &op->event->at);
    pthread_cond_broadcast(&op->event->passed);
    pthread_mutex_unlock(&op->event->lock);
    break;
  case WAIT:
    pthread_mutex_lock(&op->event->lock);
    while (op->event->reached < op->point) pthread_cond_wait(&op->event->passed, &op->event->lock);
    pthread_mutex_unlock(&op->event->lock);
    break;
  case CALL: op->function(op->argument); break;
  }
}

static void *serve(void *argument) {
  Stream *stream = argument;
  unsigned seed = (unsigned)(uintptr_t)stream;
  pthread_mutex_lock(&stream->lock);
  for (;;) {
    while (!stream->first && !stream->closed) pthread_cond_wait(&stream->changed, &stream->lock);
    Op *op = stream->first;
    if (!op) break;
    stream->first = op->next;
    if (!stream->first) stream->last = NULL;
    stream->busy = 1;
    pthread_mutex_unlock(&stream->lock);
    pause_a_little(&seed);
    run(op);
    free(op);
    count_under_way(-1);
    pthread_mutex_lock(&stream->lock);
    stream->busy = 0;
    pthread_cond_broadcast(&stream->changed);
  }
  pthread_mutex_unlock(&stream->lock);
  free(stream);
  return NULL;
}

static CUresult push(Stream *stream, Op op) {
  if (!stream) { record("default_stream"); return INVALID_VALUE; }
  Op *copy = malloc(sizeof *copy);
  *copy = op;
  copy->next = NULL;
  pthread_mutex_lock(&stream->lock);
  if (stream->captures) {
    Graph *graph = stream->captures;
    if (graph->last) graph->last->next = copy; else graph->first = copy;
    graph->last = copy;
    pthread_mutex_unlock(&stream->lock);
    return SUCCESS;
  }
  count_under_way(1);
  if (stream->last) stream->last->next = copy; else stream->first = copy;
  stream->last = copy;
  pthread_cond_broadcast(&stream->changed);
  pthread_mutex_unlock(&stream->lock);
  return SUCCESS;
}

EXPORT CUresult cuInit(unsigned flags) {
  for (int i = 0; i < DEVICES; i++) contexts[i].device = i;
  record("cuInit flags=%u", flags);
  return SUCCESS;
}
EXPORT CUresult cuDriverGetVersion(int *version) { *version = 13000; return SUCCESS; }
EXPORT CUresult cuDeviceGetCount(int *count) { *count = devices(); return SUCCESS; }
EXPORT CUresult cuDeviceGet(CUdevice *device, int ordinal) { *device = ordinal; return ordinal < devices() ? SUCCESS : 101; }
EXPORT CUresult cuDeviceGetName(char *name, int length, CUdevice device) {
  snprintf(name, length, "Fake device %d", device);
  return SUCCESS;
}
EXPORT CUresult cuDeviceGetPCIBusId(char *id, int length, CUdevice device) {
  snprintf(id, length, "0000:%02x:00.0", device);
  return SUCCESS;
}
EXPORT CUresult cuDeviceGetAttribute(int *value, int attribute, CUdevice device) {
  (void)device;
  *value = attribute == 75 ? 9 : attribute == 76 ? 0 : attribute == 40 ? 3 : attribute == 16 ? 132 : 0;
  return SUCCESS;
}
EXPORT CUresult cuDeviceTotalMem_v2(size_t *bytes, CUdevice device) { (void)device; *bytes = (size_t)1 << 34; return SUCCESS; }
EXPORT CUresult cuDeviceCanAccessPeer(int *can, CUdevice a, CUdevice b) { *can = a != b; return SUCCESS; }
EXPORT CUresult cuGetErrorName(CUresult code, const char **name) {
  switch (code) {
  case SUCCESS: *name = "CUDA_SUCCESS"; break;
  case INVALID_VALUE: *name = "CUDA_ERROR_INVALID_VALUE"; break;
  case OUT_OF_MEMORY: *name = "CUDA_ERROR_OUT_OF_MEMORY"; break;
  case INVALID_CONTEXT: *name = "CUDA_ERROR_INVALID_CONTEXT"; break;
  default: *name = NULL; return INVALID_VALUE;
  }
  return SUCCESS;
}
EXPORT CUresult cuDevicePrimaryCtxRetain(Context **context, CUdevice device) {
  *context = &contexts[device];
  record("cuDevicePrimaryCtxRetain device=%d", device);
  return SUCCESS;
}
EXPORT CUresult cuDevicePrimaryCtxRelease_v2(CUdevice device) {
  record("cuDevicePrimaryCtxRelease device=%d", device);
  return SUCCESS;
}
EXPORT CUresult cuCtxPushCurrent_v2(Context *context) {
  if (!context || depth == STACK) return INVALID_CONTEXT;
  stack[depth++] = context;
  return SUCCESS;
}
EXPORT CUresult cuCtxPopCurrent_v2(Context **context) {
  if (!depth) return INVALID_CONTEXT;
  *context = stack[--depth];
  return SUCCESS;
}
EXPORT CUresult cuCtxGetCurrent(Context **context) {
  *context = current();
  return SUCCESS;
}
EXPORT CUresult cuCtxGetDevice(CUdevice *device) {
  if (!current()) return INVALID_CONTEXT;
  *device = current()->device;
  return SUCCESS;
}
EXPORT CUresult cuCtxEnablePeerAccess(Context *peer, unsigned flags) {
  (void)flags;
  record("cuCtxEnablePeerAccess device=%d peer=%d", current() ? current()->device : -1, peer->device);
  return SUCCESS;
}
/* Recorded, so that a test sees who calls it. */
EXPORT CUresult cuCtxSynchronize(void) { record("cuCtxSynchronize"); return SUCCESS; }
EXPORT CUresult cuMemGetInfo_v2(size_t *free_bytes, size_t *total) {
  *free_bytes = (size_t)12 << 30;
  *total = (size_t)16 << 30;
  return SUCCESS;
}

/* Planted: there is no memory. */
EXPORT CUresult cuMemAlloc_v2(CUdeviceptr *address, size_t bytes) {
  if (!current()) return INVALID_CONTEXT;
  record("cuMemAlloc device=%d bytes=%zu", current()->device, bytes);
  if (planted("cuMemAlloc")) return OUT_OF_MEMORY;
  int file = memfd_create("fake device memory", MFD_CLOEXEC);
  size_t mapped = (bytes + 4095) / 4096 * 4096;
  if (file < 0 || ftruncate(file, mapped)) return OUT_OF_MEMORY;
  void *base = mmap(NULL, mapped, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  if (base == MAP_FAILED) return OUT_OF_MEMORY;
  keep((Block){base, bytes, mapped, current()->device, file, PLAIN, 0, NULL});
  *address = (CUdeviceptr)(uintptr_t)base;
  return SUCCESS;
}
/* The pages go at once: an operation that still uses them crashes. */
EXPORT CUresult cuMemFree_v2(CUdeviceptr address) {
  record("cuMemFree");
  Block block;
  if (!take((void *)(uintptr_t)address, PLAIN, &block)) return INVALID_VALUE;
  munmap(block.base, block.mapped);
  close(block.file);
  return SUCCESS;
}
EXPORT CUresult cuMemHostAlloc(void **address, size_t bytes, unsigned flags) {
  if (!current()) return INVALID_CONTEXT;
  record("cuMemHostAlloc bytes=%zu flags=%u", bytes, flags);
  *address = malloc(bytes);
  return *address ? SUCCESS : OUT_OF_MEMORY;
}
EXPORT CUresult cuMemFreeHost(void *address) { record("cuMemFreeHost"); free(address); return SUCCESS; }

EXPORT CUresult cuStreamCreateWithPriority(Stream **out, unsigned flags, int priority) {
  if (!current()) return INVALID_CONTEXT;
  Stream *stream = calloc(1, sizeof *stream);
  pthread_mutex_init(&stream->lock, NULL);
  pthread_cond_init(&stream->changed, NULL);
  stream->device = current()->device;
  pthread_t thread;
  pthread_attr_t attributes;
  pthread_attr_init(&attributes);
  pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
  pthread_attr_setstacksize(&attributes, 256 << 10);
  if (pthread_create(&thread, &attributes, serve, stream)) return OUT_OF_MEMORY;
  record("cuStreamCreate stream=%p device=%d flags=%u priority=%d", (void *)stream, stream->device, flags, priority);
  *out = stream;
  return SUCCESS;
}
EXPORT CUresult cuStreamDestroy_v2(Stream *stream) {
  record("cuStreamDestroy stream=%p", (void *)stream);
  pthread_mutex_lock(&stream->lock);
  stream->closed = 1;
  pthread_cond_broadcast(&stream->changed);
  pthread_mutex_unlock(&stream->lock);
  return SUCCESS;
}
EXPORT CUresult cuStreamSynchronize(Stream *stream) {
  record("cuStreamSynchronize stream=%p", (void *)stream);
  if (!stream) return SUCCESS;
  pthread_mutex_lock(&stream->lock);
  while (stream->first || stream->busy) pthread_cond_wait(&stream->changed, &stream->lock);
  pthread_mutex_unlock(&stream->lock);
  return SUCCESS;
}
EXPORT CUresult cuStreamWaitEvent(Stream *stream, Event *event, unsigned flags) {
  (void)flags;
  pthread_mutex_lock(&event->lock);
  uint64_t point = event->recorded;
  pthread_mutex_unlock(&event->lock);
  record("cuStreamWaitEvent stream=%p", (void *)stream);
  /* Planted: the wait is forgotten. */
  if (planted("cuStreamWaitEvent")) return SUCCESS;
  return push(stream, (Op){.kind = WAIT, .event = event, .point = point});
}

EXPORT CUresult cuEventCreate(Event **out, unsigned flags) {
  if (!current()) return INVALID_CONTEXT;
  Event *event = calloc(1, sizeof *event);
  pthread_mutex_init(&event->lock, NULL);
  pthread_cond_init(&event->passed, NULL);
  record("cuEventCreate flags=%u", flags);
  *out = event;
  return SUCCESS;
}
/* Kept: an operation may still name it. */
EXPORT CUresult cuEventDestroy_v2(Event *event) { (void)event; return SUCCESS; }
EXPORT CUresult cuEventRecord(Event *event, Stream *stream) {
  pthread_mutex_lock(&event->lock);
  uint64_t point = ++event->recorded;
  pthread_mutex_unlock(&event->lock);
  record("cuEventRecord stream=%p", (void *)stream);
  return push(stream, (Op){.kind = RECORD, .event = event, .point = point});
}
/* Planted: an earlier kernel has broken the context. */
EXPORT CUresult cuEventQuery(Event *event) {
  if (planted("cuEventQuery")) return 719;
  pthread_mutex_lock(&event->lock);
  int passed = event->reached >= event->recorded;
  pthread_mutex_unlock(&event->lock);
  return passed ? SUCCESS : NOT_READY;
}

EXPORT CUresult cuEventElapsedTime_v2(float *milliseconds, Event *begin, Event *end) {
  *milliseconds = (end->at.tv_sec - begin->at.tv_sec) * 1e3f + (end->at.tv_nsec - begin->at.tv_nsec) / 1e6f;
  return SUCCESS;
}

EXPORT CUresult cuStreamBeginCapture_v2(Stream *stream, int mode) {
  record("cuStreamBeginCapture stream=%p mode=%d", (void *)stream, mode);
  pthread_mutex_lock(&stream->lock);
  stream->captures = calloc(1, sizeof *stream->captures);
  pthread_mutex_unlock(&stream->lock);
  return SUCCESS;
}
EXPORT CUresult cuStreamIsCapturing(Stream *stream, int *status) {
  pthread_mutex_lock(&stream->lock);
  *status = stream->captures != NULL;
  pthread_mutex_unlock(&stream->lock);
  return SUCCESS;
}
EXPORT CUresult cuThreadExchangeStreamCaptureMode(int *mode) {
  record("cuThreadExchangeStreamCaptureMode mode=%d", *mode);
  *mode = 0;
  return SUCCESS;
}
EXPORT CUresult cuStreamEndCapture(Stream *stream, Graph **graph) {
  pthread_mutex_lock(&stream->lock);
  *graph = stream->captures;
  stream->captures = NULL;
  pthread_mutex_unlock(&stream->lock);
  return *graph ? SUCCESS : INVALID_VALUE;
}
/* What is instantiated is the graph itself, which is kept. */
EXPORT CUresult cuGraphInstantiateWithFlags(Graph **out, Graph *graph, uint64_t flags) {
  (void)flags;
  *out = graph;
  return SUCCESS;
}
EXPORT CUresult cuGraphDestroy(Graph *graph) { (void)graph; return SUCCESS; }
EXPORT CUresult cuGraphExecDestroy(Graph *graph) { (void)graph; return SUCCESS; }
EXPORT CUresult cuGraphLaunch(Graph *graph, Stream *stream) {
  record("cuGraphLaunch stream=%p", (void *)stream);
  for (Op *op = graph->first; op; op = op->next) {
    CUresult code = push(stream, *op);
    if (code) return code;
  }
  return SUCCESS;
}

static CUresult copy(const char *name, void *to, const void *from, size_t rows, size_t row_bytes, size_t to_pitch,
                     size_t from_pitch, Stream *stream, int check_to, int check_from) {
  Block source = {.device = -1}, target = {.device = -1};
  if (check_from) find(from, &source);
  if (check_to) find(to, &target);
  record("%s stream=%p bytes=%zu rows=%zu from=%d to=%d", name, (void *)stream, rows * row_bytes, rows, source.device, target.device);
  if (!rows || !row_bytes || (rows > 1 && (to_pitch < row_bytes || from_pitch < row_bytes))) return INVALID_VALUE;
  if (check_to && !inside(to, (rows - 1) * to_pitch + row_bytes)) return INVALID_VALUE;
  if (check_from && !inside(from, (rows - 1) * from_pitch + row_bytes)) return INVALID_VALUE;
  Op op = {.kind = COPY, .to = to, .from = from, .rows = rows, .row_bytes = row_bytes, .to_pitch = to_pitch,
           .from_pitch = from_pitch, .skip = planted(name), .way = !check_to ? 1 : !check_from ? 2 : 0};
  return push(stream, op);
}
/* Planted: the copy is forgotten. The same for the copies below. */
EXPORT CUresult cuMemcpyAsync(CUdeviceptr to, CUdeviceptr from, size_t bytes, Stream *stream) {
  return copy("cuMemcpyAsync", (void *)(uintptr_t)to, (void *)(uintptr_t)from, 1, bytes, bytes, bytes, stream, 1, 1);
}
EXPORT CUresult cuMemcpyHtoDAsync_v2(CUdeviceptr to, const void *from, size_t bytes, Stream *stream) {
  return copy("cuMemcpyHtoDAsync", (void *)(uintptr_t)to, from, 1, bytes, bytes, bytes, stream, 1, 0);
}
EXPORT CUresult cuMemcpyDtoHAsync_v2(void *to, CUdeviceptr from, size_t bytes, Stream *stream) {
  return copy("cuMemcpyDtoHAsync", to, (void *)(uintptr_t)from, 1, bytes, bytes, bytes, stream, 0, 1);
}
typedef struct {
  size_t fromX, fromY; int fromType; const void *fromHost; CUdeviceptr fromDevice; void *fromArray; size_t fromPitch;
  size_t toX, toY; int toType; void *toHost; CUdeviceptr toDevice; void *toArray; size_t toPitch;
  size_t width, height;
} Copy2D;
EXPORT CUresult cuMemcpy2DAsync_v2(const Copy2D *shape, Stream *stream) {
  enum { HOST = 1 };
  int to_device = shape->toType != HOST, from_device = shape->fromType != HOST;
  void *to = to_device ? (void *)(uintptr_t)shape->toDevice : shape->toHost;
  const void *from = from_device ? (void *)(uintptr_t)shape->fromDevice : shape->fromHost;
  return copy("cuMemcpy2DAsync", to, from, shape->height, shape->width, shape->toPitch, shape->fromPitch, stream, to_device, from_device);
}
/* A batch is told as the copies that it makes, last first: they have no order among themselves. */
EXPORT CUresult cuMemcpyBatchAsync_v2(CUdeviceptr *to, CUdeviceptr *from, size_t *bytes, size_t count, void *attributes,
                                      size_t *first, size_t kinds, Stream *stream) {
  record("cuMemcpyBatchAsync stream=%p copies=%zu", (void *)stream, count);
  if (!to || !from || !bytes || !count || !attributes || !first || kinds != 1 || first[0] != 0 || !stream) return INVALID_VALUE;
  if (planted("cuMemcpyBatchAsync")) return NOT_SUPPORTED;
  for (size_t at = count; at-- > 0;) {
    CUresult code = cuMemcpyAsync(to[at], from[at], bytes[at], stream);
    if (code) return code;
  }
  return SUCCESS;
}
EXPORT CUresult cuLaunchHostFunc(Stream *stream, void (*function)(void *), void *argument) {
  record("cuLaunchHostFunc stream=%p", (void *)stream);
  return push(stream, (Op){.kind = CALL, .function = function, .argument = argument});
}
/* For the fake of NCCL: a "kernel", which is not a host function. */
EXPORT CUresult eplb_fake_launch(Stream *stream, void (*function)(void *), void *argument) {
  return push(stream, (Op){.kind = CALL, .function = function, .argument = argument});
}

/* Any image is a module of ours if EPLB_FAKE_KERNELS is set; else none is. */
EXPORT CUresult cuModuleLoadData(void **module, const void *image) {
  record("cuModuleLoadData");
  *module = (void *)image;
  return getenv("EPLB_FAKE_KERNELS") ? SUCCESS : 209;
}
EXPORT CUresult cuModuleGetFunction(void **function, void *module, const char *name) {
  (void)module;
  *function = strdup(name);
  return *function ? SUCCESS : OUT_OF_MEMORY;
}
EXPORT CUresult cuModuleUnload(void *module) { (void)module; return SUCCESS; }

/* Entries of the lists of copies of kernels/rows.cu. */
typedef struct { uint64_t from, to, rows, row_bytes, from_pitch, to_pitch, first_unit, unused; } RowCopy;
typedef struct { const RowCopy *entries; unsigned count; } List;
static void copy_list(void *argument) {
  List *list = argument;
  for (unsigned i = 0; i < list->count; i++) {
    const RowCopy *copy = &list->entries[i];
    for (uint64_t row = 0; row < copy->rows; row++) {
      uint8_t *to = (uint8_t *)(uintptr_t)copy->to + row * copy->to_pitch;
      const uint8_t *from = (const uint8_t *)(uintptr_t)copy->from + row * copy->from_pitch;
      if (inside(to, copy->row_bytes) && inside(from, copy->row_bytes)) memcpy(to, from, copy->row_bytes);
    }
  }
  free(list);
}
/* Twin of eplb_record_i32 and _i64 of kernels/dispatch.cu. */
typedef struct { const void *ids; uint64_t row_stride; const int *valid; const uint8_t *mask; unsigned tokens, k; } Choices;
typedef struct { uint64_t *loads, tag_stride; const int *tag; uint64_t *faults; const int *phy2log; unsigned tags, experts, slots, unused; } Counts;
typedef struct { Choices choices; Counts counts; int wide; } Counting;
static void count_choices(void *argument) {
  Counting *counting = argument;
  Choices *choices = &counting->choices;
  Counts *counts = &counting->counts;
  unsigned tag = counts->tag ? (unsigned)*counts->tag : 0, valid = choices->valid ? (unsigned)*choices->valid : choices->tokens;
  for (unsigned token = 0; counts->loads && tag < counts->tags && token < choices->tokens && token < valid; token++)
    for (unsigned i = 0; i < choices->k && !(choices->mask && !choices->mask[token]); i++) {
      uint64_t at = token * choices->row_stride + i;
      int64_t id = counting->wide ? ((const int64_t *)choices->ids)[at] : ((const int *)choices->ids)[at];
      int known = id >= 0 && id < (counts->phy2log ? counts->slots : counts->experts);
      int expert = known ? (counts->phy2log ? counts->phy2log[id] : (int)id) : -1;
      if (expert >= 0) __atomic_fetch_add(&counts->loads[tag * counts->tag_stride + expert], 1, __ATOMIC_RELAXED);
      else if (id != -1 && counts->faults) __atomic_fetch_add(&counts->faults[known], 1, __ATOMIC_RELAXED);
    }
  free(counting);
}

/* Twin of the kernel of the engine's example server: sums over the bytes of slots. */
typedef struct { uint64_t base, rows, row_bytes, pitch, slot_stride; } ServeTensor;
typedef struct { const unsigned *slots; const ServeTensor *tensors; uint64_t *sums; unsigned count, tensor_count; } Serving;
static uint64_t mix(uint64_t z) {
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
  return z ^ (z >> 31);
}
static void sum_slots(void *argument) {
  Serving *serving = argument;
  for (unsigned i = 0; i < serving->count; i++) {
    uint64_t sum = 0, at = 0;
    for (unsigned t = 0; t < serving->tensor_count; t++) {
      const ServeTensor *tensor = &serving->tensors[t];
      const uint8_t *slot = (const uint8_t *)(uintptr_t)(tensor->base + serving->slots[i] * tensor->slot_stride);
      for (uint64_t row = 0; row < tensor->rows; row++)
        for (uint64_t byte = 0; byte < tensor->row_bytes; byte++) sum += mix(at++ << 8 | slot[row * tensor->pitch + byte]);
    }
    serving->sums[i] = sum;
  }
  free(serving);
}

/* Twin of eplb_checksum_parts of kernels/checksum.cu. */
typedef struct { uint64_t base, rows, row_bytes, pitch, first_unit; unsigned tensor, sum; } Part;
typedef struct { const Part *parts; uint64_t *sums; unsigned count; } Summing;
#define GOLDEN 0x9e3779b97f4a7c15ull
static void sum_parts(void *argument) {
  Summing *summing = argument;
  for (unsigned i = 0; i < summing->count; i++) {
    const Part *part = &summing->parts[i];
    uint64_t bytes = part->rows * part->row_bytes, key = mix(GOLDEN * (part->tensor + 1ull)), sum = mix(key ^ bytes);
    for (uint64_t at = 0; at < bytes; at += 8) {
      uint64_t word = 0;
      for (uint64_t byte = at; byte < at + 8 && byte < bytes; byte++) {
        const uint8_t *row = (const uint8_t *)(uintptr_t)(part->base + byte / part->row_bytes * part->pitch);
        word |= (uint64_t)row[byte % part->row_bytes] << (byte - at) * 8;
      }
      uint64_t x = (word ^ (key + GOLDEN * (at / 8))) * 0xbf58476d1ce4e5b9ull, y = (x ^ x >> 32) * 0x94d049bb133111ebull;
      sum += y ^ y >> 32;
    }
    __atomic_fetch_add(&summing->sums[part->sum], sum, __ATOMIC_RELAXED);
  }
  free(summing);
}

/* Twin of eplb_dispatch_i32 and _i64: slots for choices, by the maps on the device. */
typedef struct { const int *log2phy, *logcnt; const float *share; const uint64_t *salt; void *out; uint64_t out_stride; unsigned columns, slots, layer, unused; } Maps;
typedef struct { Counting counting; Maps maps; } Dispatching;
static int replica(const Maps *maps, unsigned token, int expert) {
  const int *row = maps->log2phy + (size_t)expert * maps->columns;
  int count = maps->logcnt[expert] < (int)maps->columns ? maps->logcnt[expert] : (int)maps->columns;
  if (count < 1) return -1;
  int chosen = (unsigned)row[0] < maps->slots ? row[0] : -1;
  if (count < 2) return chosen;
  uint64_t key = mix((maps->salt ? *maps->salt : 0) + 0x9e3779b97f4a7c15ull * (maps->layer + 1ull));
  float point = (float)(mix(key ^ ((uint64_t)token << 32 | (unsigned)expert)) >> 40) * (1.0f / 16777216.0f), sum = 0;
  for (int i = 0; i < count; i++) {
    if ((unsigned)row[i] >= maps->slots || !(maps->share[row[i]] > 0)) continue;
    chosen = row[i];
    sum += maps->share[chosen];
    if (point < sum) break;
  }
  return chosen;
}
static void choose_slots(void *argument) {
  Dispatching *dispatching = argument;
  Counting *counting = malloc(sizeof *counting);
  *counting = dispatching->counting;
  Choices choices = counting->choices;
  Counts counts = counting->counts;
  int wide = counting->wide;
  count_choices(counting);
  unsigned valid = choices.valid ? (unsigned)*choices.valid : choices.tokens;
  for (unsigned token = 0; token < choices.tokens; token++)
    for (unsigned i = 0; i < choices.k; i++) {
      uint64_t at = token * choices.row_stride + i, to = token * dispatching->maps.out_stride + i;
      int64_t id = wide ? ((const int64_t *)choices.ids)[at] : ((const int *)choices.ids)[at];
      int wanted = token < valid && !(choices.mask && !choices.mask[token]) && id >= 0 && id < counts.experts;
      int slot = wanted ? replica(&dispatching->maps, token, (int)id) : -1;
      if (wide) ((int64_t *)dispatching->maps.out)[to] = slot;
      else ((int *)dispatching->maps.out)[to] = slot;
    }
  free(dispatching);
}

static CUresult call(Stream *stream, void (*function)(void *), const void *argument, size_t bytes) {
  void *copy = malloc(bytes);
  memcpy(copy, argument, bytes);
  return push(stream, (Op){.kind = CALL, .function = function, .argument = copy});
}

/* Planted: the launch is forgotten, of any kernel or of the one named. */
EXPORT CUresult cuLaunchKernel(const char *kernel, unsigned x, unsigned y, unsigned z, unsigned threads, unsigned v, unsigned w,
                               unsigned shared, Stream *stream, void **arguments, void **more) {
  (void)y; (void)z; (void)threads; (void)v; (void)w; (void)shared; (void)more;
  record("cuLaunchKernel kernel=%s stream=%p blocks=%u", kernel, (void *)stream, x);
  if (planted("cuLaunchKernel") || planted(kernel)) return SUCCESS;
  if (!strncmp(kernel, "eplb_record_i", 13)) {
    Counting counting = {*(Choices *)arguments[0], *(Counts *)arguments[1], !strcmp(kernel, "eplb_record_i64")};
    return call(stream, count_choices, &counting, sizeof counting);
  }
  if (!strncmp(kernel, "eplb_dispatch_i", 15)) {
    Counting counting = {*(Choices *)arguments[0], *(Counts *)arguments[1], !strcmp(kernel, "eplb_dispatch_i64")};
    Dispatching dispatching = {counting, *(Maps *)arguments[2]};
    return call(stream, choose_slots, &dispatching, sizeof dispatching);
  }
  if (!strcmp(kernel, "serve_sums")) {
    Serving serving = {*(const unsigned **)arguments[0], *(const ServeTensor **)arguments[2], *(uint64_t **)arguments[4],
                       *(unsigned *)arguments[1], *(unsigned *)arguments[3]};
    return call(stream, sum_slots, &serving, sizeof serving);
  }
  if (!strcmp(kernel, "eplb_checksum_parts")) {
    Summing summing = {*(const Part **)arguments[0], *(uint64_t **)arguments[3], *(unsigned *)arguments[1]};
    return call(stream, sum_parts, &summing, sizeof summing);
  }
  if (strcmp(kernel, "eplb_commit") || *(unsigned *)arguments[4]) return INVALID_VALUE;
  List *list = malloc(sizeof *list);
  *list = (List){*(const RowCopy **)arguments[0], *(unsigned *)arguments[1]};
  if (!inside(list->entries, list->count * sizeof *list->entries)) return INVALID_VALUE;
  return push(stream, (Op){.kind = CALL, .function = copy_list, .argument = list});
}

/* Room for 2 blocks on each multiprocessor; the launch of a kernel that waits for all its blocks. Planted: it is refused. */
EXPORT CUresult cuOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, const char *kernel, int threads, size_t shared) {
  (void)kernel; (void)threads; (void)shared;
  *blocks = 2;
  return SUCCESS;
}
static void crowd_round(void *argument) {
  usleep(20);
  free(argument);
}
EXPORT CUresult cuLaunchCooperativeKernel(const char *kernel, unsigned x, unsigned y, unsigned z, unsigned threads, unsigned v, unsigned w,
                                          unsigned shared, Stream *stream, void **arguments) {
  (void)y; (void)z; (void)v; (void)w; (void)shared; (void)arguments;
  record("cuLaunchCooperativeKernel kernel=%s stream=%p blocks=%u threads=%u", kernel, (void *)stream, x, threads);
  char nothing = 0;
  if (planted("cuLaunchCooperativeKernel")) return INVALID_VALUE;
  return call(stream, crowd_round, &nothing, sizeof nothing);
}

/* Handles between processes: a legacy one names the process and its file, virtual memory travels as descriptors. */
typedef struct { char reserved[64]; } IpcHandle;
typedef struct { int process, file; size_t bytes; } Named;
typedef struct Virtual { int file; size_t bytes; uint64_t handles; } Virtual;
enum { OS_CALL_FAILED = 304, DESCRIPTOR = 1, FABRIC = 8 };

static int set(const char *name) { const char *value = getenv(name); return value && *value == '1'; }

EXPORT CUresult cuMemGetAddressRange_v2(CUdeviceptr *base, size_t *bytes, CUdeviceptr address) {
  Block block;
  if (!find((void *)(uintptr_t)address, &block)) return INVALID_VALUE;
  *base = (CUdeviceptr)(uintptr_t)block.base;
  *bytes = block.mapped;
  /* Planted: an owner says more than it has. */
  if (block.kind == PLAIN && planted("cuMemGetAddressRange")) *bytes += 4096;
  return SUCCESS;
}
EXPORT CUresult cuPointerGetAttribute(void *data, int attribute, CUdeviceptr address) {
  Block block;
  if (!find((void *)(uintptr_t)address, &block)) return INVALID_VALUE;
  if (attribute == 9) *(int *)data = block.device;
  else if (attribute == 10) *(uint8_t *)data = block.kind == PLAIN && !set("EPLB_FAKE_UNSHARED");
  else if (attribute == 14) *(uint64_t *)data = block.handles;
  else return INVALID_VALUE;
  return SUCCESS;
}
EXPORT CUresult cuIpcGetMemHandle(IpcHandle *handle, CUdeviceptr address) {
  Block block;
  record("cuIpcGetMemHandle");
  if (!find((void *)(uintptr_t)address, &block) || block.kind != PLAIN) return INVALID_VALUE;
  memset(handle, 0, sizeof *handle);
  Named named = {getpid(), block.file, block.mapped};
  memcpy(handle->reserved, &named, sizeof named);
  return SUCCESS;
}
/* As the driver, it opens nothing of its own process. Planted: the handle is out of date. */
EXPORT CUresult cuIpcOpenMemHandle_v2(CUdeviceptr *address, IpcHandle handle, unsigned flags) {
  if (!current()) return INVALID_CONTEXT;
  Named named;
  memcpy(&named, handle.reserved, sizeof named);
  record("cuIpcOpenMemHandle device=%d of=%d flags=%u", current()->device, named.process, flags);
  if (set("EPLB_FAKE_IPC")) return OS_CALL_FAILED;
  if (named.process == getpid()) return INVALID_CONTEXT;
  if (planted("cuIpcOpenMemHandle")) return INVALID_VALUE;
  char path[64];
  snprintf(path, sizeof path, "/proc/%d/fd/%d", named.process, named.file);
  int file = open(path, O_RDWR | O_CLOEXEC);
  if (file < 0) return INVALID_VALUE;
  void *base = mmap(NULL, named.bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  close(file);
  if (base == MAP_FAILED) return OUT_OF_MEMORY;
  keep((Block){base, named.bytes, named.bytes, current()->device, -1, OPENED, 0, NULL});
  *address = (CUdeviceptr)(uintptr_t)base;
  return SUCCESS;
}
EXPORT CUresult cuIpcCloseMemHandle(CUdeviceptr address) {
  Block block;
  record("cuIpcCloseMemHandle");
  if (!take((void *)(uintptr_t)address, OPENED, &block)) return INVALID_VALUE;
  munmap(block.base, block.mapped);
  return SUCCESS;
}
/* Recorded, so that a test sees who calls them. */
EXPORT CUresult cuIpcGetEventHandle(void *handle, Event *event) { (void)handle; (void)event; record("cuIpcGetEventHandle"); return NOT_SUPPORTED; }
EXPORT CUresult cuStreamWaitValue32_v2(Stream *stream, CUdeviceptr at, unsigned value, unsigned flags) {
  (void)stream; (void)at; (void)value; (void)flags;
  record("cuStreamWaitValue");
  return NOT_SUPPORTED;
}

typedef struct { int type, handles, location, device; } Property;
EXPORT CUresult cuMemGetAllocationGranularity(size_t *bytes, const Property *property, int option) {
  (void)property; (void)option;
  *bytes = 65536;
  return SUCCESS;
}
EXPORT CUresult cuMemCreate(Virtual **handle, size_t bytes, const Property *property, unsigned long long flags) {
  (void)flags;
  record("cuMemCreate device=%d bytes=%zu handles=%d", property->device, bytes, property->handles);
  if (property->handles & FABRIC) return NOT_SUPPORTED;
  if (bytes % 65536) return INVALID_VALUE;
  *handle = malloc(sizeof **handle);
  **handle = (Virtual){memfd_create("fake device memory", MFD_CLOEXEC), bytes, (uint64_t)property->handles};
  return (*handle)->file >= 0 && !ftruncate((*handle)->file, bytes) ? SUCCESS : OUT_OF_MEMORY;
}
EXPORT CUresult cuMemRelease(Virtual *handle) {
  record("cuMemRelease");
  close(handle->file);
  free(handle);
  return SUCCESS;
}
EXPORT CUresult cuMemRetainAllocationHandle(Virtual **handle, void *address) {
  Block block;
  record("cuMemRetainAllocationHandle");
  if (!find(address, &block) || block.kind != VIRTUAL) return INVALID_VALUE;
  *handle = malloc(sizeof **handle);
  **handle = (Virtual){fcntl(block.file, F_DUPFD_CLOEXEC, 0), block.mapped, block.handles};
  return SUCCESS;
}
EXPORT CUresult cuMemExportToShareableHandle(int *out, Virtual *handle, int kind, unsigned long long flags) {
  (void)flags;
  record("cuMemExportToShareableHandle kind=%d", kind);
  if (kind != DESCRIPTOR || !(handle->handles & DESCRIPTOR)) return NOT_SUPPORTED;
  *out = fcntl(handle->file, F_DUPFD_CLOEXEC, 0);
  return *out >= 0 ? SUCCESS : OS_CALL_FAILED;
}
EXPORT CUresult cuMemImportFromShareableHandle(Virtual **handle, void *from, int kind) {
  record("cuMemImportFromShareableHandle kind=%d", kind);
  if (kind != DESCRIPTOR) return NOT_SUPPORTED;
  if (set("EPLB_FAKE_IPC")) return OS_CALL_FAILED;
  int file = fcntl((int)(intptr_t)from, F_DUPFD_CLOEXEC, 0);
  struct stat facts;
  if (file < 0 || fstat(file, &facts)) return INVALID_VALUE;
  *handle = malloc(sizeof **handle);
  **handle = (Virtual){file, facts.st_size, 0};
  return SUCCESS;
}
EXPORT CUresult cuMemAddressReserve(CUdeviceptr *address, size_t bytes, size_t align, CUdeviceptr near, unsigned long long flags) {
  (void)align; (void)near; (void)flags;
  void *base = mmap(NULL, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  record("cuMemAddressReserve bytes=%zu", bytes);
  *address = (CUdeviceptr)(uintptr_t)base;
  return base == MAP_FAILED ? OUT_OF_MEMORY : SUCCESS;
}
EXPORT CUresult cuMemAddressFree(CUdeviceptr address, size_t bytes) {
  record("cuMemAddressFree bytes=%zu", bytes);
  return munmap((void *)(uintptr_t)address, bytes) ? INVALID_VALUE : SUCCESS;
}
EXPORT CUresult cuMemMap(CUdeviceptr address, size_t bytes, size_t offset, Virtual *handle, unsigned long long flags) {
  (void)flags;
  record("cuMemMap bytes=%zu", bytes);
  if (offset || bytes != handle->bytes) return INVALID_VALUE;
  void *at = (void *)(uintptr_t)address;
  if (mmap(at, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, handle->file, 0) == MAP_FAILED) return INVALID_VALUE;
  keep((Block){at, bytes, bytes, -1, fcntl(handle->file, F_DUPFD_CLOEXEC, 0), VIRTUAL, handle->handles, NULL});
  return SUCCESS;
}
EXPORT CUresult cuMemUnmap(CUdeviceptr address, size_t bytes) {
  record("cuMemUnmap bytes=%zu", bytes);
  size_t done = 0;
  while (done < bytes) {
    Block block;
    uint8_t *at = (uint8_t *)(uintptr_t)address + done;
    if (!take(at, VIRTUAL, &block)) return INVALID_VALUE;
    mmap(at, block.mapped, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
    close(block.file);
    done += block.mapped;
  }
  return SUCCESS;
}
EXPORT CUresult cuMemSetAccess(CUdeviceptr address, size_t bytes, const void *access, size_t count) {
  (void)address; (void)access; (void)count;
  record("cuMemSetAccess bytes=%zu", bytes);
  return SUCCESS;
}
