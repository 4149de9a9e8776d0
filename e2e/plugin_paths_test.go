package e2e

import (
	"context"
	"os"
	"slices"
	"sync"
	"testing"

	"github.com/containerd/nri/pkg/api"
	"github.com/containerd/nri/pkg/stub"
)

// pathPlugin is an NRI plugin that records the namespace paths in its events that do not exist.
type pathPlugin struct {
	joined chan struct{}

	mu     sync.Mutex // guards the rest
	events []string
	stale  []string
}

func (p *pathPlugin) note(event string, pod *api.PodSandbox, c *api.Container) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.events = append(p.events, event+" "+pod.GetId())
	for _, ns := range slices.Concat(pod.GetLinux().GetNamespaces(), c.GetLinux().GetNamespaces()) {
		if path := ns.GetPath(); path != "" {
			if _, err := os.Stat(path); err != nil {
				p.stale = append(p.stale, event+" "+path)
			}
		}
	}
}

func (p *pathPlugin) has(event string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Contains(p.events, event)
}

func (p *pathPlugin) Synchronize(_ context.Context, pods []*api.PodSandbox, containers []*api.Container) ([]*api.ContainerUpdate, error) {
	for _, pod := range pods {
		p.note("synchronize", pod, nil)
	}
	for _, c := range containers {
		p.note("synchronize", nil, c)
	}
	close(p.joined)
	return nil, nil
}

func (p *pathPlugin) StopPodSandbox(_ context.Context, pod *api.PodSandbox) error {
	p.note("stop", pod, nil)
	return nil
}

func (p *pathPlugin) RemovePodSandbox(_ context.Context, pod *api.PodSandbox) error {
	p.note("remove", pod, nil)
	return nil
}

func (p *pathPlugin) StopContainer(_ context.Context, pod *api.PodSandbox, c *api.Container) ([]*api.ContainerUpdate, error) {
	p.note("stop container", pod, c)
	return nil, nil
}

func (p *pathPlugin) RemoveContainer(_ context.Context, pod *api.PodSandbox, c *api.Container) error {
	p.note("remove container", pod, c)
	return nil
}

// In every order of stop and removal, plugins get no path that does not exist.
func TestPluginsGetNoStalePaths(t *testing.T) {
	f := start(t)
	stopped, removed := f.runPod(f.podConfig()), f.runPod(f.podConfig())
	for _, p := range []pod{stopped, removed} {
		f.start(p, f.containerConfig(busyboxImage, "sleep", "1000"))
	}
	f.no(f.Runtime.StopPodSandbox(f.ctx, f.runPod(f.podConfig()).id)) // the plugin, which joins later, gets no event for it
	p := &pathPlugin{joined: make(chan struct{})}
	s, err := stub.New(p, stub.WithPluginName("paths"), stub.WithPluginIdx("20"), stub.WithSocketPath(f.PluginSocket()))
	f.no(err)
	f.no(s.Start(f.ctx))
	t.Cleanup(s.Stop)
	<-p.joined
	f.no(f.Runtime.StopPodSandbox(f.ctx, stopped.id))
	for _, p := range []pod{stopped, removed} {
		f.no(f.RemovePod(f.ctx, p.id))
	}
	for _, event := range []string{"stop ", "remove ", "stop container ", "remove container "} {
		for _, id := range []string{stopped.id, removed.id} {
			f.eventually(event+id, func() bool { return p.has(event + id) })
		}
	}
	if len(p.stale) > 0 {
		t.Errorf("events name paths that do not exist: %q", p.stale)
	}
}
