package builtin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"

	"github.com/micarun/mica/internal/failpoint"
	"github.com/micarun/mica/network/hostlocal"
)

// bridge connects a pod to a bridge by a veth pair, with addresses of host-local.
type bridge struct{ *Plugins }

// bridgeConf is the configuration of the plugin bridge. Its fields are explained in the plugin's
// documentation.
type bridgeConf struct {
	Bridge                    string
	IsGateway                 bool
	IsDefaultGateway          bool
	ForceAddress              bool
	IPMasq                    bool
	MTU                       int
	HairpinMode               bool
	PromiscMode               bool
	Vlan                      int
	VlanTrunk                 json.RawMessage
	PreserveDefaultVlan       bool
	MacSpoofChk               bool
	EnableDad                 bool
	DisableContainerInterface bool
	PortIsolation             bool
	IPAM                      struct{ Type string }
	RuntimeConfig             struct{ Mac string }
	Args                      struct {
		CNI struct{ Mac string }
	}

	// mac is the hardware address of the pod's interface; nil means a random one.
	mac net.HardwareAddr
}

func parseBridge(config []byte, args string) (bridgeConf, error) {
	b := bridgeConf{Bridge: "cni0"}
	if err := json.Unmarshal(config, &b); err != nil {
		return b, fmt.Errorf("read configuration: %w", err)
	}
	if b.HairpinMode && b.PromiscMode {
		return b, errors.New("hairpinMode and promiscMode exclude each other")
	}
	b.IsGateway = b.IsGateway || b.IsDefaultGateway
	mac := b.RuntimeConfig.Mac
	if mac == "" {
		mac = b.Args.CNI.Mac
	}
	if args != "" && mac == "" {
		var env struct {
			types.CommonArgs
			MAC types.UnmarshallableString
		}
		if err := types.LoadArgs(args, &env); err != nil {
			return b, err
		}
		mac = string(env.MAC)
	}
	if mac == "" {
		return b, nil
	}
	var err error
	b.mac, err = net.ParseMAC(mac)
	return b, err
}

func (b *bridge) ipam(c call) hostlocal.Args {
	return hostlocal.Args{Config: c.Config, ContainerID: c.ContainerID, IfName: c.IfName, CNIArgs: c.Args}
}

func (b *bridge) add(ctx context.Context, c call) (*types100.Result, error) {
	conf, err := parseBridge(c.Config, c.Args)
	if err != nil {
		return nil, err
	}
	ns, err := openNamespace(c.NetNS)
	if err != nil {
		return nil, err
	}
	defer ns.close()
	var result *types100.Result
	err = withHandle(func(h *netlink.Handle) error {
		w := wiring{Plugins: b.Plugins, c: c, conf: conf, ns: ns, host: h}
		if err := w.connect(); err != nil {
			return err
		}
		if err := failpoint.Hit("network.veth"); err != nil {
			return err
		}
		if result, err = hostlocal.Add(ctx, b.ipam(c)); err != nil {
			return err
		}
		err := failpoint.Hit("network.lease")
		if err == nil {
			err = w.configure(ctx, result)
		}
		if err == nil {
			return nil
		}
		return errors.Join(err, hostlocal.Del(context.WithoutCancel(ctx), b.ipam(c)))
	})
	if err != nil {
		return nil, err
	}
	if d := c.conf.DNS; d.Nameservers != nil || d.Search != nil || d.Options != nil || d.Domain != "" {
		result.DNS = d
	}
	return result, nil
}

// gateways completes the result of IPAM: gateways, the default routes of isDefaultGateway, and the
// index of the pod's interface. It returns the addresses of the bridge, IPv4 first.
func (b bridgeConf) gateways(result *types100.Result) []net.IPNet {
	var v4, v6 []net.IPNet
	seen := map[int]bool{} // families with a default route
	for _, ip := range result.IPs {
		addr, _ := netip.AddrFromSlice(ip.Address.IP)
		addr = addr.Unmap()
		ip.Interface = types100.Int(podIndex)
		if ip.Gateway == nil && b.IsGateway {
			ip.Gateway = netip.PrefixFrom(addr, prefixLength(ip.Address)).Masked().Addr().Next().AsSlice()
		}
		if b.IsDefaultGateway && !seen[family(addr)] {
			seen[family(addr)] = true
			everywhere := net.IPNet{IP: make(net.IP, addr.BitLen()/8), Mask: make(net.IPMask, addr.BitLen()/8)}
			if !hasRoute(result.Routes, everywhere) {
				result.Routes = append(result.Routes, &types.Route{Dst: everywhere, GW: ip.Gateway})
			}
		}
		switch gateway := (net.IPNet{IP: ip.Gateway, Mask: ip.Address.Mask}); {
		case !b.IsGateway:
		case addr.Is4():
			v4 = append(v4, gateway)
		default:
			v6 = append(v6, gateway)
		}
	}
	return append(v4, v6...)
}

