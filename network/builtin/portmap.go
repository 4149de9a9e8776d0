package builtin

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/micarun/mica/internal/failpoint"
)

// portmap forwards host ports to a pod.
type portmap struct{ *Plugins }

// portmapConf is the configuration of the plugin portmap.
type portmapConf struct {
	SNAT                       *bool
	MasqAll                    bool
	MarkMasqBit                *int
	ConditionsV4, ConditionsV6 []string
	RuntimeConfig              struct{ PortMappings []mapping }
}

// mapping is one host port.
type mapping struct {
	HostPort, ContainerPort uint16
	Protocol, HostIP        string
}

func parsePortmap(config []byte) (portmapConf, error) {
	var m portmapConf
	if err := json.Unmarshal(config, &m); err != nil {
		return m, fmt.Errorf("read configuration: %w", err)
	}
	for _, p := range m.RuntimeConfig.PortMappings {
		if p.HostPort == 0 || p.ContainerPort == 0 {
			return m, fmt.Errorf("invalid port mapping %+v", p)
		}
		if _, err := protocol(p.Protocol); err != nil {
			return m, err
		}
		if _, err := netip.ParseAddr(p.HostIP); p.HostIP != "" && err != nil {
			return m, fmt.Errorf("invalid hostIP: %w", err)
		}
	}
	return m, nil
}

func protocol(name string) (byte, error) {
	switch strings.ToLower(name) {
	case "tcp":
		return unix.IPPROTO_TCP, nil
	case "udp":
		return unix.IPPROTO_UDP, nil
	case "sctp":
		return unix.IPPROTO_SCTP, nil
	}
	return 0, fmt.Errorf("unknown protocol %q", name)
}

// add forwards the host ports to the pod's first address of each family.
func (m *portmap) add(_ context.Context, c call) (*types100.Result, error) {
	conf, err := parsePortmap(c.Config)
	if err != nil {
		return nil, err
	}
	if c.prev == nil {
		return nil, errors.New("portmap needs the result of another plugin")
	}
	if len(conf.RuntimeConfig.PortMappings) == 0 {
		return nil, nil
	}
	for _, pod := range podPrefixes(c.prev, c.IfName) {
		if err := m.forward(c, conf, pod); err != nil {
			return nil, err
		}
	}
	return nil, failpoint.Hit("network.host-ports")
}

// podPrefixes returns the first address of each family of the pod's interface, with its subnet.
func podPrefixes(result *types100.Result, ifName string) []netip.Prefix {
	var found []netip.Prefix
	for _, ip := range result.IPs {
		if at := ip.Interface; at != nil && *at >= 0 && *at < len(result.Interfaces) {
			if i := result.Interfaces[*at]; i.Name != ifName || i.Sandbox == "" {
				continue
			}
		}
		addr, _ := netip.AddrFromSlice(ip.Address.IP)
		addr = addr.Unmap()
		if addr.IsValid() && !slices.ContainsFunc(found, func(p netip.Prefix) bool { return p.Addr().BitLen() == addr.BitLen() }) {
			found = append(found, netip.PrefixFrom(addr, prefixLength(ip.Address)))
		}
	}
	return found
}

func (m *portmap) forward(c call, conf portmapConf, pod netip.Prefix) error {
	elements, masks := conf.elements(pod, c.ContainerID)
	t := tableOf(c.conf.Name, pod.Addr().Is6())
	if err := m.addElements(c, t, elements, masks); err != nil {
		return err
	}
	forgetFlows(conf.RuntimeConfig.PortMappings, family(pod.Addr()))
	if len(masks) == 0 || pod.Addr().Is6() {
		return nil
	}
	// Packets from 127.0.0.1 must be routed to the pod.
	routes, err := netlink.RouteGet(pod.Addr().AsSlice())
	if err != nil || len(routes) == 0 {
		return nil //nolint:nilerr // without a route no packet gets there
	}
	link, err := netlink.LinkByIndex(routes[0].LinkIndex)
	if err != nil {
		return nil //nolint:nilerr // the link was removed, and the route with it
	}
	return setSysctl("ipv4/conf/"+link.Attrs().Name+"/route_localnet", "1")
}

