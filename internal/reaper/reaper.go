// Package reaper collects the dead children of a process that is a child
// subreaper, without taking away those that somebody in the process waits for.
//
// A subreaper (prctl PR_SET_CHILD_SUBREAPER, Linux 3.4) inherits every orphan
// below it. A plain wait for any child would collect the orphans, but also the
// children of os/exec, whose Wait would then fail. The reaper instead looks at
// the next dead child without collecting it (waitid WNOWAIT) and collects it
// only when nobody owns it.
//
// A child is owned when it was started by [Reaper.Start], while [Reaper.Wait]
// waits for it, or after [Reaper.Own]. A process whose other packages use
// os/exec freely sets Options.Grace: a dead child that nobody owns is then left for that
// long to whoever may be about to wait for it.
package reaper

import (
	"context"
	"errors"
	"os/exec"
	"time"
)

// Options of a Reaper. The zero value suits a process in which every child is
// started by Start.
type Options struct {
	// Grace is how long a dead child without owner is left alone.
	Grace time.Duration
}

// Status is how a process ended.
type Status struct {
	// Code is the exit code, or 128+Signal.
	Code int
	// Signal that killed the process, or 0.
	Signal int
}

// Reaper collects orphans until Close. Methods may be called concurrently.
type Reaper struct{}

// New makes the calling process a child subreaper and starts collecting.
func New(o Options) (*Reaper, error) { return nil, errors.ErrUnsupported }

// Close stops collecting. The process stays a subreaper.
func (r *Reaper) Close() {}

// Start starts cmd as an owned child. The caller must call cmd.Wait.
func (r *Reaper) Start(cmd *exec.Cmd) error { return cmd.Start() }

// Own keeps the child pid from being collected until release is called.
func (r *Reaper) Own(pid int) (release func()) { return func() {} }

// Hold keeps every child from being collected until release is called: for the
// time in which a helper forks a process whose pid is not known yet.
func (r *Reaper) Hold() (release func()) { return func() {} }

// Wait waits for the child or inherited orphan pid, collects it and returns
// how it ended. A pid that is not a child of this process is an error.
func (r *Reaper) Wait(ctx context.Context, pid int) (Status, error) { return Status{}, errors.ErrUnsupported }
