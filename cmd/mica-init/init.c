/*
 * mica-init is process 1 of a pod whose containers share a PID namespace.
 *
 *     cc -Os -static -nostdlib -o mica-init cmd/mica-init/init.c
 *
 * It reaps orphans and exits on SIGTERM and SIGINT. It forwards no signals. The
 * pod's containers can see it in their /proc. Before it reports ready (one byte on
 * stdout, then end of file), it therefore drops everything that they could misuse:
 * it has a mount namespace whose root is an empty read-only tmpfs, so that
 * /proc/1/root leads nowhere; no descriptors; uid and gid 65534 without groups and
 * capabilities; and it is not dumpable.
 *
 * With an argument it first does a task that needs a process with one thread:
 * entering a user namespace, or being the first process in one.
 *
 *     mica-init hold    keeps the namespaces that it was started in until the end of stdin
 *     mica-init wait    writes a byte to stdout, then does the same
 *     mica-init join    enters the namespaces of descriptors 3, 4, …, the user namespace
 *                       first; starts process 1 of a new PID namespace as a child of its
 *                       own parent; writes that process's pid to stderr, four bytes; exits
 *     mica-init exec    starts a program in a running container (exec.c)
 *
 * It uses no libc, only system calls of x86-64 and arm64 Linux, and allocates nothing.
 * If a start-up step below fails, the exit status is the number of the step.
 */

#if defined(__x86_64__)

enum {
	SYS_read = 0, SYS_write = 1, SYS_close = 3, SYS_rt_sigprocmask = 14, SYS_clone = 56, SYS_wait4 = 61,
	SYS_chdir = 80,
	SYS_setuid = 105, SYS_setgid = 106, SYS_setgroups = 116, SYS_rt_sigtimedwait = 128,
	SYS_pivot_root = 155, SYS_prctl = 157, SYS_mount = 165, SYS_umount2 = 166,
	SYS_exit_group = 231, SYS_unshare = 272, SYS_setns = 308, SYS_close_range = 436,
	/* exec.c */
	SYS_brk = 12, SYS_rt_sigaction = 13, SYS_execve = 59, SYS_fcntl = 72, SYS_getcwd = 79, SYS_fchown = 93,
	SYS_umask = 95, SYS_setsid = 112, SYS_setresuid = 117, SYS_setresgid = 119, SYS_capset = 126, SYS_keyctl = 250,
	SYS_openat = 257,
	SYS_prlimit64 = 302, SYS_seccomp = 317, SYS_clone3 = 435,
};

static long call(long n, long a, long b, long c, long d, long e)
{
	long ret;
	register long r10 __asm__("r10") = d;
	register long r8 __asm__("r8") = e;
	__asm__ volatile("syscall"
			 : "=a"(ret)
			 : "a"(n), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8)
			 : "rcx", "r11", "memory");
	return ret;
}

__asm__(".globl _start\n_start:\n mov %rsp,%rdi\n xor %ebp,%ebp\n and $-16,%rsp\n call run\n");

#elif defined(__aarch64__)

enum {
	SYS_umount2 = 39, SYS_mount = 40, SYS_pivot_root = 41, SYS_chdir = 49, SYS_close = 57,
	SYS_read = 63, SYS_write = 64, SYS_exit_group = 94, SYS_unshare = 97, SYS_rt_sigprocmask = 135,
	SYS_rt_sigtimedwait = 137, SYS_setgid = 144, SYS_setuid = 146, SYS_setgroups = 159,
	SYS_prctl = 167, SYS_clone = 220, SYS_wait4 = 260, SYS_setns = 268, SYS_close_range = 436,
	/* exec.c */
	SYS_getcwd = 17, SYS_fcntl = 25, SYS_fchown = 55, SYS_openat = 56, SYS_capset = 91, SYS_rt_sigaction = 134,
	SYS_setresuid = 147, SYS_setresgid = 149, SYS_setsid = 157, SYS_umask = 166, SYS_brk = 214, SYS_keyctl = 219,
	SYS_execve = 221, SYS_prlimit64 = 261, SYS_seccomp = 277, SYS_clone3 = 435,
};

static long call(long n, long a, long b, long c, long d, long e)
{
	register long x8 __asm__("x8") = n;
	register long x0 __asm__("x0") = a;
	register long x1 __asm__("x1") = b;
	register long x2 __asm__("x2") = c;
	register long x3 __asm__("x3") = d;
	register long x4 __asm__("x4") = e;
	__asm__ volatile("svc 0"
			 : "+r"(x0)
			 : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4)
			 : "memory");
	return x0;
}

__asm__(".globl _start\n_start:\n mov x0,sp\n mov x29,xzr\n mov x30,xzr\n bl run\n");

#else
#error "mica-init supports x86-64 and arm64 only"
#endif

enum {
	CLONE_PARENT = 0x8000, CLONE_NEWNS = 0x20000, CLONE_NEWPID = 0x20000000,
	MS_RDONLY = 1, MS_NOSUID = 2, MS_NODEV = 4, MS_NOEXEC = 8, MS_REMOUNT = 32,
	MS_REC = 0x4000, MS_PRIVATE = 1 << 18,
	MNT_DETACH = 2,
	F_SETFD = 2, FD_CLOEXEC = 1,
	PR_SET_DUMPABLE = 4, PR_SET_NAME = 15, PR_SET_NO_NEW_PRIVS = 38,
	SIG_BLOCK = 0, SIGINT = 2, SIGTERM = 15, SIGCHLD = 17,
	WNOHANG = 1,
	EPERM = 1, EBADF = 9, EINVAL = 22,
	NOBODY = 65534,
};

