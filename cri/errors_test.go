package cri

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/containerd/errdefs"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	criapierrors "k8s.io/cri-api/pkg/errors"
)

func TestToStatus(t *testing.T) {
	wrapped := func(err error) error { return fmt.Errorf("stop container %q: %w", "c", err) }
	for name, tc := range map[string]struct {
		err     error
		code    codes.Code
		message string // "" is err's own
	}{
		"nothing":           {nil, codes.OK, ""},
		"plain":             {errors.New("x"), codes.Unknown, ""},
		"invalid":           {wrapped(errdefs.ErrInvalidArgument), codes.InvalidArgument, ""},
		"not found":         {wrapped(errdefs.ErrNotFound), codes.NotFound, ""},
		"with a message":    {errdefs.ErrNotFound.WithMessage("no container c"), codes.NotFound, "no container c"},
		"exists":            {wrapped(errdefs.ErrAlreadyExists), codes.AlreadyExists, ""},
		"precondition":      {wrapped(errdefs.ErrFailedPrecondition), codes.FailedPrecondition, ""},
		"conflict":          {wrapped(errdefs.ErrConflict), codes.FailedPrecondition, ""},
		"not modified":      {wrapped(errdefs.ErrNotModified), codes.FailedPrecondition, ""},
		"not implemented":   {wrapped(errdefs.ErrNotImplemented), codes.Unimplemented, ""},
		"permission":        {wrapped(errdefs.ErrPermissionDenied), codes.PermissionDenied, ""},
		"unauthenticated":   {wrapped(errdefs.ErrUnauthenticated), codes.Unauthenticated, ""},
		"exhausted":         {wrapped(errdefs.ErrResourceExhausted), codes.ResourceExhausted, ""},
		"unavailable":       {wrapped(errdefs.ErrUnavailable), codes.Unavailable, ""},
		"aborted":           {wrapped(errdefs.ErrAborted), codes.Aborted, ""},
		"out of range":      {wrapped(errdefs.ErrOutOfRange), codes.OutOfRange, ""},
		"data loss":         {wrapped(errdefs.ErrDataLoss), codes.DataLoss, ""},
		"internal":          {wrapped(errdefs.ErrInternal), codes.Internal, ""},
		"unknown":           {wrapped(errdefs.ErrUnknown), codes.Unknown, ""},
		"deadline":          {wrapped(context.DeadlineExceeded), codes.DeadlineExceeded, ""},
		"cancelled":         {wrapped(context.Canceled), codes.Canceled, ""},
		"joined":            {errors.Join(errors.New("x"), errdefs.ErrNotFound), codes.NotFound, ""},
		"class and context": {fmt.Errorf("%w: %w", errdefs.ErrUnavailable, context.DeadlineExceeded), codes.Unavailable, ""},
		"status":            {status.Error(codes.DataLoss, "x"), codes.DataLoss, "x"},
		"status wrapped":    {wrapped(status.Error(codes.NotFound, "y")), codes.NotFound, `stop container "c": rpc error: code = NotFound desc = y`},
		"registry":          {wrapped(criapierrors.ErrRegistryUnavailable), codes.Unknown, `RegistryUnavailable: stop container "c": RegistryUnavailable`},
		"registry in front": {fmt.Errorf("%w: no route", criapierrors.ErrRegistryUnavailable), codes.Unknown, "RegistryUnavailable: no route"},
		"signature":         {criapierrors.ErrSignatureValidationFailed, codes.Unknown, "SignatureValidationFailed"},
		"read-only mounts":  {wrapped(criapierrors.ErrRROUnsupported), codes.Unknown, `RROUnsupported: stop container "c": RROUnsupported`},
		"image volume":      {fmt.Errorf("%w: %w", criapierrors.ErrImageVolumeMountFailed, errdefs.ErrNotFound), codes.Unknown, "ImageVolumeMountFailed: not found"},
	} {
		t.Run(name, func(t *testing.T) {
			got := toStatus(tc.err)
			want := tc.message
			if want == "" && tc.err != nil {
				want = tc.err.Error()
			}
			if status.Code(got) != tc.code || status.Convert(got).Message() != want {
				t.Errorf("got %v, want %s %q", got, tc.code, want)
			}
		})
	}
}

// A message that clients could not receive is shortened.
func TestLongErrors(t *testing.T) {
	long := strings.Repeat("ü", 1<<20)
	for name, err := range map[string]error{
		"plain":    fmt.Errorf("run pod %s: %w", long, errdefs.ErrInvalidArgument),
		"status":   status.Error(codes.InvalidArgument, "run pod "+long+": invalid argument"),
		"sentinel": fmt.Errorf("run pod %s: %w", long, criapierrors.ErrRROUnsupported),
	} {
		got := toStatus(err)
		text := status.Convert(got).Message()
		if len(text) > maxErrorText || !utf8.ValidString(text) || !strings.Contains(text, "run pod") {
			t.Errorf("%s: message of %d bytes: %.40q", name, len(text), text)
		}
		if name != "sentinel" && (status.Code(got) != codes.InvalidArgument || !strings.HasSuffix(text, ": invalid argument")) {
			t.Errorf("%s: %s, message ends with %q", name, status.Code(got), text[len(text)-40:])
		}
	}
}
