/* A libnccl.so.2 on the fake libcuda.so.1: ranks are threads of one process, messages are copies that both sides meet for; or ranks are
 * processes, messages are files.
 *
 * It behaves as communicators that do not block do: making one and closing a group return "in progress", and the work
 * reaches the stream a little later from a thread of NCCL's own. An operation whose peer does not come waits until
 * one of them is aborted, as the kernels of NCCL do.
 *
 * EPLB_FAKE_ASKED         also record when a communicator is asked how it is, which is often
 * EPLB_FAKE_NCCL_VERSION  version to report (default 22809)
 * EPLB_FAKE_FOLDER        folder for the messages of ranks that are processes (sends and receives only)
 */
#include "record.h"

#include <stdint.h>
#include <sys/stat.h>

#define EXPORT __attribute__((visibility("default")))
enum { SUCCESS = 0, UNHANDLED_CUDA = 1, SYSTEM = 2, INTERNAL = 3, INVALID_ARGUMENT = 4, INVALID_USAGE = 5, REMOTE = 6, IN_PROGRESS = 7 };

typedef struct Stream Stream;
extern int eplb_fake_launch(Stream *stream, void (*function)(void *), void *argument);
extern int eplb_fake_is_device_memory(const void *at, size_t bytes);
extern int cuCtxGetDevice(int *device);

#define RANKS 64
typedef struct { char bytes[128]; } Id;

/* A message that waits for the other side. */
typedef struct Message { int from, to; const void *at; size_t bytes; int taken; struct Message *next; } Message;

/* What the ranks of a communicator share. */
typedef struct World {
  uint64_t number;
  int ranks, joined, splits_joined;
  int color[RANKS], key[RANKS];
  struct World *children[RANKS];
  Message *mail;
  uint64_t reduced, entered, left;
  float *sum;
  size_t floats;
  struct World *next;
} World;

typedef struct Comm {
  World *world;
  int rank, device, state, aborted, running, starting, parts;
  unsigned sent[RANKS], received[RANKS];
} Comm;

/* One lock for all: simple, and fast enough for tests. */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
static World *worlds;
static uint64_t numbers;
static __thread char last_error[256];

static const char *folder(void) {
  const char *name = getenv("EPLB_FAKE_FOLDER");
  return name && *name ? name : NULL;
}

static int fail(int code, const char *text) {
  snprintf(last_error, sizeof last_error, "%s", text);
  record("nccl_error code=%d %s", code, text);
  return code;
}

EXPORT int ncclGetVersion(int *version) {
  const char *text = getenv("EPLB_FAKE_NCCL_VERSION");
  *version = text ? atoi(text) : 22809;
  return SUCCESS;
}
EXPORT int ncclGetUniqueId(Id *id) {
  memset(id, 0, sizeof *id);
  pthread_mutex_lock(&lock);
  uint64_t number = ++numbers;
  pthread_mutex_unlock(&lock);
  if (folder()) number += (uint64_t)getpid() << 24;
  memcpy(id->bytes, &number, sizeof number);
  record("ncclGetUniqueId");
  return SUCCESS;
}
EXPORT const char *ncclGetErrorString(int code) {
  static const char *const names[] = {"no error", "unhandled cuda error", "unhandled system error", "internal error",
                                      "invalid argument", "invalid usage", "remote process exited", "in progress"};
  return code >= 0 && code < 8 ? names[code] : "unknown result code";
}
EXPORT const char *ncclGetLastError(Comm *comm) { (void)comm; return last_error; }

static World *find(uint64_t number, int ranks) {
  for (World *w = worlds; w; w = w->next) if (w->number == number) return w;
  World *world = calloc(1, sizeof *world);
  world->number = number;
  world->ranks = ranks;
  world->next = worlds;
  worlds = world;
  return world;
}

