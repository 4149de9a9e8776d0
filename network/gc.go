package network

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/version"
	"github.com/vishvananda/netlink"
	"golang.org/x/sync/errgroup"
)

// collectWorkers is how many pods are detached at a time: plugins mostly wait for the
// kernel, and one that hangs does not hold up the others.
const collectWorkers = 8

// GC takes away what belongs to no pod of live: every other attachment is
// detached, plugins of CNI 1.1.0 and later are asked to collect (GC) what is not
// attached, leases of the default network that nobody holds are given back, and
// rules of the packet filter are removed that plugins made for pods that are gone.
// Pods that were added since Open and not deleted count as live.
//
// One attachment that cannot be taken away does not keep the others; the error
// names each of them. ctx and Options.Timeout for each attachment bound the
// time.
func (n *Network) GC(ctx context.Context, live []string) error {
	ids, err := n.known()
	if err != nil {
		return fmt.Errorf("collect networks: %w", err)
	}
	alive := n.alive(live)
	errs := make([]error, len(ids)) // by the pod's index
	var group errgroup.Group
	group.SetLimit(collectWorkers)
	for i, id := range ids {
		if alive(id) {
			continue
		}
		group.Go(func() error {
			if err := n.collect(ctx, id, alive); err != nil {
				errs[i] = fmt.Errorf("collect network of pod %s: %w", id, err)
			}
			return nil
		})
	}
	_ = group.Wait()
	errs = append(errs, n.collectPlugins(ctx, alive), n.collectLeases(ctx, alive), n.collectRules(ctx, alive))
	return errors.Join(errs...)
}

// known returns every pod that has a record or a cached result.
func (n *Network) known() ([]string, error) {
	ids, err := n.records.ids()
	if err != nil {
		return nil, err
	}
	cached, err := n.cni.GetCachedAttachments("")
	if err != nil {
		return nil, fmt.Errorf("read cached attachments: %w", err)
	}
	for _, a := range cached {
		ids = append(ids, a.ContainerID)
	}
	slices.Sort(ids)
	return slices.Compact(ids), nil
}

// alive returns the test that GC goes by. A pod that is added while it runs
// passes it.
func (n *Network) alive(live []string) func(id string) bool {
	set := make(map[string]bool, len(live))
	for _, id := range live {
		set[id] = true
	}
	return func(id string) bool {
		n.mu.Lock()
		defer n.mu.Unlock()
		return set[id] || n.claimed[id]
	}
}

// collect detaches one pod, unless it came to life while waiting for it.
func (n *Network) collect(ctx context.Context, id string, alive func(string) bool) error {
	end, err := n.begin(ctx, id)
	if err != nil {
		return err
	}
	defer end()
	if alive(id) {
		return nil
	}
	return n.forget(ctx, Pod{ID: id})
}

// collectPlugins runs the GC command of the network, where it has one. The
// network is taken to be Mica's alone, as the CNI specification has it.
func (n *Network) collectPlugins(ctx context.Context, alive func(string) bool) error {
	c := n.current()
	if c.err != nil || c.list.DisableGC {
		return nil
	}
	if ok, err := version.GreaterThanOrEqualTo(c.list.CNIVersion, "1.1.0"); err != nil || !ok {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, n.opts.Timeout)
	defer cancel()
	if err := n.execGC(ctx, c.list, alive); err != nil {
		return fmt.Errorf("collect network %s: %w", c.list.Name, err)
	}
	return nil
}

func (n *Network) execGC(ctx context.Context, list *libcni.NetworkConfigList, alive func(string) bool) error {
	// Not in the queue, where one operation that hangs would hold up all that come later.
	for !n.gate.TryAcquire(gateWidth) {
		if err := sleep(ctx, 20*time.Millisecond); err != nil {
			return fmt.Errorf("wait for other operations: %w", err)
		}
	}
	defer n.gate.Release(gateWidth)
	ids, err := n.records.ids()
	if err != nil {
		return err
	}
	valid := []types.GCAttachment{}
	for _, id := range ids {
		if alive(id) {
			valid = append(valid, types.GCAttachment{ContainerID: id, IfName: podInterface})
		}
	}
	return n.cni.GCNetworkList(ctx, list, &libcni.GCArgs{ValidAttachments: valid})
}

// collectLeases gives back the leases of the default network and of the configured one,
// also those that have no record because power failed.
func (n *Network) collectLeases(ctx context.Context, alive func(string) bool) error {
	ctx, cancel := context.WithTimeout(ctx, n.opts.Timeout)
	defer cancel()
	var errs []error
	theirs := orForeign(alive)
	for _, l := range n.configuredLeases() {
		errs = append(errs, l.release(ctx, func(id string) bool { return !theirs(id) }))
	}
	if n.opts.Default != nil {
		errs = append(errs, n.opts.Default.leases().release(ctx, func(id string) bool { return !alive(id) }))
	}
	return errors.Join(errs...)
}

// RemoveDefault takes away what the default network keeps between pods: the
// bridge and the masquerading. It is idempotent, does nothing without a default
// network, and refuses with errdefs.ErrFailedPrecondition while pods are
// attached. The next Add makes both again.
func (n *Network) RemoveDefault(context.Context) error {
	if n.opts.Default == nil {
		return nil
	}
	ids, err := n.records.ids()
	if err != nil {
		return fmt.Errorf("remove default network: %w", err)
	}
	if len(ids) > 0 {
		return fmt.Errorf("remove default network: %d pods are attached: %w", len(ids), errdefs.ErrFailedPrecondition)
	}
	return errors.Join(n.opts.Default.removeBridge(), n.opts.Default.unmasquerade())
}

func (d DefaultNetwork) removeBridge() error {
	link, err := netlink.LinkByName(d.Bridge)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		return nil
	}
	if err == nil {
		err = netlink.LinkDel(link)
	}
	if err != nil {
		return fmt.Errorf("remove bridge %s: %w", d.Bridge, err)
	}
	return nil
}
