package builtin

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"

	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/micarun/mica/internal/sleep"
)

const (
	// podIndex is the index of the pod's interface in the result: bridge, host's end, pod's end.
	podIndex = 2
	// queueLength is the kernel's default transmit queue length.
	queueLength = 1000
	// settleTime limits the wait until IPv6 addresses are usable, and until the bridge port forwards.
	// settleInterval is the interval of looks.
	settleTime     = 5 * time.Second
	settleInterval = 2 * time.Millisecond
)

// wiring is one ADD of the plugin bridge.
type wiring struct {
	*Plugins
	c    call
	conf bridgeConf
	ns   namespace
	// host is a socket in the node's namespace.
	host *netlink.Handle

	// Set by connect:
	br   *netlink.Bridge
	veth netlink.Link // the host's end
}

// connect makes the bridge, if it is missing, and connects the pod's interface to it. The interface
// is down.
func (w *wiring) connect() error {
	if err := w.ensureBridge(); err != nil {
		return err
	}
	err := w.makeVeth()
	if errors.Is(err, unix.EEXIST) {
		if err = w.removeReleased(); err == nil {
			err = w.makeVeth()
		}
	}
	if err != nil {
		return fmt.Errorf("make interface %s: %w", w.c.IfName, err)
	}
	if w.conf.HairpinMode {
		if err := w.host.LinkSetHairpin(w.veth, true); err != nil {
			return fmt.Errorf("set hairpin mode: %w", err)
		}
	}
	if w.conf.PortIsolation {
		if err := w.host.LinkSetIsolated(w.veth, true); err != nil {
			return fmt.Errorf("isolate bridge port: %w", err)
		}
	}
	return nil
}

func (w *wiring) ensureBridge() error {
	link, err := w.host.LinkByName(w.conf.Bridge)
	if notFound(err) {
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.MTU = w.conf.Bridge, w.conf.MTU
		if err := w.host.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}); err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("make bridge %s: %w", w.conf.Bridge, err)
		}
		link, err = w.host.LinkByName(w.conf.Bridge)
	}
	if err != nil {
		return fmt.Errorf("find bridge %s: %w", w.conf.Bridge, err)
	}
	br, ok := link.(*netlink.Bridge)
	if !ok {
		return fmt.Errorf("%s exists but is a %s, not a bridge", w.conf.Bridge, link.Type())
	}
	w.br = br
	if w.conf.PromiscMode && br.RawFlags&unix.IFF_PROMISC == 0 {
		if err := w.host.SetPromiscOn(br); err != nil {
			return fmt.Errorf("set promiscuous mode of %s: %w", w.conf.Bridge, err)
		}
	}
	trySysctl("ipv6/conf/"+w.conf.Bridge+"/accept_ra", "0")
	if br.Flags&net.FlagUp == 0 {
		if err := w.host.LinkSetUp(br); err != nil {
			return fmt.Errorf("set bridge %s up: %w", w.conf.Bridge, err)
		}
	}
	return nil
}

// makeVeth makes the veth pair, with the pod's end in the namespace.
func (w *wiring) makeVeth() error {
	name := make([]byte, 4)
	_, _ = rand.Read(name)
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU, attrs.TxQLen = "veth"+hex.EncodeToString(name), w.conf.MTU, 0
	attrs.Flags, attrs.MasterIndex = net.FlagUp, w.br.Index
	veth := &netlink.Veth{
		LinkAttrs: attrs, PeerName: w.c.IfName, PeerNamespace: netlink.NsFd(w.ns.fd()),
		PeerTxQLen: queueLength, PeerHardwareAddr: w.conf.mac,
	}
	if err := w.host.LinkAdd(veth); err != nil {
		return err
	}
	trySysctl("ipv6/conf/"+attrs.Name+"/accept_ra", "0")
	var err error
	w.veth, err = w.host.LinkByName(attrs.Name)
	return err
}

// removeReleased deletes the interface that a DEL left in a namespace that still exists. It has no
// address.
func (w *wiring) removeReleased() error {
	return w.ns.do(func(h *netlink.Handle) error {
		link, err := h.LinkByName(w.c.IfName)
		if err != nil {
			return err
		}
		list, err := addresses(h, link, netlink.FAMILY_ALL)
		if err != nil {
			return err
		}
		for _, a := range list {
			if a.IP.IsGlobalUnicast() {
				return fmt.Errorf("it exists and has the address %s", a.IP)
			}
		}
		if link.Type() != "veth" {
			return fmt.Errorf("it exists and is a %s", link.Type())
		}
		return h.LinkDel(link)
	})
}

