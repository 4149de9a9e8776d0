package podns

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/vishvananda/netlink"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func needRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("making namespaces needs root")
	}
}

// podDir returns a pod's directory. The end of the test removes its pins.
func podDir(t testing.TB) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "pod")
	t.Cleanup(func() {
		if err := Unpin(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

func pinAll(t testing.TB, args Args) string {
	t.Helper()
	if args.Dir == "" {
		args.Dir = podDir(t)
	}
	args.Net, args.IPC, args.UTS = true, true, true
	if err := Pin(t.Context(), args); err != nil {
		t.Fatal(err)
	}
	return args.Dir
}

func inode(t testing.TB, path string) uint64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		t.Fatalf("stat %s: %v", path, err)
	}
	return st.Ino
}

// eventually waits until ok returns true.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("not within 30 s: %s", what)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

func threads(t testing.TB) []string {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/task")
	if err != nil {
		t.Fatal(err)
	}
	var ids []string
	for _, e := range entries {
		ids = append(ids, e.Name())
	}
	return ids
}

// threadsIn counts this process's threads in any of the namespaces with these inode numbers.
func threadsIn(t testing.TB, inodes ...uint64) int {
	t.Helper()
	n := 0
	for _, id := range threads(t) {
		for _, kind := range []string{Net, IPC, UTS} {
			link, err := os.Readlink("/proc/self/task/" + id + "/ns/" + kind)
			if err != nil {
				continue // the thread has ended
			}
			for _, ino := range inodes {
				if link == fmt.Sprintf("%s:[%d]", kind, ino) {
					n++
				}
			}
		}
	}
	return n
}

func mountsBelow(t testing.TB, pid, below string) []string {
	t.Helper()
	data, err := os.ReadFile("/proc/" + pid + "/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	for line := range strings.Lines(string(data)) {
		if fields := strings.Fields(line); strings.HasPrefix(fields[4], below) {
			found = append(found, fields[4])
		}
	}
	return found
}

func TestPinMakesNamespacesOfThePodsOwn(t *testing.T) {
	needRoot(t)
	dir := pinAll(t, Args{Hostname: "a-pod", Sysctls: map[string]string{
		"net.ipv4.ip_unprivileged_port_start": "80",
		"net/ipv4/conf/lo/forwarding":         "1",
		"kernel.shm_rmid_forced":              "1",
		"kernel.sem":                          "32000 1024000000 500 32000",
		"fs.mqueue.msg_max":                   "20",
	}})
	var inodes []uint64
	for _, name := range []string{Net, IPC, UTS} {
		pin := filepath.Join(dir, name)
		ino := inode(t, pin)
		if ino == inode(t, "/proc/self/ns/"+name) {
			t.Errorf("%s namespace is the node's", name)
		}
		if ok, err := Pinned(pin); err != nil || !ok {
			t.Errorf("Pinned(%s) = %v, %v", name, ok, err)
		}
		inodes = append(inodes, ino)
	}
	eventually(t, "no thread of this process in the pod's namespaces", func() bool { return threadsIn(t, inodes...) == 0 })

	out, err := exec.Command("nsenter", "--net="+dir+"/net", "--ipc="+dir+"/ipc", "--uts="+dir+"/uts", "sh", "-c",
		"hostname; cat /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/net/ipv4/conf/lo/forwarding /proc/sys/kernel/shm_rmid_forced /proc/sys/kernel/sem /proc/sys/fs/mqueue/msg_max | tr '\\t' ' '").CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if got, want := string(out), "a-pod\n80\n1\n1\n32000 1024000000 500 32000\n20\n"; got != want {
		t.Errorf("inside the pod:\n%swant:\n%s", got, want)
	}
	if name, _ := os.Hostname(); name == "a-pod" {
		t.Error("the node's host name changed")
	}
}

// TestPinOwnedByUserNamespace holds that a pod's user namespace owns its other namespaces, that
// these are set up like any pod's, and that only the pins keep them alive.
func TestPinOwnedByUserNamespace(t *testing.T) {
	needRoot(t)
	const ioctlUserNS = 0xb701 // NS_GET_USERNS of linux/nsfs.h
	maps := []syscall.SysProcIDMap{{ContainerID: 0, HostID: 70000, Size: 65536}}
	dir := pinAll(t, Args{
		User:     &UserNS{UIDs: maps, GIDs: maps, Holder: []string{"/bin/cat"}},
		Hostname: "a-pod",
		Sysctls: map[string]string{
			"net.ipv4.ip_unprivileged_port_start": "80", "kernel.shm_rmid_forced": "1",
			"kernel.sem": "32000 1024000000 500 32000", "fs.mqueue.msg_max": "20",
		},
	})
	owner := inode(t, filepath.Join(dir, User))
	for _, name := range []string{Net, IPC, UTS} {
		f, err := os.Open(filepath.Join(dir, name))
		must(t, err)
		fd, err := unix.IoctlRetInt(int(f.Fd()), ioctlUserNS)
		must(t, err)
		if got := inode(t, fmt.Sprintf("/proc/self/fd/%d", fd)); got != owner {
			t.Errorf("%s namespace is owned by %d, want %d", name, got, owner)
		}
		must(t, unix.Close(fd))
		must(t, f.Close())
	}
	out, err := exec.Command("nsenter", "--user="+dir+"/user", "--net="+dir+"/net", "--ipc="+dir+"/ipc", "--uts="+dir+"/uts", "sh", "-c",
		"hostname; cat /proc/self/uid_map /proc/self/setgroups /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/kernel/shm_rmid_forced /proc/sys/kernel/sem /proc/sys/fs/mqueue/msg_max; ip -o link show lo | grep -o LOOPBACK,UP").CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	want := "a-pod 0 70000 65536 allow 80 1 32000 1024000000 500 32000 20 LOOPBACK,UP"
	if got := strings.Join(strings.Fields(string(out)), " "); got != want {
		t.Errorf("inside the pod:\n%s\nwant:\n%s", got, want)
	}
	if uid := os.Geteuid(); uid != 0 {
		t.Errorf("the test runs as user %d now", uid)
	}
}

func TestPinUserNamespaceThatFails(t *testing.T) {
	needRoot(t)
	good := []syscall.SysProcIDMap{{ContainerID: 0, HostID: 70000, Size: 65536}}
	for name, user := range map[string]UserNS{
		"no holder":       {UIDs: good, GIDs: good},
		"absent holder":   {UIDs: good, GIDs: good, Holder: []string{"/no/such/holder"}},
		"root not mapped": {UIDs: []syscall.SysProcIDMap{{ContainerID: 1, HostID: 70000, Size: 1}}, GIDs: good, Holder: []string{"/bin/cat"}},
		"overlap": {
			UIDs: append(good[:1:1], syscall.SysProcIDMap{ContainerID: 5, HostID: 7, Size: 1}), GIDs: good, Holder: []string{"/bin/cat"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := podDir(t)
			if err := Pin(t.Context(), Args{Dir: dir, Net: true, User: &user}); err == nil {
				t.Fatal("Pin succeeded")
			}
			if entries, _ := os.ReadDir(dir); len(entries) != 0 {
				t.Errorf("left behind: %v", entries)
			}
		})
	}
}

func TestPinBringsLoopbackUp(t *testing.T) {
	needRoot(t)
	dir := pinAll(t, Args{})
	err := Do(filepath.Join(dir, Net), func() error {
		link, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		if link.Attrs().Flags&net.FlagUp == 0 {
			t.Error("loopback is down")
		}
		addrs, err := netlink.AddrList(link, netlink.FAMILY_V4)
		if len(addrs) != 1 || addrs[0].IP.String() != "127.0.0.1" {
			t.Errorf("loopback addresses = %v", addrs)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestPinOnlyWhatWasAskedFor(t *testing.T) {
	needRoot(t)
	for _, args := range []Args{{}, {Net: true}, {IPC: true}, {UTS: true}, {Net: true, UTS: true}} {
		t.Run(strings.Join(append([]string{"pins"}, args.names()...), " "), func(t *testing.T) {
			args.Dir = podDir(t)
			if err := Pin(t.Context(), args); err != nil {
				t.Fatal(err)
			}
			for name, want := range map[string]bool{Net: args.Net, IPC: args.IPC, UTS: args.UTS} {
				if got, err := Pinned(filepath.Join(args.Dir, name)); err != nil || got != want {
					t.Errorf("Pinned(%s) = %v, %v; want %v", name, got, err, want)
				}
			}
		})
	}
}

func TestPinThatFailsLeavesNothing(t *testing.T) {
	needRoot(t)
	for name, args := range map[string]Args{
		"unknown sysctl":     {Sysctls: map[string]string{"net.ipv4.no_such_thing": "1"}},
		"refused value":      {Sysctls: map[string]string{"net.ipv4.ip_forward": "what"}},
		"host name too long": {Hostname: strings.Repeat("x", 65)},
	} {
		t.Run(name, func(t *testing.T) {
			args.Dir = podDir(t)
			args.Net, args.IPC, args.UTS = true, true, true
			if err := Pin(t.Context(), args); err == nil {
				t.Fatal("Pin succeeded")
			}
			if entries, _ := os.ReadDir(args.Dir); len(entries) != 0 {
				t.Errorf("left behind: %v", entries)
			}
		})
	}
}

func TestPinTwice(t *testing.T) {
	needRoot(t)
	dir := pinAll(t, Args{})
	before := inode(t, filepath.Join(dir, Net))
	err := Pin(t.Context(), Args{Dir: dir, Net: true})
	if !errors.Is(err, errdefs.ErrAlreadyExists) {
		t.Fatalf("second Pin = %v, want ErrAlreadyExists", err)
	}
	if after := inode(t, filepath.Join(dir, Net)); after != before {
		t.Error("second Pin replaced the namespace")
	}
}

func TestUnpinEndsTheNetwork(t *testing.T) {
	needRoot(t)
	dir := pinAll(t, Args{})
	host := fmt.Sprintf("pn%d", os.Getpid())
	err := Do(filepath.Join(dir, Net), func() error {
		return netlink.LinkAdd(&netlink.Veth{
			LinkAttrs: netlink.LinkAttrs{Name: "inside"}, PeerName: host,
			PeerNamespace: netlink.NsPid(os.Getpid()),
		})
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := netlink.LinkByName(host); err != nil {
		t.Fatalf("the veth's end on the node: %v", err)
	}
	if err := Unpin(dir); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the veth goes with its namespace", func() bool {
		_, err := netlink.LinkByName(host)
		return errors.As(err, &netlink.LinkNotFoundError{})
	})
}

func TestUnpinEveryStateOfTheDirectory(t *testing.T) {
	needRoot(t)
	for name, prepare := range map[string]func(t *testing.T, dir string){
		"no directory": func(*testing.T, string) {},
		"directory's parent is a file": func(t *testing.T, dir string) {
			if err := os.WriteFile(dir, nil, 0o600); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = os.Remove(dir) })
		},
		"plain files": func(t *testing.T, dir string) {
			if err := os.Mkdir(dir, 0o700); err != nil {
				t.Fatal(err)
			}
			for _, name := range []string{Net, UTS, PID} {
				if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
					t.Fatal(err)
				}
			}
		},
		"one pin":  func(t *testing.T, dir string) { must(t, Pin(t.Context(), Args{Dir: dir, IPC: true})) },
		"all pins": func(t *testing.T, dir string) { pinAll(t, Args{Dir: dir}) },
		"pin over pin": func(t *testing.T, dir string) {
			pinAll(t, Args{Dir: dir})
			must(t, unix.Mount("/proc/self/ns/net", filepath.Join(dir, Net), "", unix.MS_BIND, ""))
		},
		"pin in use": func(t *testing.T, dir string) {
			pinAll(t, Args{Dir: dir})
			f, err := os.Open(filepath.Join(dir, Net))
			must(t, err)
			t.Cleanup(func() { _ = f.Close() })
		},
		"pid namespace of another": func(t *testing.T, dir string) {
			pinAll(t, Args{Dir: dir})
			must(t, os.WriteFile(filepath.Join(dir, PID), nil, 0o600))
			must(t, unix.Mount("/proc/self/ns/pid", filepath.Join(dir, PID), "", unix.MS_BIND, ""))
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := podDir(t)
			prepare(t, dir)
			for range 2 {
				must(t, Unpin(dir))
			}
			if found := mountsBelow(t, "self", dir); len(found) != 0 {
				t.Errorf("still mounted: %v", found)
			}
			if entries, _ := os.ReadDir(dir); len(entries) != 0 {
				t.Errorf("left behind: %v", entries)
			}
		})
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestUnpinKeepsWhatIsNotItsOwn(t *testing.T) {
	needRoot(t)
	dir := pinAll(t, Args{})
	must(t, os.WriteFile(filepath.Join(dir, "hostname"), []byte("x"), 0o600))
	must(t, Unpin(dir))
	if _, err := os.Stat(filepath.Join(dir, "hostname")); err != nil {
		t.Error(err)
	}
}

func TestUnpinDoesNotFollowLinks(t *testing.T) {
	needRoot(t)
	other := pinAll(t, Args{})
	dir := podDir(t)
	must(t, os.Mkdir(dir, 0o700))
	must(t, os.Symlink(filepath.Join(other, Net), filepath.Join(dir, Net)))
	must(t, Unpin(dir))
	if ok, err := Pinned(filepath.Join(other, Net)); err != nil || !ok {
		t.Errorf("the other pod's pin: %v, %v", ok, err)
	}
}

func TestShareReachesOtherMountNamespaces(t *testing.T) {
	needRoot(t)
	root := filepath.Join(t.TempDir(), "pods")
	for range 2 {
		must(t, Share(root))
	}
	t.Cleanup(func() { must(t, Unshare(root)) })
	if found := mountsBelow(t, "self", root); len(found) != 1 {
		t.Fatalf("mounts after two Shares: %v", found)
	}
	before := pinAll(t, Args{Dir: filepath.Join(root, "before")})

	cmd := exec.Command("sleep", "60")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS}
	must(t, cmd.Start())
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	pid := fmt.Sprint(cmd.Process.Pid)

	after := pinAll(t, Args{Dir: filepath.Join(root, "after")})
	if found := mountsBelow(t, pid, after); len(found) != 3 {
		t.Errorf("a pin made later is seen as %v", found)
	}
	must(t, Unpin(before))
	must(t, Unpin(after))
	if found := mountsBelow(t, pid, root+"/"); len(found) != 0 {
		t.Errorf("pins taken away are still mounted elsewhere: %v", found)
	}
}

func TestDoRunsInside(t *testing.T) {
	needRoot(t)
	dir := pinAll(t, Args{})
	want := inode(t, filepath.Join(dir, Net))
	here := inode(t, "/proc/thread-self/ns/net")
	sentinel := errors.New("from f")
	err := Do(filepath.Join(dir, Net), func() error {
		if got := inode(t, "/proc/thread-self/ns/net"); got != want {
			t.Errorf("f runs in %d, want %d", got, want)
		}
		return sentinel
	})
	if !errors.Is(err, sentinel) {
		t.Errorf("Do = %v", err)
	}
	if got := inode(t, "/proc/thread-self/ns/net"); got != here {
		t.Error("the caller moved")
	}
	must(t, Do("", func() error {
		if got := inode(t, "/proc/thread-self/ns/net"); got != here {
			t.Error("Do without a path moved")
		}
		return nil
	}))
}

func TestDoErrors(t *testing.T) {
	needRoot(t)
	plain := filepath.Join(t.TempDir(), "plain")
	must(t, os.WriteFile(plain, nil, 0o600))
	for _, path := range []string{plain, filepath.Join(t.TempDir(), "none"), "/proc/self/ns/uts"} {
		if err := Do(path, func() error { t.Error("f ran"); return nil }); err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("Do(%s) = %v", path, err)
		}
	}
	dir := pinAll(t, Args{})
	if err := Do(filepath.Join(dir, Net), func() error { runtime.Goexit(); return nil }); err == nil {
		t.Error("Do of an f that ends its goroutine succeeded")
	}
}

func TestThreadsAreThrownAway(t *testing.T) {
	needRoot(t)
	dir := pinAll(t, Args{})
	ns := filepath.Join(dir, Net)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 25 {
				if err := Do(ns, func() error { return nil }); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	eventually(t, "no thread in the namespace", func() bool { return threadsIn(t, inode(t, ns)) == 0 })
	if n := len(threads(t)); n > 100 {
		t.Errorf("%d threads after 200 calls", n)
	}
}

func TestDialTCP(t *testing.T) {
	needRoot(t)
	dir := pinAll(t, Args{})
	ns := filepath.Join(dir, Net)
	// Nothing on the node listens on the port, as it might on one that the kernel chooses.
	for _, address := range []string{"127.0.0.1:97", "[::1]:97"} {
		t.Run(address, func(t *testing.T) {
			var listener net.Listener
			must(t, Do(ns, func() (err error) {
				listener, err = net.Listen("tcp", address)
				return err
			}))
			defer func() { _ = listener.Close() }()
			port := uint16(listener.Addr().(*net.TCPAddr).Port)
			go func() {
				if c, err := listener.Accept(); err == nil {
					_, _ = c.Write([]byte("inside"))
					_ = c.Close()
				}
			}()
			conn, err := DialTCP(t.Context(), ns, port)
			must(t, err)
			defer func() { _ = conn.Close() }()
			buf := make([]byte, 6)
			if _, err := conn.Read(buf); err != nil || string(buf) != "inside" {
				t.Errorf("read %q, %v", buf, err)
			}
			if c, err := DialTCP(t.Context(), "", port); err == nil {
				_ = c.Close()
				t.Error("the pod's port answers on the node")
			}
		})
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := DialTCP(ctx, ns, 1); !errors.Is(err, context.Canceled) {
		t.Errorf("DialTCP of a cancelled context = %v", err)
	}
	if _, err := DialTCP(t.Context(), ns, 1); !errors.Is(err, unix.ECONNREFUSED) || !strings.Contains(err.Error(), "port 1 ") {
		t.Errorf("DialTCP of a closed port = %v", err)
	}
}

func TestNoDescriptorsLeft(t *testing.T) {
	needRoot(t)
	count := func() int {
		entries, err := os.ReadDir("/proc/self/fd")
		must(t, err)
		return len(entries)
	}
	dir := pinAll(t, Args{Hostname: "x", Sysctls: map[string]string{"net.ipv4.ip_forward": "0"}})
	must(t, Unpin(dir))
	before := count()
	for range 10 {
		pinAll(t, Args{Dir: dir, Hostname: "x", Sysctls: map[string]string{"net.ipv4.ip_forward": "0"}})
		must(t, Do(filepath.Join(dir, Net), func() error { return nil }))
		must(t, Unpin(dir))
	}
	if after := count(); after != before {
		t.Errorf("descriptors: %d before, %d after", before, after)
	}
}

func BenchmarkPin(b *testing.B) {
	needRoot(b)
	dir := podDir(b)
	args := Args{Dir: dir, Net: true, IPC: true, UTS: true, Hostname: "a-pod"}
	for b.Loop() {
		must(b, Pin(context.Background(), args))
		b.StopTimer()
		must(b, Unpin(dir))
		b.StartTimer()
	}
}

func BenchmarkUnpin(b *testing.B) {
	needRoot(b)
	dir := podDir(b)
	args := Args{Dir: dir, Net: true, IPC: true, UTS: true, Hostname: "a-pod"}
	for b.Loop() {
		b.StopTimer()
		must(b, Pin(context.Background(), args))
		b.StartTimer()
		must(b, Unpin(dir))
	}
}

func BenchmarkDo(b *testing.B) {
	needRoot(b)
	dir := pinAll(b, Args{})
	for b.Loop() {
		must(b, Do(filepath.Join(dir, Net), func() error { return nil }))
	}
}
