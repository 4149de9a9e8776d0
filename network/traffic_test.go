package network

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/vishvananda/netlink"

	"github.com/micarun/mica/runtimeservice/podns"
)

// world is another machine: a namespace linked to the node by a veth pair. The node is 192.0.2.1
// and 2001:db8::1, the world 192.0.2.2 and 2001:db8::2. The world has no route to the pods.
func world(t *testing.T) (ns string) {
	t.Helper()
	pod := newPod(t)
	must(t, netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "cable"}, PeerName: "world"}))
	t.Cleanup(func() {
		if link, err := netlink.LinkByName("cable"); err == nil {
			must(t, netlink.LinkDel(link))
		}
	})
	f, err := os.Open(pod.NetNS)
	must(t, err)
	defer func() { _ = f.Close() }()
	peer, err := netlink.LinkByName("world")
	must(t, err)
	must(t, netlink.LinkSetNsFd(peer, int(f.Fd())))
	up := func(name string, addrs ...string) error {
		link, err := netlink.LinkByName(name)
		if err != nil {
			return err
		}
		for _, text := range addrs {
			addr, err := netlink.ParseAddr(text)
			if err != nil {
				return err
			}
			addr.Flags = 0x02 // IFA_F_NODAD
			if err := netlink.AddrAdd(link, addr); err != nil {
				return err
			}
		}
		return netlink.LinkSetUp(link)
	}
	must(t, podns.Do(pod.NetNS, func() error { return up("world", "192.0.2.2/24", "2001:db8::2/64") }))
	must(t, up("cable", "192.0.2.1/24", "2001:db8::1/64"))
	return pod.NetNS
}

func TestTraffic(t *testing.T) {
	for _, dual := range []bool{false, true} {
		t.Run(fmt.Sprintf("dual=%v", dual), func(t *testing.T) {
			n := newNode(t, func(o *Options) {
				if dual {
					o.Default.Subnet6 = netip.MustParsePrefix("fd00:99::/64")
				}
			})
			testTraffic(t, n, dual)
		})
	}
}

func testTraffic(t *testing.T, n *node, dual bool) {
	outside := world(t)
	must(t, n.Status(t.Context()))
	ports := []PortMapping{
		{HostPort: 8081, ContainerPort: 80, Protocol: "TCP"},
		{HostPort: 8082, ContainerPort: 80, HostIP: "192.0.2.1"},
		{HostPort: 0, ContainerPort: 81, Protocol: "TCP"},
	}
	a := newPod(t)
	a.PortMappings = ports
	result := n.add(a)
	b, ipB := n.attached()
	serve(t, a.NetNS)
	serve(t, outside)

	checks := []struct{ name, from, to, want string }{
		{"pod to pod", b.NetNS, net.JoinHostPort(result.IPs[0].String(), "80"), ipB.String()},
		{"node to pod", "", net.JoinHostPort(result.IPs[0].String(), "80"), n.gateway()},
		{"pod to the world, masqueraded", b.NetNS, "192.0.2.2:80", "192.0.2.1"},
		{"world to host port", outside, "192.0.2.1:8081", "192.0.2.2"},
		{"world to host port of one address", outside, "192.0.2.1:8082", "192.0.2.2"},
		{"node to host port", "", "192.0.2.1:8081", ""},
		{"node to host port on loopback", "", "127.0.0.1:8081", ""},
		{"pod to host port of another", b.NetNS, "192.0.2.1:8081", ""},
		{"pod to its own host port", a.NetNS, "192.0.2.1:8081", ""},
	}
	if dual {
		if len(result.IPs) != 2 || !result.IPs[0].Is4() || !result.IPs[1].Is6() {
			t.Fatalf("addresses = %v, want IPv4 and IPv6", result.IPs)
		}
		checks = append(checks, []struct{ name, from, to, want string }{
			{"node to pod by IPv6", "", net.JoinHostPort(result.IPs[1].String(), "80"), ""},
			{"pod to pod by IPv6", b.NetNS, net.JoinHostPort(result.IPs[1].String(), "80"), ""},
			{"pod to the world by IPv6, masqueraded", b.NetNS, "[2001:db8::2]:80", "2001:db8::1"},
			{"world to host port by IPv6", outside, "[2001:db8::1]:8081", "2001:db8::2"},
		}...)
	}
	for _, c := range checks {
		answer, err := ask(c.from, c.to)
		if err != nil || c.want != "" && answer != c.want {
			t.Errorf("%s: %q, %v; want %q", c.name, answer, err, c.want)
		}
	}
	if answer, err := ask("", "127.0.0.1:8082"); err == nil {
		t.Errorf("a host port of another address answers on loopback: %q", answer)
	}
	must(t, n.Check(t.Context(), b)) // portmap 1.1.1 cannot check host ports of one address family
	must(t, n.Del(t.Context(), a))
	if answer, err := ask(outside, "192.0.2.1:8081"); err == nil {
		t.Errorf("the host port of a deleted pod answers %q", answer)
	}
}

// gateway returns the bridge's address.
func (n *node) gateway() string { return n.opts.Default.Subnet.Addr().Next().String() }