// configure sets addresses and routes of the pod and of the bridge, and completes the result.
func (w *wiring) configure(ctx context.Context, result *types100.Result) error {
	gateways := w.conf.gateways(result)
	pod := &types100.Interface{Name: w.c.IfName, Sandbox: w.c.NetNS}
	if err := w.ns.do(func(h *netlink.Handle) (err error) {
		pod.Mac, err = w.configurePod(ctx, h, result)
		return err
	}); err != nil {
		return err
	}
	for _, gateway := range gateways {
		if err := w.ensureGateway(gateway); err != nil {
			return err
		}
	}
	if w.conf.IPMasq {
		if err := w.masquerade(w.c); err != nil {
			return err
		}
	}
	if err := w.waitForPort(ctx); err != nil {
		return err
	}
	if err := w.announce(); err != nil {
		return err
	}
	link, err := w.host.LinkByName(w.conf.Bridge) // its hardware address may have changed
	if err != nil {
		return fmt.Errorf("find bridge %s: %w", w.conf.Bridge, err)
	}
	result.Interfaces = []*types100.Interface{
		{Name: w.conf.Bridge, Mac: link.Attrs().HardwareAddr.String()},
		{Name: w.veth.Attrs().Name, Mac: w.veth.Attrs().HardwareAddr.String()},
		pod,
	}
	return nil
}

// configurePod sets sysctls, addresses and routes of the pod's interface, sets it up, and returns its
// hardware address. It runs in the pod's namespace.
func (w *wiring) configurePod(ctx context.Context, h *netlink.Handle, result *types100.Result) (mac string, err error) {
	name := w.c.IfName
	link, err := h.LinkByName(name)
	if err != nil {
		return "", fmt.Errorf("find %s: %w", name, err)
	}
	if w.conf.EnableDad {
		trySysctl("ipv6/conf/"+name+"/enhanced_dad", "1")
		trySysctl("ipv6/conf/"+name+"/accept_dad", "1")
	} else {
		trySysctl("ipv6/conf/"+name+"/accept_dad", "0")
	}
	trySysctl("ipv4/conf/"+name+"/arp_notify", "1")
	var gateway4, gateway6 net.IP
	ipv6 := false
	for _, ip := range result.IPs {
		is4 := ip.Address.IP.To4() != nil
		if !is4 && !ipv6 {
			ipv6 = true
			if err := enableIPv6(name); err != nil {
				return "", err
			}
		}
		if err := h.AddrAdd(link, &netlink.Addr{IPNet: &ip.Address}); err != nil {
			return "", fmt.Errorf("add address %s to %s: %w", &ip.Address, name, err)
		}
		if is4 && gateway4 == nil {
			gateway4 = ip.Gateway
		}
		if !is4 && gateway6 == nil {
			gateway6 = ip.Gateway
		}
	}
	if err := h.LinkSetUp(link); err != nil {
		return "", fmt.Errorf("set %s up: %w", name, err)
	}
	if ipv6 {
		if err := settle(ctx, h, link); err != nil {
			return "", err
		}
	}
	return link.Attrs().HardwareAddr.String(), addRoutes(h, link, result, gateway4, gateway6)
}

