package builtin

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"

	"github.com/micarun/mica/internal/patience"
)

// network is one configuration of TestSameAsExecutables. In its texts, LEASES stands for the lease
// directory.
type networkCase struct {
	name, conflist string
	capabilities   map[string]any
	ipv6           bool
	// setup are commands that add rules of others to the node.
	setup []string
	// probes are connections that are compared; PODn, PODn6 are the addresses of two pods.
	probes []probe
	// closed are those of probes that get no answer, by the executables either.
	closed []probe
}

// probe is one connection: from the node, the outside, or a pod.
type probe struct{ from, network, to string }

// blocked reports whether a connection of the case gets no answer, by the executables either.
func (c networkCase) blocked(p probe) bool { return slices.Contains(c.closed, p) }

const (
	outsideIP4, nodeIP4 = "192.0.2.2", "192.0.2.1"
	outsideIP6, nodeIP6 = "2001:db8::2", "2001:db8::1"
)

func conflist(version, bridge, ipam string, more ...string) string {
	if bridge != "" {
		bridge = "," + bridge
	}
	plugins := append([]string{`{"type":"bridge","bridge":"brt0"` + bridge + `,"ipam":{"type":"host-local","dataDir":"LEASES",` + ipam + `}}`}, more...)
	return fmt.Sprintf(`{"cniVersion":%q,"name":"same","plugins":[%s]}`, version, strings.Join(plugins, ","))
}

func ports(list ...map[string]any) map[string]any { return map[string]any{"portMappings": list} }

// port maps a host port to port 80 of the pod.
func port(host int, protocol, hostIP string) map[string]any {
	m := map[string]any{"hostPort": host, "containerPort": 80, "protocol": protocol}
	if hostIP != "" {
		m["hostIP"] = hostIP
	}
	return m
}

const (
	v4   = `"ranges":[[{"subnet":"10.77.0.0/24"}]],"routes":[{"dst":"0.0.0.0/0"}]`
	v6   = `"ranges":[[{"subnet":"fd77::/64"}]],"routes":[{"dst":"::/0"}]`
	dual = `"ranges":[[{"subnet":"10.77.0.0/24"}],[{"subnet":"fd77::/64"}]],"routes":[{"dst":"0.0.0.0/0"},{"dst":"::/0"}]`

	portmapPlugin = `{"type":"portmap","capabilities":{"portMappings":true}}`
)

