package node

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/micarun/mica/internal/patience"
)

// Census lists a node's resources on the machine by kind: processes, mounts, namespace pins,
// cgroups, leases, links, packet filter rules, bundles, records, writable layers, layer
// directories, descriptors of daemon and keeper, and goroutines of the daemon.
type Census map[string][]string

// Census lists the node's resources. If daemon or keeper does not run, its descriptors and
// goroutines are missing.
func (n *Node) Census(ctx context.Context) (Census, error) {
	c := Census{}
	takers := []func(context.Context, Census) error{
		n.countProcesses, n.countMounts, n.countFiles, n.countCgroups, n.countLinks, n.countRules, n.countGoroutines,
	}
	var errs []error
	for _, take := range takers {
		errs = append(errs, take(ctx, c))
	}
	return c, errors.Join(errs...)
}

// Settle returns the census when two consecutive ones are equal, so that the start of a new daemon
// has finished.
func (n *Node) Settle(ctx context.Context) (Census, error) {
	ctx, cancel := context.WithTimeout(ctx, patience.Of(startTimeout))
	defer cancel()
	var before Census
	for {
		c, err := n.Census(ctx)
		if err != nil {
			return nil, fmt.Errorf("take census of node %s: %w", n.Name, err)
		}
		if before != nil && len(c.Leaks(before)) == 0 && len(before.Leaks(c)) == 0 {
			return c, nil
		}
		before = c
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("wait until node %s settles: %w", n.Name, ctx.Err())
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// Leaks returns the resources in the census that are not in the baseline, one line each.
func (c Census) Leaks(baseline Census) []string {
	var leaks []string
	for kind, items := range c {
		left := slices.Clone(baseline[kind])
		for _, item := range items {
			if at := slices.Index(left, item); at >= 0 {
				left = slices.Delete(left, at, at+1)
				continue
			}
			leaks = append(leaks, kind+": "+item)
		}
	}
	slices.Sort(leaks)
	return leaks
}

// AwaitClean waits until the census has nothing that is not in the baseline. After wait, it returns
// the remaining leaks.
func (n *Node) AwaitClean(ctx context.Context, baseline Census, wait time.Duration) ([]string, error) {
	deadline := time.Now().Add(wait)
	for {
		c, err := n.Census(ctx)
		if err != nil {
			return nil, fmt.Errorf("take census of node %s: %w", n.Name, err)
		}
		leaks := c.Leaks(baseline)
		if len(leaks) == 0 || time.Now().After(deadline) {
			return leaks, nil
		}
		select {
		case <-ctx.Done():
			return leaks, ctx.Err()
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func (c Census) add(kind, format string, arguments ...any) {
	c[kind] = append(c[kind], fmt.Sprintf(format, arguments...))
}

// countProcesses lists the children of daemon and keeper, the processes in the node's cgroups, and
// the descriptors of daemon and keeper.
func (n *Node) countProcesses(_ context.Context, c Census) error {
	all, err := processes()
	if err != nil {
		return err
	}
	own := map[int]bool{}
	for _, p := range all {
		if p.pid == n.Pid() || n.isKeeper(p) {
			own[p.pid] = true
		}
	}
	for _, p := range all {
		switch {
		case p.pid == n.Pid():
			c.countDescriptors("daemon fd", p.pid)
		case own[p.pid]:
			c.countDescriptors("keeper fd", p.pid)
		case own[p.parent] || strings.Contains(p.cgroups, n.CgroupParent()+"/"):
			c.add("process", "%d %s", p.pid, p.name)
		}
	}
	return nil
}

// KeeperPid returns the process ID of the node's keeper, 0 if none runs.
func (n *Node) KeeperPid() (int, error) {
	all, err := processes()
	if err != nil {
		return 0, err
	}
	for _, p := range all {
		if n.isKeeper(p) {
			return p.pid, nil
		}
	}
	return 0, nil
}

func (n *Node) isKeeper(p process) bool {
	return strings.HasSuffix(p.arguments[0], "mica-keeper") &&
		slices.ContainsFunc(p.arguments, func(a string) bool { return strings.Contains(a, n.State+"/") })
}

// countDescriptors lists a process's descriptors without the numbers of sockets and pipes, which
// differ in every process.
func (c Census) countDescriptors(kind string, pid int) {
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	entries, err := os.ReadDir(dir)
	if err != nil {
		return // the process has exited, and its descriptors are closed
	}
	for _, entry := range entries {
		target, err := os.Readlink(filepath.Join(dir, entry.Name()))
		if err != nil {
			continue
		}
		if name, _, ok := strings.Cut(target, ":["); ok {
			target = name
		}
		c.add(kind, "%s", target)
	}
}

func (n *Node) countMounts(ctx context.Context, c Census) error {
	data, err := n.mounts(ctx)
	if err != nil {
		return fmt.Errorf("read mounts: %w", err)
	}
	for line := range strings.Lines(string(data)) {
		fields := strings.Fields(line)
		if len(fields) < 5 {
			continue
		}
		point := fields[4]
		if strings.HasPrefix(point, n.State+"/") || strings.HasPrefix(point, n.Data+"/") {
			c.add("mount", "%s", point)
		}
	}
	return nil
}

// mounts returns the mount table of the node's namespace.
func (n *Node) mounts(ctx context.Context) ([]byte, error) {
	const table = "/proc/self/mountinfo"
	if len(n.Enter) == 0 {
		return os.ReadFile(table)
	}
	return n.command(ctx, "cat", table).Output()
}

// countFiles lists the files of pods and containers in the node's directories.
func (n *Node) countFiles(_ context.Context, c Census) error {
	patterns := map[string][]string{
		"pod directory":   {n.State + "/pods/*"},
		"bundle":          {n.State + "/containers/*", n.State + "/runtimes/*/*"},
		"keeper state":    {n.State + "/keeper/????????????????????????????????????????????????????????????????"},
		"record":          {n.Data + "/cri/pods/*", n.Data + "/cri/containers/*"},
		"checkpoint":      {n.Data + "/cri/checkpoints/*"},
		"writable layer":  {n.Data + "/image/overlay2/layerdb/mounts/*"},
		"layer directory": {n.Data + "/overlay2/*"},
		"short link":      {n.Data + "/overlay2/l/*"},
		"layer":           {n.Data + "/image/overlay2/layerdb/sha256/*"},
		"image":           {n.Data + "/image/overlay2/imagedb/content/sha256/*"},
		"lease":           {n.Data + "/network/leases/*/*.*.*.*"},
		"attachment":      {n.Data + "/network/results/*", n.Data + "/network/attachments/*"},
	}
	for kind, list := range patterns {
		for _, pattern := range list {
			names, err := filepath.Glob(pattern)
			if err != nil {
				return err
			}
			for _, name := range names {
				base := filepath.Base(name)
				if !strings.HasPrefix(base, "last_reserved_ip") && !strings.HasPrefix(base, ".") {
					c.add(kind, "%s", name)
				}
			}
		}
	}
	return nil
}

func (n *Node) countCgroups(_ context.Context, c Census) error {
	roots, err := filepath.Glob("/sys/fs/cgroup/*" + n.CgroupParent())
	if err != nil {
		return err
	}
	for _, root := range append(roots, "/sys/fs/cgroup"+n.CgroupParent()) {
		err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
			if errors.Is(err, fs.ErrNotExist) {
				return nil // removed in the meantime
			}
			if err == nil && entry.IsDir() && path != root {
				c.add("cgroup", "%s", path)
			}
			return err
		})
		if err != nil {
			return fmt.Errorf("list cgroups: %w", err)
		}
	}
	return nil
}

// countLinks lists the ports of the node's bridge. It does not read /sys, which shows the links of
// the network namespace in which it was mounted.
func (n *Node) countLinks(ctx context.Context, c Census) error {
	out, err := n.command(ctx, "ip", "-oneline", "link").Output()
	if err != nil {
		return fmt.Errorf("list links: %w", err)
	}
	for line := range strings.Lines(string(out)) {
		fields := strings.Fields(line)
		if at := slices.Index(fields, "master"); at >= 0 && fields[at+1] == n.Name {
			name, _, _ := strings.Cut(strings.TrimSuffix(fields[1], ":"), "@")
			c.add("link", "%s", name)
		}
	}
	return nil
}

// countRules lists the packet filter's lines with the node's network or an address of it, except
// for those that serve the network as a whole.
func (n *Node) countRules(ctx context.Context, c Census) error {
	prefix := strings.TrimSuffix(n.Subnet.Masked().Addr().String(), "0")
	for _, table := range []string{"nat", "filter"} {
		out, err := n.command(ctx, "iptables-save", "-t", table).Output()
		if err != nil {
			return fmt.Errorf("list packet filter rules: %w", err)
		}
		for line := range strings.Lines(string(out)) {
			if strings.Contains(line, `"`+n.Name+`\"`) || strings.Contains(line, prefix) {
				c.add("rule", "%s", strings.TrimSpace(line))
			}
		}
	}
	for _, family := range []string{"ip", "ip6"} {
		out, err := n.command(ctx, "nft", "list", "table", family, "mica/"+n.Name).Output()
		if err != nil {
			continue // no pod has had host ports
		}
		for _, owner := range podComment.FindAllString(string(out), -1) {
			c.add("rule", "host port with %s", owner)
		}
	}
	return nil
}

// podComment matches the comment of an element for a host port, which is the pod's ID.
var podComment = regexp.MustCompile(`comment "[0-9a-f]{64}"`)

// countGoroutines reads the number of goroutines from the daemon's metrics.
func (n *Node) countGoroutines(ctx context.Context, c Census) error {
	if n.Pid() == 0 || n.Metrics == "" {
		return nil
	}
	count, err := n.goroutines(ctx)
	if err != nil {
		return err
	}
	for range count {
		c.add("goroutine", "one more")
	}
	return nil
}

// process describes a process, as read from /proc.
type process struct {
	pid, parent int
	name        string
	arguments   []string // never empty
	cgroups     string
}

// processes lists the processes of the machine. It omits a process that exits during the call.
func processes() ([]process, error) {
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return nil, err
	}
	var list []process
	for _, dir := range dirs {
		p := process{}
		stat, err := os.ReadFile(dir + "/stat")
		if err != nil {
			continue
		}
		// The format is: pid (name) state parent … The name may contain any character.
		open, end := strings.IndexByte(string(stat), '('), strings.LastIndexByte(string(stat), ')')
		var state string
		if _, err := fmt.Sscan(string(stat[:open]), &p.pid); err != nil {
			continue
		}
		if _, err := fmt.Sscan(string(stat[end+1:]), &state, &p.parent); err != nil {
			continue
		}
		p.name = string(stat[open+1 : end])
		if state == "Z" { // other states change while the process runs
			p.name += " (zombie)"
		}
		arguments, _ := os.ReadFile(dir + "/cmdline")
		p.arguments = strings.Split(strings.TrimRight(string(arguments), "\x00"), "\x00")
		cgroups, _ := os.ReadFile(dir + "/cgroup")
		p.cgroups = string(cgroups)
		list = append(list, p)
	}
	return list, nil
}

// alive reports whether a process exists and is not a zombie.
func alive(pid int) bool {
	if unix.Kill(pid, 0) != nil {
		return false
	}
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err == nil && !strings.Contains(string(stat), ") Z ")
}
