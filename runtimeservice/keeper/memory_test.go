package keeper

import (
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"
)

// perContainer is what the keeper may grow by for one idle container, in
// bytes.
const perContainer = 40 << 10

// pss reads a process's proportional set size in bytes.
func pss(t *testing.T, pid int) int {
	t.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(data)) {
		if rest, ok := strings.CutPrefix(line, "Pss:"); ok {
			kb, err := strconv.Atoi(strings.Fields(rest)[0])
			if err != nil {
				t.Fatal(err)
			}
			return kb << 10
		}
	}
	t.Fatal("no Pss")
	return 0
}

// settled waits until the keeper has given back what it can.
func settled(t *testing.T, pid int) int {
	t.Helper()
	least := pss(t, pid)
	for end := time.Now().Add(6 * time.Second); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		least = min(least, pss(t, pid))
	}
	return least
}

// A container costs the keeper a little memory, a few descriptors and no
// goroutine, and its deletion gives them back.
func TestMemoryOf100Containers(t *testing.T) {
	if testing.Short() {
		t.Skip("runs 100 containers")
	}
	if raceFlag == "-race" {
		t.Skip("the race detector's memory would be measured")
	}
	n := newNode(t)
	id, _ := n.run(spec{script: "echo warm"}) // what the first one alone needs
	n.exit(id)
	pid := n.keeperPid()
	idle := settled(t, pid)
	fds := descriptors(t, pid)
	const count = 100
	var ids []string
	for range count {
		id, log := n.run(spec{script: "echo ready; sleep 100000"})
		ids = append(ids, id)
		eventually(t, "container ready", func() bool { return size(log) > 0 })
	}
	full := settled(t, pid)
	each := (full - idle) / count
	t.Logf("keeper PSS: idle %d KiB, with %d containers %d KiB: %d bytes each; %d descriptors each; daemon holds %d",
		idle>>10, count, full>>10, each, (descriptors(t, pid)-fds)/count, len(n.client.allHeldCount()))
	if each > perContainer {
		t.Errorf("%d bytes per container, at most %d are allowed", each, perContainer)
	}
	begin := time.Now()
	n.killKeeper()
	if states, err := n.client.List(t.Context()); err != nil || len(states) != count+1 {
		t.Errorf("after the keeper's death: %d states, %v", len(states), err)
	}
	t.Logf("a new keeper has adopted them after %v, daemon has %d goroutines", time.Since(begin), runtime.NumGoroutine())
	pid = n.keeperPid()
	for _, id := range ids {
		if err := n.client.Delete(t.Context(), id); err != nil {
			t.Fatal(err)
		}
	}
	if now := descriptors(t, pid); now > fds+4 {
		t.Errorf("keeper has %d descriptors, had %d", now, fds)
	}
	after := settled(t, pid)
	t.Logf("keeper PSS after deletion: %d KiB", after>>10)
}

func (c *Client) allHeldCount() map[string]int {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := map[string]int{}
	for id, k := range c.held {
		out[id] = len(k.fds)
	}
	return out
}

func descriptors(t *testing.T, pid int) int {
	t.Helper()
	entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}
