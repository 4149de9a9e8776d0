package network

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/micarun/mica/network/builtin"
)

// hostPortsConf is a network with masquerading by the plugin bridge, and host ports.
func (n *node) hostPortsConf() string {
	d := n.opts.Default
	return fmt.Sprintf(
		`{"cniVersion":"1.0.0","name":%q,"plugins":[{"type":"bridge","bridge":%q,"isGateway":true,"ipMasq":true,"ipam":{"type":"host-local","dataDir":%q,"ranges":[[{"subnet":%q}]]}},{"type":"portmap","capabilities":{"portMappings":true}}]}`,
		d.Name, d.Bridge, filepath.Join(n.opts.CacheDir, "leases"), d.Subnet)
}

// A pod is detached completely by the other way of running plugins than the one that attached it: after
// an upgrade, a downgrade, or a changed option.
func TestPodsOfTheOtherWay(t *testing.T) {
	for _, first := range []bool{true, false} {
		for _, lost := range []string{"", "record", "record and result"} {
			t.Run(fmt.Sprintf("in process %t, lost %s", first, lost), func(t *testing.T) {
				n := newNode(t, func(o *Options) { o.InProcess = first })
				n.configure("10.conflist", n.hostPortsConf())
				pod := newPod(t)
				pod.PortMappings = []PortMapping{{HostPort: 7300, ContainerPort: 80}, {HostPort: 7301, ContainerPort: 80, Protocol: "udp"}}
				result, err := n.Add(t.Context(), pod)
				must(t, err)
				serve(t, pod.NetNS)
				if rules := natRulesOf(t); !strings.Contains(rules, pod.ID) {
					t.Fatalf("no rules of the pod:\n%s", rules)
				}
				n.opts.InProcess = !first
				if lost != "" {
					must(t, n.records.remove(pod.ID))
				}
				if lost == "record and result" {
					n.dropResults(pod.ID)
				}
				n.restart()
				if answer, err := ask("", result.IPs[0].String()+":80"); err != nil || answer == "" {
					t.Errorf("the pod answers %q, %v", answer, err)
				}
				if first && lost == "" { // the executable portmap 1.1.1 fails without an IPv6 address
					must(t, n.Check(t.Context(), pod))
				}
				must(t, n.Del(t.Context(), pod))
				if rules := natRulesOf(t); strings.Contains(rules, pod.ID) {
					t.Errorf("rules left:\n%s", rules)
				}
				if held := n.leased(); len(held) > 0 {
					t.Errorf("leases left: %v", held)
				}
				must(t, n.Sweep(t.Context(), nil))
				if networks, err := n.builtin.Networks(); err != nil || first && len(networks) > 0 {
					t.Errorf("tables of networks after Sweep: %v, %v", networks, err)
				}
			})
		}
	}
}

// Host ports of unknown pods, and tables of networks that are not in use, are reported and removed.
func TestLeftoversInTables(t *testing.T) {
	n := newNode(t, func(o *Options) { o.InProcess = true })
	n.configure("10.conflist", n.hostPortsConf())
	live := newPod(t)
	live.PortMappings = []PortMapping{{HostPort: 7400, ContainerPort: 80}}
	n.add(live)
	// A pod whose files were lost with its namespace.
	dead := newPod(t)
	dead.PortMappings = []PortMapping{{HostPort: 7401, ContainerPort: 80, Protocol: "udp", HostIP: "127.0.0.1"}}
	_, err := n.Add(t.Context(), dead)
	must(t, err)
	must(t, n.records.remove(dead.ID))
	n.dropResults(dead.ID)
	n.restart()
	find := func() []string {
		t.Helper()
		found, err := n.LiveLeftovers(t.Context(), []string{live.ID})
		must(t, err)
		var texts []string
		for _, l := range found {
			if strings.HasPrefix(l.Path, "nft") {
				texts = append(texts, l.Path+": "+l.What)
			}
		}
		return texts
	}
	table := "nft table mica/" + n.opts.Default.Name
	want := []string{fmt.Sprintf("%s: host ports 127.0.0.1 7401/udp of unknown pod %q", table, dead.ID)}
	if diff := cmp.Diff(want, find()); diff != "" {
		t.Errorf("leftovers (-want +got):\n%s", diff)
	}
	must(t, n.Sweep(t.Context(), []string{live.ID}))
	if diff := cmp.Diff([]string(nil), find()); diff != "" {
		t.Errorf("leftovers after Sweep (-want +got):\n%s", diff)
	}
	if rules := natRulesOf(t); !strings.Contains(rules, "7400") || strings.Contains(rules, "7401") {
		t.Errorf("rules after Sweep:\n%s", rules)
	}
	must(t, n.Del(t.Context(), live))
	n.unconfigure("10.conflist")
	n.configure("10.conflist", `{"cniVersion":"1.0.0","name":"other","plugins":[{"type":"loopback"}]}`)
	if diff := cmp.Diff([]string{table + ": rules of a network that is not in use"}, find()); diff != "" {
		t.Errorf("leftovers of another network (-want +got):\n%s", diff)
	}
	must(t, n.Sweep(t.Context(), nil))
	if rules := natRulesOf(t); strings.Contains(rules, table) {
		t.Errorf("rules after the Sweep of an unused network:\n%s", rules)
	}
}

