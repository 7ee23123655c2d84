/*
 * A C interface to the parts of Gloo that eplb uses: a full mesh of TCP connections made through a key-value store, sends and
 * receives with slots that can be cancelled, and three collectives.
 *
 * Rules of every call:
 * - No C++ exception leaves it. What fails returns a status other than EPLB_GLOO_OK and, where an `error` is given, a text.
 * - Handles may be used from any thread. `*_free` must be the last call with a handle.
 * - Times are milliseconds; EPLB_GLOO_FOREVER waits without end.
 */
#ifndef EPLB_GLOO_H
#define EPLB_GLOO_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Changes whenever a declaration of this file changes; `eplb_gloo_abi` must return it. */
#define EPLB_GLOO_ABI 2

#define EPLB_GLOO_FOREVER (-1)

/* What the library exports. */
#define EPLB_GLOO_API __attribute__((visibility("default")))

/* Bytes of a group's secret. */
#define EPLB_GLOO_SECRET_BYTES 16

/* Bytes of an error text, its end included. */
#define EPLB_GLOO_TEXT_BYTES 512

typedef enum eplb_gloo_status {
  EPLB_GLOO_OK = 0,
  /* A wait was cancelled by eplb_gloo_cancel_send or eplb_gloo_cancel_recv. */
  EPLB_GLOO_CANCELLED = 1,
  /* An argument that no call may have. */
  EPLB_GLOO_INVALID = 2,
  /* A connection was closed, refused or broken, or a wait ran out of time: every connection of the context is
   * to be taken for broken. */
  EPLB_GLOO_IO = 3,
  /* A callback of the store failed. */
  EPLB_GLOO_STORE = 4,
  /* No memory, thread or descriptor. */
  EPLB_GLOO_RESOURCE = 5,
  /* Gloo found one of its own rules broken. */
  EPLB_GLOO_INTERNAL = 6
} eplb_gloo_status;

typedef struct eplb_gloo_error {
  char text[EPLB_GLOO_TEXT_BYTES];
} eplb_gloo_error;

/* Takes the bytes of a value that a store found. */
typedef void (*eplb_gloo_take)(void *sink, const uint8_t *value, size_t bytes);

/*
 * The store through which ranks find each other. Each callback returns 0 when it succeeded. They are called only by
 * eplb_gloo_connect, on its thread, and must not throw or unwind.
 */
typedef struct eplb_gloo_store {
  void *state;
  /* Writes a value. */
  int32_t (*set)(void *state, const char *key, size_t key_bytes, const uint8_t *value, size_t bytes);
  /* Waits until the key is there, then calls `take` once with its value. */
  int32_t (*get)(void *state, const char *key, size_t key_bytes, void *sink, eplb_gloo_take take);
} eplb_gloo_store;

typedef struct eplb_gloo_options {
  /* sizeof(eplb_gloo_options) of the caller. */
  size_t size;
  int32_t rank;
  int32_t world_size;
  /* Where to listen: an address of this host, or an interface's name. One of the two; the other is NULL. */
  const char *address;
  const char *interface_name;
  /* Longest time for one connection to come up. */
  int64_t connect_ms;
  /* EPLB_GLOO_SECRET_BYTES bytes that the ranks of the group know and nobody else: connections begin with them, and others
   * are turned away. NULL, or where eplb_gloo_guards says 0: whoever connects first to a port is taken for the peer. */
  const uint8_t *secret;
  eplb_gloo_store store;
} eplb_gloo_options;

typedef struct eplb_gloo_context eplb_gloo_context;
typedef struct eplb_gloo_buffer eplb_gloo_buffer;

/* EPLB_GLOO_ABI of the library. */
EPLB_GLOO_API uint32_t eplb_gloo_abi(void);

/* Version of Gloo that the library was compiled against: 10000 major + 100 minor + patch. */
EPLB_GLOO_API uint32_t eplb_gloo_version(void);

/* Whether it can use a secret: 0 where it was compiled against a Gloo whose TCP classes are not those that it knows. */
EPLB_GLOO_API int32_t eplb_gloo_guards(void);

/* Connects this rank with all others. All ranks call it with the same world size and the same store. */
EPLB_GLOO_API eplb_gloo_status eplb_gloo_connect(const eplb_gloo_options *options, eplb_gloo_context **context,
                                                 eplb_gloo_error *error);

/* Closes every connection. Operations under way fail. The context stays valid. */
EPLB_GLOO_API void eplb_gloo_close(eplb_gloo_context *context);

/* Frees the handle. Connections that are still open close when the last buffer of the context is freed. */
EPLB_GLOO_API void eplb_gloo_free(eplb_gloo_context *context);

/* Makes `bytes` bytes at `base` known for sending or receiving: one operation at a time. */
EPLB_GLOO_API eplb_gloo_status eplb_gloo_buffer_new(eplb_gloo_context *context, void *base, size_t bytes,
                                                    eplb_gloo_buffer **buffer, eplb_gloo_error *error);

/* Frees a buffer. On return no operation touches its memory, now or later. */
EPLB_GLOO_API void eplb_gloo_buffer_free(eplb_gloo_buffer *buffer);

/* Starts to send all of a buffer to a rank. It is matched with the receive of the same slot there. */
EPLB_GLOO_API eplb_gloo_status eplb_gloo_send(eplb_gloo_buffer *buffer, int32_t to, uint64_t slot,
                                              eplb_gloo_error *error);

/* Starts to receive all of a buffer from a rank. */
EPLB_GLOO_API eplb_gloo_status eplb_gloo_recv(eplb_gloo_buffer *buffer, int32_t from, uint64_t slot,
                                              eplb_gloo_error *error);

/* Waits for the send. A wait that runs out of time closes every connection of the context. */
EPLB_GLOO_API eplb_gloo_status eplb_gloo_wait_send(eplb_gloo_buffer *buffer, int64_t timeout_ms, eplb_gloo_error *error);

/* Waits for the receive. A wait that runs out of time closes every connection of the context. */
EPLB_GLOO_API eplb_gloo_status eplb_gloo_wait_recv(eplb_gloo_buffer *buffer, int64_t timeout_ms, eplb_gloo_error *error);

/* Makes the wait for the send, under way or the next one, return EPLB_GLOO_CANCELLED. */
EPLB_GLOO_API void eplb_gloo_cancel_send(eplb_gloo_buffer *buffer);

/* Makes the wait for the receive, under way or the next one, return EPLB_GLOO_CANCELLED. */
EPLB_GLOO_API void eplb_gloo_cancel_recv(eplb_gloo_buffer *buffer);

/* Returns when every rank has called it with the same tag. Collectives that overlap need different tags. */
EPLB_GLOO_API eplb_gloo_status eplb_gloo_barrier(eplb_gloo_context *context, uint32_t tag, int64_t timeout_ms,
                                                 eplb_gloo_error *error);

/* Copies `bytes` bytes at `base` of rank `root` to `base` of all others. */
EPLB_GLOO_API eplb_gloo_status eplb_gloo_broadcast(eplb_gloo_context *context, void *base, size_t bytes, int32_t root,
                                                   uint32_t tag, int64_t timeout_ms, eplb_gloo_error *error);

/* Adds up `count` numbers at `base`, element by element, over all ranks; each gets the sums. Overflow wraps. */
EPLB_GLOO_API eplb_gloo_status eplb_gloo_all_reduce_sum(eplb_gloo_context *context, uint64_t *base, size_t count,
                                                        uint32_t tag, int64_t timeout_ms, eplb_gloo_error *error);

#ifdef __cplusplus
}
#endif

#endif
