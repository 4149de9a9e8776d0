package spec

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// cpuTime returns do's CPU time on one thread, the minimum of three runs.
func cpuTime(t *testing.T, do func()) time.Duration {
	t.Helper()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	used := func() time.Duration {
		var ts unix.Timespec
		if err := unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &ts); err != nil {
			t.Fatal(err)
		}
		return time.Duration(ts.Nano())
	}
	best := time.Duration(1<<63 - 1)
	for range 3 {
		before := used()
		do()
		best = min(best, used()-before)
	}
	return best
}

// checkLinear holds that 16 times the input costs at most four times a linear cost; a quadratic
// cost would be 16 times that. The garbage collector may add a few milliseconds.
func checkLinear(t *testing.T, what string, n int, do func(n int)) {
	t.Helper()
	const more, margin, noise = 16, 4, 20 * time.Millisecond
	small, large := cpuTime(t, func() { do(n / more) }), cpuTime(t, func() { do(n) })
	t.Logf("%s: %d in %v, %d in %v", what, n/more, small, n, large)
	if large > margin*more*small+noise {
		t.Errorf("%s: %d cost %v, %d cost %v, more than in proportion", what, n/more, small, n, large)
	}
}

func groupsOf(user string, n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "g%d:x:%d:%s\n", i, i+1, user)
	}
	return b.String()
}

// TestUserInManyGroups holds that an image whose /etc/group lists the user many times costs in
// proportion to the file, and is refused above the kernel's limit.
func TestUserInManyGroups(t *testing.T) {
	in := func(group string) string {
		return rootfs(t, map[string]string{"etc/passwd": passwd, "etc/group": group})
	}
	most := in(groupsOf("app", maxGroups-1))
	u, err := ResolveUser(t.Context(), most, nil, "app:0")
	if err != nil || len(u.Additional) != maxGroups {
		t.Fatalf("%d groups, %v", len(u.Additional), err)
	}
	more := in(groupsOf("app", 100_000))
	strict := &runtimeapi.LinuxContainerSecurityContext{SupplementalGroupsPolicy: runtimeapi.SupplementalGroupsPolicy_Strict}
	if u, err := ResolveUser(t.Context(), more, strict, "app"); err != nil || len(u.Additional) != 1 {
		t.Errorf("strictly: %d groups, %v", len(u.Additional), err)
	}
	_, err = ResolveUser(t.Context(), more, nil, "app")
	if !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), "more than 65536 groups in /etc/group of the image") {
		t.Errorf("100,000 groups: %v", err)
	}
	one := &runtimeapi.LinuxContainerSecurityContext{SupplementalGroups: []int64{1 << 20}}
	if _, err := ResolveUser(t.Context(), most, one, "app:0"); !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), "supplemental") {
		t.Errorf("one group more by the request: %v", err)
	}
	roots := map[int]string{}
	const n = 60_000
	for _, n := range []int{n, n / 16} {
		roots[n] = in(groupsOf("app", n))
	}
	checkLinear(t, "groups", n, func(n int) {
		if _, err := ResolveUser(t.Context(), roots[n], nil, "app"); err != nil {
			t.Error(err)
		}
	})
	requested := func(n int) []int64 {
		ids := make([]int64, n)
		for i := range ids {
			ids[i] = int64(i)
		}
		return ids
	}
	checkLinear(t, "supplemental groups", n, func(n int) {
		if _, err := ResolveUser(t.Context(), roots[n], &runtimeapi.LinuxContainerSecurityContext{SupplementalGroups: requested(n)}, "app"); err != nil {
			t.Error(err)
		}
	})
}

// TestUserLookUpEndsWithItsContext holds that reading an image's files stops when the call's
// context ends.
func TestUserLookUpEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	n := 0
	err := eachEntry(ctx, []byte(groupsOf("app", 50_000)), 5, func([]string) bool {
		if n++; n == 10 {
			cancel()
		}
		return true
	})
	if !errors.Is(err, context.Canceled) || n > 10+linesPerCheck {
		t.Errorf("read %d lines after the context had ended at the tenth: %v", n, err)
	}
	root := rootfs(t, map[string]string{"etc/passwd": passwd, "etc/group": group})
	if u, err := ResolveUser(ctx, root, nil, "app"); !errors.Is(err, context.Canceled) {
		t.Errorf("%+v, %v, want the context's error", u, err)
	}
}

