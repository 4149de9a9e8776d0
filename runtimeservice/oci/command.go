package oci

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"

	"github.com/containerd/errdefs"
)

// maxMessage bounds the text of a runtime's error message, in bytes.
const maxMessage = 4096

// killDelay bounds the wait for a runtime's output after its deadline or its exit.
const killDelay = time.Second

// run runs a subcommand within Options.Timeout and returns its standard output. The error contains
// the runtime's own message.
func (r *Runtime) run(ctx context.Context, stdin []byte, subcommand ...string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, r.options.Timeout)
	defer cancel()
	return r.exec(ctx, runArgs{stdin: stdin}, subcommand...)
}

// runArgs are the inputs of one run of the runtime, besides its command line.
type runArgs struct {
	stdin []byte
	env   []string // added to this process's own
}

// exec is run without Options.Timeout: only ctx bounds it.
func (r *Runtime) exec(ctx context.Context, a runArgs, subcommand ...string) ([]byte, error) {
	args := append(r.Args(), "--log-format", "json")
	args = append(args, subcommand...)
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.WaitDelay = killDelay
	cmd.Stdin = bytes.NewReader(a.stdin)
	cmd.Env = append(os.Environ(), a.env...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	release, err := r.start(cmd)
	if err == nil {
		err = cmd.Wait()
		release()
	}
	if ctx.Err() != nil {
		err = ctx.Err()
	}
	if err != nil {
		return nil, r.failure(subcommand[0], err, stderr.Bytes())
	}
	return stdout.Bytes(), nil
}

// start starts cmd and reserves its exit status for cmd.Wait, so that the reaper does not collect
// it. The caller calls release after cmd.Wait.
func (r *Runtime) start(cmd *exec.Cmd) (release func(), err error) {
	if r.options.Reaper != nil {
		return r.options.Reaper.Start(cmd)
	}
	return func() {}, cmd.Start()
}

// failure builds a subcommand's error from its exit status and its log.
func (r *Runtime) failure(subcommand string, err error, log []byte) error {
	name := r.handler.Type
	if name == "" {
		name = r.handler.Path
	}
	text := message(log)
	var exit *exec.ExitError
	switch {
	case !errors.As(err, &exit) && text != "":
		return fmt.Errorf("%s %s: %s: %w", name, subcommand, text, err)
	case !errors.As(err, &exit):
		return fmt.Errorf("%s %s: %w", name, subcommand, err)
	case text == "":
		return fmt.Errorf("%s %s: %w without a message", name, subcommand, err)
	}
	if class := classOf(text); class != nil {
		return fmt.Errorf("%s %s: %s: %w", name, subcommand, text, class)
	}
	return fmt.Errorf("%s %s: %s", name, subcommand, text)
}

// classOf maps messages of runc and crun to the error classes that callers act on.
func classOf(text string) error {
	text = strings.ToLower(text)
	switch {
	case strings.Contains(text, "container") && strings.Contains(text, "does not exist"),
		strings.Contains(text, "/status`: no such file"): // crun
		return errdefs.ErrNotFound
	case strings.Contains(text, "not running"), strings.Contains(text, "stopped container"), strings.Contains(text, "is not paused"),
		strings.Contains(text, "container not paused"):
		return errdefs.ErrFailedPrecondition
	}
	return nil
}

// message extracts the errors from a runtime's log: the "msg" of its JSON lines of level error and
// above. Without such lines it returns the whole text.
func message(log []byte) string {
	var errs []string
	for line := range bytes.Lines(log) {
		var entry struct{ Level, Msg string }
		if json.Unmarshal(line, &entry) != nil || entry.Msg == "" {
			continue
		}
		if entry.Level == "error" || entry.Level == "fatal" || entry.Level == "panic" || entry.Level == "" {
			errs = append(errs, strings.TrimSpace(entry.Msg))
		}
	}
	text := strings.Join(errs, "; ")
	if text == "" {
		text = strings.TrimSpace(string(log))
	}
	if len(text) > maxMessage {
		text = text[:maxMessage] + "…"
	}
	return strings.ToValidUTF8(text, "�")
}
