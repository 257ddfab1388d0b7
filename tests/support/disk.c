/*
 * A disk as it is at a power cut, and a slow one: a library that is loaded before the C library (LD_PRELOAD).
 *
 *   DISK_SYNC_US   each fsync and fdatasync takes so many microseconds longer
 *   DISK_KEEP      a folder that receives, for each file whose name ends in .db or .db-wal, what the disk surely has:
 *                  NAME.synced   the file as of its last successful sync
 *                  NAME.pending  what was written since: records of offset, length (both 8 bytes; length -1: cut to the offset) and bytes
 *   DISK_CUT       HEADERS:WRITES kills the process so many writes to a log after its header was written for the so-manieth time
 *
 * The two files change under one lock, and `pending` is written before the real call, so a kill at any moment leaves a state that a power cut can
 * leave.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <unistd.h>

#define FILES 16
static struct {
  char path[PATH_MAX];
  int synced, pending;
} files[FILES];
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static int is_ours(const char *path) {
  const char *dot = strrchr(path, '.');
  return dot && (!strcmp(dot, ".db") || !strcmp(dot, ".db-wal"));
}

/* The shadow of an open file, made at its first use; -1: not ours. */
static int shadow_of(int fd) {
  const char *keep = getenv("DISK_KEEP");
  if (!keep) return -1;
  char link[64], path[PATH_MAX];
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  ssize_t length = readlink(link, path, sizeof path - 1);
  if (length <= 0) return -1;
  path[length] = 0;
  if (!is_ours(path)) return -1;
  for (int n = 0; n < FILES; n++) {
    if (!strcmp(files[n].path, path)) return n;
    if (files[n].path[0]) continue;
    char name[PATH_MAX + 16];
    strcpy(files[n].path, path);
    snprintf(name, sizeof name, "%s/%s.synced", keep, strrchr(path, '/') + 1);
    files[n].synced = open(name, O_RDWR | O_CREAT, 0600);
    snprintf(name, sizeof name, "%s/%s.pending", keep, strrchr(path, '/') + 1);
    files[n].pending = open(name, O_RDWR | O_CREAT | O_APPEND, 0600);
    return n;
  }
  abort();
}

static void all(ssize_t done, size_t wanted) {
  if (done != (ssize_t)wanted) abort();
}

static void note(int n, int64_t offset, int64_t length, const void *bytes) {
  int64_t head[2] = {offset, length};
  size_t size = sizeof head + (length > 0 ? length : 0);
  char *record = malloc(size);
  memcpy(record, head, sizeof head);
  if (length > 0) memcpy(record + sizeof head, bytes, length);
  all(syscall(SYS_write, files[n].pending, record, size), size);
  free(record);
}

/* What was written before a sync began, the first `upto` bytes of the records, is on the disk when it ends. */
static void settle(int n, off_t upto) {
  int64_t head[2];
  off_t at = 0;
  while (at < upto) {
    all(syscall(SYS_pread64, files[n].pending, head, sizeof head, at), sizeof head);
    at += sizeof head;
    if (head[1] < 0) {
      if (syscall(SYS_ftruncate, files[n].synced, head[0])) abort();
      continue;
    }
    char *bytes = malloc(head[1]);
    all(syscall(SYS_pread64, files[n].pending, bytes, head[1], at), head[1]);
    all(syscall(SYS_pwrite64, files[n].synced, bytes, head[1], head[0]), head[1]);
    free(bytes);
    at += head[1];
  }
  off_t rest = lseek(files[n].pending, 0, SEEK_END) - upto;
  char *later = malloc(rest + 1);
  all(syscall(SYS_pread64, files[n].pending, later, rest, upto), rest);
  if (syscall(SYS_ftruncate, files[n].pending, 0)) abort();
  all(syscall(SYS_write, files[n].pending, later, rest), rest);
  free(later);
}

/* Counts writes to the log, and ends the process at the one that is asked for. */
static void cut(const char *path, size_t length, off64_t offset) {
  static int headers = -1, writes;
  if (headers == -1) {
    const char *at = getenv("DISK_CUT");
    if (!at || sscanf(at, "%d:%d", &headers, &writes) != 2) headers = INT_MAX;
  }
  if (strcmp(strrchr(path, '.'), ".db-wal")) return;
  if (headers > 0 && offset == 0 && length == 32) headers--;
  if (headers == 0 && writes-- == 0) kill(getpid(), SIGKILL);
}

ssize_t pwrite64(int fd, const void *bytes, size_t length, off64_t offset) {
  pthread_mutex_lock(&lock);
  int n = shadow_of(fd);
  if (n >= 0) note(n, offset, length, bytes);
  if (n >= 0) cut(files[n].path, length, offset);
  pthread_mutex_unlock(&lock);
  return syscall(SYS_pwrite64, fd, bytes, length, offset);
}
ssize_t pwrite(int fd, const void *bytes, size_t length, off_t offset) { return pwrite64(fd, bytes, length, offset); }

int ftruncate64(int fd, off64_t length) {
  pthread_mutex_lock(&lock);
  int n = shadow_of(fd);
  if (n >= 0) note(n, length, -1, NULL);
  pthread_mutex_unlock(&lock);
  return syscall(SYS_ftruncate, fd, length);
}
int ftruncate(int fd, off_t length) { return ftruncate64(fd, length); }

static int synced(int fd, long call) {
  static pthread_mutex_t one = PTHREAD_MUTEX_INITIALIZER;
  const char *us = getenv("DISK_SYNC_US");
  if (!getenv("DISK_KEEP")) {
    if (us) usleep(atoi(us));
    return syscall(call, fd);
  }
  pthread_mutex_lock(&one);
  pthread_mutex_lock(&lock);
  int n = shadow_of(fd);
  off_t upto = n >= 0 ? lseek(files[n].pending, 0, SEEK_END) : 0;
  pthread_mutex_unlock(&lock);
  if (us) usleep(atoi(us));
  int result = syscall(call, fd);
  pthread_mutex_lock(&lock);
  if (result == 0 && n >= 0) settle(n, upto);
  pthread_mutex_unlock(&lock);
  pthread_mutex_unlock(&one);
  return result;
}
int fsync(int fd) { return synced(fd, SYS_fsync); }
int fdatasync(int fd) { return synced(fd, SYS_fdatasync); }
