/*
 * mica-init exec: starts a program in a running container, for ExecSync and exec without a
 * terminal. init.c includes this file.
 *
 * The daemon starts it outside the container, with
 *
 *     3   a seqpacket socket to the daemon
 *     4   the request: struct request and what its offsets refer to
 *     5   the pidfd of the container's first process
 *     6   the directory of the container's cgroup v2, if flag INTO_CGROUP is set
 *     7…  the files "tasks" of the container's cgroups v1
 *
 * It joins the container's namespaces, and starts a child of its own parent that runs the program.
 * It reports the child's pid and exits. The child joins the cgroups, takes the user and the
 * capabilities, and waits for a byte from the daemon before it executes the program. The end of the
 * socket tells the daemon that the program runs, and the child that the daemon gave up.
 *
 * Processes of the container can see the child. Before the child exists, everything is given up
 * that the child does not need. Until the program runs, neither process is dumpable. The
 * program's file is a sealed copy. All descriptors but the streams are closed on exec.
 *
 * A failed step is reported with its number and errno, and ends the process. The program has not
 * run then, so the daemon can let the OCI runtime do the same.
 */

enum {
	CONTROL = 3, REQUEST = 4, INIT = 5, UNIFIED = 6, TASKS = 7,

	/* flags of a request */
	INTO_CGROUP = 1, NO_NEW_PRIVS = 2, SET_UMASK = 4,

	/* messages */
	STARTED = 1, FAILED = 2,

	CLONE_NEWUSER = 0x10000000, CLONE_NEWCGROUP = 0x2000000,
	PR_SET_KEEPCAPS = 8, PR_CAPBSET_DROP = 24, PR_CAP_AMBIENT = 47,
	PR_CAP_AMBIENT_RAISE = 2, PR_CAP_AMBIENT_CLEAR_ALL = 4,
	CAP_DAC_OVERRIDE = 1, CAP_SETGID = 6, CAP_SETUID = 7, CAP_SYS_ADMIN = 21,
	CLOSE_RANGE_CLOEXEC = 4,
	AT_FDCWD = -100, O_WRONLY = 1, O_CLOEXEC = 02000000,
	SIG_SETMASK = 2, LAST_SIGNAL = 64,
	SECCOMP_SET_MODE_FILTER = 1,
	KEYCTL_JOIN_SESSION_KEYRING = 1,
	ENOENT = 2, EACCES = 13, ENOTDIR = 20, ENOSYS = 38,
	PATH_MAX = 4096,
};

#define CLONE_INTO_CGROUP 0x200000000UL
#define BIT(n) (1UL << (n))

/* request is written by runtimeservice/oci/direct_request.go. Offsets count from its beginning. */
struct request {
	unsigned long size;            /* of everything, in bytes */
	unsigned long flags;
	unsigned long namespaces;      /* CLONE_NEW… to join */
	unsigned long tasks;           /* number of descriptors from TASKS on */
	unsigned long owned;           /* bit n: stream n gets the owner uid, owner_gid */
	long owner_gid;                /* -1: the group stays */
	unsigned long uid, gid;
	unsigned long groups, group_count;
	unsigned long bounding, effective, permitted, inheritable, ambient;
	unsigned long last_cap;        /* highest capability of the kernel */
	unsigned long umask;
	unsigned long limits, limit_count;
	unsigned long filter, filter_len, filter_flags; /* filter_len 0: no seccomp filter */
	unsigned long score, score_len; /* text for oom_score_adj */
	unsigned long cwd, keyring;    /* keyring: name of the session keyring; 0: the daemon's */
	unsigned long argv, envp, paths; /* zero-terminated arrays of offsets of strings */
};

struct limit {
	unsigned long resource, soft, hard;
};

struct message {
	int kind, value, step, unused;
};

static void tell(int kind, int value, int step)
{
	static struct message m;

	m.kind = kind;
	m.value = value;
	m.step = step;
	call(SYS_write, CONTROL, (long)&m, sizeof m, 0, 0);
}

static long need(int number, long result)
{
	if (result < 0) {
		tell(FAILED, -result, number);
		leave(number);
	}
	return result;
}

/* load reads the request and turns the offsets of strings into pointers. */
static struct request *load(void)
{
	static struct request head;
	unsigned long have = 0;
	char *at;

