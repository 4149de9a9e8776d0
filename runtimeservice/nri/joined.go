package nri

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/containerd/nri/pkg/adaptation"
	"github.com/containerd/ttrpc"
)

// closedWait is how long a look whether a connection is closed may take.
const closedWait = time.Millisecond

// synchronize is the call that tells a plugin what lives.
const synchronize = "Synchronize"

// Info is what there is to tell of NRI on this node.
type Info struct {
	Enabled bool
	// Socket is where plugins connect.
	Socket string
	// Plugins are the names of those that take part, as "NN-name", in the
	// order in which they are asked.
	Plugins []string
}

// Info tells which plugins take part at this moment.
func (p *Plugins) Info() Info {
	if p == nil {
		return Info{}
	}
	return Info{Enabled: true, Socket: p.opts.Socket, Plugins: p.joined.names()}
}

// joined knows the plugins that take part, which the library keeps to itself.
// A plugin joins when it is told what lives: the library makes that call, with
// the plugin's own client, for one plugin at a time, and then says how it went
// and what the plugin's name is. The zero value has none.
type joined struct {
	mu      sync.Mutex    // guards what follows
	asked   *ttrpc.Client // on which the last such call was made
	members []member
}

// member is a plugin that has joined, and may have gone since.
type member struct {
	name   string
	client *ttrpc.Client // nil for a plugin without a connection
}

// option makes the library tell j whom it calls.
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
	// What lives may take several calls to tell.
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
	// The client tells only those who wait.
	ctx, cancel := context.WithTimeout(context.Background(), closedWait)
	defer cancel()
	return m.client.UserOnCloseWait(ctx) == nil
}