// elements returns the elements of each set for a pod, and the prefix lengths of the sources to
// masquerade: the pod's subnet, because an answer within it bypasses the node, and 127.0.0.1.
func (m portmapConf) elements(pod netip.Prefix, id string) (elements map[string][]nftables.SetElement, masks []int) {
	sources := []netip.Prefix{pod.Masked()}
	switch loopback := netip.AddrFrom4([4]byte{127, 0, 0, 1}); {
	case m.SNAT != nil && !*m.SNAT:
		sources = nil
	case m.MasqAll:
		sources = []netip.Prefix{netip.PrefixFrom(pod.Addr(), 0).Masked()}
	case pod.Addr().Is4():
		sources = append(sources, netip.PrefixFrom(loopback, 32))
	}
	for _, s := range sources {
		masks = append(masks, s.Bits())
	}
	elements = map[string][]nftables.SetElement{}
	seen := map[string]bool{}
	add := func(set string, key, value []byte) {
		if name := set + " " + string(key); !seen[name] {
			seen[name] = true
			elements[set] = append(elements[set], nftables.SetElement{Key: key, Val: value, Comment: id})
		}
	}
	for _, p := range m.RuntimeConfig.PortMappings {
		hostIP, _ := netip.ParseAddr(p.HostIP)
		if hostIP = hostIP.Unmap(); hostIP.IsValid() && hostIP.BitLen() != pod.Addr().BitLen() {
			continue // of the other family
		}
		forward, hairpin := forwardMap, hairpinSet
		var key []byte
		if hostIP.IsValid() && !hostIP.IsUnspecified() {
			forward, hairpin = forwardAddressMap, hairpinAddressSet
			key = hostIP.AsSlice()
		}
		number, _ := protocol(p.Protocol)
		key = append(append(key, number, 0, 0, 0), portBytes(p.HostPort)...)
		add(forward, key, append(pod.Addr().AsSlice(), portBytes(p.ContainerPort)...))
		for _, s := range sources {
			add(hairpin, append(slices.Clone(key), s.Addr().AsSlice()...), nil)
		}
	}
	return elements, masks
}

// portBytes returns a port in network byte order, padded to a register.
func portBytes(port uint16) []byte { return append(binary.BigEndian.AppendUint16(nil, port), 0, 0) }

// addElements makes the table, if needed, and adds the elements. If it cannot add all, it removes the
// pod's elements.
func (m *portmap) addElements(c call, t table, elements map[string][]nftables.SetElement, masks []int) error {
	network := c.conf.Name
	err := m.withTables(func(conn *nftables.Conn) error {
		if err := m.ensure(conn, network, t, t.portRules(masks)); err != nil {
			return err
		}
		err := t.change(conn, elements, conn.SetAddElements)
		if err == nil {
			return nil
		}
		if errors.Is(err, unix.ENFILE) {
			err = fmt.Errorf("a network may have %d host ports per address family: %w", maxHostPorts, err)
		}
		// Earlier transactions succeeded. The socket may still contain answers to this one.
		return errors.Join(err, release(&nftables.Conn{}, network, func(id string) bool { return id == c.ContainerID }))
	})
	if errors.Is(err, unix.EBUSY) || errors.Is(err, unix.EEXIST) {
		if holder := holderOf(t, elements); holder != "" {
			return fmt.Errorf("host port is in use: %s", holder)
		}
	}
	if err != nil {
		return fmt.Errorf("forward host ports: %w", err)
	}
	return nil
}

// holderOf describes an element of another pod that has the key of one of elements.
func holderOf(t table, elements map[string][]nftables.SetElement) string {
	for _, name := range []string{forwardMap, forwardAddressMap} {
		present, err := (&nftables.Conn{}).GetSetElements(t.sets()[name])
		if err != nil {
			continue
		}
		for _, p := range present {
			for _, e := range elements[name] {
				if bytes.Equal(p.Key, e.Key) && p.Comment != e.Comment {
					return fmt.Sprintf("%s is forwarded to pod %s", t.describe(name, p.Key), p.Comment)
				}
			}
		}
	}
	return ""
}

