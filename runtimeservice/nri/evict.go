package nri

import (
	"context"
	"strings"
	"sync"

	"github.com/containerd/nri/pkg/api"
	"github.com/containerd/ttrpc"
	"google.golang.org/protobuf/proto"
	"k8s.io/klog/v2"
)

// evictions collects the evictions that plugins request in their answers to one event. The library
// merges the answers but drops the evictions.
type evictions struct {
	mu   sync.Mutex // guards list
	list []*api.ContainerEviction
}

type evictionsKey struct{}

// withEvictions returns a context for calls of plugins, and the evictions that they request in
// these calls.
func withEvictions(ctx context.Context) (context.Context, *evictions) {
	e := &evictions{}
	return context.WithValue(ctx, evictionsKey{}, e), e
}

// collectEvictions is the interceptor behind withEvictions.
func collectEvictions(ctx context.Context, req *ttrpc.Request, resp *ttrpc.Response, _ *ttrpc.UnaryClientInfo, invoke ttrpc.Invoker) error {
	if err := invoke(ctx, req, resp); err != nil {
		return err
	}
	e, ok := ctx.Value(evictionsKey{}).(*evictions)
	if !ok {
		return nil
	}
	var answer interface {
		proto.Message
		GetEvict() []*api.ContainerEviction
	}
	switch {
	case strings.HasSuffix(req.GetMethod(), "CreateContainer"):
		answer = &api.CreateContainerResponse{}
	case strings.HasSuffix(req.GetMethod(), "UpdateContainer"):
		answer = &api.UpdateContainerResponse{}
	default:
		return nil
	}
	if err := proto.Unmarshal(resp.GetPayload(), answer); err != nil {
		return err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.list = append(e.list, answer.GetEvict()...)
	return nil
}

// evict evicts the collected containers.
func (p *Plugins) evict(ctx context.Context, e *evictions) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, c := range e.list {
		klog.FromContext(ctx).V(2).Info("A plugin evicts a container", "id", c.GetContainerId(), "reason", c.GetReason())
		p.runtime.Evict(ctx, c.GetContainerId(), c.GetReason())
	}
}
