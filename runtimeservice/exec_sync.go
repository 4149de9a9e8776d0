package runtimeservice

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// maxExecSyncOutput is how much both streams of one answer may hold together:
// clients of the CRI take messages of 16 MiB, and the rest is for what is
// around the output. Without it a command that fills one stream would give an
// answer that nobody can read.
const maxExecSyncOutput = 16<<20 - 4<<10

// errExecTimeout is why an ExecSync ended that had its own time limit.
var errExecTimeout = errors.New("timed out")

// ExecSync runs a command in a running container and answers with its output
// and its exit code. Output beyond Options.ExecSyncLimit bytes a stream is
// read and dropped. What the command left behind with its output open is waited
// for as long as it keeps writing, for some seconds at most. A command that
// takes longer than the request's timeout (in seconds, 0 for none) is killed
// with all processes that it started. Errors:
// ErrNotFound, ErrInvalidArgument, ErrFailedPrecondition (not running),
// context.DeadlineExceeded (timeout), and the OCI runtime's own.
func (s *Service) ExecSync(ctx context.Context, req *runtimeapi.ExecSyncRequest) (*runtimeapi.ExecSyncResponse, error) {
	c, err := s.runningContainer("exec in", req.GetContainerId())
	if err != nil {
		return nil, err
	}
	limit := time.Duration(req.GetTimeout()) * time.Second
	if limit < 0 {
		return nil, fmt.Errorf("exec in container %s: negative timeout: %w", c.ID, errdefs.ErrInvalidArgument)
	}
	if limit > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, limit, errExecTimeout)
		defer cancel()
	}
	stdout, stderr := newCapture(s.opts.ExecSyncLimit), newCapture(s.opts.ExecSyncLimit)
	code, err := s.exec(ctx, c, execRun{cmd: req.GetCmd(), stdout: stdout, stderr: stderr})
	if err != nil {
		if ctx.Err() != nil && errors.Is(context.Cause(ctx), errExecTimeout) {
			return nil, fmt.Errorf("exec in container %s: command %q timed out: timeout of %s exceeded: %w", c.ID, req.GetCmd(), limit, context.DeadlineExceeded)
		}
		return nil, fmt.Errorf("exec %q in container %s: %w", req.GetCmd(), c.ID, err)
	}
	resp := &runtimeapi.ExecSyncResponse{ExitCode: int32(code)}
	resp.Stdout, resp.Stderr = fit(stdout.take(), stderr.take(), maxExecSyncOutput)
	return resp, nil
}

// capture keeps the first bytes that are written to it and drops the rest, so
// that the writer is never held up.
type capture struct {
	mu    sync.Mutex // guards the rest
	buf   bytes.Buffer
	limit int // bytes that may still be kept
}

func newCapture(limit int) *capture { return &capture{limit: limit} }

func (c *capture) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	keep := p[:min(len(p), c.limit)]
	c.limit -= len(keep)
	c.buf.Write(keep)
	return len(p), nil
}

// take returns what was kept. What is written afterwards, by a process that
// the command left behind, is dropped.
func (c *capture) take() []byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.limit = 0
	return c.buf.Bytes()
}

// fit cuts the ends of a and b so that both together have at most budget
// bytes. The shorter one is cut only if both are longer than half of that.
func fit(a, b []byte, budget int) ([]byte, []byte) {
	if len(a)+len(b) <= budget {
		return a, b
	}
	half := budget / 2
	switch {
	case len(a) <= half:
		return a, b[:budget-len(a)]
	case len(b) <= half:
		return a[:budget-len(b)], b
	}
	return a[:half], b[:half]
}
