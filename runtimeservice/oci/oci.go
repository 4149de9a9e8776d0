// Package oci drives an OCI runtime (runc, crun or one that takes the same
// command line) for containers that already exist.
//
// It runs state, update, pause, resume, checkpoint and exec, asks for versions and
// features, and probes which of several runtimes works on this host. It does
// not create, start or delete pods' containers: the keeper does, with the
// argument prefix that Args returns, because the keeper has to be their
// parent. Exec sessions are children of this process, which must be a
// subreaper (internal/reaper).
//
// On disk there is, per exec and only while it starts, a directory in
// Options.WorkDir with the process description, the pid file, the runtime's
// log and the console socket.
package oci

import (
	"cmp"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/micarun/mica/internal/reaper"
)

// defaultTimeout bounds one run of the OCI runtime.
const defaultTimeout = 2 * time.Minute

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
	// this Runtime's alone, on a tmpfs for speed. What is in it before the
	// first Exec is removed. "" means Handler.Root + ".exec", beside the
	// runtime's own directory.
	WorkDir string
	// Reaper collects exec processes, which become children of this process.
	// It is needed for Exec only.
	Reaper *reaper.Reaper
	// Unfreeze moves killed processes out of frozen cgroups, without which they do not die on
	// cgroup v1. nil where the kernel ends frozen processes itself.
	Unfreeze func(pids []int) error
	// Timeout bounds one run of the runtime, two minutes where zero.
	Timeout time.Duration
}

// Runtime drives one OCI runtime. It is safe for concurrent use.
type Runtime struct {
	handler     Handler
	options     Options
	makeWorkDir func() error // runs once, at the first exec
}

// New returns the driver for h. It runs nothing.
func New(h Handler, o Options) *Runtime {
	h.Type = cmp.Or(h.Type, dialect(h.Path))
	if o.WorkDir == "" {
		o.WorkDir = filepath.Clean(h.Root) + ".exec"
	}
	o.Timeout = cmp.Or(o.Timeout, defaultTimeout)
	if o.Unfreeze == nil {
		o.Unfreeze = func([]int) error { return nil }
	}
	return &Runtime{handler: h, options: o, makeWorkDir: sync.OnceValue(func() error { return emptyDir(o.WorkDir) })}
}

// emptyDir makes a directory, or removes what a process that was killed left
// in it.
func emptyDir(dir string) error {
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	return os.MkdirAll(dir, 0o700)
}

// dialect guesses the type from an executable's name, such as "crun-1.27".
func dialect(path string) string {
	for _, name := range []string{"crun", "runc"} {
		if strings.Contains(filepath.Base(path), name) {
			return name
		}
	}
	return ""
}

// Handler returns what the runtime was made with, its type filled in.
func (r *Runtime) Handler() Handler { return r.handler }

// Args returns the argument vector up to the subcommand: the executable and
// the global flags. The caller may change it.
func (r *Runtime) Args() []string {
	args := []string{r.handler.Path}
	if r.handler.Root != "" {
		args = append(args, "--root", r.handler.Root)
	}
	if r.options.SystemdCgroup {
		args = append(args, "--systemd-cgroup")
	}
	return slices.Concat(args, r.handler.Options)
}
