package runtimeservice

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/micarun/mica/internal/sent"
	"github.com/micarun/mica/runtimeservice/streams"
)

// maxExecSyncOutput is the maximum size of both streams of a response together. CRI clients accept
// messages of 16 MiB; the rest is for the message around the output. Without it, a command that
// fills one stream would get a response that no client can read.
const maxExecSyncOutput = 16<<20 - 4<<10

// largeOutput is the size of both streams in bytes beyond which answers wait for each other.
const largeOutput = 1 << 20

// unsentLimit is how long after the end of its call an answer may be unsent before the next large one.
const unsentLimit = 10 * time.Second

// errExecTimeout is the cause when the time limit of an ExecSync request ends.
var errExecTimeout = errors.New("timed out")

// ExecSync runs a command in a running container and returns its output and exit code. Output
// beyond Options.ExecSyncLimit bytes per stream is read and dropped. Calls with large output answer
// one after the other. Processes that the command left behind with its output open are waited for
// while they write, for some seconds at most. A command that takes longer than the request's
// timeout (in seconds, 0 for none) is killed with all processes that it started. Errors:
// ErrNotFound, ErrInvalidArgument, ErrFailedPrecondition (not running), context.DeadlineExceeded
// (timeout), and those of the OCI runtime.
func (s *Service) ExecSync(ctx context.Context, req *runtimeapi.ExecSyncRequest) (*runtimeapi.ExecSyncResponse, error) {
	c, err := s.runningContainer("exec in", req.GetContainerId())
	if err != nil {
		return nil, err
	}
	call, limit := ctx, time.Duration(req.GetTimeout())*time.Second
	if limit < 0 {
		return nil, fmt.Errorf("exec in container %s: negative timeout: %w", c.ID(), errdefs.ErrInvalidArgument)
	}
	if limit > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, limit, errExecTimeout)
		defer cancel()
	}
	stdout, stderr := streams.NewCapture(s.opts.DataDir, s.opts.ExecSyncLimit), streams.NewCapture(s.opts.DataDir, s.opts.ExecSyncLimit)
	defer stdout.Close()
	defer stderr.Close()
	code, err := s.exec(ctx, c, execRun{cmd: req.GetCmd(), stdout: stdout, stderr: stderr})
	if err != nil {
		if ctx.Err() != nil && errors.Is(context.Cause(ctx), errExecTimeout) {
			return nil, fmt.Errorf("exec in container %s: command %q timed out: timeout of %s exceeded: %w", c.ID(), req.GetCmd(), limit, context.DeadlineExceeded)
		}
		return nil, fmt.Errorf("exec %q in container %s: %w", req.GetCmd(), c.ID(), err)
	}
	resp := &runtimeapi.ExecSyncResponse{ExitCode: int32(code)}
	if stdout.Len()+stderr.Len() > largeOutput {
		if err := s.awaitLargeAnswer(call); err != nil {
			return nil, fmt.Errorf("exec in container %s: wait for the answers of other calls: %w", c.ID(), err)
		}
	}
	out, errs := streams.Fit(stdout.End(), stderr.End(), maxExecSyncOutput)
	if resp.Stdout, err = stdout.Take(out); err == nil {
		resp.Stderr, err = stderr.Take(errs)
	}
	if err != nil {
		return nil, fmt.Errorf("exec in container %s: read output: %w", c.ID(), err)
	}
	return resp, nil
}

// awaitLargeAnswer waits until no other call answers with large output. ctx must be the call's. Up to
// three copies of the answer exist until it has been sent, so the memory is returned before the next
// answer. A client that does not take its answer holds up the others for unsentLimit.
func (s *Service) awaitLargeAnswer(ctx context.Context) error {
	select {
	case s.largeAnswer <- struct{}{}:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	done := sync.OnceFunc(func() {
		debug.FreeOSMemory()
		<-s.largeAnswer
	})
	sent.Then(ctx, done)
	context.AfterFunc(ctx, func() { time.AfterFunc(unsentLimit, done) })
	return nil
}
