package builtin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/version"
	"github.com/google/nftables"
)

// Plugins runs plugins. Its methods may be called concurrently.
type Plugins struct {
	// stateDir holds the names of the networks that have tables.
	stateDir string
	// retireDelay is how long the interface of a pod may outlive its DEL.
	retireDelay time.Duration

	// mu guards running. It is never held during I/O.
	mu sync.Mutex
	// running has the call in progress of each container, also if its caller has stopped waiting. The
	// channel is closed at its end.
	running map[string]chan struct{}

	// pinning guards pinned and is held while an address is set, so that the first ADD of a bridge
	// determines it.
	pinning sync.Mutex
	// pinned holds the indexes of the bridges whose hardware address this process has set.
	pinned map[int]bool

	// tables serializes reads and changes of the tables, so that no rule is added twice. Dumps of sets
	// are complete because nothing else changes the sets and they have a size (see maxHostPorts). It
	// guards conn and is never locked together with mu.
	tables sync.Mutex
	// conn stays open: closing a socket of nftables after a removal waits for an RCU grace period. It is
	// nil until it is needed.
	conn *nftables.Conn
}

// Open opens the netlink socket. Without Open, the first call that needs the socket opens it.
func (p *Plugins) Open() error {
	return p.withTables(func(*nftables.Conn) error { return nil })
}

// Close closes the netlink socket. Attachments and tables stay.
func (p *Plugins) Close() error {
	p.tables.Lock()
	defer p.tables.Unlock()
	if p.conn == nil {
		return nil
	}
	conn := p.conn
	p.conn = nil
	return conn.CloseLasting()
}

// withTables locks the tables and calls f with the socket. After an error, a new socket is used, since
// answers may be left in the old one.
func (p *Plugins) withTables(f func(conn *nftables.Conn) error) error {
	p.tables.Lock()
	defer p.tables.Unlock()
	if p.conn == nil {
		conn, err := nftables.New(nftables.AsLasting())
		if err != nil {
			return fmt.Errorf("open nftables socket: %w", err)
		}
		p.conn = conn
	}
	err := f(p.conn)
	if err != nil {
		_ = p.conn.CloseLasting() // err is the cause
		p.conn = nil
	}
	return err
}

// New returns plugins that keep the names of their networks in stateDir.
func New(stateDir string) *Plugins {
	const retireDelay = 2 * time.Second
	return &Plugins{stateDir: stateDir, retireDelay: retireDelay, running: map[string]chan struct{}{}, pinned: map[int]bool{}}
}

// Call is one command of one plugin, with the fields that CNI passes by environment and stdin.
type Call struct {
	// Plugin is loopback, bridge or portmap. Command is ADD, DEL, CHECK, GC or STATUS.
	Plugin, Command string
	// ContainerID, NetNS, IfName and Args are the variables CNI_CONTAINERID and so on.
	ContainerID, NetNS, IfName, Args string
	// Config is the plugin's configuration as JSON.
	Config []byte
}

// plugin is the implementation of one plugin. ADD returns the result; nil stands for the previous
// one.
type plugin interface {
	add(ctx context.Context, c call) (*types100.Result, error)
	del(ctx context.Context, c call) error
	check(ctx context.Context, c call) error
}

// call is a parsed [Call].
type call struct {
	Call
	conf types.NetConf
	prev *types100.Result // nil without prevResult
}

// Has reports whether the package implements a plugin. It implements host-local only for its own
// bridge.
func Has(plugin string) bool { return (&Plugins{}).plugin(plugin) != nil }

func (p *Plugins) plugin(name string) plugin {
	switch name {
	case "loopback":
		return loopback{}
	case "bridge":
		return &bridge{p}
	case "portmap":
		return &portmap{p}
	}
	return nil
}

// Run runs a call and returns what the plugin would write to stdout. If ctx ends first, Run returns
// its error. System calls cannot be interrupted; so the call then ends at its next step, and later
// calls for the container wait for that.
func (p *Plugins) Run(ctx context.Context, c Call) ([]byte, error) {
	end, err := p.begin(ctx, c.ContainerID)
	if err != nil {
		return nil, err
	}
	type outcome struct {
		out []byte
		err error
	}
	done := make(chan outcome, 1)
	go func() {
		defer end()
		out, err := p.run(ctx, c)
		done <- outcome{out, err}
	}()
	select {
	case o := <-done:
		return o.out, o.err
	case <-ctx.Done():
		return nil, fmt.Errorf("interrupted: %w", context.Cause(ctx))
	}
}

// begin waits until no call for the container runs. Calls without a container do not wait.
func (p *Plugins) begin(ctx context.Context, id string) (end func(), err error) {
	if id == "" {
		return func() {}, nil
	}
	done := make(chan struct{})
	for {
		p.mu.Lock()
		earlier := p.running[id]
		if earlier == nil {
			p.running[id] = done
		}
		p.mu.Unlock()
		if earlier == nil {
			break
		}
		select {
		case <-earlier:
		case <-ctx.Done():
			return nil, fmt.Errorf("wait for an earlier call: %w", context.Cause(ctx))
		}
	}
	return func() {
		p.mu.Lock()
		delete(p.running, id)
		p.mu.Unlock()
		close(done)
	}, nil
}

func (p *Plugins) run(ctx context.Context, raw Call) ([]byte, error) {
	plugin := p.plugin(raw.Plugin)
	if plugin == nil {
		return nil, fmt.Errorf("no such plugin: %w", errors.ErrUnsupported)
	}
	c, err := parse(raw)
	if err != nil {
		return nil, err
	}
	switch raw.Command {
	case "ADD":
		result, err := plugin.add(ctx, c)
		if err != nil {
			return nil, err
		}
		if result == nil {
			result = c.prev
		}
		return encode(result, c.conf.CNIVersion)
	case "DEL":
		return nil, plugin.del(ctx, c)
	case "CHECK":
		return nil, plugin.check(ctx, c)
	case "GC", "STATUS": // the caller sweeps the tables by container ID; an ADD needs nothing else
		return nil, nil
	}
	return nil, fmt.Errorf("unknown command %q: %w", raw.Command, errors.ErrUnsupported)
}

func parse(raw Call) (call, error) {
	c := call{Call: raw}
	if err := json.Unmarshal(raw.Config, &c.conf); err != nil {
		return c, fmt.Errorf("read configuration: %w", err)
	}
	if c.conf.RawPrevResult == nil {
		return c, nil
	}
	err := version.ParsePrevResult(&c.conf)
	if err == nil {
		c.prev, err = types100.NewResultFromResult(c.conf.PrevResult)
	}
	if err != nil {
		return c, fmt.Errorf("read prevResult: %w", err)
	}
	return c, nil
}

// encode returns a result in the form of the configuration's version.
func encode(r *types100.Result, cniVersion string) ([]byte, error) {
	converted, err := r.GetAsVersion(cniVersion)
	if err != nil {
		return nil, fmt.Errorf("convert result: %w", err)
	}
	return json.Marshal(converted)
}
