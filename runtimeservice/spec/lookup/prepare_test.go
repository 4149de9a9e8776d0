package lookup

import (
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"github.com/moby/profiles/apparmor"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/micarun/mica/runtimeservice/spec"
)

const (
	passwd = "root:x:0:0:root:/root:/bin/sh\napp:x:1000:100:App:/home/app:/bin/sh\nnohome:x:1001:100::::\n"
	group  = "root:x:0:\nusers:x:100:\naudio:x:29:app,other\nvideo:x:44:app\nwheel:x:10:root\n"
)

// rootfs makes a root file system with the given files.
func rootfs(t *testing.T, files map[string]string) string {
	t.Helper()
	root := t.TempDir()
	for name, text := range files {
		p := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

func profile(kind runtimeapi.SecurityProfile_ProfileType, ref string) *runtimeapi.SecurityProfile {
	return &runtimeapi.SecurityProfile{ProfileType: kind, LocalhostRef: ref}
}

func TestResolveUser(t *testing.T) {
	root := rootfs(t, map[string]string{"etc/passwd": passwd, "etc/group": group})
	id := func(n int64) *runtimeapi.Int64Value { return &runtimeapi.Int64Value{Value: n} }
	type sc = runtimeapi.LinuxContainerSecurityContext
	for _, c := range []struct {
		name  string
		sc    *sc
		image string
		want  spec.User
	}{
		{"nothing", nil, "", spec.User{Additional: []uint32{0, 10}, Home: "/root"}},
		{"image name", nil, "app", spec.User{UID: 1000, GID: 100, Additional: []uint32{100, 29, 44}, Username: "app", Home: "/home/app"}},
		{"image number", nil, "1000", spec.User{UID: 1000, GID: 100, Additional: []uint32{100, 29, 44}, Home: "/home/app"}},
		{"image name and group", nil, "app:video", spec.User{UID: 1000, GID: 44, Additional: []uint32{44, 29}, Username: "app", Home: "/home/app"}},
		{"unknown number", nil, "4242:4343", spec.User{UID: 4242, GID: 4343, Additional: []uint32{4343}, Home: "/"}},
		{"user without home", nil, "nohome", spec.User{UID: 1001, GID: 100, Additional: []uint32{100}, Username: "nohome", Home: "/"}},
		{
			"run_as_user over image", &sc{RunAsUser: id(1000), SupplementalGroups: []int64{7, 29}}, "root",
			spec.User{UID: 1000, GID: 100, Additional: []uint32{100, 29, 44, 7}, Home: "/home/app"},
		},
		{
			"run_as_username and group", &sc{RunAsUsername: "app", RunAsGroup: id(55)}, "",
			spec.User{UID: 1000, GID: 55, Additional: []uint32{55, 29, 44}, Username: "app", Home: "/home/app"},
		},
		{
			"strict", &sc{RunAsUser: id(1000), SupplementalGroups: []int64{7}, SupplementalGroupsPolicy: runtimeapi.SupplementalGroupsPolicy_Strict}, "",
			spec.User{UID: 1000, GID: 100, Additional: []uint32{100, 7}, Home: "/home/app"},
		},
	} {
		got, err := ResolveUser(t.Context(), root, c.sc, c.image)
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
		} else if diff := cmp.Diff(c.want, got); diff != "" {
			t.Errorf("%s: %s", c.name, diff)
		}
	}
	for _, c := range []struct {
		name, image string
		sc          *sc
	}{
		{"unknown name", "nobody", nil},
		{"unknown group", "app:nogroup", nil},
		{"unknown username", "", &sc{RunAsUsername: "nobody"}},
		{"username that is a number", "", &sc{RunAsUsername: "4242"}},
		{"negative", "", &sc{RunAsUser: id(-1)}},
		{"minus one of the kernel", "", &sc{RunAsUser: id(1<<32 - 1)}},
		{"negative group", "", &sc{RunAsUser: id(1), RunAsGroup: id(-5)}},
		{"huge number", "99999999999999999999999", nil},
		{"bad supplemental group", "", &sc{SupplementalGroups: []int64{-1}}},
		{"group alone", "", &sc{RunAsGroup: id(1)}},
		{"user and username", "", &sc{RunAsUser: id(1), RunAsUsername: "app"}},
	} {
		if got, err := ResolveUser(t.Context(), root, c.sc, c.image); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s: %+v, %v, want invalid argument", c.name, got, err)
		}
	}
}