// TestGreatEnvironment holds the limits of an environment that image and request form together, and
// that its cost is proportional to its size.
func TestGreatEnvironment(t *testing.T) {
	entries := func(name string, n int, value string) []string {
		out := make([]string, n)
		for i := range out {
			out[i] = fmt.Sprintf("%s%d=%s", name, i, value)
		}
		return out
	}
	keyValues := func(entries []string) []*runtimeapi.KeyValue {
		var out []*runtimeapi.KeyValue
		for _, e := range entries {
			key, value, _ := strings.Cut(e, "=")
			out = append(out, &runtimeapi.KeyValue{Key: key, Value: []byte(value)})
		}
		return out
	}
	long := strings.Repeat("v", 1000)
	for _, c := range []struct {
		name    string
		image   []string
		request []string
		says    string // "" if it fits
	}{
		{"a full image", entries("I", maxImageEnv, ""), nil, ""},
		{"too many of the image", entries("I", 60_000, ""), nil, "60000 environment entries of the image, the limit is 4096"},
		{"the variables of many services", entries("I", 10, ""), entries("SVC", 20_000, "10.0.0.1"), ""},
		{"too many together", entries("I", 10, ""), entries("SVC", maxEnv, ""), "32779 environment entries of image and request, the limit is 32768"},
		{"too many of the request", nil, entries("SVC", maxEnv+1, ""), "32769 environment entries of the request, the limit is 32768"},
		{"too long together", entries("I", 600, long), entries("R", 600, long), "bytes of environment of image and request, the limit is 1048576"},
		{"one too long", []string{"A=" + strings.Repeat("v", 1<<20)}, nil, "bytes of environment of the image"},
	} {
		in := request()
		in.Image.Env, in.Config.Envs = c.image, keyValues(c.request)
		s, err := Container(in)
		switch {
		case c.says == "" && err != nil:
			t.Errorf("%s: %v", c.name, err)
		case c.says == "" && len(s.Process.Env) < len(c.image)+len(c.request):
			t.Errorf("%s: %d entries", c.name, len(s.Process.Env))
		case c.says != "" && (!errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), c.says)):
			t.Errorf("%s: %v, want %q", c.name, err, c.says)
		}
	}
	checkLinear(t, "environment", maxEnv-16, func(n int) {
		in := request()
		in.Config.Envs = keyValues(entries("E", n, ""))
		if _, err := Container(in); err != nil {
			t.Error(err)
		}
	})
}

// TestGreatRequests holds that the cost of every list in a request is proportional to its length.
func TestGreatRequests(t *testing.T) {
	name := func(kind string, i int) string { return fmt.Sprintf("/%s/%d", kind, i) }
	for kind, fill := range map[string]func(in *ContainerInput, n int){
		"mounts": func(in *ContainerInput, n int) {
			for i := range n {
				in.Config.Mounts = append(in.Config.Mounts, &runtimeapi.Mount{ContainerPath: name("m", i), HostPath: "/src"})
				in.MountSources = append(in.MountSources, "/src")
			}
		},
		"mounts below mounts": func(in *ContainerInput, n int) {
			for i := range n {
				in.Config.Mounts = append(in.Config.Mounts, &runtimeapi.Mount{ContainerPath: name("m", i), HostPath: "/src"})
				in.MountSources = append(in.MountSources, "/src")
				in.Submounts = append(in.Submounts, Submount{Mount: i, Path: "below", Source: "/below"})
			}
		},
		"CDI devices": func(in *ContainerInput, n int) {
			in.CDI = func(*specs.Spec, []string) error { return nil }
			for i := range n {
				in.Config.CDIDevices = append(in.Config.CDIDevices, &runtimeapi.CDIDevice{Name: fmt.Sprintf("v.com/c=%d", i)})
			}
		},
		"CDI devices in an annotation": func(in *ContainerInput, n int) {
			in.CDI = func(*specs.Spec, []string) error { return nil }
			names := make([]string, n)
			for i := range names {
				names[i] = fmt.Sprintf("v.com/c=%d", i)
			}
			in.Config.Annotations = map[string]string{"cdi.k8s.io/x": strings.Join(names, ",")}
		},
		"capabilities": func(in *ContainerInput, n int) {
			c := &runtimeapi.Capability{}
			for range n {
				c.AddCapabilities = append(c.AddCapabilities, "CHOWN")
				c.DropCapabilities = append(c.DropCapabilities, "CHOWN")
				c.AddAmbientCapabilities = append(c.AddAmbientCapabilities, "KILL")
			}
			in.Config.Linux = &runtimeapi.LinuxContainerConfig{SecurityContext: &runtimeapi.LinuxContainerSecurityContext{Capabilities: c}}
		},
		"arguments": func(in *ContainerInput, n int) {
			for range n {
				in.Config.Args = append(in.Config.Args, "a")
			}
		},
	} {
		t.Run(kind, func(t *testing.T) {
			inputs := map[int]ContainerInput{}
			const n = 16_000
			for _, n := range []int{n, n / 16} {
				in := request()
				fill(&in, n)
				inputs[n] = in
			}
			checkLinear(t, kind, n, func(n int) {
				if _, err := Container(inputs[n]); err != nil {
					t.Error(err)
				}
			})
		})
	}
}

// TestManyDevices holds the same for devices, which are looked up on the node.
func TestManyDevices(t *testing.T) {
	devices := func(n int) []*runtimeapi.Device {
		out := make([]*runtimeapi.Device, n)
		for i := range out {
			out[i] = &runtimeapi.Device{HostPath: "/dev/null", ContainerPath: fmt.Sprintf("/dev/n%d", i)}
		}
		return out
	}
	checkLinear(t, "devices", 8_000, func(n int) {
		if nodes, _, err := ResolveDevices(devices(n)); err != nil || len(nodes) != n {
			t.Errorf("%d devices, %v", len(nodes), err)
		}
	})
}

// TestManyMappings holds the same for a user namespace's mappings, of which the kernel allows 340.
func TestManyMappings(t *testing.T) {
	maps := func(n int) []*runtimeapi.IDMapping {
		out := make([]*runtimeapi.IDMapping, n)
		for i := range out {
			out[i] = &runtimeapi.IDMapping{ContainerId: uint32(i), HostId: uint32(100_000 + i), Length: 1}
		}
		return out
	}
	if err := validateMappings(maps(maxMappings)); err != nil {
		t.Error(err)
	}
	if err := validateMappings(maps(maxMappings + 1)); !errdefs.IsInvalidArgument(err) {
		t.Errorf("%d mappings: %v, want invalid argument", maxMappings+1, err)
	}
}
