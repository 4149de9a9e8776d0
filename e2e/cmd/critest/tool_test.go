package main

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestAdapt(t *testing.T) {
	theirs, ours := "sha256:"+strings.Repeat("0a", 32), "sha256:"+strings.Repeat("f7", 32)
	for _, c := range []struct{ name, program, want string }{
		{"the image", "x\x00gcr.io/tools/test-image-digest@" + theirs + "gcr.io", "x\x00gcr.io/tools/test-image-digest@" + ours + "gcr.io"},
		{"another image", "gcr.io/tools/win-test-image-digest@" + theirs, "gcr.io/tools/win-test-image-digest@" + theirs},
		{"no digest", "test-image-digest@sha256:", "test-image-digest@sha256:"},
	} {
		if got := string(adapt([]byte(c.program), ours)); got != c.want {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
}

func TestArguments(t *testing.T) {
	s := settings{parallel: 1, flags: []string{"-ginkgo.focus", "x"}}
	if got := s.arguments(); !slices.Equal(got, s.flags) {
		t.Errorf("by default: %q", got)
	}
	s.seed, s.parallel = 7, 4
	if got := s.arguments(); !slices.Equal(got, []string{"-ginkgo.seed", "7", "-parallel", "4", "-ginkgo.focus", "x"}) {
		t.Errorf("with a seed and in parallel: %q", got)
	}
}

// script prepares a shell script as the tool.
func script(t *testing.T, text string) (tool, string) {
	t.Helper()
	dir := t.TempDir()
	source := filepath.Join(dir, "source")
	if err := os.WriteFile(source, []byte("#!/bin/sh -eu\n"+text), 0o755); err != nil {
		t.Fatal(err)
	}
	prepared, err := prepareTool(settings{tool: source, bin: "/bin-of-the-node"}, filepath.Join(dir, "tool"), "")
	if err != nil {
		t.Fatal(err)
	}
	return prepared, filepath.Join(dir, "tool")
}

func TestToolRuns(t *testing.T) {
	prepared, dir := script(t, `echo "$@" >"$TMPDIR/out"; echo "$PATH" >>"$TMPDIR/out"; exit 3`)
	err := prepared.run(t.Context(), []string{"a", "b"})
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 3 {
		t.Errorf("run: %v", err)
	}
	out, err := os.ReadFile(filepath.Join(dir, "tmp/out"))
	if err != nil || !strings.HasPrefix(string(out), "a b\n/bin-of-the-node:") {
		t.Errorf("out: %q, %v", out, err)
	}
}

// The child processes of a tool that runs specs in parallel get the interrupt, too.
func TestInterruptedToolCleansUp(t *testing.T) {
	prepared, dir := script(t, `
trap : INT
sh -c 'trap "echo clean >\"$TMPDIR/child\"; exit 130" INT; echo >"$TMPDIR/ready"; while :; do sleep 0.1; done'`)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- prepared.run(ctx, nil) }()
	await(t, filepath.Join(dir, "tmp/ready"))
	cancel()
	if err := <-done; err == nil {
		t.Error("an interrupted tool passed")
	}
	if text, err := os.ReadFile(filepath.Join(dir, "tmp/child")); err != nil || string(text) != "clean\n" {
		t.Errorf("the tool's child: %q, %v", text, err)
	}
}

// await waits until the file exists.
func await(t *testing.T, path string) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if _, err := os.Stat(path); err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s does not exist", path)
		}
	}
}
