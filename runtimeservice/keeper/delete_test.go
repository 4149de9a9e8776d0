package keeper

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/micarun/mica/internal/testcgroup"
)

// recorded is a program that appends its arguments to a file and runs an OCI runtime with them.
const recorded = `#!/bin/sh
echo "$@" >>%s
exec %s "$@"
`

// deletion is a container whose process has exited.
type deletion struct {
	*node
	id, runtime string // runtime is its executable
	state       string // its directory in the runtime's own state
	bundle      string
	calls       string // file with the runtime's command lines
	child       int    // a process that the container has left in its cgroup; 0 for none
}

// ended runs a container with a runtime until its process exits. With hostNS, the container leaves
// a process in its cgroup. remove is CreateArgs.RemoveState.
func ended(t *testing.T, runtime string, s spec, remove bool) *deletion {
	t.Helper()
	n := newNode(t)
	d := &deletion{node: n}
	d.runtime, d.calls = n.recorded(runtime)
	a := n.args(n.newID(), s)
	a.Runtime[0], a.RemoveState = d.runtime, remove
	d.id, d.bundle, d.state = a.ID, a.Bundle, filepath.Join(n.root, a.ID)
	n.create(a)
	n.start(d.id)
	n.exit(d.id)
	if s.hostNS {
		var err error
		if d.child, err = strconv.Atoi(readLog(t, a.LogPath)[0].text); err != nil {
			t.Fatal(err)
		}
	}
	return d
}

// recorded returns a program that runs an OCI runtime, runc or crun, and the file to which it
// appends its command lines.
func (n *node) recorded(runtime string) (program, calls string) {
	n.t.Helper()
	path, err := exec.LookPath(runtime)
	if err != nil {
		n.t.Skip(err)
	}
	line := []string{path}
	if runtime == "crun" {
		line = testcgroup.Command(path)
	}
	for i, arg := range line {
		line[i] = "'" + arg + "'"
	}
	program, calls = filepath.Join(n.t.TempDir(), runtime), filepath.Join(n.t.TempDir(), "calls")
	if err := os.WriteFile(program, fmt.Appendf(nil, recorded, calls, strings.Join(line, " ")), 0o755); err != nil {
		n.t.Fatal(err)
	}
	return program, calls
}

// forced reports whether the runtime was called to delete by force.
func (d *deletion) forced() bool { return d.called("--force") }

// called reports whether the runtime's command lines contain a word.
func (d *deletion) called(word string) bool {
	d.t.Helper()
	calls, err := os.ReadFile(d.calls)
	if err != nil {
		d.t.Fatal(err)
	}
	return slices.Contains(strings.Fields(string(calls)), word)
}

// freeze freezes the container's cgroup, where a version 1 freezer exists.
func (d *deletion) freeze() {
	d.t.Helper()
	file := filepath.Join("/sys/fs/cgroup/freezer", d.cgroup, d.id, "freezer.state")
	if _, err := os.Stat(file); err != nil {
		d.t.Skip("needs version 1 of the freezer: ", err)
	}
	if err := os.WriteFile(file, []byte("FROZEN"), 0); err != nil {
		d.t.Fatal(err)
	}
}

// A container that has ended is deleted without force, which would take runc 100 ms. Where the
// runtime refuses that, force is the second try. Nothing of the container is left in any case:
// node.stop checks the cgroups.
func TestDeleteEnded(t *testing.T) {
	leaving := spec{script: "setsid sleep 1000 >/dev/null 2>&1 & echo $!", hostNS: true}
	for name, tc := range map[string]struct {
		spec   spec
		change func(t *testing.T, d *deletion)
		force  bool // with both runtimes
		either bool // a runtime may do without force
		cgroup bool // the runtime may leave the cgroup
	}{
		"as usual":        {spec: spec{script: "true"}},
		"left a process":  {spec: leaving, either: true},
		"without bundle":  {spec: spec{script: "true"}, change: func(t *testing.T, d *deletion) { discard(t, d.bundle) }},
		"frozen":          {spec: spec{script: "true"}, change: func(_ *testing.T, d *deletion) { d.freeze() }, either: true},
		"without state":   {spec: spec{script: "true"}, change: func(t *testing.T, d *deletion) { d.byHand(t) }, force: true},
		"half its state":  {spec: spec{script: "true"}, change: func(t *testing.T, d *deletion) { d.cripple(t) }, either: true, cgroup: true},
		"keeper replaced": {spec: leaving, change: func(_ *testing.T, d *deletion) { d.killKeeper() }, either: true},
	} {
		for _, runtime := range []string{"runc", "crun"} {
			t.Run(name+" by "+runtime, func(t *testing.T) {
				d := ended(t, runtime, tc.spec, false)
				if tc.change != nil {
					tc.change(t, d)
				}
				if err := d.client.Delete(t.Context(), d.id); err != nil {
					t.Fatal(err)
				}
				if d.forced() != tc.force && !tc.either {
					t.Errorf("delete by force: %v, want %v", d.forced(), tc.force)
				}
				t.Logf("delete by force: %v", d.forced())
				if d.child > 0 {
					eventually(t, "the process that is left ends", func() bool { return !lives(d.child) })
				}
				if _, err := os.Stat(d.state); !os.IsNotExist(err) {
					t.Errorf("the runtime's state is left: %v", err)
				}
				if tc.cgroup {
					d.removeCgroup()
				}
			})
		}
	}
}