func cases() []networkCase {
	basic := []probe{
		{"node", "tcp", "POD1:80"},
		{"POD1", "tcp", "10.77.0.1:7000"},
		{"POD1", "tcp", "POD2:80"},
		{"POD1", "tcp", outsideIP4 + ":7000"},
		{"outside", "tcp", "POD1:80"},
		{"POD1", "udp", outsideIP4 + ":7000"},
	}
	basic6 := []probe{
		{"node", "tcp", "[POD16]:80"},
		{"POD1", "tcp", "[fd77::1]:7000"},
		{"POD1", "tcp", "[POD26]:80"},
		{"POD1", "tcp", "[" + outsideIP6 + "]:7000"},
		{"outside", "tcp", "[POD16]:80"},
	}
	host := []probe{
		{"outside", "tcp", nodeIP4 + ":8080"},
		{"node", "tcp", nodeIP4 + ":8080"},
		{"node", "tcp", "127.0.0.1:8080"},
		{"POD2", "tcp", nodeIP4 + ":8080"},
		{"POD1", "tcp", nodeIP4 + ":8080"},
		{"outside", "udp", nodeIP4 + ":8053"},
		{"node", "udp", "127.0.0.1:8053"},
		{"POD2", "tcp", "10.77.0.1:8080"},
		{"POD1", "tcp", outsideIP4 + ":8080"},
	}
	host6 := []probe{
		{"outside", "tcp", "[" + nodeIP6 + "]:8080"},
		{"node", "tcp", "[" + nodeIP6 + "]:8080"},
		{"POD2", "tcp", "[" + nodeIP6 + "]:8080"},
		{"POD1", "tcp", "[" + nodeIP6 + "]:8080"},
	}
	both := ports(port(8080, "tcp", ""), port(8053, "udp", ""), port(8132, "sctp", ""))
	return []networkCase{
		{name: "plain", conflist: conflist("1.0.0", ``, v4), probes: []probe{{"POD1", "tcp", "POD2:80"}}},
		{name: "gateway", conflist: conflist("1.0.0", `"isGateway":true`, v4), probes: basic},
		{name: "version 0.3.1", conflist: conflist("0.3.1", `"isGateway":true`, v4)},
		{name: "version 0.4.0", conflist: conflist("0.4.0", `"isGateway":true`, dual), ipv6: true},
		{name: "version 1.1.0", conflist: conflist("1.1.0", `"isGateway":true`, v4, portmapPlugin), capabilities: both, probes: host[:1]},
		{name: "default gateway", conflist: conflist("1.0.0", `"isDefaultGateway":true`, `"subnet":"10.77.0.0/24"`), probes: basic},
		{name: "IPv6", conflist: conflist("1.0.0", `"isGateway":true`, v6), ipv6: true, probes: basic6},
		{name: "dual stack", conflist: conflist("1.0.0", `"isDefaultGateway":true,"ipMasq":true`, `"ranges":[[{"subnet":"10.77.0.0/24"}],[{"subnet":"fd77::/64"}]]`), ipv6: true, probes: slices.Concat(basic, basic6)},
		{name: "duplicate address detection", conflist: conflist("1.0.0", `"isGateway":true,"enabledad":true`, dual), ipv6: true},
		{name: "masquerade", conflist: conflist("1.0.0", `"isGateway":true,"ipMasq":true`, v4), probes: basic},
		{name: "options", conflist: conflist("1.0.0", `"isGateway":true,"hairpinMode":true,"mtu":1400,"portIsolation":true,"forceAddress":true,"dns":{"nameservers":["10.77.0.1"],"search":["example"]}`, v4), probes: basic[:2]},
		{name: "promiscuous", conflist: conflist("1.0.0", `"isGateway":true,"promiscMode":true`, v4)},
		{
			name:     "ranges and routes",
			conflist: conflist("1.0.0", `"isGateway":true,"ipMasq":true`, `"ranges":[[{"subnet":"10.77.0.0/24","rangeStart":"10.77.0.20","rangeEnd":"10.77.0.20","gateway":"10.77.0.9"},{"subnet":"10.77.0.0/24","rangeStart":"10.77.0.30","rangeEnd":"10.77.0.32","gateway":"10.77.0.9"}]],"routes":[{"dst":"0.0.0.0/0"},{"dst":"203.0.113.0/24","gw":"10.77.0.7"},{"dst":"198.51.100.0/24","priority":77}],"resolvConf":"RESOLV"`),
		},
		{
			name: "capabilities", capabilities: map[string]any{"mac": "02:11:22:33:44:55", "ips": []string{"10.77.0.44/24"}},
			conflist: `{"cniVersion":"1.0.0","name":"same","plugins":[{"type":"bridge","bridge":"brt0","isGateway":true,"capabilities":{"mac":true,"ips":true},"ipam":{"type":"host-local","dataDir":"LEASES",` + v4 + `}}]}`,
		},
		{
			name: "loopback", conflist: `{"cniVersion":"1.0.0","name":"same","plugins":[{"type":"loopback"}]}`,
		},
		{name: "host ports", conflist: conflist("1.0.0", `"isGateway":true,"hairpinMode":true`, v4, portmapPlugin), capabilities: both, probes: host},
		{name: "host ports with masquerade", conflist: conflist("1.0.0", `"isGateway":true,"hairpinMode":true,"ipMasq":true`, v4, portmapPlugin), capabilities: both, probes: slices.Concat(host, basic)},
		{name: "host ports without hairpin mode", conflist: conflist("1.0.0", `"isGateway":true`, v4, portmapPlugin), capabilities: both, probes: host[:5], closed: host[4:5]},
		{name: "host ports, dual stack", conflist: conflist("1.0.0", `"isGateway":true,"hairpinMode":true`, dual, portmapPlugin), ipv6: true, capabilities: both, probes: slices.Concat(host, host6)},
		{
			name:         "host ports by address",
			conflist:     conflist("1.0.0", `"isGateway":true,"hairpinMode":true`, dual, portmapPlugin),
			ipv6:         true,
			capabilities: ports(port(8080, "tcp", nodeIP4), port(8081, "tcp", "0.0.0.0"), port(8082, "tcp", "127.0.0.1"), port(8083, "tcp", nodeIP6)),
			probes: []probe{
				{"outside", "tcp", nodeIP4 + ":8080"},
				{"node", "tcp", "127.0.0.1:8080"},
				{"POD2", "tcp", nodeIP4 + ":8080"},
				{"POD1", "tcp", nodeIP4 + ":8080"},
				{"outside", "tcp", nodeIP4 + ":8081"},
				{"node", "tcp", "127.0.0.1:8082"},
				{"outside", "tcp", nodeIP4 + ":8082"},
				{"outside", "tcp", "[" + nodeIP6 + "]:8083"},
				{"outside", "tcp", "[" + nodeIP6 + "]:8081"},
				{"POD2", "tcp", "[" + nodeIP6 + "]:8083"},
			},
			closed: []probe{
				{"node", "tcp", "127.0.0.1:8080"}, {"outside", "tcp", nodeIP4 + ":8082"}, {"outside", "tcp", "[" + nodeIP6 + "]:8081"},
			},
		},
		{
			name:         "beside rules of others",
			conflist:     conflist("1.0.0", `"isGateway":true,"hairpinMode":true,"ipMasq":true`, v4, portmapPlugin),
			capabilities: both,
			setup:        rulesOfOthers(),
			probes: slices.Concat(host, []probe{
				{"POD1", "tcp", outsideIP4 + ":7000"}, {"node", "tcp", "10.96.0.1:443"}, {"outside", "tcp", nodeIP4 + ":9090"}, {"outside", "tcp", "POD1:80"},
			}),
			closed: []probe{{"outside", "tcp", "POD1:80"}},
		},
		{
			name:         "host ports without SNAT",
			conflist:     conflist("1.0.0", `"isGateway":true,"hairpinMode":true`, v4, `{"type":"portmap","snat":false,"capabilities":{"portMappings":true}}`),
			capabilities: both, probes: host[:4], closed: host[2:3],
		},
		{
			name:         "host ports, all masqueraded",
			conflist:     conflist("1.0.0", `"isGateway":true,"hairpinMode":true`, v4, `{"type":"portmap","masqAll":true,"capabilities":{"portMappings":true}}`),
			capabilities: both, probes: host,
		},
	}
}