func prefixLength(n net.IPNet) int {
	ones, _ := n.Mask.Size()
	return ones
}

// hasRoute reports whether routes has a route to dst by an explicit gateway.
func hasRoute(routes []*types.Route, dst net.IPNet) bool {
	for _, r := range routes {
		if r.GW != nil && r.Dst.String() == dst.String() {
			return true
		}
	}
	return false
}

// del removes the addresses of the pod's interface and releases the leases. The interface goes with its
// namespace. TCP connections that end without their peer can keep a namespace for minutes, so the
// interface is deleted after a while if it still exists.
func (b *bridge) del(ctx context.Context, c call) error {
	port, err := releaseInterface(ctx, c)
	if err != nil {
		return err
	}
	if port != nil {
		time.AfterFunc(b.retireDelay, port.delete)
	}
	return hostlocal.Del(ctx, b.ipam(c))
}

// bridgePort is the node's end of a pod's veth pair.
type bridgePort struct {
	index int
	name  string
}

// delete deletes the veth pair, if it still exists.
func (p bridgePort) delete() {
	_ = withHandle(func(h *netlink.Handle) error {
		link, err := h.LinkByIndex(p.index)
		if err != nil || link.Attrs().Name != p.name {
			return err
		}
		return h.LinkDel(link)
	})
}

// portOf returns the node's end of the veth pair that link, an interface in the namespace, is the
// other end of; nil if there is none. A pod may replace its interface by another whose peer index is
// the one of another pod's port, so the port itself has to name the namespace and link.
func portOf(ns namespace, link netlink.Link) (*bridgePort, error) {
	if link.Type() != "veth" {
		return nil, nil
	}
	var found *bridgePort
	err := withHandle(func(h *netlink.Handle) error {
		peer, err := h.LinkByIndex(link.Attrs().ParentIndex)
		if notFound(err) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("find the peer of %s: %w", link.Attrs().Name, err)
		}
		id, err := h.GetNetNsIdByFd(ns.fd())
		if err != nil {
			return fmt.Errorf("identify the network namespace: %w", err)
		}
		at := peer.Attrs()
		if id >= 0 && peer.Type() == "veth" && at.NetNsID == id && at.ParentIndex == link.Attrs().Index {
			found = &bridgePort{at.Index, at.Name}
		}
		return nil
	})
	return found, err
}

// releaseInterface removes the addresses of the previous result from the pod's interface, and thereby
// their routes. It returns the node's end of the interface, or nil. A missing namespace or interface
// has neither. The pod may have changed its interface in ways that prevent the removal. Such an error
// is logged: the interface ends with its namespace.
func releaseInterface(ctx context.Context, c call) (*bridgePort, error) {
	if c.NetNS == "" {
		return nil, nil
	}
	ns, err := openNamespace(c.NetNS)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer ns.close()
	var link netlink.Link
	var failed error
	err = ns.do(func(h *netlink.Handle) error {
		link, failed = releaseLink(h, c)
		return nil
	})
	if failed != nil && !notFound(failed) {
		klog.FromContext(ctx).Error(failed, "Interface of a pod is left to the end of its namespace", "interface", c.IfName, "pod", c.ContainerID)
	}
	if err != nil || link == nil {
		return nil, err
	}
	return portOf(ns, link)
}

// releaseLink removes the addresses of the pod's interface, or else the interface. It returns the
// interface if it still exists.
func releaseLink(h *netlink.Handle, c call) (netlink.Link, error) {
	link, err := h.LinkByName(c.IfName)
	if err != nil {
		return nil, err
	}
	err = removeAddresses(h, link, c.prev)
	if err == nil {
		return link, nil
	}
	if kept := h.LinkDel(link); kept != nil {
		return nil, errors.Join(err, kept)
	}
	return nil, nil
}

// removeAddresses removes the addresses of a result from link. Without a result it returns an error,
// since the addresses are not known. It does not look at others, whose number the pod decides.
func removeAddresses(h *netlink.Handle, link netlink.Link, result *types100.Result) error {
	if result == nil {
		return errors.New("the addresses are not known without a previous result")
	}
	for _, ip := range result.IPs {
		err := h.AddrDel(link, &netlink.Addr{IPNet: &ip.Address})
		// The kernel removes an address with the first one of its subnet.
		if err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
			return fmt.Errorf("remove address %s: %w", &ip.Address, err)
		}
	}
	return nil
}
