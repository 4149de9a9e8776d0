package builtin

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"

	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/google/nftables"
	"github.com/vishvananda/netlink"

	"github.com/micarun/mica/network/hostlocal"
)

// errNoPrevResult is the error of a CHECK without the result of the ADD.
var errNoPrevResult = errors.New("CHECK needs prevResult")

// check compares bridge, veth pair, addresses and routes with the result of the ADD.
func (b *bridge) check(ctx context.Context, c call) error {
	conf, err := parseBridge(c.Config, c.Args)
	if err != nil {
		return err
	}
	if err := hostlocal.Check(ctx, b.ipam(c)); err != nil {
		return err
	}
	if c.prev == nil {
		return errNoPrevResult
	}
	ns, err := openNamespace(c.NetNS)
	if err != nil {
		return err
	}
	defer ns.close()
	var pod netlink.Link
	if err := ns.do(func(h *netlink.Handle) (err error) {
		pod, err = checkPod(h, c)
		return err
	}); err != nil {
		return err
	}
	return withHandle(func(h *netlink.Handle) error { return conf.checkHost(h, c, pod) })
}

// checkPod compares the pod's interface with the result. It runs in the pod's namespace.
func checkPod(h *netlink.Handle, c call) (netlink.Link, error) {
	var expected *types100.Interface
	for _, i := range c.prev.Interfaces {
		if i.Name == c.IfName && i.Sandbox == c.NetNS {
			expected = i
		}
	}
	if expected == nil {
		return nil, fmt.Errorf("interface %s is not in the result", c.IfName)
	}
	link, err := checkLink(h, expected, "veth")
	if err != nil {
		return nil, err
	}
	present, err := addresses(h, link, netlink.FAMILY_ALL)
	if err != nil {
		return nil, err
	}
	for _, ip := range c.prev.IPs {
		found := false
		for _, a := range present {
			found = found || a.IPNet.String() == ip.Address.String()
		}
		if !found {
			return nil, fmt.Errorf("interface %s does not have the address %s", c.IfName, &ip.Address)
		}
	}
	for _, r := range c.prev.Routes {
		if err := checkRoute(h, r.Dst, r.GW); err != nil {
			return nil, err
		}
	}
	return link, nil
}

// checkLink looks up an interface of the result and compares its type and hardware address.
func checkLink(h *netlink.Handle, i *types100.Interface, kind string) (netlink.Link, error) {
	link, err := h.LinkByName(i.Name)
	if err != nil {
		return nil, fmt.Errorf("interface %s: %w", i.Name, err)
	}
	if link.Type() != kind {
		return nil, fmt.Errorf("interface %s is a %s, not a %s", i.Name, link.Type(), kind)
	}
	if mac := link.Attrs().HardwareAddr.String(); i.Mac != "" && i.Mac != mac {
		return nil, fmt.Errorf("interface %s has the hardware address %s, not %s", i.Name, mac, i.Mac)
	}
	return link, nil
}

// checkRoute looks for a route to dst, by gateway if it is set.
func checkRoute(h *netlink.Handle, dst net.IPNet, gateway net.IP) error {
	family := netlink.FAMILY_V6
	if dst.IP.To4() != nil {
		family = netlink.FAMILY_V4
	}
	routes, err := retried(func() ([]netlink.Route, error) {
		return h.RouteListFiltered(family, &netlink.Route{}, 0)
	})
	if err != nil {
		return fmt.Errorf("list routes: %w", err)
	}
	for _, r := range routes {
		if r.Dst != nil && r.Dst.String() == dst.String() && (gateway == nil || gateway.Equal(r.Gw)) {
			return nil
		}
	}
	return fmt.Errorf("no route to %s", &dst)
}

// checkHost compares the bridge and its port with the result.
func (b bridgeConf) checkHost(h *netlink.Handle, c call, pod netlink.Link) error {
	var br netlink.Link
	for _, i := range c.prev.Interfaces {
		if i.Name != b.Bridge || i.Sandbox != "" {
			continue
		}
		var err error
		if br, err = checkLink(h, i, "bridge"); err != nil {
			return err
		}
	}
	if br == nil {
		return fmt.Errorf("bridge %s is not in the result", b.Bridge)
	}
	// A packet capture on the bridge makes it promiscuous, too.
	if b.PromiscMode && br.Attrs().Promisc == 0 {
		return fmt.Errorf("bridge %s is not promiscuous", b.Bridge)
	}
	for _, i := range c.prev.Interfaces {
		if i.Sandbox != "" || i.Name == b.Bridge {
			continue
		}
		link, err := checkLink(h, i, "veth")
		if err != nil {
			return err
		}
		if link.Attrs().ParentIndex == pod.Attrs().Index && link.Attrs().MasterIndex == br.Attrs().Index {
			return nil
		}
	}
	return fmt.Errorf("bridge %s has no port that leads to %s", b.Bridge, c.IfName)
}

// check looks for the pod's elements.
func (m *portmap) check(_ context.Context, c call) error {
	conf, err := parsePortmap(c.Config)
	if err != nil {
		return err
	}
	if c.prev == nil {
		return errNoPrevResult
	}
	return m.withTables(func(conn *nftables.Conn) error { return conf.checkElements(conn, c) })
}

func (m portmapConf) checkElements(conn *nftables.Conn, c call) error {
	for _, pod := range podPrefixes(c.prev, c.IfName) {
		elements, _ := m.elements(pod, c.ContainerID)
		t := tableOf(c.conf.Name, pod.Addr().Is6())
		for name, expected := range elements {
			present, err := conn.GetSetElements(t.sets()[name])
			if err != nil {
				return fmt.Errorf("list host ports: %w", err)
			}
			for _, e := range expected {
				if !hasElement(present, e) {
					return fmt.Errorf("host port %s is not forwarded to the pod", t.describe(name, e.Key))
				}
			}
		}
	}
	return nil
}

func hasElement(list []nftables.SetElement, e nftables.SetElement) bool {
	for _, p := range list {
		if bytes.Equal(p.Key, e.Key) && bytes.Equal(p.Val, e.Val) && p.Comment == e.Comment {
			return true
		}
	}
	return false
}