// Masquerading that no configuration wants any longer ends with the next Sweep.
func TestMasqueradingEnds(t *testing.T) {
	n := newNode(t, func(o *Options) { o.InProcess = true })
	n.configure("10.conflist", n.hostPortsConf())
	pod := newPod(t)
	n.add(pod)
	n.configure("10.conflist", strings.Replace(n.hostPortsConf(), `"ipMasq":true`, `"ipMasq":false`, 1))
	must(t, n.Sweep(t.Context(), []string{pod.ID}))
	if !strings.Contains(natRulesOf(t), "masquerade comment \"pods") {
		t.Error("an attached pod is not masqueraded any longer")
	}
	must(t, n.Del(t.Context(), pod))
	must(t, n.Sweep(t.Context(), nil))
	if strings.Contains(natRulesOf(t), "masquerade comment \"pods") {
		t.Error("masquerading goes on without pods")
	}
}

// The default network needs no executables.
func TestNoExecutables(t *testing.T) {
	n := newNode(t, func(o *Options) { o.InProcess, o.BinDirs = true, o.BinDirs[:1] })
	must(t, n.Status(t.Context()))
	pod, _ := n.attached(PortMapping{HostPort: 7500, ContainerPort: 80})
	must(t, n.Check(t.Context(), pod))
}

// A host port that another pod has is an error that names it, and the ADD leaves nothing.
func TestHostPortInUse(t *testing.T) {
	n := newNode(t, func(o *Options) { o.InProcess = true })
	holder, _ := n.attached(PortMapping{HostPort: 7600, ContainerPort: 80})
	pod := newPod(t)
	pod.PortMappings = []PortMapping{{HostPort: 7601, ContainerPort: 80}, {HostPort: 7600, ContainerPort: 80}}
	_, err := n.Add(t.Context(), pod)
	if err == nil || !strings.Contains(err.Error(), "host port is in use: 7600/tcp is forwarded to pod "+holder.ID) {
		t.Errorf("Add = %v", err)
	}
	if rules := natRulesOf(t); strings.Contains(rules, "7601") {
		t.Errorf("rules of the failed Add:\n%s", rules)
	}
	if held := n.leased(); len(held) != 1 {
		t.Errorf("leases: %v", held)
	}
}

// What is not built in is executed, with the whole list.
func TestSupportedLists(t *testing.T) {
	bridge := `{"type":"bridge","ipam":{"type":"host-local","subnet":"10.0.0.0/24"}%s}`
	for plugins, want := range map[string]string{
		fmt.Sprintf(bridge, ``): "",
		fmt.Sprintf(bridge, `,"mtu":1400,"isDefaultGateway":true,"ipMasq":true,"forceAddress":true,"enabledad":true,"vlan":0`): "",
		fmt.Sprintf(bridge, `,"vlan":5`):                                                                           "option vlan",
		fmt.Sprintf(bridge, `,"vlanTrunk":[{"id":5}]`):                                                             "option vlanTrunk",
		fmt.Sprintf(bridge, `,"macspoofchk":true`):                                                                 "option macspoofchk",
		fmt.Sprintf(bridge, `,"ipMasqBackend":"iptables"`):                                                         "option ipMasqBackend",
		fmt.Sprintf(bridge, `,"capabilities":{"mac":true,"ips":true}`):                                             "",
		fmt.Sprintf(bridge, `,"capabilities":{"bandwidth":true}`):                                                  "capability bandwidth",
		fmt.Sprintf(bridge, `,"colour":"red"`):                                                                     "option colour",
		`{"type":"bridge","ipam":{"type":"dhcp"}}`:                                                                 `ipam "dhcp"`,
		`{"type":"bridge","ipam":{"type":"host-local","subnet":"10.0.0.0/24","colour":"red"}}`:                     "unknown field",
		fmt.Sprintf(bridge, ``) + `,{"type":"portmap"},{"type":"bandwidth"},{"type":"firewall"},{"type":"tuning"}`: "",
		fmt.Sprintf(bridge, ``) + `,{"type":"unknown"}`:                                                            "might depend on iptables",
		`{"type":"flannel"},{"type":"portmap","capabilities":{"portMappings":true},"snat":true}`:                   "",
		`{"type":"flannel"},{"type":"portmap","conditionsV4":["-s","10.0.0.0/8"]}`:                                 "conditions",
		`{"type":"flannel"},{"type":"portmap","markMasqBit":5}`:                                                    "markMasqBit",
		`{"type":"flannel"},{"type":"portmap","externalSetMarkChain":"X"}`:                                         "externalSetMarkChain",
		`{"type":"flannel"},{"type":"portmap","backend":"nftables"}`:                                               "option backend",
		`{"type":"ptp"}`: "no built-in plugin",
	} {
		text := fmt.Sprintf(`{"cniVersion":"1.0.0","name":"n","plugins":[%s]}`, plugins)
		list, err := record{Config: []byte(text)}.list()
		must(t, err)
		err = builtin.Supports(list)
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%s: %v, want %q", plugins, err, want)
		}
	}
}

// A network whose name is too long for a table is executed.
func TestLongNetworkName(t *testing.T) {
	for length, want := range map[int]string{250: "", 251: "longer than 250 bytes"} {
		list, err := record{Config: fmt.Appendf(nil, `{"cniVersion":"1.0.0","name":%q,"plugins":[{"type":"loopback"}]}`, strings.Repeat("n", length))}.list()
		must(t, err)
		if got := builtin.Supports(list); want == "" && got != nil || want != "" && (got == nil || !strings.Contains(got.Error(), want)) {
			t.Errorf("%d bytes: %v, want %q", length, got, want)
		}
	}
}

// A probe that fails, as before a kernel module can be loaded, is repeated until it succeeds.
func TestProbeIsRepeated(t *testing.T) {
	calls := 0
	probe := untilSuccess(func() error {
		if calls++; calls == 1 {
			return errors.New("no module")
		}
		return nil
	})
	if first, second, third := probe(), probe(), probe(); first == nil || second != nil || third != nil || calls != 2 {
		t.Errorf("probe = %v, %v, %v after %d calls", first, second, third, calls)
	}
}