// enableIPv6 enables IPv6 for an interface of the pod and lo, and keeps addresses while it is down.
func enableIPv6(name string) error {
	for _, link := range []string{"lo", name} {
		err := setSysctl("ipv6/conf/"+link+"/disable_ipv6", "0")
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return setSysctl("ipv6/conf/"+name+"/keep_addr_on_down", "1")
}

// settle waits until duplicate address detection has accepted all IPv6 addresses, at most for
// settleTime while the link is down at its other end.
func settle(ctx context.Context, h *netlink.Handle, link netlink.Link) error {
	for deadline := time.Now().Add(settleTime); ; {
		list, err := addresses(h, link, netlink.FAMILY_V6)
		if err != nil {
			return err
		}
		tentative := net.IP(nil)
		for _, a := range list {
			if a.Flags&unix.IFA_F_DADFAILED != 0 {
				return fmt.Errorf("address %s is in use by another host", a.IP)
			}
			if a.Flags&unix.IFA_F_TENTATIVE != 0 {
				tentative = a.IP
			}
		}
		if tentative == nil {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("address %s is tentative after %v", tentative, settleTime)
		}
		if err := sleep.For(ctx, settleInterval); err != nil {
			return err
		}
	}
}

// addRoutes adds the result's routes. Those without a gateway get the one of the first address of
// their family.
func addRoutes(h *netlink.Handle, link netlink.Link, result *types100.Result, gateway4, gateway6 net.IP) error {
	for _, r := range result.Routes {
		gateway := r.GW
		if gateway == nil && r.Dst.IP.To4() != nil {
			gateway = gateway4
		} else if gateway == nil {
			gateway = gateway6
		}
		route := netlink.Route{Dst: &r.Dst, LinkIndex: link.Attrs().Index, Gw: gateway, Priority: r.Priority}
		if r.Table != nil {
			route.Table = *r.Table
		}
		if r.Scope != nil {
			route.Scope = netlink.Scope(*r.Scope)
		}
		if err := h.RouteAddEcmp(&route); err != nil {
			return fmt.Errorf("add route %s via %s: %w", &r.Dst, gateway, err)
		}
	}
	return nil
}

// ensureGateway adds a gateway's address to the bridge and enables forwarding for its family.
func (w *wiring) ensureGateway(gateway net.IPNet) error {
	ip, _ := netip.AddrFromSlice(gateway.IP)
	if ip = ip.Unmap(); !ip.IsValid() {
		return errors.New("isGateway needs a gateway address")
	}
	list, err := addresses(w.host, w.br, family(ip))
	if err != nil {
		return err
	}
	found := false
	for _, a := range list {
		if found = found || a.IPNet.String() == gateway.String(); found {
			break
		}
		// IPv6 allows several addresses on a bridge, if their subnets do not overlap.
		if ip.Is6() && !a.Contains(gateway.IP) && !gateway.Contains(a.IP) {
			continue
		}
		if !w.conf.ForceAddress {
			return fmt.Errorf("bridge %s has the address %s, not %s", w.conf.Bridge, a.IPNet, &gateway)
		}
		if err := w.host.AddrDel(w.br, &netlink.Addr{IPNet: a.IPNet}); err != nil {
			return fmt.Errorf("remove address %s of %s: %w", a.IPNet, w.conf.Bridge, err)
		}
	}
	if !found {
		err := w.host.AddrAdd(w.br, &netlink.Addr{IPNet: &gateway})
		if err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("add address %s to %s: %w", &gateway, w.conf.Bridge, err)
		}
	}
	if err := w.pinAddress(); err != nil {
		return err
	}
	if ip.Is4() {
		return setSysctl("ipv4/ip_forward", "1")
	}
	return setSysctl("ipv6/conf/all/forwarding", "1")
}

// pinAddress sets the hardware address of the bridge to the one it had before this ADD. Otherwise it
// is the lowest one of its ports and changes with them, which invalidates the neighbour tables of
// pods.
func (w *wiring) pinAddress() error {
	w.pinning.Lock()
	defer w.pinning.Unlock()
	if w.pinned[w.br.Index] {
		return nil
	}
	mac := w.br.HardwareAddr
	if len(mac) == 0 { // the last port of a bridge has left
		mac = make(net.HardwareAddr, 6)
		_, _ = rand.Read(mac)
		const multicast, local = 1, 2
		mac[0] = mac[0]&^multicast | local
	}
	if err := w.host.LinkSetHardwareAddr(w.br, mac); err != nil {
		return fmt.Errorf("set hardware address of %s: %w", w.conf.Bridge, err)
	}
	w.pinned[w.br.Index] = true
	return nil
}

// waitForPort waits until the bridge port is up, so that the pod is reachable when ADD returns.
func (w *wiring) waitForPort(ctx context.Context) error {
	for deadline := time.Now().Add(settleTime); ; {
		link, err := w.host.LinkByIndex(w.veth.Attrs().Index)
		if err != nil {
			return fmt.Errorf("find bridge port: %w", err)
		}
		w.veth = link
		state := link.Attrs().OperState
		if state == netlink.OperUp {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("bridge port %s is %s after %v", link.Attrs().Name, state, settleTime)
		}
		if err := sleep.For(ctx, settleInterval); err != nil {
			return err
		}
	}
}

// announce makes the kernel announce the pod's addresses by gratuitous ARP and unsolicited neighbour
// advertisements. Another pod may have had an address before, and the node and other pods would send
// to its hardware address for several seconds. The kernel has announced IPv4 addresses already when
// the interface was set up, but the bridge port did not forward then. Setting the hardware address
// that the interface has announces them again, with the sysctls arp_notify and ndisc_notify.
func (w *wiring) announce() error {
	return w.ns.do(func(h *netlink.Handle) error {
		link, err := h.LinkByName(w.c.IfName)
		if err == nil {
			notify := "ipv6/conf/" + w.c.IfName + "/ndisc_notify"
			trySysctl(notify, "1")
			err = h.LinkSetHardwareAddr(link, link.Attrs().HardwareAddr)
			trySysctl(notify, "0") // the plugin's value
		}
		if err != nil {
			return fmt.Errorf("announce addresses of %s: %w", w.c.IfName, err)
		}
		return nil
	})
}
