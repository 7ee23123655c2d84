/* What both fakes share: a log of calls, one line each, and faults that a test plants.
 *
 * EPLB_FAKE_LOG    file that gets the log
 * EPLB_FAKE_FAULT  "call:n": the n-th call of that name (from 1; 0: every one) misbehaves, as the fake's comment on the call says
 */
#ifndef EPLB_FAKE_RECORD_H
#define EPLB_FAKE_RECORD_H

#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

static pthread_mutex_t record_lock = PTHREAD_MUTEX_INITIALIZER;
static FILE *record_file;
static int record_tried;

/* Each line goes out whole with one write to a file opened for appending, so that both fakes can share it. */
__attribute__((format(printf, 1, 2))) static void record(const char *format, ...) {
  char line[256];
  int head = snprintf(line, sizeof line, "t=%ld ", (long)syscall(SYS_gettid));
  va_list arguments;
  va_start(arguments, format);
  int body = vsnprintf(line + head, sizeof line - head - 1, format, arguments);
  va_end(arguments);
  int length = head + body;
  if (length > (int)sizeof line - 2) length = (int)sizeof line - 2;
  line[length++] = '\n';
  pthread_mutex_lock(&record_lock);
  if (!record_tried) {
    record_tried = 1;
    const char *path = getenv("EPLB_FAKE_LOG");
    if (path && *path) record_file = fopen(path, "a");
    if (record_file) setvbuf(record_file, NULL, _IONBF, 0);
  }
  if (record_file) fwrite(line, 1, length, record_file);
  pthread_mutex_unlock(&record_lock);
}

/* Whether this call of `name` is the one that a test wants to fail. */
__attribute__((unused)) static int planted(const char *name) {
  static int count;
  const char *fault = getenv("EPLB_FAKE_FAULT");
  size_t length = strlen(name);
  if (!fault || strncmp(fault, name, length) || fault[length] != ':') return 0;
  pthread_mutex_lock(&record_lock);
  int now = ++count;
  pthread_mutex_unlock(&record_lock);
  int which = atoi(fault + length + 1), hit = which == 0 || now == which;
  if (hit) record("planted %s", name);
  return hit;
}

#endif