// rulesOfOthers are commands that add what other programs have on a node: a firewall that drops what it
// does not know, kube-proxy's destinations in nftables and iptables, and an operator's source address
// for pods, which masquerading must not replace.
func rulesOfOthers() []string {
	return []string{
		"ip addr add 192.0.2.3/24 dev up0",
		"iptables -P FORWARD DROP",
		"iptables -A FORWARD -m conntrack --ctstate DNAT,ESTABLISHED,RELATED -j ACCEPT",
		"iptables -A FORWARD -s 10.77.0.0/24 -j ACCEPT",
		"iptables -t nat -N KUBE-SERVICES",
		"iptables -t nat -A PREROUTING -j KUBE-SERVICES",
		"iptables -t nat -A KUBE-SERVICES -p tcp --dport 9090 -j DNAT --to-destination 10.77.0.3:80",
		"iptables -t nat -A POSTROUTING -s 10.77.0.0/24 -p tcp --dport 7000 -j SNAT --to-source 192.0.2.3",
		"nft add table ip kube-proxy",
		"nft add chain ip kube-proxy nat-output { type nat hook output priority -100 ; }",
		"nft add rule ip kube-proxy nat-output ip daddr 10.96.0.1 tcp dport 443 dnat to 10.77.0.3:80",
		"ip route add 10.96.0.0/16 dev up0",
	}
}

// othersRules returns the rules on the node that belong neither to the executables nor to this package.
func othersRules(t *testing.T) string {
	var rules []string
	for line := range strings.Lines(run(t, "iptables-save") + run(t, "nft", "list", "tables")) {
		if !strings.HasPrefix(line, "#") && !strings.HasPrefix(line, ":") && !strings.Contains(line, "CNI-") && !strings.Contains(line, tablePrefix) {
			rules = append(rules, line)
		}
	}
	return strings.Join(rules, "")
}

