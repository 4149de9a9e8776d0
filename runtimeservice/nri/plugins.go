package nri

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"sync"

	"github.com/containerd/errdefs"
	"github.com/containerd/nri/pkg/adaptation"
	"github.com/containerd/nri/pkg/api"
	"github.com/containerd/ttrpc"
	"golang.org/x/sync/semaphore"
	"google.golang.org/protobuf/proto"
	"k8s.io/klog/v2"

	"github.com/micarun/mica/internal/version"
)

// runtimeName is this runtime's name for plugins.
const runtimeName = "mica"

// Plugins sends events to plugins and handles their requests. A nil Plugins means that NRI is
// switched off: its methods do nothing and return no error. The same is true before Start. It is
// safe for concurrent use.
type Plugins struct {
	opts    Options
	runtime Runtime
	adapter *adaptation.Adaptation // nil before Start

	// turn is held while plugins get an event; no plugin can join meanwhile. It is taken before mu.
	// Requests that plugins make during the event must not need it.
	turn *semaphore.Weighted

	joined joined

	mu sync.Mutex // guards the fields below; not held during calls
	// pods and containers are what plugins know. The messages are immutable: a change replaces the
	// message.
	pods       map[string]*api.PodSandbox
	containers map[string]*api.Container
	stopped    map[string]bool // IDs of pods that are stopped but not removed
	closed     bool

	background sync.WaitGroup // updates that continue after the event that requested them
}

// New returns plugins that are not started yet, or nil if o does not enable NRI.
func New(o Options) *Plugins {
	if !o.Enable {
		return nil
	}
	return &Plugins{
		opts: o.withDefaults(), turn: semaphore.NewWeighted(1),
		pods: map[string]*api.PodSandbox{}, containers: map[string]*api.Container{}, stopped: map[string]bool{},
	}
}

// Start launches the installed plugins, sends them the existing pods and containers, and lets
// others connect. If another process serves the socket, no plugin can connect, which is logged, and
// only launched plugins work. Call Start once, before the first event.
func (p *Plugins) Start(ctx context.Context, s State, r Runtime) error {
	if p == nil {
		return nil
	}
	p.runtime = r
	for _, pod := range s.Pods {
		p.pods[pod.ID] = podMessage(pod)
	}
	for _, c := range s.Containers {
		p.containers[c.ID] = existingContainer(c)
	}
	// The library has these settings once for the whole process.
	adaptation.SetPluginRegistrationTimeout(p.opts.RegistrationTimeout)
	adaptation.SetPluginRequestTimeout(p.opts.RequestTimeout)
	adapter, err := adaptation.New(runtimeName, version.String(), p.synchronize, p.updateUnsolicited, p.adapterOptions(ctx)...)
	if err != nil {
		return fmt.Errorf("start NRI: %w", err)
	}
	if err := adapter.Start(); err != nil {
		adapter.Stop()
		return fmt.Errorf("start NRI: %w", err)
	}
	p.adapter = adapter
	return nil
}

func (p *Plugins) adapterOptions(ctx context.Context) []adaptation.Option {
	options := []adaptation.Option{
		adaptation.WithSocketPath(p.opts.Socket),
		adaptation.WithPluginPath(p.opts.PluginPath),
		adaptation.WithPluginConfigPath(p.opts.PluginConfigPath),
		adaptation.WithTTRPCOptions([]ttrpc.ClientOpts{ttrpc.WithUnaryClientInterceptor(collectEvictions), p.joined.option()}, nil),
		adaptation.WithMetrics(&p.joined),
	}
	// The library would take over a socket that another process serves.
	dialer := net.Dialer{Timeout: p.opts.RegistrationTimeout}
	conn, err := dialer.DialContext(ctx, "unix", p.opts.Socket)
	if err != nil {
		return options
	}
	_ = conn.Close()
	klog.FromContext(ctx).Error(errdefs.ErrAlreadyExists, "Another process serves the NRI socket, plugins cannot connect to this daemon", "socket", p.opts.Socket)
	return append(options, adaptation.WithDisabledExternalConnections())
}

