package oci

import (
	"context"
	"fmt"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go/features"
)

// Annotations of a runtime's features that say whether it was built with what
// it needs for CRIU. crun sets the first one for runc's sake.
const (
	runcCheckpoint = "org.opencontainers.runc.checkpoint.enabled"
	crunCheckpoint = "run.oci.crun.checkpoint.enabled"
)

// CheckpointFlags are what CRIU is allowed at a dump, and so must be at the
// restore as well: connections, locks and sockets that lead out of the
// container do not make it fail.
func CheckpointFlags() []string {
	return []string{"--tcp-established", "--ext-unix-sk", "--file-locks"}
}

// CheckpointArgs says what to checkpoint and where to.
type CheckpointArgs struct {
	ID string
	// Images is an existing directory that takes CRIU's image files, Work one
	// that takes its log and statistics.
	Images, Work string
	// Env is added to the runtime's environment; it must lead to CRIU.
	Env []string
}

// Checkpoint writes the state of a container's processes to a.Images. The
// container goes on, or stays frozen if it was. ctx alone bounds it: when it
// ends, the runtime is killed, and a CRIU that it started may go on for a while
// with a.Work open.
func (r *Runtime) Checkpoint(ctx context.Context, a CheckpointArgs) error {
	_, err := r.exec(ctx, runArgs{env: a.Env}, checkpointCommand(a)...)
	return err
}

func checkpointCommand(a CheckpointArgs) []string {
	command := []string{"checkpoint", "--image-path", a.Images, "--work-path", a.Work, "--leave-running"}
	return append(append(command, CheckpointFlags()...), a.ID)
}

// CanCheckpoint returns nil if a runtime with these features can checkpoint and
// restore, given a CRIU that can, and else an ErrFailedPrecondition with the
// reason.
func (r *Runtime) CanCheckpoint(ctx context.Context, f features.Features) error {
	for _, key := range []string{crunCheckpoint, runcCheckpoint} {
		switch f.Annotations[key] {
		case "true":
			return nil
		case "false":
			return fmt.Errorf("%s was built without checkpoint and restore: %w", r.handler.Path, errdefs.ErrFailedPrecondition)
		}
	}
	switch r.handler.Type {
	case "runc": // one too old to tell its features
		return nil
	case "crun":
		out, err := r.run(ctx, nil, "--version")
		if err != nil {
			return fmt.Errorf("ask for checkpoint and restore: %w", err)
		}
		if strings.Contains(string(out), "+CRIU") {
			return nil
		}
		return fmt.Errorf("%s was built without CRIU: %w", r.handler.Path, errdefs.ErrFailedPrecondition)
	}
	return fmt.Errorf("%s does not say that it can checkpoint and restore: %w", r.handler.Path, errdefs.ErrFailedPrecondition)
}
