package builtin

import (
	"fmt"
	"testing"

	"github.com/containernetworking/cni/libcni"
	"github.com/vishvananda/netlink"
)

const plainBridge = `{"cniVersion":"1.0.0","name":"plain","plugins":[{"type":"bridge","bridge":"brt0",
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
	if port, err := removeAddresses(attacker.netNS, "eth0"); err != nil || port != nil {
		t.Errorf("the attacker's interface has the port %+v, %v", port, err)
	}
	if port, err := removeAddresses(victim.netNS, "eth0"); err != nil || port == nil || port.index != own.ParentIndex {
		t.Errorf("the victim's interface has the port %+v, %v; want %d", port, err, own.ParentIndex)
	}
	plugins.del(list, attacker)
	plugins.del(list, victim)
}

// A pod gives its interface more addresses than DEL removes one by one. DEL deletes the interface.
func TestManyAddressesGoWithTheInterface(t *testing.T) {
	plugins, list, pods := connectPods(t, "many")
	p := pods[0]
	link := podLink(t, p)
	must(t, in(t, p.netNS, func() error {
		for i := range removableAddresses {
			addr, err := netlink.ParseAddr(fmt.Sprintf("10.61.%d.%d/32", i/256, i%256))
			if err == nil {
				err = netlink.AddrAdd(link, addr)
			}
			if err != nil {
				return err
			}
		}
		return nil
	}))
	plugins.del(list, p)
	var err error
	must(t, in(t, p.netNS, func() error {
		_, err = netlink.LinkByName("eth0")
		return nil
	}))
	if !notFound(err) {
		t.Errorf("after DEL, finding eth0 fails with %v", err)
	}
}
