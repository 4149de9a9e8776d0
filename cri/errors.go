package cri

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/containerd/errdefs"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	criapierrors "k8s.io/cri-api/pkg/errors"
)

// toStatus converts err to a gRPC status with the code that CRI clients act on. No other code does
// that. In order of precedence:
//
//   - an error that carries a status already keeps its code;
//   - the sentinels of k8s.io/cri-api keep their text in front and are Unknown,
//     because the kubelet recognises them by the beginning of an Unknown message;
//   - errdefs sentinels, anywhere in the chain, by the table in codeOf;
//   - context.DeadlineExceeded and context.Canceled;
//   - anything else is Unknown.
//
// The message is the text of the whole chain, shortened in the middle if it is very long.
func toStatus(err error) error {
	if err == nil {
		return nil
	}
	if s, ok := status.FromError(err); ok {
		return shortened(s).Err()
	}
	if sentinel := criSentinel(err); sentinel != nil {
		return status.Error(codes.Unknown, shorten(withPrefix(sentinel.Error(), err.Error())))
	}
	return status.Error(codeOf(err), shorten(err.Error()))
}

// maxErrorText is the size in bytes of the message of a status. Clients get it in an HTTP/2 header,
// and end the connection if it is larger than they allow; other calls would fail with it.
const maxErrorText = 8 << 10

// shortened is s, or s with a shorter message.
func shortened(s *status.Status) *status.Status {
	p := s.Proto()
	if len(p.GetMessage()) <= maxErrorText {
		return s
	}
	p.Message = shorten(p.GetMessage())
	return status.FromProto(p)
}

// shorten cuts the middle out of a text. The beginning says what has failed and the end why.
func shorten(text string) string {
	if len(text) <= maxErrorText {
		return text
	}
	const end = maxErrorText / 4
	const begin = maxErrorText - end - 100 // for the middle and for invalid characters
	left := len(text) - begin - end
	return strings.ToValidUTF8(fmt.Sprintf("%s… (%d bytes) …%s", text[:begin], left, text[len(text)-end:]), "")
}

func codeOf(err error) codes.Code {
	table := []struct {
		is   func(error) bool
		code codes.Code
	}{
		{errdefs.IsInvalidArgument, codes.InvalidArgument},
		{errdefs.IsNotFound, codes.NotFound},
		{errdefs.IsAlreadyExists, codes.AlreadyExists},
		{errdefs.IsFailedPrecondition, codes.FailedPrecondition},
		{errdefs.IsConflict, codes.FailedPrecondition},
		{errdefs.IsNotModified, codes.FailedPrecondition},
		{errdefs.IsNotImplemented, codes.Unimplemented},
		{errdefs.IsPermissionDenied, codes.PermissionDenied},
		{errdefs.IsUnauthorized, codes.Unauthenticated},
		{errdefs.IsResourceExhausted, codes.ResourceExhausted},
		{errdefs.IsUnavailable, codes.Unavailable},
		{errdefs.IsAborted, codes.Aborted},
		{errdefs.IsOutOfRange, codes.OutOfRange},
		{errdefs.IsDataLoss, codes.DataLoss},
		{errdefs.IsInternal, codes.Internal},
		{isDeadlineExceeded, codes.DeadlineExceeded},
		{errdefs.IsCanceled, codes.Canceled},
	}
	for _, row := range table {
		if row.is(err) {
			return row.code
		}
	}
	return codes.Unknown
}

func isDeadlineExceeded(err error) bool { return errors.Is(err, context.DeadlineExceeded) }

func criSentinel(err error) error {
	for _, sentinel := range []error{
		criapierrors.ErrRegistryUnavailable,
		criapierrors.ErrSignatureValidationFailed,
		criapierrors.ErrRROUnsupported,
		criapierrors.ErrImageVolumeMountFailed,
	} {
		if errors.Is(err, sentinel) {
			return sentinel
		}
	}
	return nil
}

func withPrefix(prefix, text string) string {
	if strings.HasPrefix(text, prefix) {
		return text
	}
	return prefix + ": " + text
}

// invalidArgument marks an error of the caller's making.
func invalidArgument(err error) error {
	return fmt.Errorf("%w: %w", errdefs.ErrInvalidArgument, err)
}
