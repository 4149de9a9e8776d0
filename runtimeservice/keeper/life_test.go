package keeper

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
)

func TestLifeCycle(t *testing.T) {
	n := newNode(t)
	a := n.args(n.newID(), spec{script: "echo out; echo err >&2; printf unfinished; exit 3"})
	pid, err := n.client.Create(t.Context(), a)
	if err != nil {
		t.Fatal(err)
	}
	st, err := n.client.Get(t.Context(), a.ID)
	if err != nil || !cmp.Equal(st, State{ID: a.ID, Pid: pid, Running: true}) {
		t.Fatalf("Get = %+v, %v", st, err)
	}
	if _, err := n.client.Create(t.Context(), a); !errdefs.IsAlreadyExists(err) {
		t.Errorf("second Create: %v", err)
	}
	if err := n.client.Shutdown(t.Context()); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("Shutdown with a container: %v", err)
	}
	n.start(a.ID)
	exit := n.exit(a.ID)
	if exit.Code != 3 || exit.Signal != 0 || exit.OOMKilled || exit.Reason != "" || time.Since(exit.At) > time.Minute {
		t.Errorf("exit = %+v", exit)
	}
	st, err = n.client.Get(t.Context(), a.ID)
	if err != nil || st.Running || st.Exit == nil || st.Exit.Code != 3 {
		t.Errorf("Get after exit = %+v, %v", st, err)
	}
	if err := n.client.Kill(t.Context(), a.ID, syscall.SIGTERM, false); err != nil {
		t.Errorf("Kill after exit: %v", err)
	}
	got := readLog(t, a.LogPath)
	var out, errs []logLine
	for _, l := range got {
		if l.stream == "stdout" {
			out = append(out, l)
		} else {
			errs = append(errs, l)
		}
	}
	if diff := cmp.Diff([]logLine{{"stdout", "F", "out"}, {"stdout", "P", "unfinished"}}, out, cmp.AllowUnexported(logLine{})); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]logLine{{"stderr", "F", "err"}}, errs, cmp.AllowUnexported(logLine{})); diff != "" {
		t.Error(diff)
	}
	for range 2 {
		if err := n.client.Delete(t.Context(), a.ID); err != nil {
			t.Errorf("Delete: %v", err)
		}
	}
	if _, err := n.client.Get(t.Context(), a.ID); !errdefs.IsNotFound(err) {
		t.Errorf("Get after Delete: %v", err)
	}
	// The ID can be used again, and the second container's exit is reported.
	a.LogPath += ".2"
	n.create(a)
	n.start(a.ID)
	if exit := n.exit(a.ID); exit.Code != 3 {
		t.Errorf("exit of the second container: %+v", exit)
	}
}

func TestSignals(t *testing.T) {
	for name, tc := range map[string]struct {
		sig  syscall.Signal
		all  bool
		want Exit
	}{
		"kill":     {syscall.SIGKILL, false, Exit{Code: 137, Signal: 9}},
		"term":     {syscall.SIGTERM, false, Exit{Code: 42}},
		"kill all": {syscall.SIGKILL, true, Exit{Code: 137, Signal: 9}},
	} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t)
			id, log := n.run(spec{script: `trap "exit 42" TERM; echo ready; while :; do sleep 0.1; done`, hostNS: tc.all})
			eventually(t, "container ready", func() bool { return size(log) > 0 })
			if err := n.client.Kill(t.Context(), id, tc.sig, tc.all); err != nil {
				t.Fatal(err)
			}
			exit := n.exit(id)
			exit.At = time.Time{}
			if exit != tc.want {
				t.Errorf("exit = %+v, want %+v", exit, tc.want)
			}
		})
	}
}