/* A file of ranks that are processes: that `from` has joined, or its message number `count` to `to`. */
typedef struct { char path[512]; } Name;
static Name name(const World *world, const char *kind, int from, int to, unsigned count) {
  Name name;
  snprintf(name.path, sizeof name.path, "%s/%lu-%s-%d-%d-%u", folder(), (unsigned long)world->number, kind, from,
           to, count);
  return name;
}
static int is_there(Name name) { return access(name.path, F_OK) == 0; }
static int write_file(Name name, const void *from, size_t bytes) {
  Name scratch;
  if (snprintf(scratch.path, sizeof scratch.path, "%s.new", name.path) >= (int)sizeof scratch.path) return -1;
  FILE *file = fopen(scratch.path, "w");
  if (!file) return -1;
  size_t written = fwrite(from, 1, bytes, file);
  return fclose(file) || written != bytes || rename(scratch.path, name.path);
}
static int all_joined(World *world) {
  if (!folder()) return world->joined == world->ranks;
  for (int rank = 0; rank < world->ranks; rank++)
    if (!is_there(name(world, "joined", rank, 0, 0))) return 0;
  return 1;
}

typedef struct { size_t size; unsigned magic, version; int blocking, cga, min_ctas, max_ctas; const char *net; int share, traffic; const char *name; } Config;

/* Planted: the system refuses shared memory. */
EXPORT int ncclCommInitRankConfig(Comm **out, int ranks, Id id, int rank, Config *config) {
  uint64_t number;
  memcpy(&number, id.bytes, sizeof number);
  if (!config || config->magic != 0xcafebeef) return fail(INVALID_ARGUMENT, "the configuration was not initialised");
  if (config->min_ctas > config->max_ctas) return fail(INVALID_ARGUMENT, "Invalid config min/max channels attribute value");
  if (config->blocking != 0) return fail(INVALID_USAGE, "this fake has only communicators that do not block");
  int device;
  if (cuCtxGetDevice(&device)) return fail(UNHANDLED_CUDA, "no context is current");
  record("ncclCommInitRankConfig world=%lu rank=%d ranks=%d device=%d cga=%d min_ctas=%d max_ctas=%d net=%s traffic=%d name=%s",
         (unsigned long)number, rank, ranks, device, config->cga, config->min_ctas, config->max_ctas, config->net ? config->net : "-",
         config->traffic, config->name ? config->name : "-");
  if (getenv("NCCL_DEBUG") && !strcmp(getenv("NCCL_DEBUG"), "INFO") && getenv("NCCL_DEBUG_FILE")) {
    FILE *told = fopen(getenv("NCCL_DEBUG_FILE"), "a");
    if (told) { fprintf(told, "rank %d nranks %d - Init COMPLETE\n", rank, ranks); fclose(told); }
  }
  if (planted("ncclCommInitRankConfig"))
    return fail(SYSTEM, "Error while creating shared memory segment /dev/shm/nccl-fake (size 9637888)");
  if (rank < 0 || rank >= ranks || ranks > RANKS) return fail(INVALID_ARGUMENT, "rank out of range");
  Comm *comm = calloc(1, sizeof *comm);
  pthread_mutex_lock(&lock);
  comm->world = find(number, ranks);
  comm->rank = rank;
  comm->device = device;
  comm->world->joined++;
  pthread_mutex_unlock(&lock);
  if (folder() && write_file(name(comm->world, "joined", rank, 0, 0), "", 0))
    return fail(SYSTEM, "EPLB_FAKE_FOLDER cannot be written to");
  *out = comm;
  return IN_PROGRESS;
}

EXPORT int ncclCommGetAsyncError(Comm *comm, int *state) {
  if (getenv("EPLB_FAKE_ASKED")) record("ncclCommGetAsyncError world=%lu rank=%d", (unsigned long)comm->world->number, comm->rank);
  pthread_mutex_lock(&lock);
  if (comm->state) *state = comm->state;
  else *state = comm->starting || !all_joined(comm->world) ? IN_PROGRESS : SUCCESS;
  pthread_mutex_unlock(&lock);
  return SUCCESS;
}
EXPORT int ncclCommCount(Comm *comm, int *count) { *count = comm->world->ranks; return SUCCESS; }
EXPORT int ncclCommUserRank(Comm *comm, int *rank) { *rank = comm->rank; return SUCCESS; }
EXPORT int ncclCommCuDevice(Comm *comm, int *device) { *device = comm->device; return SUCCESS; }

