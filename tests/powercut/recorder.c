/* A recorder of everything that changes files, for the power-cut tests: preloaded into the daemon, it writes one entry per
 * call to the file $RECORD_LOG, for files under the folder $RECORD_ROOT. The replayer (src/powercut.rs) makes from it the
 * folders that a power cut may leave behind.
 *
 * An entry is one line of text, followed by the bytes of a write:
 *   root INODE                          the folder itself         file INODE PATH   one that was there before
 *   create INODE PATH                   a file was made             mkdir INODE PATH
 *   write INODE OFFSET LENGTH           then LENGTH bytes           size INODE LENGTH
 *   sync INODE                          fsync or fdatasync of a file or a folder
 *   rename FROM TO / link FROM TO / unlink PATH / rmdir PATH
 *   sent LENGTH                         then LENGTH bytes: written to a TCP socket (an acknowledgement)
 *   out LENGTH                          then LENGTH bytes: written to standard output (the console sink)
 * Paths are absolute. Calls are logged after they succeeded, except a sync, which is logged only then too: what it makes
 * durable is what was logged before it began, which the entry `sync-begin INODE SERIAL` tells; `sync INODE SERIAL` ends it.
 *
 * sync_file_range is not logged: it makes nothing durable. Memory maps are not seen; SQLite uses one only for its index
 * of the write-ahead log, which it rebuilds.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static int log_fd = -1;
static char root[PATH_MAX];
static size_t root_length;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static unsigned long serial;

static void begun(void);

__attribute__((constructor)) static void begin(void) {
    const char *log = getenv("RECORD_LOG"), *under = getenv("RECORD_ROOT");
    if (!log || !under || !realpath(under, root)) return;
    root_length = strlen(root);
    log_fd = syscall(SYS_openat, AT_FDCWD, log, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
    begun();
}

static void put(const char *bytes, size_t length) {
    while (length) {
        ssize_t n = syscall(SYS_write, log_fd, bytes, length);
        if (n <= 0) _exit(97); /* a hole in the record would be a wrong proof */
        bytes += n;
        length -= (size_t)n;
    }
}

static void entry(const char *data, size_t length, const char *format, ...) {
    char line[2 * PATH_MAX + 64];
    va_list arguments;
    va_start(arguments, format);
    int n = vsnprintf(line, sizeof line, format, arguments);
    va_end(arguments);
    put(line, (size_t)n);
    if (data) put(data, length);
}

static void begun(void) {
    struct stat status;
    if (log_fd >= 0 && stat(root, &status) == 0) entry(NULL, 0, "root %lu\n", (unsigned long)status.st_ino);
}

static int under_root(const char *path) {
    return root_length && strncmp(path, root, root_length) == 0 && (path[root_length] == '/' || !path[root_length]);
}

/* The absolute path, with the folder's symlinks resolved; the last part as it is. 0 where it is not under the root. */
static int absolute(int folder, const char *path, char *out) {
    char given[PATH_MAX], parent[PATH_MAX], resolved[PATH_MAX];
    if (log_fd < 0 || !path || !*path) return 0;
    if (path[0] == '/') {
        snprintf(given, sizeof given, "%s", path);
    } else {
        char base[PATH_MAX];
        if (folder == AT_FDCWD) {
            if (!getcwd(base, sizeof base)) return 0;
        } else {
            char link[64];
            snprintf(link, sizeof link, "/proc/self/fd/%d", folder);
            ssize_t n = readlink(link, base, sizeof base - 1);
            if (n < 0) return 0;
            base[n] = 0;
        }
        if (snprintf(given, sizeof given, "%s/%s", base, path) >= (int)sizeof given) return 0;
    }
    size_t length = strlen(given);
    while (length > 1 && given[length - 1] == '/') given[--length] = 0;
    char *slash = strrchr(given, '/');
    snprintf(parent, sizeof parent, "%.*s", slash == given ? 1 : (int)(slash - given), given);
    if (!realpath(parent, resolved)) return 0;
    if (snprintf(out, PATH_MAX, "%s/%s", resolved, slash + 1) >= PATH_MAX) return 0;
    return under_root(out);
}

