package builtin

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/containernetworking/cni/libcni"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/vishvananda/netlink"

	"github.com/micarun/mica/internal/patience"
)

const plainBridge = `{"cniVersion":"1.0.0","name":"plain","plugins":[{"type":"bridge","bridge":"brt0","capabilities":{"ips":true},
	"ipam":{"type":"host-local","dataDir":%q,"ranges":[[{"subnet":"10.60.0.0/24"}]]}}]}`

// connectPods makes the plugins and the pods of a bridge, which goes with the test.
func connectPods(t *testing.T, ids ...string) (plugins cni, list *libcni.NetworkConfigList, pods []pod) {
	t.Helper()
	needRoot(t)
	plugins, list = newInProcess(t), parseList(t, fmt.Sprintf(plainBridge, t.TempDir()))
	t.Cleanup(func() { resetNode(t) })
	for _, id := range ids {
		p := newPod(t, id, nil)
		plugins.add(list, p)
		pods = append(pods, p)
	}
	return plugins, list, pods
}

// podLink returns the pod's eth0.
func podLink(t *testing.T, p pod) (link netlink.Link) {
	t.Helper()
	must(t, in(t, p.netNS, func() (err error) {
		link, err = netlink.LinkByName("eth0")
		return err
	}))
	return link
}

// A pod with CAP_NET_ADMIN replaces its interface by one that gives another pod's port as its peer.
// The DEL of the pod does not delete that port.
func TestPodCannotNameAnotherPort(t *testing.T) {
	plugins, list, pods := connectPods(t, "victim", "attacker")
	victim, attacker := pods[0], pods[1]
	own := podLink(t, victim).Attrs()
	must(t, in(t, attacker.netNS, func() error {
		link, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		return netlink.LinkDel(link)
	}))
	run(t, "nsenter", "--net="+attacker.netNS, "ip", "link", "add", "name", "eth0", "index", fmt.Sprint(own.Index),
		"type", "veth", "peer", "name", "other", "index", fmt.Sprint(own.ParentIndex))
	if named := podLink(t, attacker).Attrs().ParentIndex; named != own.ParentIndex {
		t.Fatalf("the attacker's interface names the port %d, not %d", named, own.ParentIndex)
	}
	release := func(p pod) (*bridgePort, error) {
		return releaseInterface(t.Context(), call{Call: Call{NetNS: p.netNS, IfName: "eth0"}, prev: &types100.Result{}})
	}
	if port, err := release(attacker); err != nil || port != nil {
		t.Errorf("the attacker's interface has the port %+v, %v", port, err)
	}
	if port, err := release(victim); err != nil || port == nil || port.index != own.ParentIndex {
		t.Errorf("the victim's interface has the port %+v, %v; want %d", port, err, own.ParentIndex)
	}
	plugins.del(list, attacker)
	plugins.del(list, victim)
}

// Whatever a pod does to its interface, its first DEL releases the lease.
func TestDelOfChangedInterfaces(t *testing.T) {
	for name, change := range map[string][]string{
		"second address of the subnet": {"ip", "addr", "add", "10.60.0.77/24", "dev", "eth0"},
		"mapped IPv4 address":          {"ip", "addr", "add", "::ffff:10.9.9.9/128", "dev", "eth0"},
		"no address":                   {"ip", "addr", "flush", "dev", "eth0"},
		"renamed":                      {"ip", "link", "set", "eth0", "name", "other"},
		"lo in its place":              {"sh", "-c", "ip link del eth0; ip link set lo down; ip link set lo name eth0"},
		"many long names": {"sh", "-c", `for i in $(seq 100 595); do
			echo link property add dev eth0 altname $i$(printf %0124d 0); done | ip -batch -`},
	} {
		t.Run(name, func(t *testing.T) {
			plugins, list, pods := connectPods(t, "changed")
			run(t, "nsenter", append([]string{"--net=" + pods[0].netNS}, change...)...)
			plugins.del(list, pods[0])
			next := newPod(t, "next", map[string]any{"ips": []string{"10.60.0.2/24"}})
			plugins.add(list, next) // fails if 10.60.0.2 is leased
			plugins.del(list, next)
		})
	}
}

// A pod gets addresses that another pod had before. The node's neighbour entries, which name the
// hardware address of that pod, are updated by the ADD, so that the first packets arrive.
func TestReusedAddressesAreAnnounced(t *testing.T) {
	plugins, _, _ := connectPods(t)
	list := parseList(t, fmt.Sprintf(`{"cniVersion":"1.0.0","name":"reused","plugins":[{"type":"bridge","bridge":"brt0","isGateway":true,
		"ipam":{"type":"host-local","dataDir":%q,"ranges":[[{"subnet":"10.60.0.0/24"}],[{"subnet":"fd60::/64"}]]}}]}`, t.TempDir()))
	first := newPod(t, "first", nil) // makes the bridge
	plugins.add(list, first)
	for _, address := range []string{"10.60.0.3", "fd60::3"} {
		run(t, "ip", "neigh", "replace", address, "lladdr", "02:00:00:00:00:01", "dev", "brt0", "nud", "stale")
	}
	second := newPod(t, "second", nil)
	result := plugins.add(list, second)
	mac := podLink(t, second).Attrs().HardwareAddr.String()
	for _, ipv6 := range []bool{false, true} {
		address := addressOf(t, result, ipv6)
		for deadline := time.Now().Add(patience.Of(20 * time.Second)); ; time.Sleep(5 * time.Millisecond) {
			entry := run(t, "ip", "neigh", "show", "to", address, "dev", "brt0")
			if strings.Contains(entry, mac) {
				break
			}
			if time.Now().After(deadline) {
				t.Errorf("the node's neighbour entry is %q, not %s", entry, mac)
				break
			}
		}
	}
	plugins.del(list, second)
	plugins.del(list, first)
}
