package server

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
)

// pod is a directory with the files of a pod's cgroup on v2.
type pod struct {
	t     *testing.T
	dir   string
	total int
}

func newPod(t *testing.T) *pod {
	t.Helper()
	p := &pod{t: t, dir: t.TempDir()}
	p.write(p.dir, 0)
	return p
}

func (p *pod) write(dir string, kills int) {
	p.t.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		p.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "memory.events"), fmt.Appendf(nil, "max 7\noom_kill %d\n", kills), 0o644); err != nil {
		p.t.Fatal(err)
	}
}

// container makes the cgroup of a container.
func (p *pod) container(name string) string {
	p.t.Helper()
	dir := filepath.Join(p.dir, name)
	p.write(dir, 0)
	return dir
}

// kill makes the counters as if the kernel had killed that many processes of a container without
// earlier kills.
func (p *pod) kill(dir string, kills int) {
	p.t.Helper()
	p.total += kills
	p.write(p.dir, p.total)
	p.write(dir, kills)
}

func (p *pod) vanish(dir string) {
	p.t.Helper()
	if err := os.RemoveAll(dir); err != nil {
		p.t.Fatal(err)
	}
}

// Kills of containers whose cgroups are gone are those in the pod's counter that belong to no other
// container.
func TestLedger(t *testing.T) {
	p := newPod(t)
	p.kill(p.container("before"), 3)
	p.vanish(p.dir + "/before")
	var l ledger
	want := func(dir string, killed bool) {
		t.Helper()
		if got := l.end(dir, 0); got != killed {
			t.Errorf("%s was killed: %v, want %v", filepath.Base(dir), got, killed)
		}
	}
	join := func(name string) string {
		t.Helper()
		dir := p.container(name)
		l.join(dir)
		return dir
	}
	long, init := join("long"), p.container("init")
	p.kill(init, 1)

	gone := join("cgroup gone, no kills")
	p.vanish(gone)
	want(gone, false)

	there := join("kills, cgroup exists")
	p.kill(there, 2)
	want(there, true)
	other := join("cgroup gone while the killed container's cgroup exists")
	p.vanish(other)
	want(other, false)
	p.vanish(there)

	killed := join("two kills, cgroup gone")
	p.kill(killed, 2)
	p.vanish(killed)
	want(killed, true)
	l.leave(killed)
	next := join("cgroup gone after that")
	p.vanish(next)
	want(next, false)

	one, two := join("one"), join("two")
	for _, dir := range []string{one, two} {
		p.kill(dir, 1)
		p.vanish(dir)
	}
	want(two, true)
	want(one, true)

	p.kill(long, 1)
	p.vanish(long)
	want(long, true)
	for _, dir := range []string{long, gone, there, other, next, one, two} {
		l.leave(dir)
	}
	if len(l.pods) > 0 {
		t.Errorf("the ledger keeps %v", l.pods)
	}
}

// Without a counter in the pod's cgroup, only an existing container cgroup shows kills.
func TestLedgerWithoutPods(t *testing.T) {
	p := newPod(t)
	var l ledger
	dir := p.container("unknown")
	p.kill(dir, 2)
	if !l.end(dir, 1) || l.end(dir, 2) || l.end("", 0) {
		t.Error("new kills in a cgroup without a pod cgroup are not reported")
	}
	l.join("")
	l.leave(dir)
	if err := os.Remove(filepath.Join(p.dir, "memory.events")); err != nil {
		t.Fatal(err)
	}
	l.join(dir)
	if !l.end(dir, 0) {
		t.Error("kills are not reported if the pod's cgroup has no counter")
	}
	p.vanish(dir)
	if l.end(dir, 0) {
		t.Error("kills are reported although no counter exists")
	}
}