	if (call(SYS_read, REQUEST, (long)&head, sizeof head, 0, 0) != sizeof head || head.size < sizeof head)
		need(1, -EINVAL);
	at = (char *)need(2, call(SYS_brk, 0, 0, 0, 0, 0));
	at += 64 - ((unsigned long)at & 63);
	if ((char *)call(SYS_brk, (long)at + head.size, 0, 0, 0, 0) < at + head.size)
		need(3, -EINVAL);
	*(struct request *)at = head;
	for (have = sizeof head; have < head.size;) {
		long n = need(4, call(SYS_read, REQUEST, (long)at + have, head.size - have, 0, 0));

		if (n == 0)
			need(4, -EINVAL);
		have += n;
	}
	for (int i = 0; i < 3; i++) {
		unsigned long first = i == 0 ? head.argv : i == 1 ? head.envp : head.paths;

		for (unsigned long *s = (unsigned long *)(at + first); *s != 0; s++)
			*s += (unsigned long)at;
	}
	return (struct request *)at;
}

static void reset_signals(void)
{
	static const unsigned long action[4]; /* SIG_DFL */
	static const unsigned long none;

	for (int n = 1; n <= LAST_SIGNAL; n++)
		call(SYS_rt_sigaction, n, (long)action, 0, sizeof none, 0); /* SIGKILL and SIGSTOP cannot be set */
	need(5, call(SYS_rt_sigprocmask, SIG_SETMASK, (long)&none, 0, sizeof none, 0));
}

static void capset(int number, unsigned long effective, unsigned long permitted, unsigned long inheritable)
{
	static struct { unsigned version, pid; } header;
	static struct { unsigned effective, permitted, inheritable; } data[2];

	header.version = 0x20080522;
	for (int i = 0; i < 2; i++) {
		data[i].effective = effective >> 32 * i;
		data[i].permitted = permitted >> 32 * i;
		data[i].inheritable = inheritable >> 32 * i;
	}
	need(number, call(SYS_capset, (long)&header, (long)data, 0, 0, 0));
}

/* kept is what the child needs until it runs the program, besides the program's own capabilities. */
static unsigned long kept(const struct request *r)
{
	unsigned long caps = BIT(CAP_SETUID) | BIT(CAP_SETGID);

	if (r->flags & INTO_CGROUP)
		caps |= BIT(CAP_DAC_OVERRIDE);
	if (r->namespaces & CLONE_NEWCGROUP || (r->filter_len > 0 && !(r->flags & NO_NEW_PRIVS)))
		caps |= BIT(CAP_SYS_ADMIN);
	return caps;
}