// describe returns the host port of an element's key in a readable form.
func (t table) describe(set string, key []byte) string {
	address := ""
	if set == forwardAddressMap || set == hairpinAddressSet {
		ip, _ := netip.AddrFromSlice(key[:t.length()])
		address, key = ip.String()+" ", key[t.length():]
	}
	names := map[byte]string{unix.IPPROTO_TCP: "tcp", unix.IPPROTO_UDP: "udp", unix.IPPROTO_SCTP: "sctp"}
	return fmt.Sprintf("%s%d/%s", address, binary.BigEndian.Uint16(key[4:]), names[key[0]])
}

// forgetFlows removes the tracked UDP flows to the host ports, which would keep their old destination.
// It is only an improvement: such flows end by themselves.
func forgetFlows(mappings []mapping, family int) {
	var filters []netlink.CustomConntrackFilter
	for _, p := range mappings {
		if strings.ToLower(p.Protocol) != "udp" {
			continue
		}
		f := &netlink.ConntrackFilter{}
		if f.AddProtocol(unix.IPPROTO_UDP) == nil && f.AddPort(netlink.ConntrackOrigDstPort, p.HostPort) == nil {
			filters = append(filters, f)
		}
	}
	if len(filters) > 0 {
		_, _ = netlink.ConntrackDeleteFilters(netlink.ConntrackTable, netlink.InetFamily(family), filters...)
	}
}

// del removes the pod's elements, also if its host ports are unknown by now.
func (m *portmap) del(_ context.Context, c call) error {
	conf, err := parsePortmap(c.Config)
	if err != nil {
		return err
	}
	if len(conf.RuntimeConfig.PortMappings) == 0 {
		return nil
	}
	if err := m.ReleaseHostPorts(c.conf.Name, func(id string) bool { return id == c.ContainerID }); err != nil {
		return err
	}
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		forgetFlows(conf.RuntimeConfig.PortMappings, family)
	}
	return nil
}

// HostPorts returns the host ports of a network by pod ID.
func (p *Plugins) HostPorts(network string) (map[string][]string, error) {
	ports := map[string][]string{}
	err := p.withTables(func(conn *nftables.Conn) error {
		return eachTable(conn, network, func(t table, elements map[string][]nftables.SetElement) error {
			for _, name := range setNames() {
				for _, e := range elements[name] {
					if text := t.describe(name, e.Key); !slices.Contains(ports[e.Comment], text) {
						ports[e.Comment] = append(ports[e.Comment], text)
					}
				}
			}
			return nil
		})
	})
	return ports, err
}

// ReleaseHostPorts removes the host ports of all pods for which drop returns true. It is idempotent.
func (p *Plugins) ReleaseHostPorts(network string, drop func(id string) bool) error {
	const attempts = 5
	var err error
	for range attempts {
		err = p.withTables(func(conn *nftables.Conn) error { return release(conn, network, drop) })
		if !errors.Is(err, unix.ENOENT) {
			break
		}
		// Another process removed an element, or a set without a size by an older daemon was resized.
	}
	return err
}

// release removes the elements of all pods for which drop returns true. After an error, some may be
// removed.
func release(conn *nftables.Conn, network string, drop func(id string) bool) error {
	return eachTable(conn, network, func(t table, elements map[string][]nftables.SetElement) error {
		doomed := map[string][]nftables.SetElement{}
		for name, found := range elements {
			seen := map[string]bool{}
			for _, e := range found {
				if drop(e.Comment) && !seen[string(e.Key)] {
					seen[string(e.Key)] = true
					doomed[name] = append(doomed[name], nftables.SetElement{Key: e.Key})
				}
			}
		}
		if err := t.change(conn, doomed, conn.SetDeleteElements); err != nil {
			return fmt.Errorf("remove host ports of network %s: %w", network, err)
		}
		return nil
	})
}

// eachTable calls f with each table of a network and the elements of its sets.
func eachTable(conn *nftables.Conn, network string, f func(t table, elements map[string][]nftables.SetElement) error) error {
	tables, err := existing(conn, network)
	if err != nil {
		return err
	}
	for _, t := range tables {
		elements := map[string][]nftables.SetElement{}
		for name, set := range t.sets() {
			if elements[name], err = conn.GetSetElements(set); err != nil {
				return fmt.Errorf("list host ports of network %s: %w", network, err)
			}
		}
		if err := f(t, elements); err != nil {
			return err
		}
	}
	return nil
}