func TestHostPortUDP(t *testing.T) {
	n := newNode(t, nil)
	outside := world(t)
	pod, _ := n.attached(PortMapping{HostPort: 5353, ContainerPort: 53, Protocol: "UDP"})
	var server, client net.Conn
	must(t, podns.Do(pod.NetNS, func() error {
		c, err := net.ListenUDP("udp", &net.UDPAddr{Port: 53})
		server = c
		return err
	}))
	defer func() { _ = server.Close() }()
	must(t, podns.Do(outside, func() (err error) {
		client, err = net.Dial("udp", "192.0.2.1:5353")
		return err
	}))
	defer func() { _ = client.Close() }()
	_, err := client.Write([]byte("hello"))
	must(t, err)
	must(t, server.SetReadDeadline(time.Now().Add(askTimeout)))
	buf := make([]byte, 10)
	if n, err := server.Read(buf); err != nil || string(buf[:n]) != "hello" {
		t.Errorf("%q, %v", buf[:n], err)
	}
}

// Flushing the node's packet filter does not cut off pods that are added afterwards.
func TestMasqueradeIsRepaired(t *testing.T) {
	n := newNode(t, nil)
	outside := world(t)
	serve(t, outside)
	d := n.Network.opts.Default
	ask := func() string {
		t.Helper()
		pod, _ := n.attached()
		answer, err := ask(pod.NetNS, "192.0.2.2:80")
		if err != nil {
			t.Error(err)
		}
		return answer
	}
	ask() // creates the table
	for name, damage := range map[string]func(){
		"none":        func() {},
		"table gone":  func() { must(t, d.unmasquerade()) },
		"rule gone":   func() { run(t, "nft", "flush", "table", "ip", "mica-"+d.Name) },
		"other rules": func() { run(t, "nft", "insert", "rule", "ip", "mica-"+d.Name, "postrouting", "accept") },
	} {
		damage()
		if got := ask(); got != "192.0.2.1" {
			t.Errorf("%s: the world sees %q", name, got)
		}
	}
}

func TestManyPodsAtOnce(t *testing.T) {
	n := newNode(t, nil)
	const count = 12
	pods := make([]Pod, count)
	for i := range pods {
		pods[i] = newPod(t)
		pods[i].PortMappings = []PortMapping{{HostPort: int32(9000 + i), ContainerPort: 80}}
	}
	var mu sync.Mutex
	seen := map[netip.Addr]string{}
	var wg sync.WaitGroup
	for _, pod := range pods {
		wg.Go(func() {
			result, err := n.Add(t.Context(), pod)
			if err != nil {
				t.Error(err)
				return
			}
			mu.Lock()
			defer mu.Unlock()
			if other := seen[result.IPs[0]]; other != "" {
				t.Errorf("%s and %s both have %s", pod.Name, other, result.IPs[0])
			}
			seen[result.IPs[0]] = pod.Name
		})
	}
	wg.Wait()
	for _, pod := range pods {
		wg.Go(func() {
			if err := n.Del(t.Context(), pod); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
}

func TestStats(t *testing.T) {
	n := newNode(t, nil)
	pod, ip := n.attached()
	serve(t, pod.NetNS)
	before, err := Stats(pod.NetNS)
	must(t, err)
	if len(before) != 1 || before[0].Name != "eth0" {
		t.Fatalf("Stats = %+v, want eth0 only", before)
	}
	_, err = ask("", net.JoinHostPort(ip.String(), "80"))
	must(t, err)
	after, err := Stats(pod.NetNS)
	must(t, err)
	a, b := after[0], before[0]
	if a.RxBytes <= b.RxBytes || a.TxBytes <= b.TxBytes || a.RxPackets <= b.RxPackets || a.TxPackets <= b.TxPackets {
		t.Errorf("counters before %+v, after %+v", b, a)
	}
	if _, err := Stats(filepath.Join(t.TempDir(), "none")); err == nil {
		t.Error("Stats of no namespace succeeded")
	}
	count := func(dir string) int { return len(files(t, dir)) }
	fds, threads := count("/proc/self/fd"), count("/proc/self/task")
	for range 200 {
		_, err := Stats(pod.NetNS)
		must(t, err)
	}
	if now := count("/proc/self/fd"); now > fds {
		t.Errorf("descriptors: %d before, %d after", fds, now)
	}
	eventually(t, "the threads have ended", func() bool { return count("/proc/self/task") <= threads+4 })
}

// A pod names an interface with bytes that are no UTF-8, which a message of the CRI cannot hold.
func TestStatsOfOddNames(t *testing.T) {
	n := newNode(t, nil)
	pod, _ := n.attached()
	handle, err := openHandle(pod.NetNS)
	must(t, err)
	defer handle.Close()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "a\377\376"
	must(t, handle.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "peer"}))
	stats, err := Stats(pod.NetNS)
	must(t, err)
	if len(stats) != 3 {
		t.Errorf("Stats = %+v", stats)
	}
	for _, s := range stats {
		if !utf8.ValidString(s.Name) {
			t.Errorf("Stats has the name %q", s.Name)
		}
	}
}
