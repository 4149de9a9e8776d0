package oci

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go/features"
)

// script writes a shell script that acts as the runtime.
func script(t *testing.T, name, body string) *Runtime {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+body), 0o755); err != nil {
		t.Fatal(err)
	}
	return New(Handler{Path: path, Root: "/state"}, Options{Timeout: 10 * time.Second})
}

func TestCheckpointCommand(t *testing.T) {
	dir := t.TempDir()
	r := script(t, "runc", `echo "$@" >"$MICA_TEST_OUT"; echo "$CRIU_PLACE" >>"$MICA_TEST_OUT"`)
	out := filepath.Join(dir, "out")
	err := r.Checkpoint(t.Context(), CheckpointArgs{
		ID: "c1", Images: "/i", Work: "/w", Env: []string{"CRIU_PLACE=/opt/criu", "MICA_TEST_OUT=" + out},
	})
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(out)
	want := "--root /state --log-format json checkpoint --image-path /i --work-path /w --leave-running" +
		" --tcp-established --ext-unix-sk --file-locks c1\n/opt/criu\n"
	if err != nil || string(text) != want {
		t.Errorf("runtime got %q, %v, want %q", text, err, want)
	}
}

func TestCheckpointErrors(t *testing.T) {
	failing := script(t, "runc", `echo '{"level":"error","msg":"criu failed: type NOTIFY errno 0"}' >&2; exit 1`)
	err := failing.Checkpoint(t.Context(), CheckpointArgs{ID: "c1"})
	if err == nil || !strings.Contains(err.Error(), "runc checkpoint: criu failed") {
		t.Errorf("Checkpoint of a failing runtime = %v", err)
	}
	// The runtime's own time-out does not bound Checkpoint; the caller's does.
	slow := script(t, "runc", "exec sleep 1000")
	slow.options.Timeout = time.Nanosecond
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	start := time.Now()
	if err := slow.Checkpoint(ctx, CheckpointArgs{ID: "c1"}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Checkpoint beyond its deadline = %v", err)
	}
	if took := time.Since(start); took < 100*time.Millisecond {
		t.Errorf("Checkpoint gave up after %v", took)
	}
}

func TestCanCheckpoint(t *testing.T) {
	annotated := func(key, value string) features.Features {
		return features.Features{Annotations: map[string]string{key: value}}
	}
	for _, tc := range []struct {
		name, runtime, version string
		features               features.Features
		reason                 string // "" if it can
	}{
		{"runc says yes", "runc", "", annotated(runcCheckpoint, "true"), ""},
		{"runc says no", "runc", "", annotated(runcCheckpoint, "false"), "built without"},
		{"runc says nothing", "runc", "", features.Features{}, ""},
		{"crun says yes", "crun", "", annotated(crunCheckpoint, "true"), ""},
		{"old crun with", "crun", "crun version 1.8.1\n+SYSTEMD +CRIU +YAJL", features.Features{}, ""},
		{"old crun without", "crun", "crun version 1.8.1\n+SYSTEMD +YAJL", features.Features{}, "without CRIU"},
		{"another", "runsc", "", features.Features{}, "does not report"},
		{"another that says yes", "youki", "", annotated(runcCheckpoint, "true"), ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			err := script(t, tc.runtime, "echo '"+tc.version+"'").CanCheckpoint(t.Context(), tc.features)
			switch {
			case tc.reason == "" && err != nil:
				t.Error(err)
			case tc.reason != "" && (!errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), tc.reason)):
				t.Errorf("%v, want a failed precondition with %q", err, tc.reason)
			}
		})
	}
}
