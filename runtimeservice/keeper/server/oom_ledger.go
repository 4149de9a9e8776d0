package server

import (
	"os"
	"path/filepath"
	"sync"
)

// ledger finds out which containers had OOM kills, even if their cgroups are already removed.
// systemd removes the cgroup of a dead container at once, often before the keeper notices the exit.
//
// The pod's cgroup remains. On v2 its counter includes the kills in all cgroups that were ever
// below it. Kills that belong to no existing cgroup and were not reported before belong to the
// container that has just ended. On v1, counters are not inherited, so kills in a removed cgroup
// are unknown.
type ledger struct {
	mu   sync.Mutex // guards the rest
	pods map[string]*podKills
}

// podKills are the kills in one pod's cgroup.
type podKills struct {
	dir   string
	live  map[string]bool   // cgroups of running containers
	ended map[string]uint64 // kills in the cgroups of ended containers
	gone  uint64            // reported kills in cgroups that no longer exist
}

// join adds the cgroup of a container that starts.
func (l *ledger) join(dir string) {
	if dir == "" {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	pod := filepath.Dir(dir)
	p := l.pods[pod]
	if p == nil {
		p = &podKills{dir: pod, live: map[string]bool{}, ended: map[string]uint64{}}
		p.gone, _ = p.unreported() // kills in cgroups of earlier containers
		if l.pods == nil {
			l.pods = map[string]*podKills{}
		}
		l.pods[pod] = p
	}
	p.live[dir] = true
}

// end reports whether the OOM counter of an ended container's cgroup exceeds before. It must be
// called once per container.
func (l *ledger) end(dir string, before uint64) bool {
	if dir == "" {
		return false
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	kills, exists := oomKills(dir)
	p := l.pods[filepath.Dir(dir)]
	if p == nil {
		return kills > before
	}
	delete(p.live, dir)
	if exists {
		p.ended[dir] = kills
		return kills > before
	}
	kills, pending := p.unreported()
	if kills == 0 {
		return false
	}
	// Other containers whose cgroups are gone too may have had one kill each.
	p.gone += max(1, kills-min(kills, pending))
	return true
}

// leave removes the cgroup of a deleted container.
func (l *ledger) leave(dir string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	pod := filepath.Dir(dir)
	p := l.pods[pod]
	if p == nil {
		return
	}
	delete(p.live, dir)
	p.gone += p.ended[dir]
	delete(p.ended, dir)
	if len(p.live)+len(p.ended) == 0 {
		delete(l.pods, pod)
	}
}

// unreported counts the kills in the pod's cgroup that are in no cgroup below it and were not
// reported. It also counts the containers in p.live whose cgroups no longer exist.
func (p *podKills) unreported() (kills, pending uint64) {
	const attempts = 5 // to read while no kill happens
	for range attempts {
		total, _ := oomKills(p.dir)
		below, missing := p.below()
		kills, pending = total-min(total, below+p.gone), missing
		if now, _ := oomKills(p.dir); now == total {
			break
		}
	}
	return kills, pending
}

// below counts the kills in the existing cgroups below the pod's cgroup. It also counts the
// containers in p.live whose cgroups no longer exist.
func (p *podKills) below() (kills, missing uint64) {
	entries, _ := os.ReadDir(p.dir)
	for _, entry := range entries {
		dir := filepath.Join(p.dir, entry.Name())
		if _, ended := p.ended[dir]; !ended && !p.live[dir] && entry.IsDir() {
			n, _ := oomKills(dir)
			kills += n
		}
	}
	for dir, reported := range p.ended {
		n, exists := oomKills(dir)
		kills += n
		if !exists {
			p.gone += reported
			delete(p.ended, dir)
		}
	}
	for dir := range p.live {
		n, exists := oomKills(dir)
		kills += n
		if !exists {
			missing++
		}
	}
	return kills, missing
}
