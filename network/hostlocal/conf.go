package hostlocal

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"

	"github.com/containernetworking/cni/pkg/types"
)

// ipamConf is the plugin's own part of the configuration. It has all keys that the plugin reads.
type ipamConf struct {
	rangeConf  // the oldest form: one range
	Type       string
	Ranges     [][]rangeConf
	Routes     []*types.Route
	DataDir    string
	ResolvConf string
}

// conf is the plugin's view of a network configuration.
type conf struct {
	Name          string
	IPAM          json.RawMessage
	RuntimeConfig struct {
		IPRanges [][]rangeConf
		IPs      []string
	}
	Args struct {
		CNI struct{ IPs []string }
	}
}

// network is a parsed configuration.
type network struct {
	leases     Leases
	sets       []rangeSet
	routes     []*types.Route
	resolvConf string
	// requested are the addresses that the pod must get.
	requested []netip.Addr
}

// envArgs are the plugin's keys in CNI_ARGS.
type envArgs struct {
	types.CommonArgs
	IP types.UnmarshallableString
}

// Supports returns nil if this package implements everything in a network configuration that
// concerns the plugin, and the reason otherwise.
func Supports(config []byte) error {
	_, err := parse(config, "")
	return err
}

// parse reads a network configuration and CNI_ARGS.
func parse(config []byte, args string) (network, error) {
	var c conf
	if err := json.Unmarshal(config, &c); err != nil {
		return network{}, fmt.Errorf("read configuration: %w", err)
	}
	var ipam ipamConf
	dec := json.NewDecoder(bytes.NewReader(c.IPAM))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&ipam); err != nil {
		return network{}, fmt.Errorf("read ipam: %w", err)
	}
	n := network{leases: Of(ipam.DataDir, c.Name), routes: ipam.Routes, resolvConf: ipam.ResolvConf}
	ranges := ipam.Ranges
	if ipam.Subnet != "" {
		ranges = append([][]rangeConf{{ipam.rangeConf}}, ranges...)
	}
	ranges = append(c.RuntimeConfig.IPRanges, ranges...)
	if len(ranges) == 0 {
		return network{}, errors.New("no IP ranges")
	}
	for i, confs := range ranges {
		set, err := parseSet(confs)
		if err != nil {
			return network{}, fmt.Errorf("range set %d: %w", i, err)
		}
		for j, other := range n.sets {
			if set.overlaps(other) {
				return network{}, fmt.Errorf("range set %d overlaps with %d", i, j)
			}
		}
		n.sets = append(n.sets, set)
	}
	var err error
	n.requested, err = requested(c, args)
	return n, err
}

// requested returns the addresses that the pod must get, from all places that can request them.
func requested(c conf, args string) ([]netip.Addr, error) {
	var texts []string
	if args != "" {
		var env envArgs
		if err := types.LoadArgs(args, &env); err != nil {
			return nil, err
		}
		if env.IP != "" {
			texts = append(texts, string(env.IP))
		}
	}
	texts = append(append(texts, c.Args.CNI.IPs...), c.RuntimeConfig.IPs...)
	var ips []netip.Addr
	for _, text := range texts {
		text, _, _ = strings.Cut(text, "/") // the prefix length is the range's
		ip, err := netip.ParseAddr(text)
		if err != nil {
			return nil, fmt.Errorf("requested address: %w", err)
		}
		ips = append(ips, ip.Unmap())
	}
	return ips, nil
}

// readResolvConf converts a resolv.conf(5); the zero value if path is "".
func readResolvConf(path string) (types.DNS, error) {
	var dns types.DNS
	if path == "" {
		return dns, nil
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return dns, err
	}
	for lines := bufio.NewScanner(bytes.NewReader(data)); lines.Scan(); {
		fields := strings.Fields(lines.Text())
		if len(fields) < 2 || strings.HasPrefix(fields[0], "#") || strings.HasPrefix(fields[0], ";") {
			continue
		}
		switch fields[0] {
		case "nameserver":
			dns.Nameservers = append(dns.Nameservers, fields[1])
		case "domain":
			dns.Domain = fields[1]
		case "search":
			dns.Search = append(dns.Search, fields[1:]...)
		case "options":
			dns.Options = append(dns.Options, fields[1:]...)
		}
	}
	return dns, nil
}
