package oci

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"
	"unsafe"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"

	"github.com/micarun/mica/internal/osthread"
)

const (
	// maxFilters is the number of seccomp filters that a Runtime keeps; each takes 5 to 30 KiB.
	maxFilters = 64
	// filterRetry is the pause after a filter could not be captured. It doubles with each failure, up
	// to maxFilterRetry: some hosts never allow it.
	filterRetry    = time.Minute
	maxFilterRetry = time.Hour
	// filterWait bounds how long an exec waits for the filter that it lacked after it has ended.
	filterWait = 5 * time.Second
	// maxFilter is the maximum number of instructions of a filter (BPF_MAXINSNS).
	maxFilter = 4096
)

// filter is a compiled seccomp filter.
type filter struct {
	program []byte // struct sock_filter, 8 bytes each; empty for no filter
	flags   uint64 // SECCOMP_FILTER_FLAG_…
}

// filters are the filters that the OCI runtime makes of seccomp profiles. A filter is read from a
// container that the runtime starts for that purpose, so it is exactly the runtime's.
type filters struct {
	mu    sync.Mutex // guards known
	known map[string]*capture
}

// capture is a filter, or the attempt to read it.
type capture struct {
	done chan struct{} // closed after the attempt; the rest is set before

	filter *filter       // nil if the attempt failed
	pause  time.Duration // until the next attempt; set at the beginning
	retry  time.Time     // when to try again
}

// ended reports whether the attempt has ended.
func (c *capture) ended() bool {
	select {
	case <-c.done:
		return true
	default:
		return false
	}
}