/* set_score writes to this machine's /proc. The child inherits the value. */
static void set_score(const char *text, unsigned long len)
{
	long fd = need(10, call(SYS_openat, AT_FDCWD, (long)"/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC, 0, 0));

	call(SYS_write, fd, (long)text, len, 0, 0); /* a node that refuses it has refused it for the container */
	call(SYS_close, fd, 0, 0, 0, 0);
}

/* join_keyring joins or makes the container's session keyring, as runc does. */
static void join_keyring(const char *name)
{
	long err = call(SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, (long)name, 0, 0, 0);

	if (err != -ENOSYS)
		need(19, err);
}

/* enter changes to the working directory, which must be inside the container. */
static void enter(const char *dir)
{
	static char path[PATH_MAX];

	need(12, call(SYS_chdir, (long)dir, 0, 0, 0, 0));
	need(13, call(SYS_getcwd, (long)path, sizeof path, 0, 0, 0));
	if (path[0] != '/') /* "(unreachable)" */
		need(13, -EINVAL);
}

/* prepare does what needs the privileges of the node's root. */
static void prepare(const struct request *r)
{
	const struct limit *limits = (const void *)((const char *)r + r->limits);

	if (r->score_len > 0)
		set_score((const char *)r + r->score, r->score_len);
	if (r->flags & SET_UMASK)
		call(SYS_umask, r->umask, 0, 0, 0, 0);
	for (unsigned long i = 0; i < r->limit_count; i++)
		need(14, call(SYS_prlimit64, 0, limits[i].resource, (long)&limits[i].soft, 0, 0));
	if (r->namespaces & ~CLONE_NEWCGROUP)
		need(15, call(SYS_setns, INIT, r->namespaces & ~CLONE_NEWCGROUP, 0, 0, 0));
	for (int stream = 0; stream < 3; stream++)
		if (r->owned & BIT(stream)) {
			long err = call(SYS_fchown, stream, r->uid, r->owner_gid, 0, 0);

			if (err != -EPERM && err != -EINVAL) /* an owner without an ID in this user namespace */
				need(16, err);
		}
	enter((const char *)r + r->cwd);
	for (unsigned long n = 0; n <= r->last_cap; n++)
		if (!(r->bounding & BIT(n)))
			need(17, call(SYS_prctl, PR_CAPBSET_DROP, n, 0, 0, 0));
	capset(18, r->permitted | kept(r), r->permitted | kept(r), r->inheritable);
}

static void install_filter(const struct request *r)
{
	static struct { unsigned short len; const void *filter; } program;

	if (r->filter_len == 0)
		return;
	program.len = r->filter_len;
	program.filter = (const char *)r + r->filter;
	need(20, call(SYS_seccomp, SECCOMP_SET_MODE_FILTER, r->filter_flags, (long)&program, 0, 0));
}

/* conceal makes the process not dumpable. A change of the user undoes that with sysctl fs.suid_dumpable=1. */
static void conceal(int number)
{
	need(number, call(SYS_prctl, PR_SET_DUMPABLE, 0, 0, 0, 0));
}

/* become gives the child its cgroups, its user and its capabilities. */
static void become(const struct request *r)
{
	call(SYS_close, UNIFIED, 0, 0, 0, 0); /* the only directory of the host */
	need(21, call(SYS_setsid, 0, 0, 0, 0, 0));
	/* A thread that moves itself waits for no other. */
	for (unsigned long fd = TASKS; fd < TASKS + r->tasks; fd++)
		need(22, call(SYS_write, fd, (long)"0", 1, 0, 0));
	if (r->namespaces & CLONE_NEWCGROUP)
		need(23, call(SYS_setns, INIT, CLONE_NEWCGROUP, 0, 0, 0));
	if (r->namespaces & CLONE_NEWUSER) { /* until here, the user was the node's root */
		need(34, call(SYS_setresgid, 0, 0, 0, 0, 0));
		need(35, call(SYS_setresuid, 0, 0, 0, 0, 0));
		conceal(36);
	}
	if (r->keyring)
		join_keyring((const char *)r + r->keyring);
	for (unsigned long fd = REQUEST; fd < TASKS + r->tasks; fd++)
		call(SYS_close, fd, 0, 0, 0, 0);
	if (r->flags & NO_NEW_PRIVS)
		need(24, call(SYS_prctl, PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
	else
		install_filter(r); /* while the child has CAP_SYS_ADMIN */
	need(25, call(SYS_setgroups, r->group_count, (long)r + r->groups, 0, 0, 0));
	need(26, call(SYS_prctl, PR_SET_KEEPCAPS, 1, 0, 0, 0));
	need(27, call(SYS_setresgid, r->gid, r->gid, r->gid, 0, 0));
	need(28, call(SYS_setresuid, r->uid, r->uid, r->uid, 0, 0));
	conceal(37); /* before the child has no more capabilities than others of its user */
	need(29, call(SYS_prctl, PR_SET_KEEPCAPS, 0, 0, 0, 0));
	capset(30, r->effective, r->permitted, r->inheritable);
	need(31, call(SYS_prctl, PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0));
	for (unsigned long n = 0; n <= r->last_cap; n++)
		if (r->ambient & BIT(n))
			need(32, call(SYS_prctl, PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, n, 0, 0));
}

/* execute runs the program that the first usable path names. */
static _Noreturn void execute(const struct request *r)
{
	const char *const *paths = (const void *)((const char *)r + r->paths);
	long result = -ENOENT, err;
	char go;

	if (call(SYS_read, CONTROL, (long)&go, 1, 0, 0) != 1)
		leave(0); /* the daemon has given up */
	if (r->flags & NO_NEW_PRIVS)
		install_filter(r);
	for (; *paths; paths++) {
		err = call(SYS_execve, (long)*paths, (long)r + r->argv, (long)r + r->envp, 0, 0);
		if (err != -ENOENT && err != -ENOTDIR)
			result = err;
		if (err != -ENOENT && err != -ENOTDIR && err != -EACCES)
			break;
	}
	need(40, result);
	leave(40);
}

static _Noreturn void exec_in_container(void)
{
	static unsigned long clone_args[11]; /* flags, …, exit signal (4), …, cgroup (10) */
	struct request *r;
	long pid;

	conceal(6);
	/* A name that no program's file can have: the daemon sees whether the program was executed. */
	call(SYS_prctl, PR_SET_NAME, (long)"mica/exec", 0, 0, 0);
	r = load();
	for (unsigned long fd = CONTROL; fd < TASKS + r->tasks; fd++)
		call(SYS_fcntl, fd, F_SETFD, FD_CLOEXEC, 0, 0); /* some of them may be missing */
	call(SYS_close_range, CONTROL, ~0U, CLOSE_RANGE_CLOEXEC, 0, 0); /* Linux 5.11 */
	reset_signals();
	prepare(r);
	clone_args[0] = CLONE_PARENT;
	if (r->flags & INTO_CGROUP) {
		clone_args[0] |= CLONE_INTO_CGROUP;
		clone_args[10] = UNIFIED;
	}
	pid = need(33, call(SYS_clone3, (long)clone_args, sizeof clone_args, 0, 0, 0));
	if (pid == 0) {
		become(r);
		execute(r);
	}
	tell(STARTED, pid, 0);
	leave(0);
}
