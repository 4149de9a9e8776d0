package runtimeservice

import (
	"context"
	"fmt"

	"github.com/containerd/errdefs"
	"golang.org/x/sync/errgroup"
	"k8s.io/klog/v2"
)

// gatherers is how many objects are read at a time. Reading is mostly system
// calls, and now and then a walk through a writable layer.
const gatherers = 4

// gather reads every item and returns the readings in the items' order. Items
// that ended meanwhile (ErrNotFound) are left out; so are those that cannot be
// read, with a word in the log, because the others' readings are still good.
// The error is that of ctx.
func gather[T object, R any](ctx context.Context, items []T, read func(context.Context, T) (R, error)) ([]R, error) {
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
	_ = group.Wait() // its functions return nil
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("read usage: %w", err)
	}
	kept := readings[:0]
	for i, item := range items {
		switch {
		case errs[i] == nil:
			kept = append(kept, readings[i])
		case !errdefs.IsNotFound(errs[i]):
			klog.FromContext(ctx).Error(errs[i], "Object is left out of a list of usage", "id", item.id())
		}
	}
	return kept, nil
}
