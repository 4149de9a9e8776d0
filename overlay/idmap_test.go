package overlay

import (
	"archive/tar"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

const mappedRoot = 70000 // the ID on the host of user and group 0

// userNS returns the file of a new user namespace that lives as long as the test.
func userNS(t *testing.T) string {
	t.Helper()
	cmd := inUserNS("cat")
	hold, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = hold.Close(); _ = cmd.Wait() })
	return fmt.Sprintf("/proc/%d/ns/user", cmd.Process.Pid)
}

var testMap = []IDMap{{Outside: mappedRoot, Length: 1000}}

func owners(t *testing.T) *Owners {
	return &Owners{UserNS: userNS(t), UIDs: testMap, GIDs: testMap}
}

// inUserNS returns a command that runs as root of a new user namespace.
func inUserNS(name string, args ...string) *exec.Cmd {
	cmd := exec.Command(name, args...)
	maps := []syscall.SysProcIDMap{{ContainerID: 0, HostID: mappedRoot, Size: 1000}}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWUSER, UidMappings: maps, GidMappings: maps,
		GidMappingsEnableSetgroups: true, Credential: &syscall.Credential{},
	}
	return cmd
}

// script runs a shell script in a directory, as root of a user namespace.
func script(t *testing.T, dir, text string) string {
	t.Helper()
	d, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = d.Close() }()
	cmd := inUserNS("sh", "-ec", "cd /proc/self/fd/3; "+text)
	cmd.ExtraFiles = []*os.File{d}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v: %s", text, err, out)
	}
	return string(out)
}

// owned is a layer with files of several owners.
func owned(t *testing.T, s *Store, parent Layer) Layer {
	t.Helper()
	user := func(e entry) entry { return e.with(func(h *tar.Header) { h.Uid, h.Gid = 5, 6 }) }
	return register(t, s, parent.ID, buildTar(t, file("root", "r"), user(file("user", "u")), user(dir("home")), file("gone", "g"), file("home/f", "f")))
}

func wantOwner(t *testing.T, path string, uid, gid uint32) {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		t.Errorf("%s: %v", path, err)
	} else if st.Uid != uid || st.Gid != gid {
		t.Errorf("%s belongs to %d:%d, want %d:%d", path, st.Uid, st.Gid, uid, gid)
	}
}

// TestMappedMount: a user namespace sees the image's owners and can change every file. On disk, the
// writable layer has the same owners as without a namespace.
func TestMappedMount(t *testing.T) {
	bothAPIs(t, func(t *testing.T, s *Store) {
		if err := s.ProbeMapped(userNS(t)); errdefs.IsNotImplemented(err) {
			t.Skip(err) // the kernel maps no tmpfs before Linux 6.3
		}
		l := owned(t, s, chain(t, s, 2))
		rw, err := s.Create(context.Background(), CreateArgs{ID: "c", Parent: l.ID})
		if err != nil {
			t.Fatal(err)
		}
		merged := mount(t, s, MountArgs{ID: "c", Volatile: true, Owners: owners(t)})
		wantOwner(t, merged, mappedRoot, mappedRoot)
		wantOwner(t, filepath.Join(merged, "user"), mappedRoot+5, mappedRoot+6)
		got := script(t, merged, "stat -c %u:%g . root user home/f; echo x >new; echo x >>user; rm gone; mv home/f home/g; rm own0; mkdir own0; rmdir own0; chown 7:8 root")
		if want := "0:0\n0:0\n5:6\n0:0\n"; got != want {
			t.Errorf("owners inside:\n%swant:\n%s", got, want)
		}
		upper := s.paths.diff(rw.MountID)
		wantOwner(t, upper, 0, 0)
		wantOwner(t, filepath.Join(upper, "new"), 0, 0)
		wantOwner(t, filepath.Join(upper, "user"), 5, 6)
		wantOwner(t, filepath.Join(upper, "root"), 7, 8)
		wantOwner(t, filepath.Join(upper, "gone"), 0, 0) // a whiteout
		if err := s.Unmount(context.Background(), "c"); err != nil {
			t.Fatal(err)
		}
		merged = mount(t, s, MountArgs{ID: "c"})
		wantOwner(t, filepath.Join(merged, "user"), 5, 6)
		wantOwner(t, filepath.Join(merged, "new"), 0, 0)
		checkClean(t, s)
	})
}

