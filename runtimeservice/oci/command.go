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

// maxMessage bounds the text of a runtime's error, in bytes.
const maxMessage = 4096

// killDelay is how long after its deadline a runtime's output is waited for.
const killDelay = time.Second

// run runs a subcommand and returns its standard output. An error carries the
// runtime's own message.
func (r *Runtime) run(ctx context.Context, stdin []byte, subcommand ...string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, r.options.Timeout)
	defer cancel()
	return r.exec(ctx, runArgs{stdin: stdin}, subcommand...)
}

// runArgs are what one run of the runtime gets besides its command line.
type runArgs struct {
	stdin []byte
	env   []string // added to this process's own
}

// exec is run that only ctx bounds.
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

// start starts cmd such that the reaper leaves it to cmd.Wait; release comes
// after that.
func (r *Runtime) start(cmd *exec.Cmd) (release func(), err error) {
	if r.options.Reaper != nil {
		return r.options.Reaper.Start(cmd)
	}
	return func() {}, cmd.Start()
}

// failure makes the error of a subcommand from how it ended and what it logged.
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

// classOf recognises the messages of runc and crun that callers act upon.
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

// message takes the errors out of a runtime's log: the "msg" of its JSON
// lines of level error and above, else the text as it is.
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
