package runtimeservice

import (
	"context"
	"fmt"
	"slices"

	"github.com/containerd/errdefs"
	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/proto"
	"k8s.io/klog/v2"

	"github.com/micarun/mica/internal/chunks"
	"github.com/micarun/mica/runtimeservice/state"
)

const (
	// gatherers is how many objects are read at a time. Reading is mostly system calls, and
	// sometimes a walk through a writable layer.
	gatherers = 4
	// sendBatch is how many objects are read before their readings are sent, so that no response is
	// in memory as a whole.
	sendBatch = 64
)

// gather reads every item and returns the readings in the items' order. It omits items that ended
// meanwhile (ErrNotFound). It also omits items that cannot be read, and logs why: the other
// readings are still useful. It returns only the error of ctx.
func gather[T state.Object, R any](ctx context.Context, items []T, read func(context.Context, T) (R, error)) ([]R, error) {
	readings, errs := make([]R, len(items)), make([]error, len(items))
	var group errgroup.Group
	group.SetLimit(gatherers)
	for i, item := range items {
		group.Go(func() error {
			if errs[i] = ctx.Err(); errs[i] == nil {
				readings[i], errs[i] = read(ctx, item)
			}
			return nil
		})
	}
	_ = group.Wait() // the functions return nil
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("read usage: %w", err)
	}
	kept := readings[:0]
	for i, item := range items {
		switch {
		case errs[i] == nil:
			kept = append(kept, readings[i])
		case !errdefs.IsNotFound(errs[i]):
			klog.FromContext(ctx).Error(errs[i], "Omitting object from list of usage", "id", item.ID())
		}
	}
	return kept, nil
}

// gatherAndSend reads the items like gather and sends the readings in chunks of bounded size, one
// batch of items after the other.
func gatherAndSend[T state.Object, R proto.Message](ctx context.Context, items []T, read func(context.Context, T) (R, error), send func([]R) error) error {
	for batch := range slices.Chunk(items, sendBatch) {
		readings, err := gather(ctx, batch, read)
		if err != nil {
			return err
		}
		if err := chunks.Send(readings, send); err != nil {
			return err
		}
	}
	return nil
}
