/* Stands between a process and its disk: counts, records and breaks the calls that change files.
 *
 * Loaded with LD_PRELOAD; `disk.py` sets the environment and reads the results. Cares only for what lies in
 * the folder FAULTS_UNDER, and does nothing at all without it:
 *
 *   FAULTS_TRACE=file   every call that succeeded is appended, with its data, in the order in which they
 *                       happened: a lock is held over the call and its record, and there only.
 *   FAULTS_PLAN=list    op:n:action, separated by commas. The n-th call of that op in this process, from 1;
 *                       "any" is every op. Actions: EIO (any error name, or a number), EIO*3 (that many calls
 *                       in a row), EIO*inf, short:N (writes N bytes and says so), kill, kill-half (writes half
 *                       the bytes first), kill-after, stop (SIGSTOP; the call follows when it is continued),
 *                       wait:N (N milliseconds, then the call).
 *   FAULTS_ONLY=text    counts only calls on files with this in their path.
 *   FAULTS_ONCE=file    the plan is for one process: the first that comes to a fault makes this file, and
 *                       every other one that finds it is left in peace.
 *   FAULTS_WHILE=file   the plan holds as long as this file exists.
 *   FAULTS_FREE=file    as long as this file exists, the disk says that it has so many bytes left as the number
 *                       in it tells; what is written is not refused by that.
 *   FAULTS_COUNT=file   a page of 64-bit counters, one per op, that all processes add to.
 *
 * Every file operation is seen, or refused: what would change a file unseen (a shared writable mapping, stdio,
 * links, a rename across the border of the folder) fails with ENOTSUP and a word on standard error. Copies
 * inside the kernel fail with ENOSYS, upon which programs copy by hand. What cannot be seen is a call from
 * inside the C library, and a call of a process that is killed from outside between the call and its record.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

_Static_assert(sizeof(off_t) == 8, "offsets have 64 bits");

/* The numbers are in traces and counter files; disk.py has the same list. */
enum op { ANY, WRITE, PWRITE, WRITEV, PWRITEV, FSYNC, FDATASYNC, FTRUNCATE, FALLOCATE, OPEN, UNLINK, RENAME,
          MKDIR, RMDIR, OPS };
static const char *const op_names[OPS] = {"any", "write", "pwrite", "writev", "pwritev", "fsync", "fdatasync",
    "ftruncate", "fallocate", "open", "unlink", "rename", "mkdir", "rmdir"};

enum action { NOTHING, ERROR, SHORT, KILL, KILL_HALF, KILL_AFTER, STOP, WAIT };
enum { CREATED = 1, EMPTIED = 2 }; /* what open() did */

struct fault {
    enum op op;
    uint64_t first, last;
    enum action action;
    int error;
    size_t bytes;
};

struct record {
    char magic[8];
    uint64_t sequence; /* number of the call in its process, as "any" counts; 0: not counted */
    int64_t offset, length;
    uint32_t pid;
    uint16_t op, flags;
    uint32_t path_bytes, target_bytes;
    uint64_t data_bytes;
};
_Static_assert(sizeof(struct record) == 56, "no padding");

struct call {
    struct fault fault;
    struct record record;
    char path[PATH_MAX], target[PATH_MAX]; /* relative to the folder, empty for itself */
    bool gone;                             /* an open file that has no name any more: leaves no trace */
};

static char under[PATH_MAX];
static size_t under_bytes; /* 0: not armed */
static const char *only, *once, *while_there, *free_told;
static int once_is; /* 1: our own, -1: another process's */
static struct fault plan[16];
static int planned;
static int trace_fd = -1;
static uint64_t *page;
static uint64_t counts[OPS];
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

