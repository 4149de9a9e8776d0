package builtin

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/google/nftables"
)

// portCall is a call of portmap for a pod with the address 10.50.0.2 and host ports from first on.
func portCall(t testing.TB, command, id string, first, count int) Call {
	t.Helper()
	var mappings []map[string]any
	for i := range count {
		mappings = append(mappings, port(first+i, "tcp", ""))
	}
	config, err := json.Marshal(map[string]any{
		"cniVersion": "1.0.0", "name": "ports", "type": "portmap", "runtimeConfig": ports(mappings...),
		"prevResult": map[string]any{"cniVersion": "1.0.0", "ips": []map[string]string{{"address": "10.50.0.2/24"}}},
	})
	must(t, err)
	return Call{Plugin: "portmap", Command: command, ContainerID: id, IfName: "eth0", Config: config}
}

// elementCounts returns the number of elements in the non-empty sets of the network of [portCall].
func elementCounts(t testing.TB) map[string]int {
	t.Helper()
	table := tableOf("ports", false)
	counts := map[string]int{}
	for name, set := range table.sets() {
		found, err := (&nftables.Conn{}).GetSetElements(set)
		must(t, err)
		if len(found) > 0 {
			counts[name] = len(found)
		}
	}
	return counts
}

func checkCounts(t testing.TB, forward, hairpin int) {
	t.Helper()
	counts := elementCounts(t)
	if counts[forwardMap] != forward || counts[hairpinSet] != hairpin || counts[forwardAddressMap]+counts[hairpinAddressSet] != 0 {
		t.Errorf("elements: %v, want %d in %s and %d in %s", counts, forward, forwardMap, hairpin, hairpinSet)
	}
}

// podID is an ID as long as Mica's.
func podID(i int) string { return fmt.Sprintf("%064x", i) }

// Neither the length of a netlink attribute nor the socket's send buffer limits the host ports of a pod.
func TestManyHostPorts(t *testing.T) {
	needRoot(t)
	plugins := newInProcess(t).plugins
	for _, count := range []int{450, 1000} {
		for _, command := range []string{"ADD", "CHECK"} {
			_, err := plugins.Run(t.Context(), portCall(t, command, podID(1), 1000, count))
			must(t, err)
			checkCounts(t, count, 2*count)
		}
		_, err := plugins.Run(t.Context(), portCall(t, "DEL", podID(1), 1000, count))
		must(t, err)
		checkCounts(t, 0, 0)
	}
}

// An ADD that fails after some of its transactions leaves nothing.
func TestManyHostPortsConflict(t *testing.T) {
	needRoot(t)
	plugins := newInProcess(t).plugins
	_, err := plugins.Run(t.Context(), portCall(t, "ADD", podID(1), 1900, 1))
	must(t, err)
	conflict := portCall(t, "ADD", podID(2), 1000, 1000)
	conflict.Config = bytes.ReplaceAll(conflict.Config, []byte("10.50.0.2"), []byte("10.50.0.3"))
	_, err = plugins.Run(t.Context(), conflict)
	if err == nil || !strings.Contains(err.Error(), "1900/tcp is forwarded to pod "+podID(1)) {
		t.Errorf("ADD of a port in use: %v", err)
	}
	checkCounts(t, 1, 2)
}

// The maps hold maxHostPorts elements, and the error of one more says so.
func TestTooManyHostPorts(t *testing.T) {
	needRoot(t)
	plugins := newInProcess(t).plugins
	_, err := plugins.Run(t.Context(), portCall(t, "ADD", podID(1), 1, maxHostPorts))
	must(t, err)
	_, err = plugins.Run(t.Context(), portCall(t, "ADD", podID(2), maxHostPorts+1, 1))
	if err == nil || !strings.Contains(err.Error(), fmt.Sprint("may have ", maxHostPorts, " host ports")) {
		t.Errorf("ADD to a full network: %v", err)
	}
	checkCounts(t, maxHostPorts, 2*maxHostPorts)
	_, err = plugins.Run(t.Context(), portCall(t, "DEL", podID(1), 1, maxHostPorts))
	must(t, err)
	checkCounts(t, 0, 0)
}

// DELs find all elements of their pods, although pods come and go.
func TestHostPortsOfManyPods(t *testing.T) {
	needRoot(t)
	plugins := newInProcess(t).plugins
	const pods, rounds = 60, 10
	all := func(command string) {
		for i := range pods {
			if _, err := plugins.Run(context.Background(), portCall(t, command, podID(i), 1000+2*i, 2)); err != nil {
				t.Errorf("%s of pod %d: %v", command, i, err)
			}
		}
	}
	for range rounds {
		all("ADD")
		all("DEL")
		checkCounts(t, 0, 0)
	}
}

// The sets of an older daemon have no size. Rules and elements can still be added to their table.
func TestSetsWithoutSize(t *testing.T) {
	needRoot(t)
	plugins := newInProcess(t).plugins
	table := tableOf("ports", false)
	must(t, plugins.record("ports"))
	conn := &nftables.Conn{}
	conn.AddTable(table.Table)
	for _, set := range table.sets() {
		set.Size = 0
		must(t, conn.AddSet(set, nil))
	}
	must(t, conn.Flush())
	for _, command := range []string{"ADD", "CHECK"} {
		_, err := plugins.Run(t.Context(), portCall(t, command, podID(1), 1000, 2))
		must(t, err)
		checkCounts(t, 2, 4)
	}
	_, err := plugins.Run(t.Context(), portCall(t, "DEL", podID(1), 1000, 2))
	must(t, err)
	checkCounts(t, 0, 0)
}
