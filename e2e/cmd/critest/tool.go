package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// toolWait bounds the clean-up of an interrupted tool.
const toolWait = time.Minute

// tool is the conformance tool, ready to run.
type tool struct {
	path string
	env  []string
}

// prepareTool makes a directory with a copy of the tool, and one for the tool's temporary files.
func prepareTool(s settings, dir, digest string) (tool, error) {
	temporary := filepath.Join(dir, "tmp")
	if err := os.MkdirAll(temporary, 0o711); err != nil {
		return tool{}, fmt.Errorf("prepare the tool: %w", err)
	}
	program, err := os.ReadFile(s.tool)
	if err != nil {
		return tool{}, fmt.Errorf("prepare the tool: %w", err)
	}
	t := tool{
		path: filepath.Join(dir, "critest"),
		env:  append(os.Environ(), "TMPDIR="+temporary, "PATH="+s.bin+":"+os.Getenv("PATH")),
	}
	if err := os.WriteFile(t.path, adapt(program, digest), 0o755); err != nil {
		return tool{}, fmt.Errorf("prepare the tool: %w", err)
	}
	return t, nil
}

// adapt replaces the digest of an original image in the tool by the digest of its substitute.
func adapt(program []byte, digest string) []byte {
	original := regexp.MustCompile(`(/test-image-digest@)sha256:[0-9a-f]{64}`)
	return original.ReplaceAll(program, []byte("${1}"+digest))
}

// arguments returns the tool's flags, except for those with the node's addresses.
func (s settings) arguments() []string {
	var args []string
	if s.seed != 0 {
		args = append(args, "-ginkgo.seed", strconv.FormatInt(s.seed, 10))
	}
	if s.parallel > 1 {
		args = append(args, "-parallel", strconv.Itoa(s.parallel))
	}
	return append(args, s.flags...)
}

// run runs the tool with this process's output. When ctx ends, it interrupts the tool and the
// processes in which the tool runs specs, so that they clean up.
func (t tool) run(ctx context.Context, args []string) error {
	cmd := exec.CommandContext(ctx, t.path, args...)
	cmd.Env, cmd.Stdout, cmd.Stderr = t.env, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return unix.Kill(-cmd.Process.Pid, unix.SIGINT) }
	cmd.WaitDelay = toolWait
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start the tool: %w", err)
	}
	err := cmd.Wait()
	if left := unix.Kill(-cmd.Process.Pid, unix.SIGKILL); left == nil {
		err = errors.Join(err, errors.New("the tool left processes"))
	}
	if err != nil {
		return fmt.Errorf("run the tool: %w", err)
	}
	return nil
}
