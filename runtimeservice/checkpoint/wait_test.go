package checkpoint

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"
)

// AwaitExec waits for a process that does not execute its own program yet, until the context ends.
func TestAwaitExec(t *testing.T) {
	cmd := exec.Command("sh", "-c", "read x; exec sleep 1000")
	begin, err := cmd.StdinPipe()
	if err = errors.Join(err, cmd.Start()); err != nil {
		t.Fatal(err)
	}
	pid := cmd.Process.Pid
	waiter := ExecutableOf(pid)
	short, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := AwaitExec(short, pid, waiter); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("wait before the exec: %v", err)
	}
	if err := AwaitExec(short, pid, Executable{}); err != nil {
		t.Errorf("wait without a waiter: %v", err)
	}
	if _, err := begin.Write([]byte("go\n")); err != nil {
		t.Error(err)
	}
	if err := AwaitExec(t.Context(), pid, waiter); err != nil || ExecutableOf(pid) == waiter {
		t.Errorf("wait for the exec: %v", err)
	}
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	if err := AwaitExec(short, pid, waiter); err != nil {
		t.Errorf("wait for an ended process: %v", err)
	}
}

// awaitDumps waits for processes that have a directory of the checkpoint open, and kills them after
// the grace. It does not touch other processes.
func TestAwaitDumps(t *testing.T) {
	dir := t.TempDir()
	images := filepath.Join(dir, "c", "checkpoint")
	if err := os.MkdirAll(images, 0o700); err != nil {
		t.Fatal(err)
	}
	reader := exec.Command("tail", "-f", filepath.Join(dir, "log")) // has only a file open
	if err := os.WriteFile(filepath.Join(dir, "log"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := awaitDumps(t.Context(), dir, time.Minute); err != nil {
		t.Errorf("wait without a dumper: %v", err)
	}
	opened, err := os.Open(images)
	if err != nil {
		t.Fatal(err)
	}
	dumper := exec.Command("sleep", "1000")
	dumper.ExtraFiles = []*os.File{opened}
	if err := errors.Join(reader.Start(), dumper.Start(), opened.Close()); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- dumper.Wait() }()
	defer func() {
		_ = reader.Process.Kill()
		_ = reader.Wait()
	}()
	if got := dumpersInto(dir); !slices.Equal(got, []int{dumper.Process.Pid}) {
		t.Errorf("dumpersInto = %v, want the dumper %d and not the reader %d", got, dumper.Process.Pid, reader.Process.Pid)
	}
	short, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := awaitDumps(short, dir, time.Minute); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("the end of the context = %v", err)
	}
	if err := awaitDumps(t.Context(), dir, 10*time.Millisecond); err != nil {
		t.Errorf("awaitDumps = %v", err)
	}
	select {
	case <-ended:
	case <-time.After(time.Minute):
		t.Error("the dumper is not killed")
	}
	if reader.ProcessState != nil {
		t.Error("the reader was killed")
	}
}
