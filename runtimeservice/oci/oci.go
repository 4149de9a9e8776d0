// Package oci drives an OCI runtime (runc, crun or one that takes the same
// command line) for containers that already have a bundle.
//
// It runs state, update, pause, resume and exec, asks for features, and probes
// which of several runtimes works on this host. It does not create, start or
// delete containers in production: the keeper does, with the argument prefix
// that Args returns, because the keeper has to be their parent.
package oci

import (
	"context"
	"errors"
	"io"
	"os"
	"syscall"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/opencontainers/runtime-spec/specs-go/features"
)

// Handler names an OCI runtime that can be configured for a RuntimeClass.
type Handler struct {
	// Name is the RuntimeClass handler, "" for the default.
	Name string
	// Path is the executable, absolute or found in PATH.
	Path string
	// Type is "runc" or "crun" for the dialect of the command line; ""
	// takes it from the base name of Path.
	Type string
	// Root is the directory for the runtime's own state (--root).
	Root string
	// Options are further global command-line flags.
	Options []string
}

// Options says how a Runtime is driven.
type Options struct {
	// SystemdCgroup passes --systemd-cgroup.
	SystemdCgroup bool
	// WorkDir holds the short-lived files of exec sessions; it must be
	// owned by this process alone. "" means Handler.Root + "/.work".
	WorkDir string
	// Reaper collects exec processes, which become children of this process.
	// It is needed for Exec only.
	Reaper Reaper
}

// Reaper waits for processes that were handed to this process by the kernel
// because it is their subreaper.
type Reaper interface {
	// Wait returns how the child pid ended, also if that was before the call.
	Wait(ctx context.Context, pid int) (syscall.WaitStatus, error)
}

// Runtime drives one OCI runtime. It is safe for concurrent use.
type Runtime struct {
	handler Handler
	opts    Options
}

// New returns the driver for h. It runs nothing.
func New(h Handler, o Options) *Runtime { return &Runtime{handler: h, opts: o} }

// Handler returns what the runtime was made with, with defaults filled in.
func (r *Runtime) Handler() Handler { return r.handler }

// Args returns the argument vector up to the subcommand: the executable and
// the global flags.
func (r *Runtime) Args() []string { return nil }

// Features returns what the runtime says it supports; for a runtime without
// the features command, what its version is known to support.
func (r *Runtime) Features(ctx context.Context) (features.Features, error) {
	return features.Features{}, errors.ErrUnsupported
}

// Version returns the first line of the runtime's --version.
func (r *Runtime) Version(ctx context.Context) (string, error) { return "", errors.ErrUnsupported }

// State returns the runtime's own view of a container; ErrNotFound where it
// does not know it.
func (r *Runtime) State(ctx context.Context, id string) (specs.State, error) {
	return specs.State{}, errors.ErrUnsupported
}

// Update changes the cgroup limits of a container.
func (r *Runtime) Update(ctx context.Context, id string, res *specs.LinuxResources) error {
	return errors.ErrUnsupported
}

// Pause freezes a container.
func (r *Runtime) Pause(ctx context.Context, id string) error { return errors.ErrUnsupported }

// Resume thaws a container.
func (r *Runtime) Resume(ctx context.Context, id string) error { return errors.ErrUnsupported }

// ExecArgs describes a process to run in a running container.
type ExecArgs struct {
	// ID is the container's.
	ID string
	// Process is what runs; Process.Terminal decides about a terminal.
	Process *specs.Process
	// Stdin is copied to the process until EOF; nil means /dev/null. If it
	// is an io.Closer it is closed when the process has ended.
	Stdin io.Reader
	// Stdout and Stderr take the output; nil discards it. With a terminal
	// everything goes to Stdout.
	Stdout, Stderr io.Writer
}

// ExecProcess is a process that Exec has started.
type ExecProcess struct{}

// Exec starts a process in a running container and returns when it runs.
// ctx bounds the start only.
func (r *Runtime) Exec(ctx context.Context, a ExecArgs) (*ExecProcess, error) {
	return nil, errors.ErrUnsupported
}

// Pid is the process ID on the host.
func (p *ExecProcess) Pid() int { return 0 }

// Wait returns the exit code when the process has ended and its output is
// copied. Output that a surviving child keeps open is waited for only
// shortly. A process that died by a signal gives 128 + its number. When ctx
// ends first the process and everything it left behind in its session is
// killed, and ctx's error returned.
func (p *ExecProcess) Wait(ctx context.Context) (int, error) { return 0, errors.ErrUnsupported }

// Signal sends sig to every process of the exec session.
func (p *ExecProcess) Signal(sig syscall.Signal) error { return errors.ErrUnsupported }

// Resize sets the size of the terminal in characters.
func (p *ExecProcess) Resize(width, height uint16) error { return errors.ErrUnsupported }

// Probe returns the first candidate that can really run a container on this
// host, and for every candidate before it the reason why not.
func Probe(ctx context.Context, candidates []Handler, a ProbeArgs) (Handler, []error) {
	return Handler{}, []error{errors.ErrUnsupported}
}

// ProbeArgs says what a probe runs.
type ProbeArgs struct {
	// WorkDir takes the probe's bundles and state; it is left as found.
	WorkDir string
	// Binary is a statically linked executable and Args its arguments after
	// the zeroth. It must exit with status 0.
	Binary string
	Args   []string
	// SystemdCgroup is as in Options.
	SystemdCgroup bool
	// CgroupsPath is where the probe container runs.
	CgroupsPath string
}

var _ = os.Stdin
