package e2e

import (
	"os"
	"testing"

	"github.com/micarun/mica/e2e/node"
)

// The limits of daemon and keeper at rest, in KiB.
const (
	daemonAtRest = 25 << 10
	keeperAtRest = 5 << 10
)

// After a start, and after pods were started and removed, daemon and keeper give their memory back.
func TestMemoryAtRest(t *testing.T) {
	if os.Getenv(raceEnv) != "" {
		t.Skip("the race detector needs several times the memory")
	}
	f := start(t)
	f.atRest("after the start")
	for range 5 {
		p := f.runPod(f.podConfig())
		f.start(p, f.containerConfig(busyboxImage, "sleep", "1000"))
		f.no(f.RemovePod(f.ctx, p.id))
	}
	f.atRest("after five pods")
}

// atRest waits until daemon and keeper have at most the memory that they may have at rest.
func (f *fixture) atRest(when string) {
	f.t.Helper()
	keeper, err := f.KeeperPid()
	f.no(err)
	var used [2]float64
	f.eventually("daemon and keeper have given memory back "+when, func() bool {
		for i, pid := range []int{f.Pid(), keeper} {
			used[i], err = node.ProportionalMemory(pid)
			f.no(err)
		}
		return used[0] <= daemonAtRest && used[1] <= keeperAtRest
	})
	f.t.Logf("%s: daemon %.0f KiB, keeper %.0f KiB", when, used[0], used[1])
}