// TestCopiedMount: without ID-mapped mounts, a user namespace still sees the image's owners, setuid
// bits and capabilities. The image stays unchanged, and a second mount changes nothing.
func TestCopiedMount(t *testing.T) {
	s := memoryStore(t)
	s.noMapping.Store(true)
	capable := "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00" // cap_net_bind_service=ep
	base := owned(t, s, Layer{})
	setuid := func(h *tar.Header) { h.Mode, h.Uid = 0o4755, 5 }
	l := register(t, s, base.ID, buildTar(t,
		file("setuid", "s").with(setuid), hardlink("linked", "setuid").with(setuid), symlink("link", "/etc/passwd"),
		file("capable", "c").with(func(h *tar.Header) { h.PAXRecords = map[string]string{"SCHILY.xattr.security.capability": capable} }),
		file("stranger", "x").with(func(h *tar.Header) { h.Uid = 5000 })))
	if _, err := s.Create(context.Background(), CreateArgs{ID: "c", Parent: l.ID}); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		merged := mount(t, s, MountArgs{ID: "c", Owners: owners(t)})
		for name, owner := range map[string][2]uint32{
			".": {mappedRoot, mappedRoot}, "user": {mappedRoot + 5, mappedRoot + 6}, "home/f": {mappedRoot, mappedRoot},
			"setuid": {mappedRoot + 5, mappedRoot}, "linked": {mappedRoot + 5, mappedRoot}, "link": {mappedRoot, mappedRoot},
			"stranger": {5000, mappedRoot},
		} {
			wantOwner(t, filepath.Join(merged, name), owner[0], owner[1])
		}
		if st := stat(t, filepath.Join(merged, "setuid")); st.Mode&0o7777 != 0o4755 {
			t.Errorf("mode of a setuid executable is %o", st.Mode&0o7777)
		}
		// The kernel shows the attribute only in its namespace.
		if got := script(t, merged, "getcap capable 2>/dev/null || stat -c %u:%g user"); !strings.Contains(got, "cap_net_bind_service=ep") && got != "5:6\n" {
			t.Errorf("inside: %q", got)
		}
		if got := xattr(t, filepath.Join(merged, "capable"), capabilityAttr); len(got) != 24 || got[3] != 3 {
			t.Errorf("capabilities are %x", got)
		}
		if err := s.Unmount(context.Background(), "c"); err != nil {
			t.Fatal(err)
		}
	}
	wantOwner(t, filepath.Join(diffOf(s, base), "user"), 5, 6)
	checkClean(t, s)
}

// TestMappedView tests the same for views, of one layer and of several.
func TestMappedView(t *testing.T) {
	bothAPIs(t, func(t *testing.T, s *Store) {
		base := owned(t, s, Layer{})
		top := register(t, s, base.ID, buildTar(t, file("top", "t")))
		for _, l := range []Layer{base, top} {
			target := t.TempDir()
			if err := s.MountView(l.ID, target, userNS(t)); err != nil {
				t.Fatal(err)
			}
			wantOwner(t, filepath.Join(target, "user"), mappedRoot+5, mappedRoot+6)
			if err := os.WriteFile(filepath.Join(target, "new"), nil, 0o600); err == nil {
				t.Error("the view can be written to")
			}
			if err := unix.Unmount(target, 0); err != nil {
				t.Fatal(err)
			}
		}
	})
}

func TestProbeMapped(t *testing.T) {
	s := memoryStore(t)
	if err := s.ProbeMapped(userNS(t)); err != nil {
		t.Error(err)
	}
	if err := s.ProbeMapped("/proc/self/ns/user"); err == nil {
		t.Error("mounting for the node's own user namespace works")
	}
	checkClean(t, s)
}

// TestMappedMountLeavesNoMount: a mapped mount leaves no mount but its own, also if it fails.
func TestMappedMountLeavesNoMount(t *testing.T) {
	s := memoryStore(t)
	if _, err := s.Create(context.Background(), CreateArgs{ID: "c", Parent: chain(t, s, 2).ID}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Mount(context.Background(), MountArgs{ID: "c", Owners: &Owners{UserNS: "/proc/self/ns/user", UIDs: testMap, GIDs: testMap}}); err == nil {
		t.Error("the node's own user namespace is taken for a mapping")
	}
	mount(t, s, MountArgs{ID: "c", Owners: owners(t)})
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(string(data), s.paths.overlay()+"/"); n == 0 {
		t.Error("the mount is not seen")
	}
	var points []string
	for line := range strings.Lines(string(data)) {
		if point := strings.Fields(line)[4]; strings.HasPrefix(point, s.paths.overlay()+"/") {
			points = append(points, point)
		}
	}
	if len(points) != 1 || filepath.Base(points[0]) != mergedName {
		t.Errorf("mounts: %v", points)
	}
}
