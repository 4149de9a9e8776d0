package osthread

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestRunReturnsTheError(t *testing.T) {
	failed := errors.New("failed")
	if err := Run(func() error { return failed }); !errors.Is(err, failed) {
		t.Errorf("Run = %v, want the error of f", err)
	}
	if err := Run(func() error { return nil }); err != nil {
		t.Errorf("Run = %v", err)
	}
	if err := Run(func() error { runtime.Goexit(); return nil }); err == nil {
		t.Error("Run of a function that ends its goroutine succeeded")
	}
}

// The thread ends with f, so no other code runs on it.
func TestThreadEnds(t *testing.T) {
	var tid int
	if err := Run(func() error { tid = unix.Gettid(); return nil }); err != nil {
		t.Fatal(err)
	}
	task := fmt.Sprintf("/proc/self/task/%d", tid)
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
		if _, err := os.Stat(task); errors.Is(err, os.ErrNotExist) {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s still exists", task)
		}
	}
}

// The Go runtime parks the main thread instead of ending it, so work that changes the thread must
// move to another thread. Only a program's initialization is certain to run on the main thread. The
// test therefore runs this binary again and checks the result of [mainThreadProbe].
func TestWorkNeverRunsOnTheMainThread(t *testing.T) {
	cmd := exec.Command(os.Args[0], "-test.run=^$")
	cmd.Env = append(os.Environ(), probeVariable+"=1")
	if out, err := cmd.CombinedOutput(); err != nil || string(out) != "stepped aside\n" {
		t.Errorf("%v: %s", err, out)
	}
}

const probeVariable = "OSTHREAD_TEST_MAIN"

var _ = mainThreadProbe()

//nolint:unparam // a package-level variable needs a value
func mainThreadProbe() struct{} {
	if os.Getenv(probeVariable) == "" {
		return struct{}{}
	}
	isMain := func() bool { return unix.Gettid() == unix.Getpid() }
	if !isMain() {
		fmt.Println("initialization does not run on the main thread")
	} else if err := locked(func() error {
		if isMain() {
			return errors.New("ran on the main thread")
		}
		return nil
	}); err != nil {
		fmt.Println(err)
	} else {
		fmt.Println("stepped aside")
	}
	os.Exit(0)
	return struct{}{}
}