// With RemoveState, the keeper removes the runtime's state without the runtime. What is not as
// expected is left to the runtime's delete.
func TestRemoveState(t *testing.T) {
	once := spec{script: "true"}
	for name, tc := range map[string]struct {
		change   func(t *testing.T, d *deletion)
		fallback bool
	}{
		"as usual":        {},
		"without state":   {change: func(t *testing.T, d *deletion) { discard(t, d.state) }},
		"half its state":  {change: func(t *testing.T, d *deletion) { d.cripple(t) }},
		"keeper replaced": {change: func(_ *testing.T, d *deletion) { d.killKeeper() }},
		"with a directory": {fallback: true, change: func(t *testing.T, d *deletion) {
			if err := os.Mkdir(filepath.Join(d.state, "directory"), 0o700); err != nil {
				t.Fatal(err)
			}
		}},
	} {
		for _, runtime := range []string{"runc", "crun"} {
			t.Run(name+" by "+runtime, func(t *testing.T) {
				d := ended(t, runtime, once, true)
				if tc.change != nil {
					tc.change(t, d)
				}
				if err := d.client.Delete(t.Context(), d.id); err != nil {
					t.Fatal(err)
				}
				if d.called("delete") != tc.fallback {
					t.Errorf("the runtime was called to delete: %v, want %v", !tc.fallback, tc.fallback)
				}
				if _, err := os.Stat(d.state); !os.IsNotExist(err) {
					t.Errorf("the runtime's state is left: %v", err)
				}
				d.removeCgroup()
			})
		}
	}
}

// A link in the place of the state is not followed: the runtime's delete gets it.
func TestRemoveStateOfALink(t *testing.T) {
	d := ended(t, "runc", spec{script: "true"}, true)
	other := filepath.Join(t.TempDir(), "other")
	if err := os.Rename(d.state, other); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(other, d.state); err != nil {
		t.Fatal(err)
	}
	if err := d.client.Delete(t.Context(), d.id); err != nil {
		t.Fatal(err)
	}
	if !d.called("delete") {
		t.Error("the keeper removed the state of the link")
	}
	d.removeCgroup()
}

func discard(t *testing.T, dir string) {
	t.Helper()
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
}

// byHand deletes the container behind the keeper's back.
func (d *deletion) byHand(t *testing.T) {
	t.Helper()
	if out, err := exec.Command(d.runtime, "--root", d.root, "delete", d.id).CombinedOutput(); err != nil {
		t.Fatalf("delete: %v: %s", err, out)
	}
}

// cripple removes a part of the runtime's state, as a power cut can. runc then does not know the
// cgroup any more; removing that is the daemon's part.
func (d *deletion) cripple(t *testing.T) {
	t.Helper()
	for _, name := range []string{"state.json", "config.json"} { // runc's and crun's
		if err := os.RemoveAll(filepath.Join(d.state, name)); err != nil {
			t.Fatal(err)
		}
	}
}

// removeCgroup removes the container's cgroup, as the daemon does.
func (d *deletion) removeCgroup() {
	dirs, _ := filepath.Glob(filepath.Join("/sys/fs/cgroup/*", d.cgroup, d.id))
	for _, dir := range append(dirs, filepath.Join("/sys/fs/cgroup", d.cgroup, d.id)) {
		_ = os.Remove(dir)
	}
}

// lives reports whether a process exists that is not a zombie.
func lives(pid int) bool {
	stat, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	return err == nil && !strings.Contains(string(stat), ") Z ")
}