#define REAL(name) \
    ({ \
        static __typeof__(name) *found; \
        if (!found) found = (__typeof__(name) *)dlsym(RTLD_NEXT, #name); \
        found; \
    })

static void die(const char *what) {
    dprintf(2, "faults/shim.c: %s: %s\n", what, strerror(errno));
    _exit(86);
}

static int unseen(const char *what, const char *path) {
    dprintf(2, "faults/shim.c: refused, since it would go unseen: %s of %s\n", what, path);
    errno = ENOTSUP;
    return -1;
}

/* -- start -------------------------------------------------------------------------------------------------- */

static int error_number(const char *name) {
    static const struct { const char *name; int number; } known[] = {
        {"EIO", EIO}, {"ENOSPC", ENOSPC}, {"EROFS", EROFS}, {"EDQUOT", EDQUOT}, {"EFBIG", EFBIG},
        {"EINTR", EINTR}, {"EAGAIN", EAGAIN}, {"ENOENT", ENOENT}, {"EACCES", EACCES}, {"EPERM", EPERM},
        {"ENODEV", ENODEV}, {"ENXIO", ENXIO}, {"ESTALE", ESTALE}, {"EBADF", EBADF}, {"EINVAL", EINVAL},
        {"ENOMEM", ENOMEM}, {"EMFILE", EMFILE}, {"ENOTCONN", ENOTCONN}, {"ETIMEDOUT", ETIMEDOUT}};
    for (size_t number = 0; number < sizeof known / sizeof *known; number++)
        if (!strcmp(name, known[number].name)) return known[number].number;
    return atoi(name);
}

static void add_fault(char *text) {
    char *rest = text, *op = strsep(&rest, ":"), *first = strsep(&rest, ":"), *action = strsep(&rest, ":");
    struct fault *made = &plan[planned];
    errno = EINVAL;
    if (!action || planned == (int)(sizeof plan / sizeof *plan)) die("FAULTS_PLAN");
    while (made->op < OPS && strcmp(op, op_names[made->op])) made->op++;
    made->first = made->last = strtoull(first, NULL, 10);
    if (made->op == OPS || !made->first) die("FAULTS_PLAN");
    if (!strcmp(action, "kill")) made->action = KILL;
    else if (!strcmp(action, "kill-half")) made->action = KILL_HALF;
    else if (!strcmp(action, "kill-after")) made->action = KILL_AFTER;
    else if (!strcmp(action, "stop")) made->action = STOP;
    else if (!strcmp(action, "wait") && rest) made->action = WAIT, made->bytes = strtoull(rest, NULL, 10);
    else if (!strcmp(action, "short") && rest) made->action = SHORT, made->bytes = strtoull(rest, NULL, 10);
    else {
        char *times = action, *name = strsep(&times, "*");
        made->action = ERROR;
        if (!(made->error = error_number(name))) die("FAULTS_PLAN");
        if (times) made->last = strcmp(times, "inf") ? made->first + strtoull(times, NULL, 10) - 1 : UINT64_MAX;
    }
    planned++;
}

static int high_fd(const char *path, int flags) {
    int fd = REAL(openat)(AT_FDCWD, path, flags | O_CREAT | O_CLOEXEC, 0600);
    int high = fd < 0 ? -1 : fcntl(fd, F_DUPFD_CLOEXEC, 700); /* out of the way of the program's own */
    if (high < 0) die(path);
    close(fd);
    return high;
}

static void forked(void) {
    pthread_mutex_init(&lock, NULL);
    memset(counts, 0, sizeof counts);
    if (once_is > 0) once_is = -1;
}

__attribute__((constructor)) static void start(void) {
    const char *folder = getenv("FAULTS_UNDER");
    if (!folder) return;
    if (!realpath(folder, under)) die(folder);
    only = getenv("FAULTS_ONLY");
    once = getenv("FAULTS_ONCE");
    while_there = getenv("FAULTS_WHILE");
    free_told = getenv("FAULTS_FREE");
    const char *text = getenv("FAULTS_PLAN"), *trace = getenv("FAULTS_TRACE"), *count = getenv("FAULTS_COUNT");
    char *copy = text ? strdup(text) : NULL;
    for (char *rest = copy, *one; (one = strsep(&rest, ","));) add_fault(one);
    free(copy);
    if (trace) trace_fd = high_fd(trace, O_WRONLY | O_APPEND);
    if (count) {
        int fd = high_fd(count, O_RDWR);
        if (REAL(ftruncate)(fd, 4096)) die(count);
        page = (uint64_t *)syscall(SYS_mmap, NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        if (page == MAP_FAILED) die(count);
        close(fd);
    }
    pthread_atfork(NULL, NULL, forked);
    under_bytes = strlen(under);
}

/* -- whose file --------------------------------------------------------------------------------------------- */

static bool is_ours(const char *absolute, char *relative) {
    if (strncmp(absolute, under, under_bytes)) return false;
    if (absolute[under_bytes] != '/' && absolute[under_bytes]) return false;
    strcpy(relative, absolute + under_bytes + (absolute[under_bytes] == '/'));
    return true;
}

/* Whether an open file is ours; asked anew at every call, since numbers are used again and files renamed. */
static bool holds(int fd, char *relative, bool *gone) {
    static const char deleted[] = " (deleted)";
    char link[40], found[PATH_MAX];
    if (!under_bytes || fd < 0) return false;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t bytes = readlink(link, found, sizeof found - 1);
    if (bytes <= 0) return false;
    found[bytes] = 0;
    *gone = bytes > (ssize_t)sizeof deleted && !strcmp(found + bytes - (sizeof deleted - 1), deleted);
    return is_ours(found, relative);
}

/* Whether a name is ours, of something that exists or not. */
static bool names(int folder_fd, const char *path, char *relative) {
    char text[PATH_MAX], found[PATH_MAX];
    if (!under_bytes || !path) return false;
    int bytes = *path == '/' || folder_fd == AT_FDCWD
        ? snprintf(text, sizeof text, "%s%s", *path == '/' ? "" : "./", path)
        : snprintf(text, sizeof text, "/proc/self/fd/%d/%s", folder_fd, path);
    if (bytes >= (int)sizeof text) return false;
    while (bytes > 1 && text[bytes - 1] == '/') text[--bytes] = 0;
    char *slash = strrchr(text, '/'), *name = slash + 1;
    if (!*name || !strcmp(name, ".") || !strcmp(name, "..")) return false;
    if (slash == text) return false; /* in the root */
    *slash = 0;
    if (!realpath(text, found) || strlen(found) + strlen(name) + 2 > sizeof found) return false;
    strcat(strcat(found, "/"), name);
    return is_ours(found, relative);
}

/* -- a call ------------------------------------------------------------------------------------------------- */

static void signal_self(int number) { /* has happened when it returns */
    syscall(SYS_tgkill, getpid(), syscall(SYS_gettid), number);
}

static bool may_break(void) {
    if (once && !once_is) {
        int fd = REAL(openat)(AT_FDCWD, once, O_CREAT | O_EXCL | O_WRONLY | O_CLOEXEC, 0600);
        if (fd >= 0) close(fd);
        once_is = fd >= 0 ? 1 : -1;
    }
    return once_is >= 0;
}

/* Count it and see what is planned; true if it must fail with errno. `finish` follows in any case. */
static bool begin(struct call *call, enum op op) {
    memset(&call->record, 0, sizeof call->record);
    call->record.op = op;
    call->fault.action = NOTHING;
    pthread_mutex_lock(&lock);
    if (!only || strstr(call->path, only) || (op == RENAME && strstr(call->target, only))) {
        counts[op]++;
        call->record.sequence = ++counts[ANY];
        if (page) {
            __atomic_fetch_add(&page[op], 1, __ATOMIC_RELAXED);
            __atomic_fetch_add(&page[ANY], 1, __ATOMIC_RELAXED);
        }
        for (int number = 0; number < planned; number++) {
            struct fault *fault = &plan[number];
            uint64_t count = counts[fault->op];
            if ((fault->op != op && fault->op != ANY) || count < fault->first || count > fault->last) continue;
            if (while_there && REAL(faccessat)(AT_FDCWD, while_there, F_OK, 0)) continue;
            if (!may_break()) continue;
            call->fault = *fault;
            break;
        }
    }
    if (trace_fd < 0) pthread_mutex_unlock(&lock);
    if (call->fault.action == KILL) signal_self(SIGKILL);
    if (call->fault.action == STOP) signal_self(SIGSTOP);
    if (call->fault.action == WAIT) usleep(call->fault.bytes * 1000);
    errno = call->fault.error;
    return call->fault.action == ERROR;
}

static void note(struct call *call, const struct iovec *data, int parts) {
    struct iovec all[IOV_MAX];
    if (parts + 3 > IOV_MAX) errno = EMSGSIZE, die("FAULTS_TRACE");
    struct record *record = &call->record;
    memcpy(record->magic, "\x89" "FAULTS\n", 8);
    record->pid = getpid();
    record->path_bytes = strlen(call->path);
    record->target_bytes = record->op == RENAME ? strlen(call->target) : 0;
    all[0] = (struct iovec){record, sizeof *record};
    all[1] = (struct iovec){call->path, record->path_bytes};
    all[2] = (struct iovec){call->target, record->target_bytes};
    memcpy(all + 3, data, parts * sizeof *data);
    ssize_t bytes = sizeof *record + record->path_bytes + record->target_bytes + record->data_bytes;
    if (syscall(SYS_writev, trace_fd, all, parts + 3) != bytes) die("FAULTS_TRACE");
}

/* Record it if it was done, and let go. */
static void finish(struct call *call, bool done, const struct iovec *data, int parts) {
    int before = errno;
    if (trace_fd >= 0) {
        if (done && !call->gone) note(call, data, parts);
        pthread_mutex_unlock(&lock);
    }
    if (call->fault.action == KILL_AFTER || call->fault.action == KILL_HALF) signal_self(SIGKILL);
    errno = before;
}

/* -- bytes -------------------------------------------------------------------------------------------------- */

static size_t total(const struct iovec *parts, int count) {
    size_t bytes = 0;
    while (count--) bytes += parts++->iov_len;
    return bytes;
}

/* Copy of the first bytes of what is to be written; returns the number of parts. */
static int first_bytes(struct iovec *to, const struct iovec *parts, int count, size_t bytes) {
    int made = 0;
    for (; made < count && bytes; made++) {
        to[made] = parts[made];
        if (to[made].iov_len > bytes) to[made].iov_len = bytes;
        bytes -= to[made].iov_len;
    }
    return made;
}

/* All kinds of writing; at the file's own position if `offset` is negative. `ours` says whether it was. */
static ssize_t put(enum op op, int fd, const struct iovec *parts, int count, off_t offset, bool *ours) {
    struct call call;
    struct iovec wanted[IOV_MAX];
    *ours = count >= 0 && count <= IOV_MAX && holds(fd, call.path, &call.gone);
    if (!*ours) return 0;
    ssize_t done = -1;
    if (!begin(&call, op)) {
        size_t bytes = total(parts, count);
        if (call.fault.action == SHORT && call.fault.bytes < bytes) bytes = call.fault.bytes;
        if (call.fault.action == KILL_HALF) bytes /= 2;
        count = first_bytes(wanted, parts, count, bytes);
        done = offset < 0 ? REAL(writev)(fd, wanted, count) : REAL(pwritev)(fd, wanted, count, offset);
    }
    int before = errno;
    if (done >= 0) {
        struct stat now;
        call.record.length = call.record.data_bytes = done;
        call.record.offset = offset;
        if (offset < 0) call.record.offset = lseek(fd, 0, SEEK_CUR) - done;
        else if (fcntl(fd, F_GETFL) & O_APPEND) /* Linux appends then, whatever the offset */
            call.record.offset = fstat(fd, &now) ? -1 : now.st_size - done;
        count = first_bytes(wanted, parts, count, done);
    }
    errno = before;
    finish(&call, done >= 0, wanted, count);
    return done;
}

ssize_t write(int fd, const void *data, size_t bytes) {
    bool ours;
    struct iovec part = {(void *)data, bytes};
    ssize_t done = put(WRITE, fd, &part, 1, -1, &ours);
    return ours ? done : REAL(write)(fd, data, bytes);
}

static ssize_t put_at(int fd, const void *data, size_t bytes, off_t offset, bool *ours) {
    struct iovec part = {(void *)data, bytes};
    *ours = false;
    return offset < 0 ? 0 : put(PWRITE, fd, &part, 1, offset, ours);
}

ssize_t pwrite(int fd, const void *data, size_t bytes, off_t offset) {
    bool ours;
    ssize_t done = put_at(fd, data, bytes, offset, &ours);
    return ours ? done : REAL(pwrite)(fd, data, bytes, offset);
}

ssize_t pwrite64(int fd, const void *data, size_t bytes, off_t offset) {
    bool ours;
    ssize_t done = put_at(fd, data, bytes, offset, &ours);
    return ours ? done : REAL(pwrite64)(fd, data, bytes, offset);
}

ssize_t writev(int fd, const struct iovec *parts, int count) {
    bool ours;
    ssize_t done = put(WRITEV, fd, parts, count, -1, &ours);
    return ours ? done : REAL(writev)(fd, parts, count);
}

ssize_t pwritev(int fd, const struct iovec *parts, int count, off_t offset) {
    bool ours = false;
    ssize_t done = offset < 0 ? 0 : put(PWRITEV, fd, parts, count, offset, &ours);
    return ours ? done : REAL(pwritev)(fd, parts, count, offset);
}

ssize_t pwritev64(int fd, const struct iovec *parts, int count, off_t offset) {
    return pwritev(fd, parts, count, offset);
}

ssize_t pwritev2(int fd, const struct iovec *parts, int count, off_t offset, int flags) {
    char path[PATH_MAX];
    bool ours, gone;
    if (flags && holds(fd, path, &gone)) return unseen("pwritev2", path);
    ssize_t done = put(PWRITEV, fd, parts, count, offset, &ours);
    return ours ? done : REAL(pwritev2)(fd, parts, count, offset, flags);
}

ssize_t pwritev64v2(int fd, const struct iovec *parts, int count, off_t offset, int flags) {
    return pwritev2(fd, parts, count, offset, flags);
}

/* -- open files --------------------------------------------------------------------------------------------- */

#define ON_FILE(op, changes, action, otherwise) \
    struct call call; \
    if (!holds(fd, call.path, &call.gone)) return otherwise; \
    int done = -1; \
    if (!begin(&call, op)) { \
        changes; \
        done = action; \
    } \
    finish(&call, done == 0, NULL, 0); \
    return done

int fsync(int fd) {
    ON_FILE(FSYNC, , REAL(fsync)(fd), REAL(fsync)(fd));
}

int fdatasync(int fd) {
    ON_FILE(FDATASYNC, , REAL(fdatasync)(fd), REAL(fdatasync)(fd));
}

int ftruncate(int fd, off_t size) {
    ON_FILE(FTRUNCATE, call.record.length = size, REAL(ftruncate)(fd, size), REAL(ftruncate)(fd, size));
}

int ftruncate64(int fd, off_t size) {
    return ftruncate(fd, size);
}

int fallocate(int fd, int mode, off_t offset, off_t bytes) {
    ON_FILE(FALLOCATE,
            (call.record.flags = mode, call.record.offset = offset, call.record.length = bytes),
            REAL(fallocate)(fd, mode, offset, bytes), REAL(fallocate)(fd, mode, offset, bytes));
}

int fallocate64(int fd, int mode, off_t offset, off_t bytes) {
    return fallocate(fd, mode, offset, bytes);
}

int posix_fallocate(int fd, off_t offset, off_t bytes) { /* returns the error */
    struct call call;
    if (!holds(fd, call.path, &call.gone)) return REAL(posix_fallocate)(fd, offset, bytes);
    int error;
    if (begin(&call, FALLOCATE)) error = errno;
    else error = REAL(posix_fallocate)(fd, offset, bytes);
    call.record.offset = offset, call.record.length = bytes;
    finish(&call, !error, NULL, 0);
    return error;
}

int posix_fallocate64(int fd, off_t offset, off_t bytes) {
    return posix_fallocate(fd, offset, bytes);
}

/* -- names -------------------------------------------------------------------------------------------------- */

static int open_any(int folder_fd, const char *path, int flags, mode_t mode) {
    struct call call;
    call.gone = false;
    bool changes = (flags & O_ACCMODE) != O_RDONLY || flags & (O_CREAT | O_TRUNC);
    if (!changes || !names(folder_fd, path, call.path)) return REAL(openat)(folder_fd, path, flags, mode);
    if ((flags & O_TMPFILE) == O_TMPFILE) return unseen("O_TMPFILE", path);
    int fd = -1;
    if (!begin(&call, OPEN)) {
        bool existed = !REAL(faccessat)(folder_fd, path, F_OK, AT_SYMLINK_NOFOLLOW);
        fd = REAL(openat)(folder_fd, path, flags, mode);
        call.record.flags = existed ? (flags & O_TRUNC ? EMPTIED : 0) : CREATED;
    }
    finish(&call, fd >= 0, NULL, 0);
    return fd;
}

#define MODE(flags) \
    mode_t mode = 0; \
    if (flags & O_CREAT || (flags & O_TMPFILE) == O_TMPFILE) { \
        va_list more; \
        va_start(more, flags); \
        mode = va_arg(more, mode_t); \
        va_end(more); \
    }

int open(const char *path, int flags, ...) {
    MODE(flags)
    return open_any(AT_FDCWD, path, flags, mode);
}

int open64(const char *path, int flags, ...) {
    MODE(flags)
    return open_any(AT_FDCWD, path, flags, mode);
}

int openat(int folder_fd, const char *path, int flags, ...) {
    MODE(flags)
    return open_any(folder_fd, path, flags, mode);
}

int openat64(int folder_fd, const char *path, int flags, ...) {
    MODE(flags)
    return open_any(folder_fd, path, flags, mode);
}

int creat(const char *path, mode_t mode) {
    return open_any(AT_FDCWD, path, O_CREAT | O_WRONLY | O_TRUNC, mode);
}

int creat64(const char *path, mode_t mode) {
    return creat(path, mode);
}

/* What a fortified build calls for open() without a mode. */
int __open_2(const char *path, int flags) {
    return open_any(AT_FDCWD, path, flags, 0);
}

int __open64_2(const char *path, int flags) {
    return open_any(AT_FDCWD, path, flags, 0);
}

int __openat_2(int folder_fd, const char *path, int flags) {
    return open_any(folder_fd, path, flags, 0);
}

int __openat64_2(int folder_fd, const char *path, int flags) {
    return open_any(folder_fd, path, flags, 0);
}

static int rename_any(int from_fd, const char *from, int to_fd, const char *to, unsigned flags) {
    struct call call;
    call.gone = false;
    bool source = names(from_fd, from, call.path), target = names(to_fd, to, call.target);
    if (!source && !target) return REAL(renameat2)(from_fd, from, to_fd, to, flags);
    if (source != target || flags & ~RENAME_NOREPLACE) return unseen("rename", from);
    int done = -1;
    if (!begin(&call, RENAME)) done = REAL(renameat2)(from_fd, from, to_fd, to, flags);
    finish(&call, done == 0, NULL, 0);
    return done;
}

int rename(const char *from, const char *to) {
    return rename_any(AT_FDCWD, from, AT_FDCWD, to, 0);
}

int renameat(int from_fd, const char *from, int to_fd, const char *to) {
    return rename_any(from_fd, from, to_fd, to, 0);
}

int renameat2(int from_fd, const char *from, int to_fd, const char *to, unsigned flags) {
    return rename_any(from_fd, from, to_fd, to, flags);
}

#define ON_NAME(op, folder_fd, path, action) \
    struct call call; \
    call.gone = false; \
    if (!names(folder_fd, path, call.path)) return action; \
    int done = -1; \
    if (!begin(&call, op)) done = action; \
    finish(&call, done == 0, NULL, 0); \
    return done

int unlinkat(int folder_fd, const char *path, int flags) {
    ON_NAME(flags & AT_REMOVEDIR ? RMDIR : UNLINK, folder_fd, path, REAL(unlinkat)(folder_fd, path, flags));
}

int unlink(const char *path) {
    return unlinkat(AT_FDCWD, path, 0);
}

int rmdir(const char *path) {
    return unlinkat(AT_FDCWD, path, AT_REMOVEDIR);
}

int remove(const char *path) {
    struct stat found;
    return unlinkat(AT_FDCWD, path, !lstat(path, &found) && S_ISDIR(found.st_mode) ? AT_REMOVEDIR : 0);
}

int mkdirat(int folder_fd, const char *path, mode_t mode) {
    ON_NAME(MKDIR, folder_fd, path, REAL(mkdirat)(folder_fd, path, mode));
}

int mkdir(const char *path, mode_t mode) {
    return mkdirat(AT_FDCWD, path, mode);
}

int truncate(const char *path, off_t size) {
    ON_NAME(FTRUNCATE, AT_FDCWD, path, (call.record.length = size, REAL(truncate)(path, size)));
}

int truncate64(const char *path, off_t size) {
    return truncate(path, size);
}

/* -- free space ---------------------------------------------------------------------------------------------- */

static void tell_free(struct statvfs *found) {
    char text[32] = "";
    int fd = free_told ? REAL(openat)(AT_FDCWD, free_told, O_RDONLY | O_CLOEXEC) : -1;
    if (fd < 0) return;
    if (read(fd, text, sizeof text - 1) > 0)
        found->f_bavail = found->f_bfree = strtoull(text, NULL, 10) / found->f_frsize;
    close(fd);
}

int fstatvfs(int fd, struct statvfs *found) {
    char path[PATH_MAX];
    bool gone;
    int done = REAL(fstatvfs)(fd, found);
    if (!done && holds(fd, path, &gone)) tell_free(found);
    return done;
}

int fstatvfs64(int fd, struct statvfs64 *found) {
    _Static_assert(sizeof(struct statvfs64) == sizeof(struct statvfs), "one and the same");
    return fstatvfs(fd, (struct statvfs *)found);
}

int statvfs(const char *path, struct statvfs *found) {
    char real[PATH_MAX], relative[PATH_MAX];
    int done = REAL(statvfs)(path, found);
    if (!done && under_bytes && realpath(path, real) && is_ours(real, relative)) tell_free(found);
    return done;
}

int statvfs64(const char *path, struct statvfs64 *found) {
    return statvfs(path, (struct statvfs *)found);
}

/* -- what would go unseen ----------------------------------------------------------------------------------- */

int linkat(int from_fd, const char *from, int to_fd, const char *to, int flags) {
    char path[PATH_MAX];
    if (names(to_fd, to, path) || names(from_fd, from, path)) return unseen("link", path);
    return REAL(linkat)(from_fd, from, to_fd, to, flags);
}

int link(const char *from, const char *to) {
    return linkat(AT_FDCWD, from, AT_FDCWD, to, 0);
}

int symlinkat(const char *content, int folder_fd, const char *path) {
    char found[PATH_MAX];
    return names(folder_fd, path, found) ? unseen("symlink", path) : REAL(symlinkat)(content, folder_fd, path);
}

int symlink(const char *content, const char *path) {
    return symlinkat(content, AT_FDCWD, path);
}

void *mmap(void *at, size_t bytes, int protection, int flags, int fd, off_t offset) {
    char path[PATH_MAX];
    bool gone, writes = protection & PROT_WRITE && flags & MAP_SHARED && !(flags & MAP_ANONYMOUS);
    if (writes && holds(fd, path, &gone)) return unseen("mmap", path), MAP_FAILED;
    return (void *)syscall(SYS_mmap, at, bytes, protection, flags, fd, offset);
}

void *mmap64(void *at, size_t bytes, int protection, int flags, int fd, off_t offset) {
    return mmap(at, bytes, protection, flags, fd, offset);
}

FILE *fopen(const char *path, const char *mode) {
    char found[PATH_MAX];
    if (strpbrk(mode, "wa+") && names(AT_FDCWD, path, found)) return unseen("fopen", path), NULL;
    return REAL(fopen)(path, mode);
}

FILE *fopen64(const char *path, const char *mode) {
    return fopen(path, mode);
}

FILE *fdopen(int fd, const char *mode) {
    char path[PATH_MAX];
    bool gone;
    if (strpbrk(mode, "wa+") && holds(fd, path, &gone)) return unseen("fdopen", path), NULL;
    return REAL(fdopen)(fd, mode);
}

ssize_t sendfile(int to, int from, off_t *offset, size_t bytes) {
    char path[PATH_MAX];
    bool gone;
    if (holds(to, path, &gone)) return errno = ENOSYS, -1;
    return REAL(sendfile)(to, from, offset, bytes);
}

ssize_t sendfile64(int to, int from, off_t *offset, size_t bytes) {
    return sendfile(to, from, offset, bytes);
}

ssize_t copy_file_range(int from, off_t *from_at, int to, off_t *to_at, size_t bytes, unsigned flags) {
    char path[PATH_MAX];
    bool gone;
    if (holds(to, path, &gone)) return errno = ENOSYS, -1;
    return REAL(copy_file_range)(from, from_at, to, to_at, bytes, flags);
}
