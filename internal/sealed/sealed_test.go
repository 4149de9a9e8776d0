package sealed

import (
	"bytes"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"
)

// A process that holds /proc/PID/exe of a protected program cannot write to it, even after the
// program has ended.
func TestProtectedProgramCannotBeChanged(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: mounts")
	}
	cat, err := exec.LookPath("cat")
	if err != nil {
		t.Fatal(err)
	}
	want, err := os.ReadFile(cat)
	if err != nil {
		t.Fatal(err)
	}
	for name, protect := range map[string]func(string) (*os.File, error){
		"sealed": Open, "memfd": memfd, "read-only mount": readOnlyClone,
		"negative control": func(path string) (*os.File, error) { return os.Open(path) },
	} {
		t.Run(name, func(t *testing.T) {
			program := filepath.Join(t.TempDir(), "program")
			if err := os.WriteFile(program, want, 0o755); err != nil {
				t.Fatal(err)
			}
			f, err := protect(program)
			if err != nil {
				t.Fatal(err)
			}
			exe := exeAfterItsEnd(t, f)
			defer exe.Close()
			changed := overwrite(exe) == nil
			got, err := os.ReadFile(program)
			if err != nil {
				t.Fatal(err)
			}
			isControl := name == "negative control"
			if changed != isControl || bytes.Equal(got, want) == isControl {
				t.Errorf("write succeeded: %v; program file unchanged: %v", changed, bytes.Equal(got, want))
			}
		})
	}
}

// exeAfterItsEnd runs the program and returns its /proc/PID/exe, opened during the run, after the
// program has ended.
func exeAfterItsEnd(t *testing.T, f *os.File) *os.File {
	t.Helper()
	cmd := &exec.Cmd{Path: Path(f), Args: []string{"cat"}}
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(cmd.Start(), f.Close()); err != nil {
		t.Fatal(err)
	}
	if _, err := in.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(out, make([]byte, 1)); err != nil { // the program runs
		t.Fatal(err)
	}
	fd, err := unix.Open("/proc/"+strconv.Itoa(cmd.Process.Pid)+"/exe", unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(in.Close(), cmd.Wait()); err != nil {
		t.Fatal(err)
	}
	return os.NewFile(uintptr(fd), "exe")
}

func overwrite(exe *os.File) error {
	f, err := os.OpenFile("/proc/self/fd/"+strconv.Itoa(int(exe.Fd())), os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString("changed")
	return errors.Join(err, f.Close())
}
