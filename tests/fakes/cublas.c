/* A libcublas.so on the fake libcuda.so.1: a product is a while of nothing, in the order of its stream.
 *
 * EPLB_FAKE_PRODUCT_US  how long a product takes (default 50)
 */
#include "record.h"

#define EXPORT __attribute__((visibility("default")))
enum { SUCCESS = 0, INVALID_VALUE = 7, NOT_SUPPORTED = 15 };

typedef struct Stream Stream;
extern int eplb_fake_launch(Stream *stream, void (*function)(void *), void *argument);
extern int eplb_fake_is_device_memory(const void *at, size_t bytes);

typedef struct Handle { Stream *stream; void *workspace; } Handle;

EXPORT int cublasCreate_v2(Handle **out) { *out = calloc(1, sizeof **out); return SUCCESS; }
EXPORT int cublasDestroy_v2(Handle *handle) { free(handle); return SUCCESS; }
EXPORT int cublasSetStream_v2(Handle *handle, Stream *stream) { handle->stream = stream; return SUCCESS; }
EXPORT int cublasSetWorkspace_v2(Handle *handle, void *workspace, size_t bytes) {
  handle->workspace = workspace;
  return eplb_fake_is_device_memory(workspace, bytes) ? SUCCESS : INVALID_VALUE;
}

static void product(void *argument) {
  (void)argument;
  const char *text = getenv("EPLB_FAKE_PRODUCT_US");
  usleep(text ? (unsigned)atoi(text) : 50);
}

/* Planted: this product is not supported. Numbers of two bytes; with the first operand transposed, as linear layers have it. */
EXPORT int cublasGemmStridedBatchedEx(Handle *handle, int transposed_a, int transposed_b, int m, int n, int k, const void *alpha, const void *a,
                                      int type_a, int lda, long long stride_a, const void *b, int type_b, int ldb, long long stride_b,
                                      const void *beta, void *c, int type_c, int ldc, long long stride_c, int batch, int compute, int algorithm) {
  record("cublasGemmStridedBatchedEx m=%d n=%d k=%d batch=%d", m, n, k, batch);
  (void)alpha; (void)beta; (void)algorithm;
  if (planted("cublasGemmStridedBatchedEx")) return NOT_SUPPORTED;
  if (transposed_a != 1 || transposed_b || type_a != 14 || type_b != 14 || type_c != 14 || compute != 68) return INVALID_VALUE;
  if (lda < k || ldb < k || ldc < m || !handle->workspace) return INVALID_VALUE;
  size_t last = (size_t)batch - 1;
  if (!eplb_fake_is_device_memory(a, 2 * (last * (size_t)stride_a + (size_t)m * k)) ||
      !eplb_fake_is_device_memory(b, 2 * (last * (size_t)stride_b + (size_t)n * k)) ||
      !eplb_fake_is_device_memory(c, 2 * (last * (size_t)stride_c + (size_t)m * n)))
    return INVALID_VALUE;
  return eplb_fake_launch(handle->stream, product, NULL);
}
