package network

import (
	"context"
	"fmt"
	"net/netip"

	"github.com/containerd/errdefs"
	"github.com/containernetworking/cni/libcni"
	"github.com/vishvananda/netlink"
)

// Lacks names what an attached pod has lost on disk: its record, or a lease of host-local; "" if
// nothing. It only reads files.
func (n *Network) Lacks(id string) string {
	rec, err := n.records.read(id)
	if err != nil {
		return "attachment record"
	}
	list, err := rec.list()
	if err != nil {
		return "attachment record"
	}
	result, err := n.cachedOf(rec, list)
	if err != nil {
		return "" // DEL works without the cached result, and without it the leases are unknown
	}
	for _, l := range hostLocal(list) {
		for _, ip := range result.IPs {
			if !l.Holds(ip, id) {
				return "lease of " + ip.String()
			}
		}
	}
	return ""
}

// Repair restores what [Network.Lacks] reports for an attached pod. It rebuilds the record from
// libcni's cache, or else from the configuration in use, and leases from the pod's addresses. It
// returns the result of the pod's ADD, or only the addresses in the namespace if the cached result
// is lost. If another pod holds the lease by now, the error is errdefs.ErrAlreadyExists.
func (n *Network) Repair(ctx context.Context, pod Pod) (Result, error) {
	end, err := n.begin(ctx, pod.ID)
	if err != nil {
		return Result{}, fmt.Errorf("repair network of %s: %w", pod, err)
	}
	defer end()
	result, err := n.repair(ctx, pod)
	if err != nil {
		return Result{}, fmt.Errorf("repair network of %s: %w", pod, err)
	}
	return result, nil
}

func (n *Network) repair(ctx context.Context, pod Pod) (Result, error) {
	rec, err := n.records.read(pod.ID)
	if err != nil {
		if rec, err = n.reconstruct(pod); err != nil {
			return Result{}, err
		}
		if err := n.records.write(rec); err != nil {
			return Result{}, err
		}
	}
	list, err := rec.list()
	if err != nil {
		return Result{}, err
	}
	result, err := n.cached(rec)
	if err != nil {
		if result.IPs, err = addressesIn(rec.NetNS, rec.Interface); err != nil {
			return Result{}, fmt.Errorf("read addresses: %w", err)
		}
	}
	for _, l := range hostLocal(list) {
		for _, ip := range result.IPs {
			if err := l.Take(ctx, ip, rec.PodID, rec.Interface); err != nil {
				return Result{}, err
			}
		}
	}
	return result, nil
}

// reconstruct rebuilds the record of a pod whose record is missing or corrupt.
func (n *Network) reconstruct(pod Pod) (record, error) {
	cached, err := n.cni.GetCachedAttachments(pod.ID)
	if err != nil {
		return record{}, fmt.Errorf("read cached attachments: %w", err)
	}
	for _, a := range cached {
		if a.IfName == podInterface {
			return record{
				PodID: pod.ID, Name: pod.Name, Namespace: pod.Namespace, Interface: a.IfName, NetNS: a.NetNS,
				Config: a.Config, Args: a.CniArgs, CapabilityArgs: a.CapabilityArgs,
			}, nil
		}
	}
	c := n.current()
	if _, err := c.ready(); err != nil {
		return record{}, err
	}
	return pod.record(c)
}

// cached returns the cached result of the pod's ADD.
func (n *Network) cached(rec record) (Result, error) {
	list, err := rec.list()
	if err != nil {
		return Result{}, err
	}
	return n.cachedOf(rec, list)
}

// cachedOf is cached for a caller that has parsed the record's configuration.
func (n *Network) cachedOf(rec record, list *libcni.NetworkConfigList) (Result, error) {
	got, err := n.cni.GetNetworkListCachedResult(list, rec.runtimeConf())
	if err == nil && got == nil {
		err = errdefs.ErrNotFound
	}
	if err != nil {
		return Result{}, fmt.Errorf("read cached result: %w", err)
	}
	return parseResult(got, rec.Interface)
}

// addressesIn returns the global addresses of an interface in the pinned namespace.
func addressesIn(netNS, name string) ([]netip.Addr, error) {
	handle, err := openHandle(netNS)
	if err != nil {
		return nil, err
	}
	defer handle.Close()
	link, err := handle.LinkByName(name)
	if err != nil {
		return nil, err
	}
	found, err := handle.AddrList(link, netlink.FAMILY_ALL)
	if err != nil {
		return nil, err
	}
	var ips []netip.Addr
	for _, a := range found {
		if ip, ok := netip.AddrFromSlice(a.IP); ok && ip.IsGlobalUnicast() {
			ips = append(ips, ip.Unmap())
		}
	}
	if len(ips) == 0 {
		return nil, fmt.Errorf("%s has no address: %w", name, errdefs.ErrNotFound)
	}
	return ips, nil
}
