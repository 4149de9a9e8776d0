package keeper

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/micarun/mica/runtimeservice/oci"
)

// shortStep is a time limit for each step that a test waits out. It is long enough for the creation
// on a busy machine.
const shortStep = 10 * time.Second

// waiting is a created container of a runtime that records its command lines.
type waiting struct {
	*node
	id, log, program, calls string
	rt                      *oci.Runtime
}

// waiting creates a container whose process is to be started in the way of StartPipe.
func (n *node) waiting(runtime, startPipe, script string) *waiting {
	n.t.Helper()
	return n.waitingFor(runtime, startPipe, script, time.Minute)
}

// waitingFor is waiting with a time limit for each step.
func (n *node) waitingFor(runtime, startPipe, script string, limit time.Duration) *waiting {
	n.t.Helper()
	return n.waitingAs(runtime, startPipe, spec{script: script}, limit)
}

func (n *node) waitingAs(runtime, startPipe string, as spec, limit time.Duration) *waiting {
	n.t.Helper()
	w := &waiting{node: n}
	w.program, w.calls = n.recorded(runtime)
	a := n.args(n.newID(), as)
	a.Timeout = limit
	a.Runtime[0], a.StartPipe = w.program, startPipe
	w.id, w.log = n.create(a), a.LogPath
	w.rt = oci.New(oci.Handler{Path: w.program, Root: n.root, Type: runtime}, oci.Options{})
	return w
}

// subcommands returns those that the runtime was called with, in order.
func (w *waiting) subcommands() []string {
	w.t.Helper()
	text, err := os.ReadFile(w.calls)
	if err != nil {
		w.t.Fatal(err)
	}
	var found []string
	for line := range strings.Lines(string(text)) {
		for _, word := range strings.Fields(line) {
			if slices.Contains([]string{"create", "start", "delete"}, word) {
				found = append(found, word)
				break
			}
		}
	}
	return found
}

func (w *waiting) state(want string) {
	w.t.Helper()
	st, err := w.rt.State(w.t.Context(), w.id)
	if err != nil || string(st.Status) != want {
		w.t.Errorf("state %q, %v, want %q", st.Status, err, want)
	}
}

// pipeOf returns how the runtime's processes are started, from its features.
func pipeOf(t *testing.T, runtime string) string {
	t.Helper()
	path, err := exec.LookPath(runtime)
	if err != nil {
		t.Skip(err)
	}
	f, err := oci.New(oci.Handler{Path: path}, oci.Options{}).Features(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	return oci.StartPipe(f)
}

// The keeper starts the process without the runtime's start. The runtime then knows it as running,
// and can delete it.
func TestStartByPipe(t *testing.T) {
	for _, runtime := range []string{"runc", "crun"} {
		t.Run(runtime, func(t *testing.T) {
			pipe := pipeOf(t, runtime)
			if pipe == "" {
				t.Fatal("the runtime's version is not recognized")
			}
			w := newNode(t).waiting(runtime, pipe, "echo begun; sleep 1000")
			w.state("created")
			w.start(w.id)
			w.state("running")
			eventually(t, "the process writes to its log", func() bool { return size(w.log) > 0 })
			if err := w.client.Start(t.Context(), w.id); err == nil {
				t.Error("a second start succeeds")
			}
			if err := w.client.Kill(t.Context(), w.id, syscall.SIGTERM, true); err != nil && !errdefs.IsNotFound(err) {
				t.Errorf("kill all: %v", err)
			}
			if err := w.client.Delete(t.Context(), w.id); err != nil {
				t.Error(err)
			}
			if got := w.subcommands(); !slices.Equal(got, []string{"create", "start", "delete"}) {
				t.Errorf("the runtime was called for %v; start only for the second one", got)
			}
		})
	}
}

// Where the pipe is not used as expected, or is missing, the runtime's start does it.
func TestStartByPipeFallsBack(t *testing.T) {
	for name, tc := range map[string]struct {
		runtime, pipe string
		change        func(t *testing.T, pipe string)
	}{
		"runc, written": {"runc", "write", nil},
		"unknown":       {"runc", "other", nil},
		"not a pipe": {"runc", "read", func(t *testing.T, pipe string) {
			for _, do := range []error{os.Rename(pipe, pipe+".moved"), os.Symlink(pipe+".moved", pipe)} {
				if do != nil {
					t.Fatal(do)
				}
			}
		}},
	} {
		t.Run(name, func(t *testing.T) {
			w := newNode(t).waiting(tc.runtime, tc.pipe, "echo begun; sleep 1000")
			if tc.change != nil {
				tc.change(t, filepath.Join(w.root, w.id, "exec.fifo"))
			}
			w.start(w.id)
			eventually(t, "the process writes to its log", func() bool { return size(w.log) > 0 })
			if got := w.subcommands(); !slices.Contains(got, "start") {
				t.Errorf("the runtime was called for %v", got)
			}
		})
	}
}

// pause stops the process that waits for its start, until it gets SIGCONT.
func (w *waiting) pause() (pid int) {
	w.t.Helper()
	st, err := w.client.Get(w.t.Context(), w.id)
	if err == nil {
		err = syscall.Kill(st.Pid, syscall.SIGSTOP)
	}
	if err != nil {
		w.t.Fatal(err)
	}
	return st.Pid
}

// A process that comes to the pipe late, after two seconds, is started by the keeper. The runtime's
// start would not see it arrive, and wait for ever.
func TestStartByPipeOfALateProcess(t *testing.T) {
	w := newNode(t).waiting("runc", "read", "echo begun; sleep 1000")
	pid := w.pause()
	started := make(chan error, 1)
	go func() { started <- w.client.Start(t.Context(), w.id) }()
	for late := time.After(2 * time.Second); ; {
		select {
		case <-late:
		case err := <-started:
			t.Fatalf("Start of a stopped process = %v", err)
		case <-time.After(20 * time.Millisecond):
			if !slices.Contains(w.subcommands(), "start") {
				continue
			}
		}
		break
	}
	if err := syscall.Kill(pid, syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	if err := <-started; err != nil {
		t.Errorf("Start = %v", err)
	}
	eventually(t, "the process writes to its log", func() bool { return size(w.log) > 0 })
	if got := w.subcommands(); slices.Contains(got, "start") {
		t.Errorf("the runtime was called for %v", got)
	}
}

// A process that does not come to the pipe within the time limit is an error that names the pipe.
func TestStartByPipeHasADeadline(t *testing.T) {
	w := newNode(t).waitingFor("runc", "read", "sleep 1000", shortStep)
	w.pause()
	err := w.client.Start(t.Context(), w.id)
	if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "exec.fifo") {
		t.Errorf("Start = %v", err)
	}
	if err := w.client.Delete(t.Context(), w.id); err != nil {
		t.Error(err)
	}
}

// After Start, a signal reaches the container's program, which may ignore it, as the first process
// of a PID namespace does. runc's own process would end with exit code 2.
func TestStartByPipeEndsWithTheExec(t *testing.T) {
	for _, runtime := range []string{"runc", "crun"} {
		t.Run(runtime, func(t *testing.T) {
			as := spec{script: "exec sleep 1000", hook: "sleep 0.5"}
			w := newNode(t).waitingAs(runtime, pipeOf(t, runtime), as, time.Minute)
			if err := w.client.Start(t.Context(), w.id); err != nil {
				t.Fatal(err)
			}
			for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL} {
				if err := w.client.Kill(t.Context(), w.id, sig, false); err != nil {
					t.Fatal(err)
				}
			}
			if exit := w.exit(w.id); exit.Signal != 9 {
				t.Errorf("exit = %+v, want that of SIGKILL: SIGTERM is ignored", exit)
			}
		})
	}
}