func TestDeleteRunning(t *testing.T) {
	n := newNode(t)
	id, _ := n.run(spec{script: "sleep 1000"})
	if err := n.client.Delete(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	if exit := n.exit(id); exit.Code != 137 {
		t.Errorf("exit = %+v", exit)
	}
}

func TestDeleteCreated(t *testing.T) {
	n := newNode(t)
	id := n.create(n.args(n.newID(), spec{script: "true"}))
	if err := n.client.Delete(t.Context(), id); err != nil {
		t.Fatal(err)
	}
}

func TestFailedCreate(t *testing.T) {
	n := newNode(t)
	slow := filepath.Join(t.TempDir(), "slow")
	if err := os.WriteFile(slow, []byte("#!/bin/sh\ncase \"$*\" in *create*) exec sleep 600;; esac\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		change func(*CreateArgs)
		want   string
		is     func(error) bool
	}{
		"no program": {func(a *CreateArgs) { a.Bundle = n.bundle("x", spec{script: "true"}); breakProgram(t, a.Bundle) }, "no such file", errdefs.IsInternal},
		"no bundle":  {func(a *CreateArgs) { a.Bundle = "/nonexistent" }, "", errdefs.IsInternal},
		"no runtime": {func(a *CreateArgs) { a.Runtime = []string{"/nonexistent/runc"} }, "no such file", errdefs.IsInternal},
		"no log dir": {func(a *CreateArgs) { a.LogPath = "/nonexistent/log" }, "open log", errdefs.IsInternal},
		"bad id":     {func(a *CreateArgs) { a.ID = "../x" }, "not valid", errdefs.IsInvalidArgument},
		"hung": {func(a *CreateArgs) { a.Runtime = []string{slow}; a.Timeout = 300 * time.Millisecond }, "did not end within", func(err error) bool {
			return strings.Contains(err.Error(), "slow create") && errors.Is(err, context.DeadlineExceeded)
		}},
	} {
		t.Run(name, func(t *testing.T) {
			a := n.args(n.newID(), spec{script: "true"})
			tc.change(&a)
			_, err := n.client.Create(t.Context(), a)
			if err == nil || !strings.Contains(err.Error(), tc.want) || !tc.is(err) {
				t.Fatalf("Create: %v", err)
			}
			t.Log(err)
			if states, err := n.client.List(t.Context()); err != nil || len(states) != 0 {
				t.Errorf("List = %v, %v", states, err)
			}
			if left, _ := os.ReadDir(n.root); len(left) != 0 {
				t.Errorf("the runtime's root holds %v", left)
			}
		})
	}
}

func breakProgram(t *testing.T, bundle string) {
	t.Helper()
	path := filepath.Join(bundle, "config.json")
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(strings.Replace(string(data), "/bin/busybox", "/bin/absent", 1)), 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestOOM(t *testing.T) {
	n := newNode(t)
	id, _ := n.run(spec{script: `x=aaaaaaaaaaaaaaaa; while :; do x=$x$x; done`, memory: 16 << 20})
	exit := n.exit(id)
	if exit.Code != 137 || !exit.OOMKilled {
		t.Errorf("exit = %+v, want an OOM kill", exit)
	}
	// A process killed by another sender is not an OOM kill.
	id, log := n.run(spec{script: "echo; sleep 1000", memory: 16 << 20})
	eventually(t, "container ready", func() bool { return size(log) > 0 })
	if err := n.client.Kill(t.Context(), id, syscall.SIGKILL, false); err != nil {
		t.Fatal(err)
	}
	if exit := n.exit(id); exit.OOMKilled {
		t.Errorf("exit = %+v, want no OOM kill", exit)
	}
}

// A process that survives the init and keeps its stdout does not delay the exit for long. Its later
// output is logged.
func TestSurvivorHoldsOutput(t *testing.T) {
	n := newNode(t)
	id, log := n.run(spec{script: "(trap 'echo late; exit' USR1; echo ready; while :; do sleep 0.1; done) & echo $!", hostNS: true})
	if exit := n.exit(id); exit.Code != 0 {
		t.Errorf("exit = %+v", exit)
	}
	// Let the surviving process continue only now, once it is ready.
	eventually(t, "early output logged", func() bool { return len(readLog(t, log)) == 2 })
	early := readLog(t, log)
	pid, err := strconv.Atoi(early[0].text)
	if err != nil { // it was ready before it printed its ID
		pid, err = strconv.Atoi(early[1].text)
	}
	if err != nil {
		t.Fatalf("log is %v", early)
	}
	if err := syscall.Kill(pid, syscall.SIGUSR1); err != nil {
		t.Fatal(err)
	}
	eventually(t, "late output logged", func() bool { return len(readLog(t, log)) == 3 })
	// A process that is still exiting would prevent the removal of the cgroup.
	eventually(t, "the surviving process has ended", func() bool { return syscall.Kill(pid, 0) == syscall.ESRCH })
}

func TestManyConnect(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: starts a keeper")
	}
	o := Options{Dir: filepath.Join(t.TempDir(), strings.Repeat("long", 40), "keeper"), Binary: programs.keeper}
	ctx, cancel := context.WithTimeout(t.Context(), wait())
	defer cancel()
	type result struct {
		c   *Client
		err error
	}
	results := make(chan result)
	for range 8 {
		go func() {
			c, err := Connect(ctx, o)
			results <- result{c, err}
		}()
	}
	pids := map[int]bool{}
	var last *Client
	for range 8 {
		r := <-results
		if r.err != nil {
			t.Fatal(r.err)
		}
		l, err := r.c.current(ctx)
		if err != nil {
			t.Fatal(err)
		}
		pids[l.hello.Pid] = true
		if last != nil {
			_ = last.Close()
		}
		last = r.c
	}
	if len(pids) != 1 {
		t.Errorf("%d keepers serve one directory", len(pids))
	}
	if err := last.Shutdown(ctx); err != nil {
		t.Error(err)
	}
	_ = last.Close()
}
