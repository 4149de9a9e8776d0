package oci

import (
	"context"
	"fmt"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go/features"
)

// Feature annotations in which a runtime says whether it was built with CRIU support. crun also
// sets runc's annotation, for compatibility.
const (
	runcCheckpoint = "org.opencontainers.runc.checkpoint.enabled"
	crunCheckpoint = "run.oci.crun.checkpoint.enabled"
)

// CheckpointFlags returns the options that let CRIU dump a container with open TCP connections,
// file locks and Unix sockets connected to outside the container. The restore needs the same
// options.
func CheckpointFlags() []string {
	return []string{"--tcp-established", "--ext-unix-sk", "--file-locks"}
}

// CheckpointArgs selects the container to checkpoint and the directories to write to.
type CheckpointArgs struct {
	ID string
	// Images is an existing directory for CRIU's image files, Work one for its log and statistics.
	Images, Work string
	// Env is added to the runtime's environment. With it the runtime must find CRIU.
	Env []string
}

// Checkpoint writes the state of a container's processes to a.Images. Afterwards the container
// continues to run, or stays frozen if it was frozen. Only ctx bounds the call, not
// Options.Timeout. When ctx ends, Checkpoint kills the runtime, but a CRIU process that the runtime
// started may continue for a while and keep a.Work open.
func (r *Runtime) Checkpoint(ctx context.Context, a CheckpointArgs) error {
	_, err := r.exec(ctx, runArgs{env: a.Env}, checkpointCommand(a)...)
	return err
}

func checkpointCommand(a CheckpointArgs) []string {
	command := []string{"checkpoint", "--image-path", a.Images, "--work-path", a.Work, "--leave-running"}
	return append(append(command, CheckpointFlags()...), a.ID)
}

// CanCheckpoint returns nil if a runtime with these features can checkpoint and restore, provided
// that CRIU works. Otherwise it returns ErrFailedPrecondition with the reason.
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
	case "runc": // too old to report features
		return nil
	case "crun":
		out, err := r.run(ctx, nil, "--version")
		if err != nil {
			return fmt.Errorf("query checkpoint support: %w", err)
		}
		if strings.Contains(string(out), "+CRIU") {
			return nil
		}
		return fmt.Errorf("%s was built without CRIU: %w", r.handler.Path, errdefs.ErrFailedPrecondition)
	}
	return fmt.Errorf("%s does not report checkpoint and restore support: %w", r.handler.Path, errdefs.ErrFailedPrecondition)
}