// TestSameAsExecutables runs each configuration by the CNI project's plugins and by this package, one
// after the other, and compares results, interfaces, addresses, routes, sysctls, leases, and which
// source addresses connections show.
func TestSameAsExecutables(t *testing.T) {
	needRoot(t)
	outside := makeOutside(t)
	for _, c := range cases() {
		t.Run(c.name, func(t *testing.T) {
			resolv := filepath.Join(t.TempDir(), "resolv.conf")
			must(t, os.WriteFile(resolv, []byte("# x\nnameserver 10.0.0.1\nsearch a b\noptions ndots:5\n"), 0o644))
			c.conflist = strings.ReplaceAll(c.conflist, "RESOLV", resolv)
			want := c.observe(t, newExecutables(t), outside)
			got := c.observe(t, newInProcess(t), outside)
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("- executables, + in process:\n%s", diff)
			}
		})
	}
}

// makeOutside makes a namespace that is connected to the node and routes the pods' addresses to it.
func makeOutside(t *testing.T) string {
	ns := newNamespace(t, "outside")
	run(t, "nsenter", "--net="+ns, "ip", "link", "set", "lo", "up")
	run(t, "ip", "link", "add", "up0", "type", "veth", "peer", "name", "up1")
	file, err := openNamespace(ns)
	must(t, err)
	defer file.close()
	peer, err := netlink.LinkByName("up1")
	must(t, err)
	must(t, netlink.LinkSetNsFd(peer, file.fd()))
	for _, command := range []string{
		"addr add " + nodeIP4 + "/24 dev up0", "-6 addr add " + nodeIP6 + "/64 dev up0 nodad", "link set up0 up",
	} {
		run(t, "ip", strings.Fields(command)...)
	}
	for _, command := range []string{
		"addr add " + outsideIP4 + "/24 dev up1", "-6 addr add " + outsideIP6 + "/64 dev up1 nodad", "link set up1 up",
		"route add 10.77.0.0/16 via " + nodeIP4, "-6 route add fd77::/64 via " + nodeIP6,
	} {
		run(t, "nsenter", append([]string{"--net=" + ns, "ip"}, strings.Fields(command)...)...)
	}
	serve(t, ns, 7000)
	serve(t, ns, 8080)
	serve(t, "", 7000)
	t.Cleanup(func() { run(t, "ip", "link", "del", "up0") })
	return ns
}

// observe attaches two pods, the second without host ports, and returns everything that can be
// compared.
func (c networkCase) observe(t *testing.T, cni cni, outside string) map[string]string {
	leases := t.TempDir()
	list := parseList(t, strings.ReplaceAll(c.conflist, "LEASES", leases))
	resetNode(t)
	for _, command := range c.setup {
		fields := strings.Fields(command)
		run(t, fields[0], fields[1:]...)
	}
	before := othersRules(t)
	seen := map[string]string{}
	pods := []pod{newPod(t, "pod1", c.capabilities), newPod(t, "pod2", nil)}
	if c.capabilities["ips"] != nil {
		pods = pods[:1]
	}
	replace := []string{}
	var results []types.Result
	for i, p := range pods {
		result := cni.add(list, p)
		results = append(results, result)
		replace = append(replace, p.netNS, fmt.Sprintf("NETNS%d", i+1))
		if err := cni.check(list, p); err != nil && !errors.Is(err, libcni.ErrorCheckNotSupp) {
			t.Errorf("%s: CHECK: %v", cni.name, err)
		}
	}
	normal := func(s string) string {
		s = strings.NewReplacer(append(replace, leases, "LEASES")...).Replace(s)
		s = regexp.MustCompile(`veth[0-9a-f]{8}`).ReplaceAllString(s, "VETH")
		return regexp.MustCompile(`([0-9a-f]{2}:){5}[0-9a-f]{2}`).ReplaceAllStringFunc(s, func(mac string) string {
			if mac == "02:11:22:33:44:55" || mac == "00:00:00:00:00:00" {
				return mac
			}
			return "MAC"
		})
	}
	for i, p := range pods {
		seen[fmt.Sprintf("result %d", i+1)] = normal(toJSON(t, results[i]))
		must(t, in(t, p.netNS, func() error {
			seen[fmt.Sprintf("pod %d", i+1)] = normal(describeNamespace(t, "eth0", "lo"))
			return nil
		}))
	}
	seen["node"] = normal(describeNamespace(t, "brt0", "veth"))
	seen["leases"] = normal(describeFiles(t, leases))
	for _, answer := range c.connect(t, pods, results, outside) {
		name, value, _ := strings.Cut(answer, " = ")
		seen[name] = value
	}
	c.removePods(t, cni, list, pods)
	if diff := cmp.Diff(before, othersRules(t)); c.setup != nil && diff != "" {
		t.Errorf("%s: rules of others (-before +after):\n%s", cni.name, diff)
	}
	seen["leases after DEL"] = normal(describeFiles(t, leases))
	seen["links after DEL"] = strings.Join(linkNames(t), " ")
	return seen
}

