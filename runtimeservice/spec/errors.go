package spec

import (
	"fmt"

	"github.com/containerd/errdefs"
)

// invalid returns ErrInvalidArgument for a request that breaks CRI's rules.
func invalid(format string, args ...any) error {
	return fmt.Errorf(format+": %w", append(args, errdefs.ErrInvalidArgument)...)
}

// unsupported returns ErrFailedPrecondition for a request that this node cannot fulfil.
func unsupported(format string, args ...any) error {
	return fmt.Errorf(format+": %w", append(args, errdefs.ErrFailedPrecondition)...)
}