/* The inode of a file under the root that the descriptor is, else 0. */
static ino_t inode_of(int fd) {
    struct stat status;
    char link[64], path[PATH_MAX];
    if (log_fd < 0 || fd == log_fd || fstat(fd, &status) || !(S_ISREG(status.st_mode) || S_ISDIR(status.st_mode))) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, path, sizeof path - 1);
    if (n < 0) return 0;
    path[n] = 0;
    return under_root(path) ? status.st_ino : 0;
}

#define REAL(type, name, ...)                                     \
    static type (*real)(__VA_ARGS__);                             \
    if (!real) real = (type (*)(__VA_ARGS__))dlsym(RTLD_NEXT, name)

static int opened(const char *name, int folder, const char *path, int flags, mode_t mode) {
    char full[PATH_MAX];
    struct stat before;
    int (*real)(int, const char *, int, ...) = (int (*)(int, const char *, int, ...))dlsym(RTLD_NEXT, "openat64");
    (void)name;
    if (!(flags & (O_WRONLY | O_RDWR | O_CREAT | O_TRUNC)) || !absolute(folder, path, full)) return real(folder, path, flags, mode);
    pthread_mutex_lock(&lock);
    int existed = stat(full, &before) == 0;
    int fd = real(folder, path, flags, mode);
    int error = errno;
    struct stat now;
    if (fd >= 0 && fstat(fd, &now) == 0 && S_ISREG(now.st_mode)) {
        if (!existed) entry(NULL, 0, "create %lu %s\n", (unsigned long)now.st_ino, full);
        else entry(NULL, 0, "file %lu %s\n", (unsigned long)now.st_ino, full);
        if (existed && (flags & O_TRUNC)) entry(NULL, 0, "size %lu 0\n", (unsigned long)now.st_ino);
    }
    pthread_mutex_unlock(&lock);
    errno = error;
    return fd;
}

#define MODE(flags, last)                               \
    mode_t mode = 0;                                    \
    if ((flags) & (O_CREAT | O_TMPFILE)) {              \
        va_list arguments;                              \
        va_start(arguments, last);                      \
        mode = (mode_t)va_arg(arguments, unsigned int); \
        va_end(arguments);                              \
    }

int open(const char *path, int flags, ...) { MODE(flags, flags) return opened("open", AT_FDCWD, path, flags, mode); }
int open64(const char *path, int flags, ...) { MODE(flags, flags) return opened("open", AT_FDCWD, path, flags, mode); }
int openat(int folder, const char *path, int flags, ...) { MODE(flags, flags) return opened("openat", folder, path, flags, mode); }
int openat64(int folder, const char *path, int flags, ...) { MODE(flags, flags) return opened("openat", folder, path, flags, mode); }
int creat(const char *path, mode_t mode) { return opened("creat", AT_FDCWD, path, O_CREAT | O_WRONLY | O_TRUNC, mode); }
int creat64(const char *path, mode_t mode) { return opened("creat", AT_FDCWD, path, O_CREAT | O_WRONLY | O_TRUNC, mode); }

static int is_tcp(int fd) {
    struct sockaddr_storage address;
    socklen_t length = sizeof address;
    return log_fd >= 0 && getsockname(fd, (struct sockaddr *)&address, &length) == 0 &&
           (address.ss_family == AF_INET || address.ss_family == AF_INET6);
}

/* What leaves the process: a person or a peer has it, whatever happens to the disk. */
static const char *leaves(int fd) {
    if (log_fd < 0) return NULL;
    return fd == STDOUT_FILENO ? "out" : is_tcp(fd) ? "sent" : NULL;
}

static void wrote(int fd, ino_t inode, off_t at, const struct iovec *parts, int count, ssize_t n) {
    if (n <= 0) return;
    if (inode) entry(NULL, 0, "write %lu %lld %zd\n", (unsigned long)inode, (long long)at, n);
    else entry(NULL, 0, "%s %zd\n", leaves(fd), n);
    for (int i = 0; i < count && n > 0; i++) {
        size_t length = parts[i].iov_len < (size_t)n ? parts[i].iov_len : (size_t)n;
        put(parts[i].iov_base, length);
        n -= (ssize_t)length;
    }
}

