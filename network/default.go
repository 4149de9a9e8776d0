package network

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"path/filepath"

	"github.com/containerd/errdefs"
	"github.com/containernetworking/cni/pkg/utils"

	"github.com/micarun/mica/network/hostlocal"
)

// DefaultNetwork is the embedded network: a bridge with host-local addresses, masquerading and host
// ports. Without Options.InProcess it needs the plugins bridge, host-local and portmap in BinDirs.
type DefaultNetwork struct {
	// Name is the network's name. Default: mica.
	Name string
	// Bridge is the name of the bridge interface. Default: mica0.
	Bridge string
	// Subnet is the IPv4 subnet of the pods; the bridge gets its first address. Default:
	// 10.88.0.0/16.
	Subnet netip.Prefix
	// Subnet6 is an additional IPv6 subnet; the zero value means none.
	Subnet6 netip.Prefix
	// DataDir holds host-local's leases. Default: the directory leases in CacheDir.
	DataDir string
	// MTU is the MTU of the pods' interfaces; 0 means the kernel's default.
	MTU int
}

func (d DefaultNetwork) complete(cacheDir string) (DefaultNetwork, error) {
	if d.Name == "" {
		d.Name = "mica"
	}
	if d.Bridge == "" {
		d.Bridge = "mica0"
	}
	if d.Subnet == (netip.Prefix{}) {
		d.Subnet = netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 88, 0, 0}), 16)
	}
	if d.DataDir == "" {
		d.DataDir = filepath.Join(cacheDir, "leases")
	}
	invalid := func(what string, value any) error {
		return fmt.Errorf("default network: %s %v: %w", what, value, errdefs.ErrInvalidArgument)
	}
	if err := utils.ValidateNetworkName(d.Name); err != nil {
		return d, invalid("name", d.Name)
	}
	if err := utils.ValidateInterfaceName(d.Bridge); err != nil {
		return d, invalid("bridge", d.Bridge)
	}
	// Two addresses are the network and broadcast address, one is the bridge's.
	if !d.Subnet.Addr().Is4() || d.Subnet.Bits() > 30 || d.Subnet != d.Subnet.Masked() {
		return d, invalid("subnet", d.Subnet)
	}
	if s := d.Subnet6; s != (netip.Prefix{}) && (!s.Addr().Is6() || s.Bits() > 126 || s != s.Masked()) {
		return d, invalid("IPv6 subnet", s)
	}
	if d.MTU < 0 {
		return d, invalid("MTU", d.MTU)
	}
	return d, nil
}

// subnets returns the subnets, IPv4 first.
func (d DefaultNetwork) subnets() []netip.Prefix {
	if d.Subnet6.IsValid() {
		return []netip.Prefix{d.Subnet, d.Subnet6}
	}
	return []netip.Prefix{d.Subnet}
}

// conflist returns the network as a conflist, in a version that the plugins of Debian 12 (1.1.1)
// support. Masquerading is not left to the bridge plugin: it creates an iptables chain per pod and
// leaks it if the pod's namespace is removed first; see [DefaultNetwork.masquerade].
func (d DefaultNetwork) conflist() ([]byte, error) {
	var ranges [][]map[string]any
	var routes []map[string]any
	for _, subnet := range d.subnets() {
		ranges = append(ranges, []map[string]any{{"subnet": subnet.String()}})
		everywhere := netip.PrefixFrom(subnet.Addr(), 0).Masked()
		routes = append(routes, map[string]any{"dst": everywhere.String()})
	}
	bridge := map[string]any{
		"type":        "bridge",
		"bridge":      d.Bridge,
		"isGateway":   true,
		"hairpinMode": true,
		"ipam": map[string]any{
			"type": "host-local", "dataDir": d.DataDir, "ranges": ranges, "routes": routes,
		},
	}
	if d.MTU > 0 {
		bridge["mtu"] = d.MTU
	}
	return json.Marshal(map[string]any{
		"name":       d.Name,
		"cniVersion": "1.0.0",
		"plugins": []any{
			bridge,
			map[string]any{"type": "portmap", "capabilities": map[string]bool{"portMappings": true}},
		},
	})
}

// leases returns the directory in which host-local keeps the network's leases.
func (d DefaultNetwork) leases() hostlocal.Leases { return hostlocal.Of(d.DataDir, d.Name) }
