package nri

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/containerd/nri/pkg/adaptation"
	"github.com/containerd/ttrpc"
)

// closedWait bounds a check whether a connection is closed.
const closedWait = time.Millisecond

// synchronize is the method that sends a plugin the existing pods and containers.
const synchronize = "Synchronize"

// Info is the state of NRI on this node.
type Info struct {
	Enabled bool
	// Socket is the path where plugins connect.
	Socket string
	// Plugins are the names of the connected plugins, as "NN-name", in the order in which they get
	// events.
	Plugins []string
}

// Info returns the plugins that are connected now. It is safe for concurrent use.
func (p *Plugins) Info() Info {
	if p == nil {
		return Info{}
	}
	return Info{Enabled: true, Socket: p.opts.Socket, Plugins: p.joined.names()}
}

// joined tracks the connected plugins, which the library does not expose. A plugin joins with the
// Synchronize call. The library makes this call for one plugin at a time, through the plugin's own
// client, and then reports the result and the plugin's name. The zero value has no plugins.
type joined struct {
	mu      sync.Mutex    // guards what follows
	asked   *ttrpc.Client // client of the last Synchronize call
	members []member
}

// member is a plugin that has joined. It may have disconnected since.
type member struct {
	name   string
	client *ttrpc.Client // nil for a plugin without a connection
}

// option makes each of the library's clients record its Synchronize calls in j.
func (j *joined) option() ttrpc.ClientOpts {
	return func(client *ttrpc.Client) {
		ttrpc.WithChainUnaryClientInterceptor(func(ctx context.Context, req *ttrpc.Request, resp *ttrpc.Response, _ *ttrpc.UnaryClientInfo, invoke ttrpc.Invoker) error {
			if req.GetMethod() == synchronize {
				j.mu.Lock()
				j.asked = client
				j.mu.Unlock()
			}
			return invoke(ctx, req, resp)
		})(client)
	}
}

// RecordPluginInvocation implements adaptation.Metrics.
func (j *joined) RecordPluginInvocation(name, operation string, err error) {
	if operation != synchronize || err != nil {
		return
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	// The library may split Synchronize into several calls.
	j.members = slices.DeleteFunc(j.members, func(m member) bool { return m.client == j.asked && m.name == name || m.gone() })
	j.members = append(j.members, member{name: name, client: j.asked})
	j.asked = nil
}

// RecordPluginLatency implements adaptation.Metrics.
func (*joined) RecordPluginLatency(string, string, time.Duration) {}

// RecordPluginAdjustments implements adaptation.Metrics.
func (*joined) RecordPluginAdjustments(string, string, *adaptation.ContainerAdjustment, int, int) {}

// UpdatePluginCount implements adaptation.Metrics.
func (*joined) UpdatePluginCount(int) {}

// names returns the plugins that have joined and are still connected.
func (j *joined) names() []string {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.members = slices.DeleteFunc(j.members, member.gone)
	names := []string{}
	for _, m := range j.members {
		names = append(names, m.name)
	}
	slices.Sort(names)
	return names
}

func (m member) gone() bool {
	if m.client == nil {
		return false
	}
	// The client reports a closed connection only through this wait.
	ctx, cancel := context.WithTimeout(context.Background(), closedWait)
	defer cancel()
	return m.client.UserOnCloseWait(ctx) == nil
}