/* at < 0: at the file's own offset, or its end with O_APPEND. */
static ssize_t write_at(int fd, const struct iovec *parts, int count, off_t at) {
    ino_t inode = inode_of(fd);
    if (!inode && !leaves(fd)) {
        return at < 0 ? syscall(SYS_writev, fd, parts, count) : syscall(SYS_pwritev, fd, parts, count, at, 0);
    }
    pthread_mutex_lock(&lock);
    struct stat status;
    off_t start = at;
    if (inode && at < 0) {
        int flags = fcntl(fd, F_GETFL);
        start = (flags & O_APPEND) && fstat(fd, &status) == 0 ? status.st_size : lseek(fd, 0, SEEK_CUR);
    }
    ssize_t n = at < 0 ? syscall(SYS_writev, fd, parts, count) : syscall(SYS_pwritev, fd, parts, count, at, 0);
    int error = errno;
    wrote(fd, inode, start, parts, count, n);
    pthread_mutex_unlock(&lock);
    errno = error;
    return n;
}

ssize_t write(int fd, const void *bytes, size_t length) {
    struct iovec part = {(void *)bytes, length};
    return write_at(fd, &part, 1, -1);
}
ssize_t writev(int fd, const struct iovec *parts, int count) { return write_at(fd, parts, count, -1); }
ssize_t pwrite(int fd, const void *bytes, size_t length, off_t at) {
    struct iovec part = {(void *)bytes, length};
    return write_at(fd, &part, 1, at);
}
ssize_t pwrite64(int fd, const void *bytes, size_t length, off64_t at) { return pwrite(fd, bytes, length, at); }
ssize_t pwritev(int fd, const struct iovec *parts, int count, off_t at) { return write_at(fd, parts, count, at); }
ssize_t pwritev64(int fd, const struct iovec *parts, int count, off64_t at) { return write_at(fd, parts, count, at); }
ssize_t send(int fd, const void *bytes, size_t length, int flags) {
    REAL(ssize_t, "send", int, const void *, size_t, int);
    pthread_mutex_lock(&lock);
    ssize_t n = real(fd, bytes, length, flags);
    int error = errno;
    struct iovec part = {(void *)bytes, length};
    if (is_tcp(fd)) wrote(fd, 0, 0, &part, 1, n);
    pthread_mutex_unlock(&lock);
    errno = error;
    return n;
}
ssize_t copy_file_range(int from, off64_t *from_at, int to, off64_t *to_at, size_t length, unsigned int flags) {
    (void)from, (void)from_at, (void)to, (void)to_at, (void)length, (void)flags;
    errno = ENOSYS; /* callers fall back to write, which is seen */
    return -1;
}
ssize_t sendfile(int to, int from, off_t *at, size_t length) {
    (void)to, (void)from, (void)at, (void)length;
    errno = ENOSYS;
    return -1;
}
ssize_t sendfile64(int to, int from, off64_t *at, size_t length) { return sendfile(to, from, at, length); }

static int resized(int fd, off_t length) {
    ino_t inode = inode_of(fd);
    pthread_mutex_lock(&lock);
    int result = (int)syscall(SYS_ftruncate, fd, length);
    int error = errno;
    if (inode && result == 0) entry(NULL, 0, "size %lu %lld\n", (unsigned long)inode, (long long)length);
    pthread_mutex_unlock(&lock);
    errno = error;
    return result;
}
int ftruncate(int fd, off_t length) { return resized(fd, length); }
int ftruncate64(int fd, off64_t length) { return resized(fd, length); }
int fallocate(int fd, int mode, off_t at, off_t length) {
    (void)fd, (void)mode, (void)at, (void)length;
    errno = EOPNOTSUPP; /* callers write zeros, which is seen */
    return -1;
}
int posix_fallocate(int fd, off_t at, off_t length) {
    (void)fd, (void)at, (void)length;
    return EOPNOTSUPP;
}

