package oci

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/micarun/mica/internal/sealed"
)

// Direct describes where to start a process without the OCI runtime's exec: see ExecArgs.Direct.
type Direct struct {
	// Profile is what the container's specification says beside its process.
	Profile Profile
	// Init is the pidfd of the container's first process. The caller closes it after Exec.
	Init *os.File
	// Unified is the directory of the container's cgroup in the v2 hierarchy; "" for none.
	Unified string
	// V1 are the directories of its cgroups in the v1 hierarchies.
	V1 []string
	// Seccomp returns the specification's seccomp profile. Exec calls it if it does not know the
	// filter that the OCI runtime makes of the profile.
	Seccomp func() (*specs.LinuxSeccomp, error)
	// ProbeCgroup returns the cgroupsPath of a container whose filter is read, and a function that
	// removes the cgroups above it. nil: a cgroup at the top of the tree.
	ProbeCgroup func(context.Context) (path string, release func(), err error)
}

// errIndirect is the error of a process that only the OCI runtime can start, or has to start for
// now.
var errIndirect = errors.New("needs the OCI runtime")

// executingComm is the process name before the program is executed. The kernel takes a program's
// name from its file, and no file name contains a slash.
const executingComm = "mica/exec"

// helperFD is the lowest number of the helper's descriptor. The child's own descriptors, which have
// lower numbers, must not replace it before it is executed.
const helperFD = 200

// openHelper opens the program that starts processes in containers. Its descriptor is above those of
// the child, which would otherwise replace it before it is executed.
func openHelper(program string) (*os.File, error) {
	if program == "" {
		return nil, errIndirect
	}
	f, err := sealed.Open(program)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, helperFD)
	if err != nil {
		return nil, fmt.Errorf("protect program %s: %w", program, err)
	}
	return os.NewFile(uintptr(fd), program), nil
}

// startDirect starts the process by mica-init exec and returns its PID. The process is a child of
// this process. If the error is not that of ctx, the program has not run, and the OCI runtime can
// still start it.
//
//nolint:contextcheck // a filter that is read for the next execs may take longer than this one
func (r *Runtime) startDirect(ctx context.Context, a ExecArgs, s *stdio) (int, error) {
	if a.Direct == nil || s.console != nil {
		return 0, errIndirect
	}
	program, err := r.helper()
	if err != nil {
		return 0, err
	}
	request, err := r.request(a, s)
	if err != nil {
		return 0, err
	}
	ours, files, err := a.Direct.files(request, s)
	defer files.close()
	if err != nil {
		return 0, err
	}
	defer func() { _ = ours.Close() }()
	h, err := os.StartProcess(sealed.Path(program), []string{"mica-init", "exec"}, &os.ProcAttr{Env: []string{}, Files: files.child})
	if err != nil {
		return 0, err
	}
	files.close()
	stop := context.AfterFunc(ctx, func() {
		_ = h.Kill()
		_ = ours.SetDeadline(time.Unix(1, 0))
	})
	defer stop()
	started := conversation{r: r, socket: ours}
	err = started.run(ctx)
	if err != nil && ctx.Err() != nil {
		go func() { _, _ = h.Wait() }() // it may be in an uninterruptible sleep
		return 0, ctx.Err()
	}
	_, _ = h.Wait()
	if err != nil {
		return 0, err
	}
	return started.pid, nil
}

// childFiles are the descriptors of the helper.
type childFiles struct {
	child []*os.File
	ours  []*os.File // those of child to close
}

func (f *childFiles) add(file *os.File) {
	f.child = append(f.child, file)
	f.ours = append(f.ours, file)
}

func (f *childFiles) close() {
	for _, file := range f.ours {
		_ = file.Close()
	}
	f.ours = nil
}

// files opens the descriptors of the helper in the order that cmd/mica-init/exec.c documents, and
// the daemon's end of the socket.
func (d *Direct) files(request []byte, s *stdio) (ours *os.File, f *childFiles, err error) {
	f = &childFiles{}
	for i, file := range s.child {
		if file != nil {
			f.child = append(f.child, file)
			continue
		}
		flag := os.O_WRONLY
		if i == 0 {
			flag = os.O_RDONLY
		}
		null, err := os.OpenFile(os.DevNull, flag, 0)
		if err != nil {
			return nil, f, err
		}
		f.add(null)
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, f, os.NewSyscallError("socketpair", err)
	}
	f.add(os.NewFile(uintptr(pair[1]), "control"))
	if err := unix.SetNonblock(pair[0], true); err != nil { // so that reads can have a deadline
		return nil, f, errors.Join(err, unix.Close(pair[0]))
	}
	ours = os.NewFile(uintptr(pair[0]), "control")
	if err := d.open(f, request); err != nil {
		return nil, f, errors.Join(err, ours.Close())
	}
	return ours, f, nil
}

