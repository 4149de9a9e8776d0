package server

import (
	"os"
	"path/filepath"
	"sync"
)

// ledger tells which containers the kernel has killed for lack of memory, also
// when their cgroups are gone before they can be asked: systemd removes that of a
// dead container at once, often faster than the keeper hears of the death. The
// pod's cgroup outlives them, and on v2 its counter has the kills of all that
// were ever below it. What nobody has been told of are those of the container.
// On v1, where counters are not inherited, only a cgroup that is there can tell.
//
// Its methods may be called concurrently.
type ledger struct {
	mu   sync.Mutex // guards the rest
	pods map[string]*podKills
}

// podKills are the kills in one pod's cgroup.
type podKills struct {
	dir   string
	live  map[string]bool   // cgroups of containers that run
	ended map[string]uint64 // kills in cgroups of containers that have ended
	gone  uint64            // kills that were told, in cgroups that are gone
}

// join adds the cgroup of a container that begins to run.
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
		p.gone, _ = p.untold() // of containers before
		if l.pods == nil {
			l.pods = map[string]*podKills{}
		}
		l.pods[pod] = p
	}
	p.live[dir] = true
}

// end says whether there were kills in the cgroup of a container that has ended,
// beyond the given ones. It is to be asked once.
func (l *ledger) end(dir string, before uint64) bool {
	if dir == "" {
		return false
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	kills, there := oomKills(dir)
	p := l.pods[filepath.Dir(dir)]
	if p == nil {
		return kills > before
	}
	delete(p.live, dir)
	if there {
		p.ended[dir] = kills
		return kills > before
	}
	kills, pending := p.untold()
	if kills == 0 {
		return false
	}
	// Others whose cgroups are gone as well, and who are asked next, may have had one each.
	p.gone += max(1, kills-min(kills, pending))
	return true
}

// leave takes the cgroup of a container out that is removed.
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

// untold counts the kills in the pod's cgroup that are in no cgroup below it and
// that nobody was told of, and the containers that are believed to run but whose
// cgroups are gone.
func (p *podKills) untold() (kills, pending uint64) {
	const attempts = 5 // to read while the kernel kills nothing
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

// below counts the kills in the cgroups below the pod's that are there, and
// containers that are believed to run but whose cgroups are gone.
func (p *podKills) below() (kills, missing uint64) {
	entries, _ := os.ReadDir(p.dir)
	for _, entry := range entries {
		dir := filepath.Join(p.dir, entry.Name())
		if _, ended := p.ended[dir]; !ended && !p.live[dir] && entry.IsDir() {
			n, _ := oomKills(dir)
			kills += n
		}
	}
	for dir, told := range p.ended {
		n, there := oomKills(dir)
		kills += n
		if !there {
			p.gone += told
			delete(p.ended, dir)
		}
	}
	for dir := range p.live {
		n, there := oomKills(dir)
		kills += n
		if !there {
			missing++
		}
	}
	return kills, missing
}
