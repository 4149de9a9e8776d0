package builtin

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/version"

	"github.com/micarun/mica/network/hostlocal"
)

// independent are executables of the CNI project that read no packet filter rules of other plugins,
// so they may run behind a plugin of this package.
func independent() []string { return []string{"bandwidth", "firewall", "sbr", "tuning"} }

// keys returns the configuration keys that this package implements for a plugin, in addition to
// those of every plugin.
func keys(plugin string) []string {
	switch plugin {
	case "bridge":
		return []string{
			"bridge", "isGateway", "isDefaultGateway", "forceAddress", "ipMasq", "mtu", "hairpinMode", "promiscMode",
			"vlan", "vlanTrunk", "preserveDefaultVlan", "macspoofchk", "enabledad", "disableContainerInterface",
			"portIsolation", "ipam", "args", "dns",
		}
	case "portmap":
		return []string{"snat", "masqAll", "markMasqBit", "conditionsV4", "conditionsV6"}
	}
	return nil
}

// capabilities returns the capabilities that this package implements for a plugin.
func capabilities(plugin string) []string {
	switch plugin {
	case "bridge":
		return []string{"mac", "ips", "ipRanges"}
	case "portmap":
		return []string{"portMappings"}
	}
	return nil
}

// maxName is the maximum length of a network's name in the name of its table (NFT_NAME_MAXLEN in
// linux/netfilter/nf_tables.h, which counts a final NUL).
const maxName = 256 - 1 - len(tablePrefix)

// Supports returns nil if plugins of list can run in this package, and a reason otherwise. It
// depends only on the list. Plugins that [Has] does not know are executed, so they must not depend on
// the packet filter rules of the executables that this package replaces. An unknown plugin might, if
// it runs after them.
func Supports(list *libcni.NetworkConfigList) error {
	if ok, err := version.GreaterThanOrEqualTo(list.CNIVersion, "0.3.1"); err != nil || !ok {
		return fmt.Errorf("cniVersion %s is older than 0.3.1", list.CNIVersion)
	}
	if len(list.Name) > maxName {
		return fmt.Errorf("the network's name is longer than %d bytes", maxName)
	}
	found := false
	for _, p := range list.Plugins {
		name := p.Network.Type
		switch {
		case Has(name):
			found = true
			if err := supports(name, p.Bytes, list.Name); err != nil {
				return fmt.Errorf("plugin %s: %w", name, err)
			}
		case found && !slices.Contains(independent(), name):
			return fmt.Errorf("plugin %s might depend on iptables rules of the plugins before it", name)
		}
	}
	if !found {
		return fmt.Errorf("network %s has no built-in plugin", list.Name)
	}
	return nil
}

func supports(plugin string, config []byte, network string) error {
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(config, &fields); err != nil {
		return err
	}
	known := append(keys(plugin), "cniVersion", "name", "type", "capabilities", "disableCheck", "disableGC")
	for _, key := range slices.Sorted(maps.Keys(fields)) {
		if !slices.Contains(known, key) {
			return fmt.Errorf("option %s is not built in", key)
		}
	}
	var declared map[string]bool
	if raw, ok := fields["capabilities"]; ok {
		if err := json.Unmarshal(raw, &declared); err != nil {
			return err
		}
	}
	for _, name := range slices.Sorted(maps.Keys(declared)) {
		if !slices.Contains(capabilities(plugin), name) {
			return fmt.Errorf("capability %s is not built in", name)
		}
	}
	switch plugin {
	case "bridge":
		return supportsBridge(config, network)
	case "portmap":
		return supportsPortmap(config)
	}
	return nil
}

func supportsBridge(config []byte, network string) error {
	b, err := parseBridge(config, "")
	if err != nil {
		return err
	}
	for option, set := range map[string]bool{
		"vlan": b.Vlan != 0, "vlanTrunk": b.VlanTrunk != nil, "macspoofchk": b.MacSpoofChk,
		"disableContainerInterface": b.DisableContainerInterface,
	} {
		if set {
			return fmt.Errorf("option %s is not built in", option)
		}
	}
	if b.IPAM.Type != "host-local" {
		return fmt.Errorf("ipam %q is not built in", b.IPAM.Type)
	}
	named, err := withName(config, network)
	if err != nil {
		return err
	}
	return hostlocal.Supports(named)
}

// withName returns the configuration with the network's name, which libcni adds for each call.
func withName(config []byte, network string) ([]byte, error) {
	fields := map[string]any{}
	if err := json.Unmarshal(config, &fields); err != nil {
		return nil, err
	}
	fields["name"] = network
	return json.Marshal(fields)
}

func supportsPortmap(config []byte) error {
	m, err := parsePortmap(config)
	if err != nil {
		return err
	}
	switch {
	case m.MarkMasqBit != nil && *m.MarkMasqBit != masqueradeBit:
		return fmt.Errorf("markMasqBit %d is not built in", *m.MarkMasqBit)
	case len(m.ConditionsV4) > 0 || len(m.ConditionsV6) > 0:
		return fmt.Errorf("conditions are not built in")
	}
	return nil
}
