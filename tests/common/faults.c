/* Faults of the file system, and a clock and random bytes of one's own, for the process that this library is preloaded into (Linux, x86-64 and AArch64).
 *
 * A seccomp filter hands every system call that changes files to the handler below, whoever makes it: libc, SQLite, or Rust
 * code that does not go through libc. The handler counts those at or below the directories FAULT_ROOTS (separated by ':')
 * and lets the one with the number FAULT_AT end as FAULT_HOW says. Every other call is made as it was asked for.
 *
 *   FAULT_HOW   ENOSPC, EIO, EACCES: it fails so, and has no effect; with a '+' behind it, all later ones fail, too
 *               before, after: the process ends before or after it; torn: a write ends halfway, and with it the process
 *   FAULT_LOG   a file that gets a line for each counted call
 *   FAULT_FATE  a file of two numbers of 8 bytes that may change at any time: by how many nanoseconds this process' clock is
 *               off, and from where its random bytes follow; while the second is 0 they are those of the system
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <time.h>
#include <ucontext.h>
#include <unistd.h>

/* The only system call instruction that the filter lets through unseen. */
long fault_syscall(long number, long a, long b, long c, long d, long e, long f);
extern const char fault_after[];
#if defined(__x86_64__)
#define ARCHITECTURE AUDIT_ARCH_X86_64
__asm__(".text\n.globl fault_syscall\n.type fault_syscall, @function\nfault_syscall:\n"
        "mov %rdi, %rax\nmov %rsi, %rdi\nmov %rdx, %rsi\nmov %rcx, %rdx\nmov %r8, %r10\nmov %r9, %r8\n"
        "mov 8(%rsp), %r9\nsyscall\n.globl fault_after\nfault_after:\nret\n");
#elif defined(__aarch64__)
#define ARCHITECTURE AUDIT_ARCH_AARCH64
__asm__(".text\n.globl fault_syscall\n.type fault_syscall, @function\nfault_syscall:\n"
        "mov x8, x0\nmov x0, x1\nmov x1, x2\nmov x2, x3\nmov x3, x4\nmov x4, x5\nmov x5, x6\n"
        "svc #0\n.globl fault_after\nfault_after:\nret\n");
#else
#error "no filter for this architecture"
#endif

/* What a call names: a path, a path below a directory, or an open file; a second path at `second`. */
enum shape { PATH, AT, OPEN_AT, OPEN_AT_2, OPEN, FILE_, PATHS, ATS };
static const struct call { long number; const char *name; enum shape shape; int second; } CALLS[] = {
#ifdef SYS_open
    {SYS_open, "open", OPEN, 0}, {SYS_rename, "rename", PATHS, 1}, {SYS_unlink, "unlink", PATH, 0},
    {SYS_mkdir, "mkdir", PATH, 0}, {SYS_rmdir, "rmdir", PATH, 0}, {SYS_chmod, "chmod", PATH, 0},
    {SYS_link, "link", PATHS, 1}, {SYS_symlink, "symlink", PATHS, 1},
#endif
#ifdef SYS_renameat
    {SYS_renameat, "rename", ATS, 2},
#endif
    {SYS_openat, "open", OPEN_AT, 0}, {SYS_openat2, "open", OPEN_AT_2, 0}, {SYS_write, "write", FILE_, 0},
    {SYS_pwrite64, "write", FILE_, 0}, {SYS_writev, "write", FILE_, 0}, {SYS_pwritev, "write", FILE_, 0},
    {SYS_fsync, "fsync", FILE_, 0}, {SYS_fdatasync, "fsync", FILE_, 0}, {SYS_syncfs, "syncfs", FILE_, 0},
    {SYS_ftruncate, "truncate", FILE_, 0}, {SYS_fallocate, "allocate", FILE_, 0}, {SYS_fchmod, "chmod", FILE_, 0},
    {SYS_renameat2, "rename", ATS, 2}, {SYS_unlinkat, "unlink", AT, 0}, {SYS_mkdirat, "mkdir", AT, 0},
    {SYS_fchmodat, "chmod", AT, 0}, {SYS_utimensat, "set times", AT, 0}, {SYS_linkat, "link", ATS, 2},
    {SYS_symlinkat, "symlink", ATS, 0}, {SYS_copy_file_range, "write", FILE_, 2}, {SYS_sendfile, "write", FILE_, 0},
};
#define COUNT (sizeof CALLS / sizeof *CALLS)

