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

// perContainer is the limit for the keeper's memory growth per idle container, in bytes.
const perContainer = 40 << 10

// pss returns a process's proportional set size in bytes.
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

// settled waits until the keeper has returned its unused memory to the kernel.
func settled(t *testing.T, pid int) int {
	t.Helper()
	least := pss(t, pid)
	for end := time.Now().Add(6 * time.Second); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		least = min(least, pss(t, pid))
	}
	return least
}

// An idle container costs the keeper little memory, few descriptors and no goroutine. Delete frees
// them.
func TestMemoryOf100Containers(t *testing.T) {
	if testing.Short() {
		t.Skip("runs 100 containers")
	}
	if raceFlag == "-race" {
		t.Skip("would measure the race detector's memory")
	}
	n := newNode(t)
	id, _ := n.run(spec{script: "echo warm"}) // what only the first container allocates
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
	t.Logf("a new keeper adopted them after %v, the daemon has %d goroutines", time.Since(begin), runtime.NumGoroutine())
	pid = n.keeperPid()
	for _, id := range ids {
		if err := n.client.Delete(t.Context(), id); err != nil {
			t.Fatal(err)
		}
	}
	if now := descriptors(t, pid); now > fds+4 {
		t.Errorf("keeper has %d descriptors, had %d before", now, fds)
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
