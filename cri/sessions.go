package cri

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	"k8s.io/klog/v2"
)

// sessions runs exec, attach and port-forward streams on the Runtime.
// Like calls, each session has a logger and a metric, ends when the server stops, and a panic ends
// only that session.
type sessions struct {
	server  *Server
	runtime Runtime
}

// Exec runs a command with the client's streams.
func (s *sessions) Exec(ctx context.Context, id string, cmd []string, in io.Reader, out, errs io.WriteCloser,
	tty bool, resize <-chan remotecommand.TerminalSize,
) error {
	return s.run(ctx, session{kind: "exec", key: "container", id: id}, func(ctx context.Context) error {
		return s.runtime.ServeExec(ctx, id, cmd, in, out, errs, tty, resize)
	})
}

// Attach connects the client's streams with the container's.
func (s *sessions) Attach(ctx context.Context, id string, in io.Reader, out, errs io.WriteCloser,
	tty bool, resize <-chan remotecommand.TerminalSize,
) error {
	return s.run(ctx, session{kind: "attach", key: "container", id: id}, func(ctx context.Context) error {
		return s.runtime.ServeAttach(ctx, id, in, out, errs, tty, resize)
	})
}

// PortForward connects the client's stream with a port of the pod.
func (s *sessions) PortForward(ctx context.Context, id string, port int32, stream io.ReadWriteCloser) error {
	return s.run(ctx, session{kind: "port-forward", key: "pod", id: id}, func(ctx context.Context) error {
		return s.runtime.ServePortForward(ctx, id, port, stream)
	})
}

// session identifies a stream in log and metrics.
type session struct{ kind, key, id string }

func (s *sessions) run(ctx context.Context, what session, serve func(context.Context) error) (err error) {
	gauge := s.server.metrics.sessions.WithLabelValues(what.kind)
	gauge.Inc()
	defer gauge.Dec()
	log := s.server.log.WithValues("session", what.kind, "call", s.server.lastID.Add(1), what.key, what.id)
	ctx, cancel := s.server.untilStop(klog.NewContext(ctx, log))
	defer cancel()
	started := time.Now()
	defer func() {
		if p := recover(); p != nil {
			err = s.server.recovered(log, p)
		}
		log.V(verbosityChange).Info("Session ended", "took", time.Since(started), "err", err)
		err = exitStatus(err)
	}()
	return serve(ctx)
}

// exited is the end of a command with a code other than 0.
type exited struct {
	error
	code int
}

func (e exited) Unwrap() error { return e.error }

func exitStatus(err error) error {
	var e interface {
		error
		ExitStatus() int
	}
	if !errors.As(err, &e) {
		return err
	}
	return exited{error: fmt.Errorf("exit code %d", e.ExitStatus()), code: e.ExitStatus()}
}