/* Ranks of one color form a new world, ordered by key. All ranks call it; it waits for them, which the real one does not. */
EXPORT int ncclCommSplit(Comm *comm, int color, int key, Comm **out, Config *config) {
  (void)config;
  World *world = comm->world;
  record("ncclCommSplit world=%lu rank=%d color=%d", (unsigned long)world->number, comm->rank, color);
  pthread_mutex_lock(&lock);
  world->color[comm->rank] = color;
  world->key[comm->rank] = key;
  world->splits_joined++;
  pthread_cond_broadcast(&changed);
  while (world->splits_joined < world->ranks) pthread_cond_wait(&changed, &lock);
  if (color >= 0) {
    int rank = 0, ranks = 0, first = -1;
    for (int other = 0; other < world->ranks; other++) {
      if (world->color[other] != color) continue;
      if (first < 0) first = other;
      ranks++;
      if (world->key[other] < key || (world->key[other] == key && other < comm->rank)) rank++;
    }
    if (!world->children[first]) world->children[first] = find(++numbers, ranks);
    Comm *made = calloc(1, sizeof *made);
    made->world = world->children[first];
    made->rank = rank;
    made->device = comm->device;
    made->world->joined++;
    *out = made;
  }
  pthread_mutex_unlock(&lock);
  return IN_PROGRESS;
}

enum { RECV, SEND, REDUCE };
typedef struct Part { int kind; void *at; size_t bytes; int peer; Comm *comm; Stream *stream; struct Part *next; unsigned count; } Part;
static __thread Part *group_first, *group_last;
static __thread int group_depth, group_error;

EXPORT int ncclGroupStart(void) {
  record("ncclGroupStart depth=%d", ++group_depth);
  return SUCCESS;
}

/* The sum over all ranks, in turns: all add, the last one in opens the way out, the last one out opens the next turn. */
static void reduce(Part *part) {
  World *world = part->comm->world;
  size_t floats = part->bytes / sizeof(float);
  float *mine = part->at;
  while (world->left != 0 && !part->comm->aborted) pthread_cond_wait(&changed, &lock);
  if (part->comm->aborted) return;
  if (world->entered++ == 0) {
    world->sum = calloc(floats, sizeof(float));
    world->floats = floats;
  }
  for (size_t i = 0; i < floats && i < world->floats; i++) world->sum[i] += mine[i];
  if (world->entered == (uint64_t)world->ranks) world->left = world->ranks;
  pthread_cond_broadcast(&changed);
  while (world->left == 0 && !part->comm->aborted) pthread_cond_wait(&changed, &lock);
  if (part->comm->aborted) return;
  memcpy(mine, world->sum, floats * sizeof(float));
  if (--world->left == 0) {
    free(world->sum);
    world->entered = 0;
  }
  pthread_cond_broadcast(&changed);
}

static int is_aborted(Comm *comm) {
  pthread_mutex_lock(&lock);
  int aborted = comm->aborted;
  pthread_mutex_unlock(&lock);
  return aborted;
}

/* Gives a file a little time to come (or to go); 0 once the communicator was aborted. */
static int await(Comm *comm, Name name, int there) {
  while (is_there(name) != there) {
    if (is_aborted(comm)) return 0;
    usleep(50);
  }
  return 1;
}

/* One kernel of ranks that are processes: a send is over when its receiver has taken the file away. A rank that dies leaves its files,
 * and takes none any more. */
static void kernel_of_files(Part *parts) {
  Comm *comm = parts->comm;
  int rank = comm->rank;
  for (Part *p = parts; p; p = p->next)
    if (p->kind == SEND) {
      unsigned count = comm->sent[p->peer]++;
      if (write_file(name(comm->world, "message", rank, p->peer, count), p->at, p->bytes)) comm->state = SYSTEM;
      p->count = count;
    }
  for (Part *p = parts; p; p = p->next) {
    if (p->kind != RECV) continue;
    Name message = name(comm->world, "message", p->peer, rank, comm->received[p->peer]++);
    if (!await(comm, message, 1)) break;
    struct stat facts;
    FILE *file = fopen(message.path, "r");
    if (!file || stat(message.path, &facts) || (size_t)facts.st_size != p->bytes ||
        fread(p->at, 1, p->bytes, file) != p->bytes)
      comm->state = INTERNAL;
    if (file) fclose(file);
    unlink(message.path);
  }
  for (Part *p = parts; p; p = p->next)
    if (p->kind == SEND) await(comm, name(comm->world, "message", rank, p->peer, p->count), 0);
}

