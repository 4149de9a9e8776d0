package nri

import (
	"context"
	"errors"
	"fmt"

	"github.com/containerd/nri/pkg/api"
	"k8s.io/klog/v2"
)

// updateUnsolicited makes changes that a plugin requests outside of an event, and returns those
// that could not be made.
func (p *Plugins) updateUnsolicited(ctx context.Context, updates []*api.ContainerUpdate) ([]*api.ContainerUpdate, error) {
	var failed []*api.ContainerUpdate
	for _, u := range updates {
		if err := p.updateOne(ctx, u); err != nil {
			failed = append(failed, u)
			klog.FromContext(ctx).Error(err, "Updating container for an NRI plugin failed", "id", u.GetContainerId())
		}
	}
	return failed, nil
}

// update makes the changes and returns the errors of those that a plugin has not marked as allowed
// to fail.
func (p *Plugins) update(ctx context.Context, updates []*api.ContainerUpdate) error {
	var errs []error
	for _, u := range updates {
		err := p.updateOne(ctx, u)
		switch {
		case err == nil:
		case u.GetIgnoreFailure():
			klog.FromContext(ctx).V(2).Info("Updating container for an NRI plugin failed", "id", u.GetContainerId(), "reason", err.Error())
		default:
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// updateLater makes the changes in the background. The caller may hold locks that the changes wait
// for.
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
			klog.FromContext(ctx).Error(err, "Updating containers for NRI plugins failed")
		}
	})
}

// updateOne makes one change, within half of a plugin's time for an answer. A plugin that requests
// it during an event then still gets the error.
func (p *Plugins) updateOne(ctx context.Context, u *api.ContainerUpdate) error {
	ctx, cancel := context.WithTimeout(ctx, p.opts.RequestTimeout/2)
	defer cancel()
	own, err := updateOf(u)
	if err == nil {
		err = p.runtime.Update(ctx, own)
	}
	if err != nil {
		return fmt.Errorf("update container %s for a plugin: %w", u.GetContainerId(), err)
	}
	return nil
}