// Close stops the launched plugins, closes the socket and waits for running updates.
func (p *Plugins) Close() {
	if p == nil || p.adapter == nil {
		return
	}
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	p.adapter.Stop()
	p.background.Wait()
}

// tell runs send while no other event is sent and no plugin joins. what names the event in errors.
// If ctx ends before the event's turn, tell returns ctx's error.
func (p *Plugins) tell(ctx context.Context, what string, send func() error) error {
	if p == nil || p.adapter == nil {
		return nil
	}
	if err := p.turn.Acquire(ctx, 1); err != nil {
		return fmt.Errorf("notify NRI plugins: %s: wait for earlier events: %w", what, err)
	}
	defer p.turn.Release(1)
	block := p.adapter.BlockPluginSync()
	defer block.Unblock()
	if err := send(); err != nil {
		return fmt.Errorf("notify NRI plugins: %s: %w", what, err)
	}
	return nil
}

// report is tell for events whose errors are only logged. It does nothing, and does not wait, if
// plugins do not know the object.
func (p *Plugins) report(ctx context.Context, what, id string, send func() error) {
	if p == nil || !p.known(id) {
		return
	}
	if err := p.tell(ctx, what, send); err != nil {
		klog.FromContext(ctx).Error(err, "Plugins may have missed an event", "id", id)
	}
}

// synchronize sends joining plugins the pods and containers that the others know. The library
// blocks events meanwhile.
func (p *Plugins) synchronize(ctx context.Context, send adaptation.SyncCB) error {
	updates, err := send(ctx, p.livingPods(), p.livingContainers())
	if err != nil {
		return fmt.Errorf("synchronize plugins: %w", err)
	}
	p.updateLater(ctx, updates)
	return nil
}

// livingPods returns the pods that are not stopped, in a stable order.
func (p *Plugins) livingPods() []*api.PodSandbox {
	p.mu.Lock()
	defer p.mu.Unlock()
	var pods []*api.PodSandbox
	for _, id := range slices.Sorted(maps.Keys(p.pods)) {
		if !p.stopped[id] {
			pods = append(pods, p.pods[id])
		}
	}
	return pods
}

// livingContainers returns the containers that have not ended, the oldest
// first, in a stable order.
func (p *Plugins) livingContainers() []*api.Container {
	p.mu.Lock()
	defer p.mu.Unlock()
	var containers []*api.Container
	for _, c := range p.containers {
		if c.State != api.ContainerState_CONTAINER_STOPPED {
			containers = append(containers, c)
		}
	}
	slices.SortFunc(containers, func(a, b *api.Container) int {
		return cmp.Or(cmp.Compare(a.CreatedAt, b.CreatedAt), cmp.Compare(a.Id, b.Id))
	})
	return containers
}

// pod returns the message of a pod, or nil if plugins do not know it.
func (p *Plugins) pod(id string) *api.PodSandbox {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.pods[id]
}

// container returns the messages of a container and its pod, or nil if plugins do not know them.
func (p *Plugins) container(id string) (*api.Container, *api.PodSandbox) {
	p.mu.Lock()
	defer p.mu.Unlock()
	c := p.containers[id]
	return c, p.pods[c.GetPodSandboxId()]
}

// known reports whether plugins know the pod or container.
func (p *Plugins) known(id string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.pods[id] != nil || p.containers[id] != nil
}

// change replaces a container's message by a changed copy and returns the copy. It does nothing if
// plugins do not know the container.
func (p *Plugins) change(id string, f func(*api.Container)) *api.Container {
	p.mu.Lock()
	defer p.mu.Unlock()
	c, ok := p.containers[id]
	if !ok {
		return nil
	}
	c = proto.Clone(c).(*api.Container)
	f(c)
	p.containers[id] = c
	return c
}

var errUnknownPod = errors.New("the container's pod is unknown to plugins")
