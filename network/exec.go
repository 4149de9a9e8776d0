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
)

// ErrPluginMissing is in the error of every operation that needs a plugin of
// which there is no executable. After a Del with this error everything is taken
// away that can be without the plugin, so it need not hold up a pod's removal.
// It is an errdefs.ErrFailedPrecondition.
var ErrPluginMissing = fmt.Errorf("plugin executable not found: %w", errdefs.ErrFailedPrecondition)

// maxPluginOutput bounds what a plugin may print to each of its outputs.
const maxPluginOutput = 1 << 20

// killDelay bounds the wait for the outputs of a plugin that was killed.
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

// executables is the invoke.Exec that runs plugins as processes, each in a
// process group of its own, which is killed as a whole when the context ends. A
// plugin is killed with this process; what it has started itself is found by
// the next Open.
type executables struct {
	version.PluginDecoder
	cacheDir string // of the network, as the mark of its plugins
}

var _ invoke.Exec = (*executables)(nil)

// FindInPath returns the path of a plugin's executable.
func (*executables) FindInPath(plugin string, dirs []string) (string, error) {
	path, err := invoke.FindInPath(plugin, dirs)
	if err != nil {
		return "", fmt.Errorf("plugin %s: %w in %s", plugin, ErrPluginMissing, strings.Join(dirs, ":"))
	}
	return path, nil
}

// ExecPlugin runs one plugin and returns what it printed. Its errors are
// pluginErrors; that of a plugin that reported by the protocol holds a
// *types.Error.
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
		case errors.Is(err, syscall.ETXTBSY): // being installed just now
			if err := sleep(ctx, 100*time.Millisecond); err != nil {
				return nil, fmt.Errorf("executable is being written: %w", err)
			}
		default:
			return nil, exitError(err, stdout, stderr)
		}
	}
}

// runOnThread runs cmd on a thread that lasts as long as cmd does: the kernel sends the
// signal of a parent's death when the thread ends that started the child.
func runOnThread(cmd *exec.Cmd) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	return cmd.Run()
}

// exitError is what a plugin that ended with err said about it: a CNI error on
// stdout, or else anything on its outputs.
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

func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// limitedBuffer is a buffer that refuses to grow beyond maxPluginOutput.
type limitedBuffer struct{ buf bytes.Buffer }

func (b *limitedBuffer) Write(p []byte) (int, error) {
	if b.buf.Len()+len(p) > maxPluginOutput {
		return 0, fmt.Errorf("plugin output exceeds %d bytes", maxPluginOutput)
	}
	return b.buf.Write(p)
}