#define SIGNAL(n) (1UL << ((n) - 1))

static _Noreturn void leave(long status)
{
	for (;;)
		call(SYS_exit_group, status, 0, 0, 0, 0);
}

static void step(long number, long result)
{
	if (result < 0)
		leave(number);
}

/* hide replaces the root file system of the process by an empty one. */
static void hide(void)
{
	const long quiet = MS_NOSUID | MS_NODEV | MS_NOEXEC;

	step(11, call(SYS_unshare, CLONE_NEWNS, 0, 0, 0, 0));
	step(12, call(SYS_mount, (long)"none", (long)"/", 0, MS_REC | MS_PRIVATE, 0));
	step(13, call(SYS_mount, (long)"tmpfs", (long)"/proc", (long)"tmpfs", quiet, (long)"size=4k,nr_inodes=2,mode=555"));
	step(14, call(SYS_chdir, (long)"/proc", 0, 0, 0, 0));
	step(15, call(SYS_pivot_root, (long)".", (long)".", 0, 0, 0));
	step(16, call(SYS_umount2, (long)".", MNT_DETACH, 0, 0, 0));
	step(17, call(SYS_chdir, (long)"/", 0, 0, 0, 0));
	step(18, call(SYS_mount, 0, (long)"/", 0, MS_REMOUNT | MS_RDONLY | quiet, 0));
}

/* drop gives up all privileges. */
static void drop(void)
{
	long err = call(SYS_setgroups, 0, 0, 0, 0, 0);

	if (err != -EPERM) /* not permitted in this user namespace; there are no groups to drop */
		step(21, err);
	err = call(SYS_setgid, NOBODY, 0, 0, 0, 0);
	if (err != -EINVAL) /* not mapped in this user namespace */
		step(22, err);
	err = call(SYS_setuid, NOBODY, 0, 0, 0, 0);
	if (err != -EINVAL)
		step(23, err);
	step(24, call(SYS_prctl, PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
	step(25, call(SYS_prctl, PR_SET_DUMPABLE, 0, 0, 0, 0));
}

#include "exec.c"

/* hold keeps the namespaces of the process until the other end of stdin is closed. */
static _Noreturn void hold(void)
{
	char c;

	while (call(SYS_read, 0, (long)&c, 1, 0, 0) > 0)
		;
	leave(0);
}

/* join returns only in the new process 1, as root of the user namespace. */
static void join(void)
{
	long result = 0;
	int pid;

	for (long fd = 3; result != -EBADF; fd++) {
		result = call(SYS_setns, fd, 0, 0, 0, 0);
		if (result != -EBADF)
			step(31, result);
	}
	step(32, call(SYS_setgroups, 0, 0, 0, 0, 0));
	step(33, call(SYS_setgid, 0, 0, 0, 0, 0));
	step(34, call(SYS_setuid, 0, 0, 0, 0, 0));
	pid = call(SYS_clone, CLONE_PARENT | CLONE_NEWPID | SIGCHLD, 0, 0, 0, 0);
	step(35, pid);
	if (pid == 0)
		return;
	step(36, call(SYS_write, 2, (long)&pid, sizeof pid, 0, 0));
	leave(0);
}

/* stack is argc, then argv, as the kernel lays it out. */
__attribute__((used)) _Noreturn void run(const long *stack)
{
	/* The kernel queues blocked signals even for process 1, and drops the others. */
	const unsigned long wanted = SIGNAL(SIGCHLD) | SIGNAL(SIGTERM) | SIGNAL(SIGINT);

	if (stack[0] > 1 && *(const char *)stack[2] == 'w')
		step(41, call(SYS_write, 1, (long)"R", 1, 0, 0));
	if (stack[0] > 1 && (*(const char *)stack[2] == 'h' || *(const char *)stack[2] == 'w'))
		hold();
	if (stack[0] > 1 && *(const char *)stack[2] == 'j')
		join();
	if (stack[0] > 1 && *(const char *)stack[2] == 'e')
		exec_in_container();
	step(1, call(SYS_rt_sigprocmask, SIG_BLOCK, (long)&wanted, 0, sizeof wanted, 0));
	step(2, call(SYS_prctl, PR_SET_NAME, (long)"mica-init", 0, 0, 0));
	hide();
	drop();
	call(SYS_close, 0, 0, 0, 0, 0);
	if (call(SYS_close_range, 2, ~0U, 0, 0, 0) < 0) /* before Linux 5.9 */
		call(SYS_close, 2, 0, 0, 0, 0);
	/* The keeper waits for the byte and for the end of the pipe. */
	step(3, call(SYS_write, 1, (long)"R", 1, 0, 0));
	call(SYS_close, 1, 0, 0, 0, 0);
	for (;;) {
		long signal = call(SYS_rt_sigtimedwait, (long)&wanted, 0, 0, sizeof wanted, 0);

		if (signal == SIGTERM || signal == SIGINT)
			leave(0);
		while (call(SYS_wait4, -1, 0, WNOHANG, 0, 0) > 0)
			;
	}
}
