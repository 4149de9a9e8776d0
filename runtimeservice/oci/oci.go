// Package oci runs an OCI runtime (runc, crun or one with the same command line) on containers that
// already exist.
//
// It runs state, update, pause, resume, checkpoint and exec, queries versions and features, and
// probes which of several runtimes works on this host. It does not create, start or delete the
// containers of pods. The keeper does so, with the argument prefix that Args returns, because the
// keeper has to be their parent. Exec sessions are children of this process, which must be a
// subreaper (internal/reaper).
//
// With ExecArgs.Direct, Exec starts a process by mica-init exec instead of the runtime, as a process
// that has everything that the runtime would give it.
//
// On disk, each exec by the runtime has a directory in Options.WorkDir while it starts. The directory
// holds the process description, the pid file, the runtime's log and the console socket.
package oci

import (
	"cmp"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go/features"

	"github.com/micarun/mica/internal/reaper"
)

// defaultTimeout bounds one run of the OCI runtime.
const defaultTimeout = 2 * time.Minute

// Handler describes an OCI runtime that can be configured for a RuntimeClass.
type Handler struct {
	// Name is the RuntimeClass handler, "" for the default runtime.
	Name string
	// Path is the executable, absolute or looked up in PATH.
	Path string
	// Type is the command line's dialect, "runc" or "crun". "" means that it is taken from the base
	// name of Path.
	Type string
	// Root is the directory for the runtime's own state (--root).
	Root string
	// Options are additional global command-line flags.
	Options []string
}

// Options configures a Runtime.
type Options struct {
	// SystemdCgroup passes --systemd-cgroup.
	SystemdCgroup bool
	// WorkDir holds the short-lived files of exec sessions, preferably on a tmpfs for speed. No
	// other Runtime may use it: the first Exec removes everything in it. "" means Handler.Root +
	// ".exec", next to the runtime's own directory.
	WorkDir string
	// Reaper collects exec processes, which become children of this process. Only Exec needs it.
	Reaper *reaper.Reaper
	// Unfreeze moves killed processes out of frozen cgroups. On cgroup v1 they do not exit
	// otherwise. It may be nil where the kernel ends frozen processes itself (v2).
	Unfreeze func(pids []int) error
	// Timeout bounds one run of the runtime; 0 means two minutes.
	Timeout time.Duration
	// Features are the features that the executable reports, if they are known already.
	Features *features.Features
	// Helper is the path of mica-init, by which Exec starts processes without the runtime if
	// ExecArgs.Direct is set; "" for never.
	Helper string
}

// Runtime runs one OCI runtime. It is safe for concurrent use.
type Runtime struct {
	handler     Handler
	options     Options
	makeWorkDir func() error             // runs once, at the first exec
	helper      func() (*os.File, error) // opens Options.Helper once
	filters     filters
}

// New returns a Runtime for h. It does not run the executable.
func New(h Handler, o Options) *Runtime {
	h.Type = cmp.Or(h.Type, dialect(h.Path))
	if o.WorkDir == "" {
		o.WorkDir = filepath.Clean(h.Root) + ".exec"
	}
	o.Timeout = cmp.Or(o.Timeout, defaultTimeout)
	if o.Unfreeze == nil {
		o.Unfreeze = func([]int) error { return nil }
	}
	r := &Runtime{
		handler: h, options: o,
		makeWorkDir: sync.OnceValue(func() error { return emptyDir(o.WorkDir) }),
		helper:      sync.OnceValues(func() (*os.File, error) { return openHelper(o.Helper) }),
	}
	_, _ = r.helper() // early, since a node's descriptors are expected to stay the same; Exec gets the error
	return r
}

// emptyDir makes an empty directory, removing any leftovers of a killed daemon.
func emptyDir(dir string) error {
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	return os.MkdirAll(dir, 0o700)
}

// dialect guesses the type from the name of an executable, such as "crun-1.27".
func dialect(path string) string {
	for _, name := range []string{"crun", "runc"} {
		if strings.Contains(filepath.Base(path), name) {
			return name
		}
	}
	return ""
}

// Handler returns the handler that New was given, with its type filled in.
func (r *Runtime) Handler() Handler { return r.handler }

// Args returns the command line up to the subcommand: the executable and the global flags. The
// caller may modify the slice.
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
