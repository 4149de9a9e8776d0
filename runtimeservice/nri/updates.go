package nri

import (
	"context"
	"errors"
	"fmt"

	"github.com/containerd/nri/pkg/api"
	"k8s.io/klog/v2"
)

// updateUnsolicited makes changes that a plugin asks for by itself, and returns
// those that could not be made.
func (p *Plugins) updateUnsolicited(ctx context.Context, updates []*api.ContainerUpdate) ([]*api.ContainerUpdate, error) {
	var failed []*api.ContainerUpdate
	for _, u := range updates {
		if err := p.updateOne(ctx, u); err != nil {
			failed = append(failed, u)
			klog.FromContext(ctx).Error(err, "Change that a plugin wants is not made", "id", u.GetContainerId())
		}
	}
	return failed, nil
}

// update makes the changes and returns the errors of those that must not fail.
func (p *Plugins) update(ctx context.Context, updates []*api.ContainerUpdate) error {
	var errs []error
	for _, u := range updates {
		err := p.updateOne(ctx, u)
		switch {
		case err == nil:
		case u.GetIgnoreFailure():
			klog.FromContext(ctx).V(2).Info("Change that a plugin wants is not made", "id", u.GetContainerId(), "reason", err.Error())
		default:
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// updateLater makes the changes without keeping the caller, which may hold what
// they wait for.
func (p *Plugins) updateLater(ctx context.Context, updates []*api.ContainerUpdate) {
	if len(updates) == 0 {
		return
	}
	ctx = context.WithoutCancel(ctx)
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return
	}
	p.background.Go(func() {
		if err := p.update(ctx, updates); err != nil {
			klog.FromContext(ctx).Error(err, "Changes that plugins want are not made")
		}
	})
}

// updateOne makes one change, within half of the time that a plugin has for an
// answer: one that asks from within an event is to learn of a failure.
func (p *Plugins) updateOne(ctx context.Context, u *api.ContainerUpdate) error {
	ctx, cancel := context.WithTimeout(ctx, p.opts.RequestTimeout/2)
	defer cancel()
	own, err := updateOf(u)
	if err == nil {
		err = p.runtime.Update(ctx, own)
	}
	if err != nil {
		return fmt.Errorf("change limits of container %s for a plugin: %w", u.GetContainerId(), err)
	}
	return nil
}