/* One kernel: all messages of a group on one stream. Sends lie open until their receiver has copied. */
static void kernel(void *argument) {
  Part *parts = argument;
  Comm *comm = parts->comm;
  if (folder() && parts->kind != REDUCE) kernel_of_files(parts);
  pthread_mutex_lock(&lock);
  if (folder() && parts->kind != REDUCE) {
    comm->running--;
    pthread_cond_broadcast(&changed);
    pthread_mutex_unlock(&lock);
    while (parts) { Part *next = parts->next; free(parts); parts = next; }
    return;
  }
  int sends = 0;
  if (parts->kind == REDUCE) reduce(parts);
  for (Part *p = parts; p; p = p->next) sends += p->kind == SEND;
  Message **mine = calloc(sends ? sends : 1, sizeof *mine);
  int posted = 0;
  for (Part *p = parts; p; p = p->next) {
    if (p->kind != SEND || comm->aborted) continue;
    Message *message = calloc(1, sizeof *message);
    *message = (Message){comm->rank, p->peer, p->at, p->bytes, 0, NULL};
    Message **end = &comm->world->mail;
    while (*end) end = &(*end)->next;
    *end = message;
    mine[posted++] = message;
  }
  pthread_cond_broadcast(&changed);
  for (Part *p = parts; p; p = p->next) {
    if (p->kind != RECV) continue;
    Message **at;
    for (;;) {
      for (at = &comm->world->mail; *at; at = &(*at)->next)
        if (!(*at)->taken && (*at)->from == p->peer && (*at)->to == comm->rank) break;
      if (*at || comm->aborted) break;
      pthread_cond_wait(&changed, &lock);
    }
    if (comm->aborted) break;
    Message *message = *at;
    if (message->bytes != p->bytes) {
      comm->state = INTERNAL;
      record("nccl_mismatch world=%lu from=%d to=%d sent=%zu expected=%zu", (unsigned long)comm->world->number, p->peer,
             comm->rank, message->bytes, p->bytes);
    } else {
      memcpy(p->at, message->at, p->bytes);
    }
    message->taken = 1;
    pthread_cond_broadcast(&changed);
  }
  for (int i = 0; i < posted; i++) {
    while (!mine[i]->taken && !comm->aborted) pthread_cond_wait(&changed, &lock);
    Message **at = &comm->world->mail;
    while (*at && *at != mine[i]) at = &(*at)->next;
    if (*at) *at = mine[i]->next;
    free(mine[i]);
  }
  free(mine);
  comm->running--;
  pthread_cond_broadcast(&changed);
  pthread_mutex_unlock(&lock);
  while (parts) { Part *next = parts->next; free(parts); parts = next; }
}

/* NCCL's own thread, which brings a group to the stream. */
static void *start(void *argument) {
  Part *parts = argument;
  Comm *comm = parts->comm;
  Stream *stream = parts->stream;
  int code = eplb_fake_launch(stream, kernel, parts);
  pthread_mutex_lock(&lock);
  if (code) { comm->state = UNHANDLED_CUDA; comm->running--; }
  comm->starting--;
  pthread_cond_broadcast(&changed);
  pthread_mutex_unlock(&lock);
  return NULL;
}

