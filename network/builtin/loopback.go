package builtin

import (
	"context"
	"errors"
	"fmt"
	"net"

	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/vishvananda/netlink"
)

// loopback sets the interface lo up, whatever the interface of the call is.
type loopback struct{}

func (loopback) add(_ context.Context, c call) (*types100.Result, error) {
	ns, err := openNamespace(c.NetNS)
	if err != nil {
		return nil, err
	}
	defer ns.close()
	result := &types100.Result{
		CNIVersion: types100.ImplementedSpecVersion,
		Interfaces: []*types100.Interface{{Name: "lo", Mac: "00:00:00:00:00:00", Sandbox: c.NetNS}},
	}
	err = ns.do(func(h *netlink.Handle) error {
		link, err := h.LinkByName("lo")
		if err != nil {
			return err
		}
		if err := h.LinkSetUp(link); err != nil {
			return fmt.Errorf("set lo up: %w", err)
		}
		for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
			list, err := addresses(h, link, family)
			if err != nil {
				return err
			}
			for i, a := range list {
				if !a.IP.IsLoopback() {
					return fmt.Errorf("lo has the address %s", a.IP)
				}
				if i == 0 {
					result.IPs = append(result.IPs, &types100.IPConfig{Interface: types100.Int(0), Address: *a.IPNet})
				}
			}
		}
		return nil
	})
	if err != nil || c.prev != nil {
		return nil, err
	}
	return result, nil
}

// del leaves lo as it is: setting it down makes the kernel wait for an RCU grace period, and it goes
// with its namespace.
func (loopback) del(context.Context, call) error { return nil }

func (loopback) check(_ context.Context, c call) error {
	ns, err := openNamespace(c.NetNS)
	if err != nil {
		return err
	}
	defer ns.close()
	return ns.do(func(h *netlink.Handle) error {
		link, err := h.LinkByName("lo")
		if err == nil && link.Attrs().Flags&net.FlagUp == 0 {
			err = errors.New("lo is down")
		}
		return err
	})
}