static const char *roots;
static long at, calls;
static int log_file = -1, error_number, goes_on;
static enum { FAIL, BEFORE, AFTER, TORN } how;
static volatile int64_t *fate;

static long do_call(long number, const long *a) {
  return fault_syscall(number, a[0], a[1], a[2], a[3], a[4], a[5]);
}

/* Whether a path is at or below one of the roots. Only what starts with '/' can be. */
static int counts(const char *path) {
  for (const char *root = roots; root && *root;) {
    size_t length = strcspn(root, ":");
    if (strncmp(path, root, length) == 0 && (path[length] == '/' || path[length] == 0)) return 1;
    root += length + (root[length] == ':');
  }
  return 0;
}

/* The path of an open file. */
static void path_of(long file, char *path, size_t size) {
  char link[40] = "/proc/self/fd/";
  char digits[20];
  int length = 0, end = 14;
  if (file == AT_FDCWD) strcpy(link, "/proc/self/cwd");
  else {
    do digits[length++] = (char)('0' + file % 10); while (file /= 10);
    while (length) link[end++] = digits[--length];
    link[end] = 0;
  }
  long got = fault_syscall(SYS_readlinkat, AT_FDCWD, (long)link, (long)path, (long)size - 1, 0, 0);
  path[got > 0 ? got : 0] = 0;
}

/* `name`, seen from the directory `directory`. */
static void join(long directory, const char *name, char *path, size_t size) {
  path[0] = 0;
  if (name == NULL || name[0] != '/') path_of((int)directory, path, size);
  size_t length = strlen(path);
  if (name == NULL || length + strlen(name) + 2 > size) return;
  if (name[0] != '/') path[length++] = '/';
  strcpy(path + length, name);
}

static int writes(long flags) { return (flags & (O_CREAT | O_TRUNC)) || (flags & O_ACCMODE) != O_RDONLY; }

static void handle(int signal_number, siginfo_t *info, void *context) {
  (void)signal_number;
  int before = errno;
  ucontext_t *registers = context;
#if defined(__x86_64__)
  greg_t *r = registers->uc_mcontext.gregs;
  long a[6] = {r[REG_RDI], r[REG_RSI], r[REG_RDX], r[REG_R10], r[REG_R8], r[REG_R9]};
#else
  unsigned long long *r = registers->uc_mcontext.regs;
  long a[6] = {(long)r[0], (long)r[1], (long)r[2], (long)r[3], (long)r[4], (long)r[5]};
#endif
  long number = info->si_syscall, result;
  char path[4200];
  const struct call *call = NULL;
  for (size_t i = 0; i < COUNT; i++)
    if (CALLS[i].number == number) call = &CALLS[i];
  path[0] = 0;
  switch (call ? (int)call->shape : -1) {
    case OPEN: if (!writes(a[1])) break; join(AT_FDCWD, (const char *)a[0], path, sizeof path); break;
    case OPEN_AT: if (!writes(a[2])) break; join(a[0], (const char *)a[1], path, sizeof path); break;
    case OPEN_AT_2: if (!writes(*(long *)a[2])) break; join(a[0], (const char *)a[1], path, sizeof path); break;
    case PATH: join(AT_FDCWD, (const char *)a[0], path, sizeof path); break;
    case PATHS: join(AT_FDCWD, (const char *)a[1], path, sizeof path); break;
    case AT: join(a[0], (const char *)a[1], path, sizeof path); break;
    case ATS: join(a[call->second ? 2 : 1], (const char *)a[call->second ? 3 : 2], path, sizeof path); break;
    case FILE_: path_of((int)a[call->second], path, sizeof path); break;
    default: break;
  }
  if (counts(path)) {
    long mine = __atomic_add_fetch(&calls, 1, __ATOMIC_SEQ_CST);
    if (log_file >= 0) {
      char line[4300];
      int length = 0;
      for (const char *from = call->name; *from; from++) line[length++] = *from;
      line[length++] = ' ';
      for (const char *from = path; *from; from++) line[length++] = *from == '\n' ? '?' : *from;
      line[length++] = '\n';
      fault_syscall(SYS_write, log_file, (long)line, length, 0, 0, 0);
    }
    if (mine == at || (goes_on && at && mine > at)) {
      if (how == TORN && (number == SYS_write || number == SYS_pwrite64)) a[2] /= 2;
      if (how == AFTER || how == TORN) do_call(number, a);
      if (how != FAIL) fault_syscall(SYS_exit_group, 137, 0, 0, 0, 0, 0);
      result = -error_number;
    } else {
      result = do_call(number, a);
    }
  } else {
    result = do_call(number, a);
  }
#if defined(__x86_64__)
  r[REG_RAX] = result;
#else
  r[0] = (unsigned long long)result;
#endif
  errno = before;
}