// of returns the filter of a container's profile. If it is not known, of starts to read it and
// returns an unreadFilter.
func (f *filters) of(r *Runtime, d *Direct) (*filter, error) {
	key := d.Profile.seccomp
	if key == "" {
		return &filter{}, nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	c := f.known[key]
	if c == nil && !f.makeRoom() {
		return nil, errIndirect
	}
	if c == nil || c.ended() && c.filter == nil && time.Now().After(c.retry) {
		pause := filterRetry
		if c != nil {
			pause = min(2*c.pause, maxFilterRetry)
		}
		c = &capture{done: make(chan struct{}), pause: pause}
		f.known[key] = c
		go c.run(r, d.Seccomp, d.ProbeCgroup)
	}
	switch {
	case !c.ended():
		return nil, unreadFilter{c.done}
	case c.filter == nil:
		return nil, errIndirect
	}
	return c.filter, nil
}

// makeRoom forgets a filter if there are too many. It reports false if all of them are being read.
// f.mu is held.
func (f *filters) makeRoom() bool {
	if f.known == nil {
		f.known = map[string]*capture{}
	}
	if len(f.known) < maxFilters {
		return true
	}
	for key, c := range f.known { // in random order
		if c.ended() {
			delete(f.known, key)
			return true
		}
	}
	return false
}

// unreadFilter is the errIndirect of a process whose seccomp filter is being read.
type unreadFilter struct{ read <-chan struct{} }

func (unreadFilter) Error() string        { return "seccomp filter is not known yet" }
func (unreadFilter) Is(target error) bool { return target == errIndirect }

// run reads the filter. It continues when the exec that has caused it has ended.
func (c *capture) run(r *Runtime, profile func() (*specs.LinuxSeccomp, error), cgroup func(context.Context) (string, func(), error)) {
	defer close(c.done)
	ctx, cancel := context.WithTimeout(context.Background(), probeTimeout)
	defer cancel()
	seccomp, err := profile()
	if err == nil {
		c.filter, err = r.readFilterOf(ctx, seccomp, cgroup)
	}
	c.retry = time.Now().Add(c.pause)
	if err != nil {
		klog.Background().Info("Execs use the OCI runtime, because a seccomp filter cannot be read", "reason", err.Error())
	}
}

// readFilterOf runs a container with the profile and returns its process's filter. The container
// ends with this process at the latest: its process waits for the end of its standard input.
func (r *Runtime) readFilterOf(ctx context.Context, profile *specs.LinuxSeccomp, cgroup func(context.Context) (string, func(), error)) (_ *filter, err error) {
	if err := r.makeWorkDir(); err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp(r.options.WorkDir, "filter-")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	args := ProbeArgs{Binary: r.options.Helper, Args: []string{"wait"}, SystemdCgroup: r.options.SystemdCgroup, Seccomp: profile}
	if cgroup != nil {
		path, release, err := cgroup(ctx)
		if err != nil {
			return nil, err
		}
		defer release()
		args.CgroupsPath = path
	}
	id := "mica-filter-" + strings.ToLower(rand.Text())
	if err := writeProbeBundle(dir, id, args); err != nil {
		return nil, err
	}
	h := r.handler
	h.Root = filepath.Join(dir, "state")
	probe := New(h, Options{SystemdCgroup: r.options.SystemdCgroup, Timeout: probeTimeout, Reaper: r.options.Reaper})
	got, err := probe.filterOf(ctx, dir, id)
	if err != nil { // a container that has ended by itself is deleted
		_, _ = probe.run(context.WithoutCancel(ctx), nil, "delete", "--force", id)
	}
	return got, err
}

// filterOf runs the bundle until it has read the filter of the container's process.
func (r *Runtime) filterOf(ctx context.Context, bundle, id string) (*filter, error) {
	pidFile := filepath.Join(bundle, pidFile)
	args := append(r.Args(), "run", "--bundle", bundle, "--pid-file", pidFile, id)
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.WaitDelay = killDelay
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	var log strings.Builder
	cmd.Stderr = &log
	release, err := r.start(cmd)
	if err != nil {
		return nil, err
	}
	defer release()
	var got *filter
	if _, err = io.ReadFull(out, make([]byte, 1)); err == nil {
		var pid int
		if pid, err = awaitPid(ctx, pidFile); err == nil {
			owned := r.options.Reaper.Own(pid) // a reaper's wait would take the stop of a traced process
			got, err = readFilter(ctx, pid)
			owned()
		}
	}
	_ = in.Close()
	if werr := cmd.Wait(); werr != nil {
		return nil, errors.Join(err, r.failure("run", werr, []byte(log.String())))
	}
	return got, err
}

// readFilter reads the only seccomp filter of a process by ptrace(2), which stops it for a moment.
func readFilter(ctx context.Context, pid int) (*filter, error) {
	var got *filter
	err := osthread.Run(func() (err error) { // a process is traced by one thread
		if err := unix.PtraceSeize(pid); err != nil {
			return os.NewSyscallError("ptrace seize", err)
		}
		defer func() { err = errors.Join(err, os.NewSyscallError("ptrace detach", unix.PtraceDetach(pid))) }()
		if err := unix.PtraceInterrupt(pid); err != nil {
			return os.NewSyscallError("ptrace interrupt", err)
		}
		if err := awaitStop(ctx, pid); err != nil {
			return err
		}
		got, err = tracedFilter(pid)
		return err
	})
	return got, err
}

// awaitPid reads the PID file, which runc writes after it has started the process.
func awaitPid(ctx context.Context, file string) (int, error) {
	for {
		pid, err := readPid(file)
		if err == nil {
			return pid, nil
		}
		select {
		case <-ctx.Done():
			return 0, err
		case <-time.After(time.Millisecond):
		}
	}
}

// awaitStop waits until a traced process has stopped.
func awaitStop(ctx context.Context, pid int) error {
	for {
		var status unix.WaitStatus
		got, err := unix.Wait4(pid, &status, unix.WALL|unix.WNOHANG, nil)
		switch {
		case err != nil && !errors.Is(err, unix.EINTR):
			return os.NewSyscallError("wait4", err)
		case got == pid && status.Stopped():
			return nil
		case got == pid:
			return errors.New("process has ended")
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(time.Millisecond):
		}
	}
}

// ptrace requests and a flag that x/sys has no names for
const (
	ptraceSeccompGetFilter   = 0x420c
	ptraceSeccompGetMetadata = 0x420d
)

func tracedFilter(pid int) (*filter, error) {
	count, err := ptrace(ptraceSeccompGetFilter, pid, 0, nil)
	if err != nil {
		return nil, os.NewSyscallError("ptrace get filter", err)
	}
	if count == 0 || count > maxFilter {
		return nil, fmt.Errorf("filter of %d instructions", count)
	}
	program := make([]byte, 8*count)
	if _, err := ptrace(ptraceSeccompGetFilter, pid, 0, unsafe.Pointer(&program[0])); err != nil {
		return nil, os.NewSyscallError("ptrace get filter", err)
	}
	if _, err := ptrace(ptraceSeccompGetFilter, pid, 1, nil); !errors.Is(err, unix.ENOENT) {
		return nil, errors.New("the OCI runtime uses several seccomp filters")
	}
	metadata := struct{ index, flags uint64 }{}
	if _, err := ptrace(ptraceSeccompGetMetadata, pid, unsafe.Sizeof(metadata), unsafe.Pointer(&metadata)); err != nil {
		return nil, os.NewSyscallError("ptrace get metadata", err)
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return nil, err
	}
	flags := metadata.flags
	// The kernel does not report this flag, only what it prevents.
	if !strings.Contains(string(status), "force mitigated") && !strings.Contains(string(status), "force disabled") {
		flags |= unix.SECCOMP_FILTER_FLAG_SPEC_ALLOW
	}
	return &filter{program: program, flags: flags}, nil
}

func ptrace(request, pid int, addr uintptr, data unsafe.Pointer) (uintptr, error) {
	n, _, errno := unix.Syscall6(unix.SYS_PTRACE, uintptr(request), uintptr(pid), addr, uintptr(data), 0, 0)
	if errno != 0 {
		return 0, errno
	}
	return n, nil
}
