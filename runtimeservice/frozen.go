package runtimeservice

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"
)

const (
	// thawInterval is the pause between kills of frozen processes, because a cgroup can be frozen
	// again at any time. Without a frozen cgroup, the processes usually exit before the first.
	thawInterval = 100 * time.Millisecond
	// namespaceInterval is the pause between searches for the processes of a PID namespace whose
	// first process does not exit. A search reads all of /proc.
	namespaceInterval = 2 * time.Second
)

// dying are the processes that a tear-down waits for. They have been killed, or the wait function
// kills them.
type dying struct {
	cgroup string // that contains them
	pid    int    // first process of a PID namespace that ends with it; 0 for none
}

// untilDead calls wait, which returns once the processes are gone. Meanwhile it thaws frozen
// processes, so that their kill takes effect. It also kills processes of their PID namespace in
// other cgroups, without which the namespace's first process does not exit. If wait exceeds its
// deadline, the error describes the processes that remain.
func (s *Service) untilDead(ctx context.Context, d dying, wait func(context.Context) error) error {
	namespace := namespaceOf(d)
	defer namespace.close()
	done, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		s.releaseDying(ctx, d, namespace, done)
	}()
	err := wait(ctx)
	close(done)
	<-ended
	if err == nil || !errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	if what := s.obstacles(d, namespace); what != "" {
		return fmt.Errorf("%w: %s", err, what)
	}
	return err
}

// refuseFrozen returns an error that names the frozen cgroup if c's cgroup or one above it is
// frozen. The container's process would not run there, and the OCI runtime would wait until its
// timeout.
func (s *Service) refuseFrozen(c *Container) error {
	by, err := s.cgroups.FrozenBy(s.containerCgroup(c))
	if err == nil && by != "" {
		err = fmt.Errorf("cgroup %s is frozen: %w", by, errdefs.ErrFailedPrecondition)
	}
	return err
}

// nameFrozen adds the frozen cgroup, if there is one, to the error of a timeout.
func (s *Service) nameFrozen(c *Container, err error) error {
	if errors.Is(err, context.DeadlineExceeded) {
		if frozen := s.refuseFrozen(c); frozen != nil {
			return fmt.Errorf("%w: %w", err, frozen)
		}
	}
	return err
}

// releaseDying is the part of untilDead that runs concurrently with wait, until done is closed.
func (s *Service) releaseDying(ctx context.Context, d dying, namespace *pidNamespace, done <-chan struct{}) {
	tick := time.NewTicker(thawInterval)
	defer tick.Stop()
	var failed error
	for look := time.Now().Add(namespaceInterval); ; {
		select {
		case <-done:
			if failed != nil {
				klog.FromContext(ctx).Error(failed, "Killing frozen or moved processes was delayed", "cgroup", d.cgroup)
			}
			return
		case <-tick.C:
		}
		failed = s.cgroups.KillFrozen(d.cgroup)
		if namespace != nil && time.Now().After(look) {
			failed = errors.Join(failed, s.cgroups.KillOutside(namespace.processes()))
			look = time.Now().Add(namespaceInterval)
		}
	}
}

// obstacles describes the processes that remain, and what each is doing.
func (s *Service) obstacles(d dying, namespace *pidNamespace) string {
	pids, _ := s.cgroups.Pids(d.cgroup)
	if len(pids) == 0 {
		pids = namespace.processes()
	}
	const most = 4 // enough to start looking
	var said []string
	for _, pid := range pids[:min(len(pids), most)] {
		if p, err := readProcess(pid); err == nil {
			said = append(said, p.String())
		}
	}
	if len(pids) > most {
		said = append(said, fmt.Sprintf("%d more", len(pids)-most))
	}
	return strings.Join(said, ", ")
}

// process is the information of /proc about a process that does not exit.
type process struct {
	pid         int
	name, state string
	wchan       string // kernel function that it sleeps in; "" where the kernel does not say
	frozen      bool   // by cgroup v1's freezer
}

func (p process) String() string {
	text := fmt.Sprintf("process %d (%s) is in state %s", p.pid, p.name, p.state)
	if p.wchan != "" {
		text += " in " + p.wchan
	}
	if p.frozen {
		text += " (frozen)"
	}
	return text
}

func readProcess(pid int) (process, error) {
	dir := filepath.Join("/proc", strconv.Itoa(pid))
	text, err := os.ReadFile(filepath.Join(dir, "stat"))
	if err != nil {
		return process{}, err
	}
	begin, end := strings.IndexByte(string(text), '('), strings.LastIndexByte(string(text), ')')
	if begin < 0 || end < begin || len(text) < end+3 {
		return process{}, fmt.Errorf("read stat of process %d: no name", pid)
	}
	p := process{pid: pid, name: string(text[begin+1 : end]), state: string(text[end+2 : end+3])}
	if wchan, err := os.ReadFile(filepath.Join(dir, "wchan")); err == nil && string(wchan) != "0" {
		p.wchan = string(wchan)
	}
	p.frozen = p.wchan == "__refrigerator"
	return p, nil
}

// pidNamespace is an open PID namespace, so that the kernel does not reuse its number.
type pidNamespace struct {
	file *os.File
	ino  uint64
}

// namespaceOf opens the PID namespace of the process d.pid. It returns nil if there is none, or if
// another process in another cgroup has the PID by now.
func namespaceOf(d dying) *pidNamespace {
	if d.pid == 0 {
		return nil
	}
	dir := filepath.Join("/proc", strconv.Itoa(d.pid))
	f, err := os.Open(filepath.Join(dir, "ns", "pid"))
	if err != nil {
		return nil
	}
	ns := &pidNamespace{file: f}
	var own, its unix.Stat_t
	cgroups, err := os.ReadFile(filepath.Join(dir, "cgroup"))
	err = errors.Join(err, unix.Stat("/proc/self/ns/pid", &own), unix.Fstat(int(f.Fd()), &its))
	if err != nil || own.Ino == its.Ino || !strings.Contains(string(cgroups), d.cgroup) {
		ns.close()
		return nil
	}
	ns.ino = its.Ino
	return ns
}

func (n *pidNamespace) close() {
	if n != nil {
		_ = n.file.Close()
	}
}

// processes lists the processes of the namespace; none if n is nil.
func (n *pidNamespace) processes() []int {
	if n == nil {
		return nil
	}
	entries, _ := os.ReadDir("/proc")
	var pids []int
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		var st unix.Stat_t
		if unix.Stat(filepath.Join("/proc", e.Name(), "ns", "pid"), &st) == nil && st.Ino == n.ino {
			pids = append(pids, pid)
		}
	}
	return pids
}
