package spec

import (
	"fmt"

	"github.com/containerd/errdefs"
)

// invalid is an error for a request that breaks CRI's rules.
func invalid(format string, args ...any) error {
	return fmt.Errorf(format+": %w", append(args, errdefs.ErrInvalidArgument)...)
}

// unsupported is an error for a request that this node cannot honour.
func unsupported(format string, args ...any) error {
	return fmt.Errorf(format+": %w", append(args, errdefs.ErrFailedPrecondition)...)
}