// TestResolveUserHostileRootfs holds that an image cannot make the look-up leave the root, hang, or
// exhaust memory.
func TestResolveUserHostileRootfs(t *testing.T) {
	outside := rootfs(t, map[string]string{"passwd": "app:x:666:666::/:\n"})
	within := rootfs(t, map[string]string{"real/passwd": passwd})
	for _, c := range []struct {
		name string
		make func(etc string) error
		want uint32 // 0 if an error
	}{
		{"absolute symlink inside", func(etc string) error {
			return os.Symlink("/real/passwd", filepath.Join(etc, "passwd"))
		}, 1000},
		{"absolute symlink outside", func(etc string) error {
			return os.Symlink(filepath.Join(outside, "passwd"), filepath.Join(etc, "passwd"))
		}, 0},
		{"dots outside", func(etc string) error {
			return os.Symlink("../../../../../../../.."+outside+"/passwd", filepath.Join(etc, "passwd"))
		}, 0},
		{"loop", func(etc string) error { return os.Symlink("passwd", filepath.Join(etc, "passwd")) }, 0},
		{"FIFO", func(etc string) error { return unix.Mkfifo(filepath.Join(etc, "passwd"), 0o644) }, 0},
		{"directory", func(etc string) error { return os.Mkdir(filepath.Join(etc, "passwd"), 0o755) }, 0},
		{"sparse giant", func(etc string) error {
			p := filepath.Join(etc, "passwd")
			if err := os.WriteFile(p, []byte(passwd), 0o644); err != nil {
				return err
			}
			return os.Truncate(p, 1<<40)
		}, 0},
		{"endless line", func(etc string) error {
			return os.WriteFile(filepath.Join(etc, "passwd"), []byte(strings.Repeat("a", 1<<20)), 0o644)
		}, 0},
		{"giant ID", func(etc string) error {
			return os.WriteFile(filepath.Join(etc, "passwd"), []byte("app:x:99999999999:0::/:\n"), 0o644)
		}, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			etc := filepath.Join(within, "etc")
			if err := os.RemoveAll(etc); err != nil {
				t.Fatal(err)
			}
			if err := os.Mkdir(etc, 0o755); err != nil {
				t.Fatal(err)
			}
			if err := c.make(etc); err != nil {
				t.Fatal(err)
			}
			start := time.Now()
			u, err := ResolveUser(t.Context(), within, nil, "app")
			if time.Since(start) > 20*time.Second {
				t.Error("lookup took over twenty seconds")
			}
			if c.want != 0 && (err != nil || u.UID != c.want) {
				t.Errorf("ResolveUser = %+v, %v", u, err)
			}
			if c.want == 0 && !errdefs.IsInvalidArgument(err) {
				t.Errorf("ResolveUser = %+v, %v, want invalid argument", u, err)
			}
		})
	}
}

func FuzzResolveUser(f *testing.F) {
	f.Add(passwd, group, "app:video")
	f.Add("a:b", "::", "0:0")
	f.Add("x:x:-1:-1:::", "g:x:-5:x", "x:g")
	root := f.TempDir()
	if err := os.Mkdir(filepath.Join(root, "etc"), 0o755); err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, passwd, group, image string) {
		for name, text := range map[string]string{"passwd": passwd, "group": group} {
			if err := os.WriteFile(filepath.Join(root, "etc", name), []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		u, err := ResolveUser(t.Context(), root, nil, image)
		if err == nil && (len(u.Additional) == 0 || u.Additional[0] != u.GID || u.UID == 1<<32-1) {
			t.Errorf("ResolveUser(%q) = %+v", image, u)
		}
	})
}