int clock_gettime(clockid_t clock, struct timespec *time) {
  static int (*real)(clockid_t, struct timespec *);
  if (!real) real = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
  int result = real(clock, time);
  if (result == 0 && clock == CLOCK_REALTIME && fate) {
    int64_t shown = (int64_t)time->tv_sec * 1000000000 + time->tv_nsec + fate[0];
    time->tv_sec = shown / 1000000000;
    time->tv_nsec = shown % 1000000000;
  }
  return result;
}

/* SplitMix64 (Steele et al., 2014). Without 0x4, GRND_INSECURE, which is how Rust asks for the keys of its hash tables: how
 * many threads have some must not matter. */
ssize_t getrandom(void *buffer, size_t length, unsigned flags) {
  if (!fate || !fate[1]) return syscall(SYS_getrandom, buffer, length, flags);
  for (size_t i = 0; i < length; i += 8) {
    uint64_t mixed = 0;
    if (!(flags & 4)) mixed = __atomic_add_fetch((uint64_t *)&fate[1], 0x9e3779b97f4a7c15, __ATOMIC_SEQ_CST);
    mixed = (mixed ^ (mixed >> 30)) * 0xbf58476d1ce4e5b9;
    mixed = (mixed ^ (mixed >> 27)) * 0x94d049bb133111eb;
    mixed ^= mixed >> 31;
    memcpy((char *)buffer + i, &mixed, length - i < 8 ? length - i : 8);
  }
  return (ssize_t)length;
}

__attribute__((constructor)) static void start(void) {
  /* One processor, so that things come in nearly the same order every time. */
  cpu_set_t one;
  CPU_ZERO(&one);
  CPU_SET(sched_getcpu(), &one);
  sched_setaffinity(0, sizeof one, &one);
  const char *text = getenv("FAULT_FATE");
  if (text) {
    int opened = open(text, O_RDWR | O_CLOEXEC);
    void *mapped = mmap(NULL, 16, PROT_READ | PROT_WRITE, MAP_SHARED, opened, 0);
    if (opened < 0 || mapped == MAP_FAILED) abort();
    fate = mapped;
  }
  roots = getenv("FAULT_ROOTS");
  if (!roots) return;
  if ((text = getenv("FAULT_AT"))) at = atol(text);
  if ((text = getenv("FAULT_LOG"))) {
    int opened = open(text, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    log_file = fcntl(opened, F_DUPFD_CLOEXEC, 900);
  }
  text = getenv("FAULT_HOW");
  text = text ? text : "EIO";
  how = !strcmp(text, "before") ? BEFORE : !strcmp(text, "after") ? AFTER : !strcmp(text, "torn") ? TORN : FAIL;
  error_number = !strncmp(text, "ENOSPC", 6) ? ENOSPC : !strncmp(text, "EACCES", 6) ? EACCES : EIO;
  goes_on = strchr(text, '+') != NULL;

  struct sigaction action;
  memset(&action, 0, sizeof action);
  action.sa_sigaction = handle;
  action.sa_flags = SA_SIGINFO;
  sigaction(SIGSYS, &action, NULL);

  struct sock_filter filter[10 + 2 * COUNT];
  unsigned short n = 0;
  uint64_t after = (uint64_t)(uintptr_t)fault_after;
#define ADD(...) filter[n++] = (struct sock_filter)__VA_ARGS__
  ADD(BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, arch)));
  ADD(BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, ARCHITECTURE, 1, 0));
  ADD(BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW));
  ADD(BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, instruction_pointer)));
  ADD(BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (uint32_t)after, 0, 3));
  ADD(BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, instruction_pointer) + 4));
  ADD(BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (uint32_t)(after >> 32), 0, 1));
  ADD(BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW));
  ADD(BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)));
  for (size_t i = 0; i < COUNT; i++) {
    ADD(BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (uint32_t)CALLS[i].number, 0, 1));
    ADD(BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_TRAP));
  }
  ADD(BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW));
  struct sock_fprog program = {n, filter};
  if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program)) {
    perror("faults: no seccomp filter");
    abort();
  }
}