// After Start, the process runs the container's program: runc closes its pipe shortly before the
// exec, so the end of the pipe is not enough.
func TestStartByPipeLeavesTheRuntime(t *testing.T) {
	for _, runtime := range []string{"runc", "crun"} {
		t.Run(runtime, func(t *testing.T) {
			n := newNode(t)
			for range 30 {
				w := n.waiting(runtime, pipeOf(t, runtime), "exec sleep 1000")
				before := w.executable()
				if err := w.client.Start(t.Context(), w.id); err != nil {
					t.Fatal(err)
				}
				if after := w.executable(); os.SameFile(before, after) {
					t.Fatal("the process still runs the runtime")
				}
				if err := w.client.Delete(t.Context(), w.id); err != nil {
					t.Error(err)
				}
			}
		})
	}
}

// executable returns the file that the container's process executes.
func (w *waiting) executable() os.FileInfo {
	w.t.Helper()
	st, err := w.client.Get(w.t.Context(), w.id)
	if err != nil {
		w.t.Fatal(err)
	}
	info, err := os.Stat(fmt.Sprintf("/proc/%d/exe", st.Pid))
	if err != nil {
		w.t.Fatal(err)
	}
	return info
}

// A process that does not reach its program within the time limit counts as started, as with the
// runtime's start.
func TestStartByPipeOfALongHook(t *testing.T) {
	as := spec{script: "exec sleep 1000", hook: "sleep 1000"}
	w := newNode(t).waitingAs("runc", "read", as, shortStep)
	if err := w.client.Start(t.Context(), w.id); err != nil {
		t.Error(err)
	}
	if err := w.client.Kill(t.Context(), w.id, syscall.SIGKILL, false); err != nil {
		t.Error(err)
	}
	if exit := w.exit(w.id); exit.Signal != 9 {
		t.Errorf("exit = %+v", exit)
	}
}

// A process that was killed before its start counts as started, as with the runtime's start.
func TestStartByPipeOfAKilledProcess(t *testing.T) {
	for _, runtime := range []string{"runc", "crun"} {
		t.Run(runtime, func(t *testing.T) {
			w := newNode(t).waiting(runtime, pipeOf(t, runtime), "sleep 1000")
			st, err := w.client.Get(t.Context(), w.id)
			if err != nil {
				t.Fatal(err)
			}
			if err := syscall.Kill(st.Pid, syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
			if err := w.client.Start(t.Context(), w.id); err != nil {
				t.Errorf("Start = %v", err)
			}
			if exit := w.exit(w.id); exit.Signal != 9 {
				t.Errorf("exit = %+v", exit)
			}
		})
	}
}