func TestPrepareMounts(t *testing.T) {
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	join := func(s string) string { return filepath.Join(dir, s) }
	if err := os.WriteFile(join("file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("file", join("link")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("nowhere", join("dangling")); err != nil {
		t.Fatal(err)
	}
	got, err := PrepareMounts([]*runtimeapi.Mount{
		{ContainerPath: "/l", HostPath: join("link")},
		{ContainerPath: "/new", HostPath: join("a/b")},
		{ContainerPath: "/i", Image: &runtimeapi.ImageSpec{Image: "x"}},
	})
	if err != nil || !slices.Equal(got, []string{join("file"), join("a/b"), ""}) {
		t.Errorf("PrepareMounts = %q, %v", got, err)
	}
	if info, err := os.Stat(join("a/b")); err != nil || info.Mode().Perm() != 0o755 || !info.IsDir() {
		t.Errorf("missing host path: %v, %v", info, err)
	}
	for _, p := range []string{join("dangling"), join("file/x"), "relative"} {
		if got, err := PrepareMounts([]*runtimeapi.Mount{{ContainerPath: "/x", HostPath: p}}); err == nil {
			t.Errorf("PrepareMounts(%s) = %q", p, got)
		}
	}
}

// TestPropagation checks against real mounts, private and shared.
func TestPropagation(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("mounting needs root")
	}
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("none", dir, "tmpfs", 0, "size=64k"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	below := filepath.Join(dir, "x")
	if err := os.Mkdir(below, 0o755); err != nil {
		t.Fatal(err)
	}
	both := runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL
	in := runtimeapi.MountPropagation_PROPAGATION_HOST_TO_CONTAINER
	for _, c := range []struct {
		flag uintptr
		kind runtimeapi.MountPropagation
		ok   bool
	}{
		{unix.MS_PRIVATE, both, false},
		{unix.MS_PRIVATE, in, false},
		{unix.MS_PRIVATE, runtimeapi.MountPropagation_PROPAGATION_PRIVATE, true},
		{unix.MS_SHARED, both, true},
		{unix.MS_SHARED, in, true},
	} {
		if err := unix.Mount("", dir, "", c.flag, ""); err != nil {
			t.Fatal(err)
		}
		_, err := PrepareMounts([]*runtimeapi.Mount{{ContainerPath: "/x", HostPath: below, Propagation: c.kind}})
		if c.ok && err != nil || !c.ok && !errdefs.IsFailedPrecondition(err) {
			t.Errorf("flag %#x, %s: %v", c.flag, c.kind, err)
		}
	}
}

func TestResolveDevices(t *testing.T) {
	nodes, rules, err := ResolveDevices([]*runtimeapi.Device{
		{HostPath: "/dev/null", ContainerPath: "/dev/nil", Permissions: "r"},
		{HostPath: "/dev/zero"},
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(nodes) != 2 || nodes[0].Path != "/dev/nil" || nodes[0].Type != "c" || nodes[0].Major != 1 || nodes[0].Minor != 3 ||
		nodes[1].Path != "/dev/zero" || nodes[1].Minor != 5 {
		t.Errorf("nodes %+v", nodes)
	}
	if len(rules) != 2 || rules[0].Access != "r" || *rules[0].Minor != 3 || rules[1].Access != "rwm" || *rules[1].Minor != 5 {
		t.Errorf("rules %+v", rules)
	}
	for _, p := range []string{"/etc/passwd", "/dev/nonexistent-device"} {
		if nodes, _, err := ResolveDevices([]*runtimeapi.Device{{HostPath: p}}); err == nil {
			t.Errorf("ResolveDevices(%s) = %+v", p, nodes)
		}
	}
}

func TestResolveDeviceDirectory(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("mknod needs root")
	}
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "sub"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "plain"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mknod(filepath.Join(dir, "sub/n"), unix.S_IFCHR|0o600, int(unix.Mkdev(1, 3))); err != nil {
		t.Fatal(err)
	}
	nodes, _, err := ResolveDevices([]*runtimeapi.Device{{HostPath: dir, ContainerPath: "/dev/d"}})
	if err != nil || len(nodes) != 1 || nodes[0].Path != "/dev/d/sub/n" || nodes[0].Major != 1 || nodes[0].Minor != 3 {
		t.Errorf("ResolveDevices = %+v, %v", nodes, err)
	}
}

func TestReadSeccomp(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "p.json")
	if err := os.WriteFile(file, []byte("{}"), 0o644); err != nil {
		t.Fatal(err)
	}
	sc := func(p string) *runtimeapi.LinuxContainerSecurityContext {
		return &runtimeapi.LinuxContainerSecurityContext{Seccomp: profile(runtimeapi.SecurityProfile_Localhost, p)}
	}
	if text, err := ReadSeccomp(sc(file)); err != nil || string(text) != "{}" {
		t.Errorf("ReadSeccomp = %q, %v", text, err)
	}
	privileged := sc(filepath.Join(dir, "none"))
	privileged.Privileged = true
	if text, err := ReadSeccomp(privileged); err != nil || text != nil {
		t.Errorf("ReadSeccomp of a privileged container = %q, %v", text, err)
	}
	if text, err := ReadSeccomp(nil); err != nil || text != nil {
		t.Errorf("ReadSeccomp(nil) = %q, %v", text, err)
	}
	fifo := filepath.Join(dir, "fifo")
	if err := unix.Mkfifo(fifo, 0o644); err != nil {
		t.Fatal(err)
	}
	big := filepath.Join(dir, "big")
	if err := os.WriteFile(big, make([]byte, maxSeccompProfile+1), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, p := range []string{fifo, big, dir, filepath.Join(dir, "none")} {
		if text, err := ReadSeccomp(sc(p)); err == nil {
			t.Errorf("ReadSeccomp(%s) = %d bytes", p, len(text))
		}
	}
}

// TestDetectHost compares with other information from the kernel.
func TestDetectHost(t *testing.T) {
	h, err := DetectHost()
	if err != nil {
		t.Fatal(err)
	}
	if os.Geteuid() == 0 && !slices.Contains(h.Capabilities, "CAP_CHOWN") {
		t.Errorf("root without CAP_CHOWN: %v", h.Capabilities)
	}
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	if h.Seccomp != strings.Contains(string(status), "\nSeccomp:") {
		t.Errorf("seccomp is %v", h.Seccomp)
	}
	if !slices.ContainsFunc(h.Rlimits, func(l specs.POSIXRlimit) bool { return l.Type == "RLIMIT_NOFILE" && l.Hard > 0 }) {
		t.Errorf("limits %v", h.Rlimits)
	}
	for _, d := range h.Devices {
		if d.Path == "/dev/null" && d.Major == 1 && d.Minor == 3 {
			if d.FileMode == nil {
				t.Errorf("/dev/null without mode: %+v", d)
			}
			return
		}
	}
	t.Error("no /dev/null among the host's devices")
}

// TestOOMScoreAdjMinIsAllowed sets the detected minimum for a child.
func TestOOMScoreAdjMinIsAllowed(t *testing.T) {
	h, err := DetectHost()
	if err != nil {
		t.Fatal(err)
	}
	child, err := os.StartProcess("/bin/sleep", []string{"sleep", "60"}, &os.ProcAttr{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = child.Kill()
		_, _ = child.Wait()
	}()
	file := filepath.Join("/proc", strconv.Itoa(child.Pid), "oom_score_adj")
	if err := os.WriteFile(file, []byte(strconv.Itoa(h.OOMScoreAdjMin)), 0o644); err != nil {
		t.Errorf("writing the detected minimum %d: %v", h.OOMScoreAdjMin, err)
	}
}

// TestLoadAppArmor loads the profile if there is AppArmor and expects no error otherwise.
func TestLoadAppArmor(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("loading needs root")
	}
	name, err := LoadAppArmor()
	if err != nil {
		t.Fatal(err)
	}
	if hasAppArmor() != (name != "") {
		t.Errorf("AppArmor %v: profile %q", hasAppArmor(), name)
	}
}

// TestEnsureAppArmor holds that a removed default profile is loaded again, and that another profile
// that is not loaded is refused.
func TestEnsureAppArmor(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("loading needs root")
	}
	if !hasAppArmor() {
		t.Skip("this kernel has no AppArmor")
	}
	name, err := LoadAppArmor()
	if err != nil {
		t.Fatal(err)
	}
	h := spec.Host{AppArmor: true, AppArmorDefault: name}
	if err := os.WriteFile("/sys/kernel/security/apparmor/.remove", []byte(name), 0); err != nil {
		t.Fatal(err)
	}
	if loaded, err := apparmor.IsLoaded(name); err != nil || loaded {
		t.Fatalf("after the removal it is loaded: %v, %v", loaded, err)
	}
	for what, p := range map[string]*runtimeapi.SecurityProfile{
		"none": nil, "the default": profile(runtimeapi.SecurityProfile_RuntimeDefault, ""),
		"the default by name": profile(runtimeapi.SecurityProfile_Localhost, name),
		"unconfined":          profile(runtimeapi.SecurityProfile_Unconfined, ""),
	} {
		if err := EnsureAppArmor(&runtimeapi.LinuxContainerSecurityContext{Apparmor: p}, h); err != nil {
			t.Errorf("profile: %s: %v", what, err)
		}
	}
	if loaded, err := apparmor.IsLoaded(name); err != nil || !loaded {
		t.Errorf("afterwards it is loaded: %v, %v", loaded, err)
	}
	sc := &runtimeapi.LinuxContainerSecurityContext{Apparmor: profile(runtimeapi.SecurityProfile_Localhost, "mica-no-such-profile")}
	if err := EnsureAppArmor(sc, h); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "mica-no-such-profile") {
		t.Errorf("a profile that is not there: %v", err)
	}
	sc.Privileged = true
	if err := EnsureAppArmor(sc, h); err != nil {
		t.Errorf("a privileged container: %v", err)
	}
}