static int synced(int fd, long call) {
    ino_t inode = inode_of(fd);
    if (!inode) return (int)syscall(call, fd);
    pthread_mutex_lock(&lock);
    unsigned long number = ++serial;
    entry(NULL, 0, "sync-begin %lu %lu\n", (unsigned long)inode, number);
    pthread_mutex_unlock(&lock);
    int result = (int)syscall(call, fd);
    int error = errno;
    pthread_mutex_lock(&lock);
    if (result == 0) entry(NULL, 0, "sync %lu %lu\n", (unsigned long)inode, number);
    pthread_mutex_unlock(&lock);
    errno = error;
    return result;
}
/* $RECORD_FORGET names a call whose syncs are left out of the record: the proof that a missing sync is found. */
static int forgets(int fd) {
    const char *part = getenv("RECORD_FORGET");
    char link[64], path[PATH_MAX];
    if (!part || !*part) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, path, sizeof path - 1);
    if (n < 0) return 0;
    path[n] = 0;
    return under_root(path) && strstr(path + root_length, part) != NULL;
}
int fsync(int fd) { return forgets(fd) ? 0 : synced(fd, SYS_fsync); }
int fdatasync(int fd) { return forgets(fd) ? 0 : synced(fd, SYS_fdatasync); }

static int two_paths(const char *what, int from_folder, const char *from, int to_folder, const char *to, int result_of(int, const char *, int, const char *)) {
    char a[PATH_MAX], b[PATH_MAX];
    int inside = absolute(from_folder, from, a) & absolute(to_folder, to, b);
    pthread_mutex_lock(&lock);
    int result = result_of(from_folder, from, to_folder, to);
    int error = errno;
    if (inside && result == 0) entry(NULL, 0, "%s %s\t%s\n", what, a, b);
    pthread_mutex_unlock(&lock);
    errno = error;
    return result;
}
static int do_rename(int a, const char *from, int b, const char *to) { return (int)syscall(SYS_renameat2, a, from, b, to, 0); }
static int do_rename_new(int a, const char *from, int b, const char *to) { return (int)syscall(SYS_renameat2, a, from, b, to, 1); }
static int do_link(int a, const char *from, int b, const char *to) { return (int)syscall(SYS_linkat, a, from, b, to, 0); }
int rename(const char *from, const char *to) { return two_paths("rename", AT_FDCWD, from, AT_FDCWD, to, do_rename); }
int renameat(int a, const char *from, int b, const char *to) { return two_paths("rename", a, from, b, to, do_rename); }
int renameat2(int a, const char *from, int b, const char *to, unsigned int flags) {
    return two_paths("rename", a, from, b, to, flags == 1 ? do_rename_new : do_rename);
}
int link(const char *from, const char *to) { return two_paths("link", AT_FDCWD, from, AT_FDCWD, to, do_link); }
int linkat(int a, const char *from, int b, const char *to, int flags) {
    (void)flags;
    return two_paths("link", a, from, b, to, do_link);
}

static int removed(int folder, const char *path, int flags) {
    char full[PATH_MAX];
    int inside = absolute(folder, path, full);
    pthread_mutex_lock(&lock);
    int result = (int)syscall(SYS_unlinkat, folder, path, flags);
    int error = errno;
    if (inside && result == 0) entry(NULL, 0, "%s %s\n", flags & AT_REMOVEDIR ? "rmdir" : "unlink", full);
    pthread_mutex_unlock(&lock);
    errno = error;
    return result;
}
int unlink(const char *path) { return removed(AT_FDCWD, path, 0); }
int unlinkat(int folder, const char *path, int flags) { return removed(folder, path, flags); }
int rmdir(const char *path) { return removed(AT_FDCWD, path, AT_REMOVEDIR); }

static int made(int folder, const char *path, mode_t mode) {
    char full[PATH_MAX];
    pthread_mutex_lock(&lock);
    int result = (int)syscall(SYS_mkdirat, folder, path, mode);
    int error = errno;
    struct stat status;
    if (result == 0 && absolute(folder, path, full) && stat(full, &status) == 0)
        entry(NULL, 0, "mkdir %lu %s\n", (unsigned long)status.st_ino, full);
    pthread_mutex_unlock(&lock);
    errno = error;
    return result;
}
int mkdir(const char *path, mode_t mode) { return made(AT_FDCWD, path, mode); }
int mkdirat(int folder, const char *path, mode_t mode) { return made(folder, path, mode); }