// open adds the request, the pidfd and the cgroups.
func (d *Direct) open(f *childFiles, request []byte) error {
	fd, err := unix.MemfdCreate("exec", unix.MFD_CLOEXEC|unix.MFD_NOEXEC_SEAL)
	if errors.Is(err, unix.EINVAL) { // Linux before 6.3
		fd, err = unix.MemfdCreate("exec", unix.MFD_CLOEXEC)
	}
	if err != nil {
		return os.NewSyscallError("memfd_create", err)
	}
	memory := os.NewFile(uintptr(fd), "exec")
	f.add(memory)
	if _, err := memory.WriteAt(request, 0); err != nil {
		return err
	}
	f.child = append(f.child, d.Init)
	dir := d.Unified
	if dir == "" {
		dir = os.DevNull // keeps the descriptor's number; it is not used
	}
	unified, err := os.Open(dir)
	if err != nil {
		return err
	}
	f.add(unified)
	for _, dir := range d.V1 {
		tasks, err := os.OpenFile(filepath.Join(dir, "tasks"), os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		f.add(tasks)
	}
	return nil
}

// conversation is what the daemon and the helper's processes say to each other.
type conversation struct {
	r      *Runtime
	socket *os.File
	pid    int // of the process, once it is known
}

// helperMessage is struct message of cmd/mica-init/exec.c.
type helperMessage struct{ kind, value, step, _ int32 }

const (
	helperStarted = 1 // value is the process's PID
	helperFailed  = 2 // value is an errno
)

func (c *conversation) read() (helperMessage, error) {
	var m helperMessage
	buffer := make([]byte, 16)
	n, err := c.socket.Read(buffer)
	if err != nil {
		return m, err
	}
	if n != len(buffer) {
		return m, io.ErrUnexpectedEOF
	}
	for i, to := range []*int32{&m.kind, &m.value, &m.step} {
		*to = int32(order.Uint32(buffer[4*i:]))
	}
	if m.kind == helperFailed {
		return m, fmt.Errorf("step %d: %w", m.step, syscall.Errno(m.value))
	}
	return m, nil
}

// run returns once the program runs. After an error the process has ended.
func (c *conversation) run(ctx context.Context) error {
	m, err := c.read()
	if err != nil {
		return fmt.Errorf("start helper: %w", err)
	}
	if m.kind != helperStarted || m.value <= 1 {
		return fmt.Errorf("start helper: message %d with %d", m.kind, m.value)
	}
	c.pid = int(m.value)
	_, err = c.socket.Write([]byte{1})
	if err == nil {
		_, err = c.read() // ends when the program is executed, or the process has ended
	}
	if errors.Is(err, io.EOF) {
		err = nil
	}
	if err == nil && !c.executed() {
		err = errors.New("process ended before it executed the program")
	}
	if err != nil {
		return errors.Join(err, c.end(ctx))
	}
	return nil
}

// executed reports whether the process has executed the program. It may have ended since, but is
// not reaped. If this process cannot tell, for lack of descriptors, executed returns true: no program
// may run twice.
func (c *conversation) executed() bool {
	comm, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", c.pid))
	return err != nil || strings.TrimSuffix(string(comm), "\n") != executingComm
}

// end kills and reaps the process.
func (c *conversation) end(ctx context.Context) error {
	owned := c.r.options.Reaper.Own(c.pid)
	defer owned()
	_ = unix.Kill(c.pid, unix.SIGKILL) // the PID is still valid, since Hold stops reaping
	err := c.r.options.Unfreeze([]int{c.pid})
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), killTimeout)
	defer cancel()
	_, werr := c.r.options.Reaper.Wait(ctx, c.pid)
	if errors.Is(werr, unix.ECHILD) {
		werr = nil
	}
	return errors.Join(err, werr)
}
