package network

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containernetworking/cni/pkg/invoke"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/version"
	"k8s.io/klog/v2"

	"github.com/micarun/mica/internal/sleep"
)

// ErrPluginMissing is wrapped by the error of every operation that needs a plugin without an
// executable. If Del returns it, everything that does not need the plugin is removed, so the pod's
// removal may continue. It wraps errdefs.ErrFailedPrecondition.
var ErrPluginMissing = fmt.Errorf("plugin executable not found: %w", errdefs.ErrFailedPrecondition)

// maxPluginOutput limits each of a plugin's stdout and stderr.
const maxPluginOutput = 1 << 20

// killDelay bounds the wait for the output of a killed plugin.
const killDelay = 2 * time.Second

// pluginError is an error of one plugin.
type pluginError struct {
	plugin, command string
	err             error
}

func (e *pluginError) Error() string {
	return fmt.Sprintf("plugin %s: %s: %v", e.plugin, e.command, e.err)
}

func (e *pluginError) Unwrap() error { return e.err }

// executables is the invoke.Exec that runs each plugin as a process in its own process group. When
// the context ends, it kills the group. When the daemon dies, the kernel kills the plugin; children
// of the plugin are found by the next daemon.
type executables struct {
	version.PluginDecoder
	cacheDir string // the network's, which marks its plugins
}

var _ invoke.Exec = (*executables)(nil)

// FindInPath returns the path of a plugin's executable. It returns ErrPluginMissing if there is
// none.
func (*executables) FindInPath(plugin string, dirs []string) (string, error) {
	path, err := invoke.FindInPath(plugin, dirs)
	if err != nil {
		return "", fmt.Errorf("plugin %s: %w in %s", plugin, ErrPluginMissing, strings.Join(dirs, ":"))
	}
	return path, nil
}

// ExecPlugin runs one plugin and returns its stdout. Every error is a *pluginError; it wraps a
// *types.Error if the plugin reported one on stdout.
func (e *executables) ExecPlugin(ctx context.Context, path string, stdin []byte, environ []string) ([]byte, error) {
	command := command(environ)
	if out, ok := passThrough(path, command, stdin); ok {
		return out, nil
	}
	environ = append(slices.Clip(environ), markVariable+"="+e.cacheDir)
	out, err := runPlugin(ctx, path, stdin, environ)
	if err != nil {
		return nil, &pluginError{plugin: filepath.Base(path), command: command, err: err}
	}
	return out, nil
}

func runPlugin(ctx context.Context, path string, stdin []byte, environ []string) ([]byte, error) {
	for {
		stdout, stderr := &limitedBuffer{}, &limitedBuffer{}
		cmd := exec.CommandContext(ctx, path)
		cmd.Env, cmd.Stdin, cmd.Stdout, cmd.Stderr = environ, bytes.NewReader(stdin), stdout, stderr
		cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
		cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
		cmd.WaitDelay = killDelay
		err := runOnThread(cmd)
		switch {
		case err == nil:
			if stderr.buf.Len() > 0 {
				klog.FromContext(ctx).V(2).Info("Plugin wrote to stderr", "plugin", path, "output", stderr.buf.String())
			}
			return stdout.buf.Bytes(), nil
		case ctx.Err() != nil:
			return nil, fmt.Errorf("killed: %w", context.Cause(ctx))
		case errors.Is(err, syscall.ETXTBSY): // the executable is being installed
			if err := sleep.For(ctx, 100*time.Millisecond); err != nil {
				return nil, fmt.Errorf("executable is being written: %w", err)
			}
		default:
			return nil, exitError(err, stdout, stderr)
		}
	}
}

// runOnThread runs cmd on a locked thread: the kernel sends the parent-death signal when the thread
// that started the child exits, and a locked thread lives as long as cmd.
func runOnThread(cmd *exec.Cmd) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	return cmd.Run()
}

// exitError returns the CNI error that a failed plugin wrote to stdout, or else err with the
// plugin's output.
func exitError(err error, stdout, stderr *limitedBuffer) error {
	var said types.Error
	if json.Unmarshal(stdout.buf.Bytes(), &said) == nil && said.Msg != "" {
		return &said
	}
	text := strings.TrimSpace(stdout.buf.String() + "\n" + stderr.buf.String())
	if text == "" {
		return err
	}
	const enough = 2000
	if len(text) > enough {
		text = text[:enough] + " …"
	}
	return fmt.Errorf("%w: %s", err, text)
}

// command returns the CNI command of a plugin's environment.
func command(environ []string) string {
	for _, kv := range environ {
		if c, ok := strings.CutPrefix(kv, "CNI_COMMAND="); ok {
			return c
		}
	}
	return "no command"
}

// limitedBuffer is a buffer whose Write fails beyond maxPluginOutput.
type limitedBuffer struct{ buf bytes.Buffer }

func (b *limitedBuffer) Write(p []byte) (int, error) {
	if b.buf.Len()+len(p) > maxPluginOutput {
		return 0, fmt.Errorf("plugin output exceeds %d bytes", maxPluginOutput)
	}
	return b.buf.Write(p)
}