func (c networkCase) removePods(t *testing.T, cni cni, list *libcni.NetworkConfigList, pods []pod) {
	for _, p := range pods {
		cni.del(list, p)
		cni.del(list, p) // DEL is idempotent
		drop(p.netNS)
	}
	for deadline := time.Now().Add(patience.Of(20 * time.Second)); ; time.Sleep(time.Millisecond) {
		if !slices.ContainsFunc(linkNames(t), func(n string) bool { return strings.HasPrefix(n, "veth") }) {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: links after DEL: %v", cni.name, linkNames(t))
		}
	}
}

// connect makes the connections of the case.
func (c networkCase) connect(t *testing.T, pods []pod, results []types.Result, outside string) []string {
	if len(c.probes) == 0 {
		return nil
	}
	replace := []string{}
	from := map[string]string{"node": "", "outside": outside}
	for i, p := range pods {
		name := fmt.Sprintf("POD%d", i+1)
		from[name] = p.netNS
		if c.ipv6 {
			replace = append(replace, name+"6", addressOf(t, results[i], true))
		}
		if strings.Contains(c.conflist, "10.77.0") {
			replace = append(replace, name, addressOf(t, results[i], false))
		}
		defer serve(t, p.netNS, 80)()
	}
	awaitAddresses(t)
	var answers []string
	for _, p := range c.probes {
		to := strings.NewReplacer(replace...).Replace(p.to)
		limit := patience.Of(20 * time.Second)
		if c.blocked(p) {
			limit = time.Second
		}
		answer := ask(t, from[p.from], p.network, to, limit)
		if c.blocked(p) != (answer == unreachable) {
			t.Errorf("%s from %s to %s: %s", p.network, p.from, p.to, answer)
		}
		answers = append(answers, fmt.Sprintf("%s from %s to %s = %s", p.network, p.from, p.to, answer))
	}
	return answers
}

// awaitAddresses waits until duplicate address detection has accepted the bridge's addresses.
func awaitAddresses(t *testing.T) {
	link, err := netlink.LinkByName("brt0")
	must(t, err)
	must(t, withHandle(func(h *netlink.Handle) error { return settle(t.Context(), h, link) }))
}

// resetNode removes the bridge, and the rules and sysctls that earlier cases left on the node.
func resetNode(t *testing.T) {
	if link, err := netlink.LinkByName("brt0"); err == nil {
		must(t, netlink.LinkDel(link))
	}
	for _, tool := range []string{"iptables", "ip6tables"} {
		run(t, tool, "-P", "FORWARD", "ACCEPT")
		for _, table := range []string{"nat", "filter"} {
			run(t, tool, "-t", table, "-F")
			run(t, tool, "-t", table, "-X")
		}
	}
	for _, command := range []string{"nft delete table ip kube-proxy", "ip addr del 192.0.2.3/24 dev up0", "ip route del 10.96.0.0/16"} {
		_ = exec.Command("sh", "-c", command).Run() // most cases have none
	}
	must(t, setSysctl("ipv4/ip_forward", "0"))
	must(t, setSysctl("ipv6/conf/all/forwarding", "0"))
}

