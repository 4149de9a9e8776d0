package nri

import (
	"context"
	"slices"
	"testing"
	"time"

	"github.com/containerd/nri/pkg/api"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// pathRecorder records the namespaces' paths of each event.
type pathRecorder struct{ recorder }

func (r *pathRecorder) paths(event string, namespaces []*api.LinuxNamespace) {
	for _, ns := range namespaces {
		event += " " + ns.GetType() + "=" + ns.GetPath()
	}
	_ = r.note(event, "")
}

func (r *pathRecorder) StopPodSandbox(_ context.Context, p *api.PodSandbox) error {
	r.paths("stop pod", p.GetLinux().GetNamespaces())
	return nil
}

func (r *pathRecorder) RemovePodSandbox(_ context.Context, p *api.PodSandbox) error {
	r.paths("remove pod", p.GetLinux().GetNamespaces())
	return nil
}

func (r *pathRecorder) StopContainer(_ context.Context, _ *api.PodSandbox, c *api.Container) ([]*api.ContainerUpdate, error) {
	r.paths("stop", c.GetLinux().GetNamespaces())
	return nil, nil
}

func (r *pathRecorder) RemoveContainer(_ context.Context, p *api.PodSandbox, c *api.Container) error {
	r.paths("remove", c.GetLinux().GetNamespaces())
	r.paths("its pod", p.GetLinux().GetNamespaces())
	return nil
}

// Plugins get no path of a namespace that is gone, nor of a process that may have exited.
func TestPathsEndWithTheirNamespaces(t *testing.T) {
	h := open(t, Options{}, State{})
	r := &pathRecorder{}
	h.joinPlugin(r, &r.recorder, "10")
	ctx := t.Context()
	p := pod("p")
	p.Namespaces = []specs.LinuxNamespace{{Type: specs.NetworkNamespace, Path: "/run/net"}}
	h.no(h.RunPod(ctx, p))
	c := container("c")
	c.Spec.Linux.Namespaces = []specs.LinuxNamespace{{Type: specs.NetworkNamespace, Path: "/run/net"}, {Type: specs.PIDNamespace, Path: "/proc/7/ns/pid"}}
	_, err := h.CreateContainer(ctx, c)
	h.no(err)
	h.no(h.StartContainer(ctx, "c"))
	h.PostStartContainer(ctx, "c", 42, time.Now())
	h.StopContainer(ctx, "c", Exit{})
	h.StopPod(ctx, "p")
	h.Unpinned("p")
	h.RemoveContainer(ctx, "c")
	h.RemovePod(ctx, "p")
	for _, want := range []string{
		"stop network=/run/net pid= ", "stop pod network=/run/net ", "remove network= pid= ", "its pod network= ", "remove pod network= ",
	} {
		if got := r.events(); !slices.Contains(got, want) {
			t.Errorf("no event %q in %q", want, got)
		}
	}
	h.Unpinned("unknown")
}
