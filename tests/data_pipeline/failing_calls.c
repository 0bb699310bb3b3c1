/* Loaded with LD_PRELOAD: makes one call that reads or writes a file fail, or all from one on. See failing_calls.py. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

enum { READ = 1, WRITE = 2 };
/* Instead of an error number: report the end of the file, or change one byte of what was read. */
enum { END = -1, FLIP = -2 };

static int kind, error;
static long nth, last, calls;
static char part[4096];

void fail_calls(int which, const char *path_part, long first_call, long last_call, int error_number) {
    kind = which;
    error = error_number;
    nth = first_call;
    last = last_call;
    calls = 0;
    strncpy(part, path_part, sizeof part - 1);
}

long counted_calls(void) { return calls; }

static int fails(int which, int fd) {
    char link[64], path[4096];
    if (which != kind) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t size = readlink(link, path, sizeof path - 1);
    if (size < 0) return 0;
    path[size] = 0;
    if (!strstr(path, part)) return 0;
    long call = __sync_add_and_fetch(&calls, 1);
    return call >= nth && call <= last;
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

static ssize_t after_read(char *buffer, ssize_t size) {
    if (size > 0) buffer[size / 2] ^= 1;
    return size;
}

#define READS(call, fd, buffer)                                    \
    int failing = fails(READ, fd);                                 \
    if (failing && error == END) return 0;                         \
    if (failing && error == FLIP) return after_read(buffer, call); \
    if (failing) { errno = error; return -1; }                     \
    return call

#define WRITES(call, fd)                                        \
    if (fails(WRITE, fd)) { errno = error; return -1; }         \
    return call

ssize_t read(int fd, void *buffer, size_t size) { READS(REAL(read)(fd, buffer, size), fd, buffer); }
ssize_t pread(int fd, void *buffer, size_t size, off_t offset) { READS(REAL(pread)(fd, buffer, size, offset), fd, buffer); }
ssize_t pread64(int fd, void *buffer, size_t size, off64_t offset) { READS(REAL(pread64)(fd, buffer, size, offset), fd, buffer); }
ssize_t write(int fd, const void *buffer, size_t size) { WRITES(REAL(write)(fd, buffer, size), fd); }
ssize_t pwrite64(int fd, const void *buffer, size_t size, off64_t offset) { WRITES(REAL(pwrite64)(fd, buffer, size, offset), fd); }
size_t fwrite(const void *buffer, size_t size, size_t count, FILE *stream) {
    if (fails(WRITE, fileno(stream))) { errno = error; return 0; }
    return REAL(fwrite)(buffer, size, count, stream);
}
/* Nothing is flushed: the tests do not cut the power, and would wait for the disk. */
int fsync(int fd) { WRITES(0, fd); }
