package hostlocal

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"slices"

	types100 "github.com/containernetworking/cni/pkg/types/100"
)

// Args are the arguments of a call.
type Args struct {
	// Config is the network configuration, with the key ipam, as a plugin gets it on stdin.
	Config []byte
	// ContainerID and IfName identify the attachment. CNIArgs is CNI_ARGS.
	ContainerID, IfName, CNIArgs string
}

// Add leases one address of each set of ranges. On an error it leases none. A second Add for an
// attachment is an error.
func Add(ctx context.Context, args Args) (*types100.Result, error) {
	n, err := parse(args.Config, args.CNIArgs)
	if err != nil {
		return nil, err
	}
	result := &types100.Result{CNIVersion: types100.ImplementedSpecVersion, Routes: n.routes}
	if result.DNS, err = readResolvConf(n.resolvConf); err != nil {
		return nil, err
	}
	unlock, err := n.leases.lockNew(ctx)
	if err != nil {
		return nil, err
	}
	defer unlock()
	held, err := n.leases.list()
	if err != nil {
		return nil, err
	}
	if result.IPs, err = n.leaseAll(held, args); err != nil {
		for _, ip := range result.IPs {
			undo := n.leases.remove(ip.Address.IP)
			err = errors.Join(err, undo)
		}
		return nil, err
	}
	return result, nil
}

// leaseAll leases an address from each set. On an error it returns those that it has leased.
func (n network) leaseAll(held []lease, args Args) ([]*types100.IPConfig, error) {
	requested := slices.Clone(n.requested)
	var ips []*types100.IPConfig
	for i, set := range n.sets {
		var want netip.Addr
		if at := slices.IndexFunc(requested, func(ip netip.Addr) bool { return set.index(ip) >= 0 }); at >= 0 {
			want = requested[at]
			requested = slices.DeleteFunc(requested, func(ip netip.Addr) bool { return ip == want })
		}
		ip, r, err := n.lease(i, want, held, args)
		if err != nil {
			return ips, fmt.Errorf("allocate from range set %d: %w", i, err)
		}
		ips = append(ips, &types100.IPConfig{
			Address: net.IPNet{IP: ip.AsSlice(), Mask: net.CIDRMask(r.subnet.Bits(), ip.BitLen())},
			Gateway: r.gateway.AsSlice(),
		})
	}
	if len(requested) > 0 {
		return ips, fmt.Errorf("allocate requested addresses: %v are in no range", requested)
	}
	return ips, nil
}

// lease leases an address of the i-th set: want, if it is valid.
func (n network) lease(i int, want netip.Addr, held []lease, args Args) (netip.Addr, addresses, error) {
	set, content := n.sets[i], key(args.ContainerID, args.IfName)
	if want.IsValid() {
		r := set[set.index(want)]
		if want == r.gateway {
			return want, r, fmt.Errorf("requested address %s is the gateway", want)
		}
		ok, err := n.leases.reserve(want, i, content)
		if err == nil && !ok {
			err = fmt.Errorf("requested address %s is not available in %s", want, set)
		}
		return want, r, err
	}
	for _, l := range held {
		if (l.key == content || l.key == args.ContainerID) && set.index(l.ip) >= 0 {
			return l.ip, addresses{}, fmt.Errorf("%s is allocated to %s already", l.ip, args.ContainerID)
		}
	}
	for ip, r := range set.candidates(n.leases.lastReserved(i)) {
		if ok, err := n.leases.reserve(ip, i, content); err != nil || ok {
			return ip, r, err
		}
	}
	return netip.Addr{}, addresses{}, fmt.Errorf("no addresses available in %s", set)
}

// Del releases the attachment's leases. It is idempotent.
func Del(ctx context.Context, args Args) error {
	n, err := parse(args.Config, args.CNIArgs)
	if err != nil {
		return err
	}
	exact := false
	mine := func(l lease) bool { return l.key == key(args.ContainerID, args.IfName) }
	err = n.leases.releaseIf(ctx, func(l lease) bool {
		exact = exact || mine(l)
		return mine(l)
	})
	if err != nil || exact {
		return err
	}
	// Leases of old versions of the plugin do not have the interface.
	return n.leases.releaseIf(ctx, func(l lease) bool { return l.key == args.ContainerID })
}

// Check returns an error if the attachment holds no lease.
func Check(_ context.Context, args Args) error {
	n, err := parse(args.Config, args.CNIArgs)
	if err != nil {
		return err
	}
	held, err := n.leases.list()
	if err != nil {
		return err
	}
	if !slices.ContainsFunc(held, func(l lease) bool {
		return l.key == key(args.ContainerID, args.IfName) || l.key == args.ContainerID
	}) {
		return fmt.Errorf("no address is leased to %s: %w", args.ContainerID, fs.ErrNotExist)
	}
	return nil
}

// Pools returns the addresses that pods can have, as first and last address and the subnet of each
// range.
func Pools(config []byte) ([]Pool, error) {
	n, err := parse(config, "")
	if err != nil {
		return nil, err
	}
	var pools []Pool
	for _, set := range n.sets {
		for _, r := range set {
			pools = append(pools, Pool{First: r.first, Last: r.last, Subnet: r.subnet})
		}
	}
	return pools, nil
}

// Pool is a range of addresses of a subnet, both ends inclusive.
type Pool struct {
	First, Last netip.Addr
	Subnet      netip.Prefix
}