func linkNames(t *testing.T) []string {
	links, err := retried(netlink.LinkList)
	must(t, err)
	var names []string
	for _, l := range links {
		names = append(names, l.Attrs().Name)
	}
	return names
}

// describeNamespace describes the interfaces with one of the prefixes in the thread's namespace, their
// addresses and sysctls, and all routes.
func describeNamespace(t *testing.T, prefixes ...string) string {
	var out strings.Builder
	links, err := retried(netlink.LinkList)
	must(t, err)
	mine := map[int]string{}
	for _, l := range links {
		l = settled(t, l)
		a := l.Attrs()
		if !slices.ContainsFunc(prefixes, func(p string) bool { return strings.HasPrefix(a.Name, p) }) {
			continue
		}
		mine[a.Index] = a.Name
		fmt.Fprintf(&out, "%s: %s mtu %d queue %d flags %v state %v promiscuity %d mac %s\n", a.Name, l.Type(), a.MTU, a.TxQLen,
			a.Flags&(net.FlagUp|net.FlagRunning), a.OperState, a.Promisc, a.HardwareAddr)
		if port, err := netlink.LinkGetProtinfo(l); err == nil && a.MasterIndex != 0 {
			fmt.Fprintf(&out, "  port %v\n", port.String())
		}
		addrs, err := retried(func() ([]netlink.Addr, error) { return netlink.AddrList(l, netlink.FAMILY_ALL) })
		must(t, err)
		for _, addr := range addrs {
			if !addr.IP.IsLinkLocalUnicast() {
				fmt.Fprintf(&out, "  address %s scope %d broadcast %s flags %x\n", addr.IPNet, addr.Scope, addr.Broadcast, addr.Flags)
			}
		}
		for _, family := range []string{"ipv4", "ipv6"} {
			out.WriteString(describeFiles(t, "/proc/sys/net/"+family+"/conf/"+a.Name))
		}
	}
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		routes, err := retried(func() ([]netlink.Route, error) {
			return netlink.RouteListFiltered(family, &netlink.Route{}, netlink.RT_FILTER_TABLE)
		})
		must(t, err)
		var lines []string
		for _, r := range routes {
			if name, ok := mine[r.LinkIndex]; ok && !r.Dst.IP.IsLinkLocalUnicast() && !r.Dst.IP.IsMulticast() {
				lines = append(lines, fmt.Sprintf("route %s via %s dev %s src %s priority %d scope %d table %d", r.Dst, r.Gw, name, r.Src, r.Priority, r.Scope, r.Table))
			}
		}
		slices.Sort(lines)
		out.WriteString(strings.Join(lines, "\n") + "\n")
	}
	for _, name := range []string{"ipv4/ip_forward", "ipv6/conf/all/forwarding"} {
		data, err := os.ReadFile("/proc/sys/net/" + name)
		must(t, err)
		fmt.Fprintf(&out, "%s = %s", name, data)
	}
	return out.String()
}

// settled waits until the link reports its carrier, which the kernel does asynchronously.
func settled(t *testing.T, l netlink.Link) netlink.Link {
	for deadline := time.Now().Add(patience.Of(20 * time.Second)); l.Attrs().OperState == netlink.OperDown && l.Attrs().Flags&net.FlagUp != 0; {
		if time.Now().After(deadline) {
			t.Fatalf("%s is %v", l.Attrs().Name, l.Attrs().OperState)
		}
		time.Sleep(time.Millisecond)
		var err error
		l, err = netlink.LinkByIndex(l.Attrs().Index)
		must(t, err)
	}
	return l
}

// describeFiles lists the files below a directory with their contents and modes.
func describeFiles(t *testing.T, dir string) string {
	var out strings.Builder
	_ = filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return nil //nolint:nilerr // a directory that does not exist has no files
		}
		data, err := os.ReadFile(path)
		if err != nil {
			data = []byte("unreadable") // such as stable_secret
		}
		info, err := d.Info()
		must(t, err)
		fmt.Fprintf(&out, "%s %v %q\n", path, info.Mode(), data)
		return nil
	})
	return out.String()
}