/* Planted: a message to the next rank instead of the right one goes nowhere: the group hangs. */
static int add(int send, void *at, size_t bytes, int peer, Comm *comm, Stream *stream) {
  record("%s world=%lu rank=%d peer=%d bytes=%zu stream=%p depth=%d", send ? "ncclSend" : "ncclRecv",
         (unsigned long)comm->world->number, comm->rank, peer, bytes, (void *)stream, group_depth);
  if (!group_depth) return fail(INVALID_USAGE, "this fake wants a group around every message");
  if (peer < 0 || peer >= comm->world->ranks || peer == comm->rank) return group_error = fail(INVALID_ARGUMENT, "bad peer");
  if (!stream) return group_error = fail(INVALID_USAGE, "the default stream");
  if (!eplb_fake_is_device_memory(at, bytes)) return group_error = fail(INVALID_ARGUMENT, "not device memory");
  if (planted(send ? "ncclSend" : "ncclRecv")) return SUCCESS;
  Part *part = calloc(1, sizeof *part);
  *part = (Part){send ? SEND : RECV, at, bytes, peer, comm, stream, NULL, 0};
  if (group_last) group_last->next = part; else group_first = part;
  group_last = part;
  return SUCCESS;
}
EXPORT int ncclSend(const void *at, size_t count, int type, int peer, Comm *comm, Stream *stream) {
  return type == 1 ? add(1, (void *)at, count, peer, comm, stream) : fail(INVALID_ARGUMENT, "this fake moves bytes only");
}
EXPORT int ncclRecv(void *at, size_t count, int type, int peer, Comm *comm, Stream *stream) {
  return type == 1 ? add(0, at, count, peer, comm, stream) : fail(INVALID_ARGUMENT, "this fake moves bytes only");
}

static int begin(Part *parts);

EXPORT int ncclAllReduce(const void *from, void *to, size_t count, int type, int op, Comm *comm, Stream *stream) {
  record("ncclAllReduce world=%lu rank=%d bytes=%zu stream=%p", (unsigned long)comm->world->number, comm->rank,
         count * sizeof(float), (void *)stream);
  if (type != 7 || op != 0 || from != to) return fail(INVALID_ARGUMENT, "this fake sums floats in place only");
  if (!stream || !eplb_fake_is_device_memory(to, count * sizeof(float))) return fail(INVALID_ARGUMENT, "bad buffer");
  Part *part = calloc(1, sizeof *part);
  *part = (Part){REDUCE, to, count * sizeof(float), comm->rank, comm, stream, NULL, 0};
  return begin(part);
}

EXPORT int ncclGroupEnd(void) {
  record("ncclGroupEnd depth=%d", group_depth);
  if (!group_depth) return fail(INVALID_USAGE, "no group is open");
  if (--group_depth) return SUCCESS;
  Part *parts = group_first;
  group_first = group_last = NULL;
  int error = group_error;
  group_error = 0;
  if (error) {
    while (parts) { Part *next = parts->next; free(parts); parts = next; }
    return error;
  }
  return parts ? begin(parts) : SUCCESS;
}

static int begin(Part *parts) {
  pthread_mutex_lock(&lock);
  parts->comm->starting++;
  parts->comm->running++;
  pthread_mutex_unlock(&lock);
  pthread_t thread;
  pthread_attr_t attributes;
  pthread_attr_init(&attributes);
  pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
  pthread_attr_setstacksize(&attributes, 256 << 10);
  if (pthread_create(&thread, &attributes, start, parts)) return fail(SYSTEM, "no thread");
  return IN_PROGRESS;
}

EXPORT int ncclCommFinalize(Comm *comm) {
  record("ncclCommFinalize world=%lu rank=%d", (unsigned long)comm->world->number, comm->rank);
  return IN_PROGRESS;
}
static int end(const char *name, Comm *comm) {
  record("%s world=%lu rank=%d", name, (unsigned long)comm->world->number, comm->rank);
  pthread_mutex_lock(&lock);
  comm->aborted = 1;
  pthread_cond_broadcast(&changed);
  while (comm->starting) pthread_cond_wait(&changed, &lock);
  pthread_mutex_unlock(&lock);
  /* Kept: a kernel may still be about to see that it was aborted. */
  return SUCCESS;
}
EXPORT int ncclCommAbort(Comm *comm) { return end("ncclCommAbort", comm); }
EXPORT int ncclCommDestroy(Comm *comm) { return end("ncclCommDestroy", comm); }
