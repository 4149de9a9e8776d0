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

	"github.com/micarun/mica/internal/sleep"
)

// sweepWorkers is the number of pods that are detached concurrently. Plugins mostly wait for the
// kernel, and a plugin that hangs does not delay the other pods.
const sweepWorkers = 8

// Sweep removes everything that belongs to none of the live pods. It detaches every other
// attachment and runs the GC command of plugins of CNI 1.1.0 and later. It releases leases of the
// default and the configured network and removes the packet filter rules that plugins left behind
// for pods that are gone. Pods that were added since Open and not deleted count as live.
//
// An attachment that cannot be removed does not stop the rest; the error names each one. Each
// attachment is bounded by ctx and Options.Timeout.
func (n *Network) Sweep(ctx context.Context, live []string) error {
	ids, err := n.known()
	if err != nil {
		return fmt.Errorf("sweep networks: %w", err)
	}
	alive := n.alive(live)
	errs := make([]error, len(ids)) // by the pod's index
	var group errgroup.Group
	group.SetLimit(sweepWorkers)
	for i, id := range ids {
		if alive(id) {
			continue
		}
		group.Go(func() error {
			if err := n.sweepPod(ctx, id, alive); err != nil {
				errs[i] = fmt.Errorf("sweep network of pod %s: %w", id, err)
			}
			return nil
		})
	}
	_ = group.Wait()
	errs = append(errs, n.sweepPlugins(ctx, alive), n.sweepLeases(ctx, alive), n.sweepRules(ctx, alive), n.sweepTables(ctx, alive))
	return errors.Join(errs...)
}

// known returns the IDs of all pods that have a record or a cached result.
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

// alive returns the predicate by which Sweep keeps pods: those of live, and those that were added
// since Open, even while Sweep runs.
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

// sweepPod detaches one pod, unless it was added while sweepPod waited for its lock.
func (n *Network) sweepPod(ctx context.Context, id string, alive func(string) bool) error {
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

// sweepPlugins runs the GC command of the network, if it supports GC. Mica assumes that no other
// runtime uses the network, as the CNI specification requires.
func (n *Network) sweepPlugins(ctx context.Context, alive func(string) bool) error {
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
		return fmt.Errorf("sweep network %s: %w", c.list.Name, err)
	}
	return nil
}

// beginAlone waits until no other operation runs, and admits none until end is called.
func (n *Network) beginAlone(ctx context.Context) (end func(), err error) {
	// TryAcquire, because Acquire would queue: behind an operation that hangs, it would block all
	// later operations.
	for !n.gate.TryAcquire(gateWidth) {
		if err := sleep.For(ctx, 20*time.Millisecond); err != nil {
			return nil, fmt.Errorf("wait for other operations: %w", err)
		}
	}
	return func() { n.gate.Release(gateWidth) }, nil
}

func (n *Network) execGC(ctx context.Context, list *libcni.NetworkConfigList, alive func(string) bool) error {
	end, err := n.beginAlone(ctx)
	if err != nil {
		return err
	}
	defer end()
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
	return n.pluginsOf(list).cni.GCNetworkList(ctx, list, &libcni.GCArgs{ValidAttachments: valid})
}

// sweepLeases releases the leases of dead pods in the default and the configured network,
// including leases whose record was lost in a power failure.
func (n *Network) sweepLeases(ctx context.Context, alive func(string) bool) error {
	ctx, cancel := context.WithTimeout(ctx, n.opts.Timeout)
	defer cancel()
	var errs []error
	theirs := orForeign(alive)
	for _, l := range n.configuredLeases() {
		errs = append(errs, l.Release(ctx, func(id string) bool { return !theirs(id) }))
	}
	if n.opts.Default != nil {
		errs = append(errs, n.opts.Default.leases().Release(ctx, func(id string) bool { return !alive(id) }))
	}
	return errors.Join(errs...)
}

// RemoveDefault removes what networks keep between pods: the tables of built-in plugins, and the
// bridge and the masquerading rules of the default network. It is idempotent. While pods are attached
// it returns errdefs.ErrFailedPrecondition. The next Add creates everything again.
func (n *Network) RemoveDefault(context.Context) error {
	ids, err := n.records.ids()
	if err != nil {
		return fmt.Errorf("remove default network: %w", err)
	}
	if len(ids) > 0 {
		return fmt.Errorf("remove default network: %d pods are attached: %w", len(ids), errdefs.ErrFailedPrecondition)
	}
	err = n.removeTables(func(string) bool { return true })
	if n.opts.Default == nil {
		return err
	}
	return errors.Join(err, n.opts.Default.removeBridge(), n.opts.Default.unmasquerade())
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
