package spec

import (
	"fmt"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/micarun/mica/internal/testcost"
)

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
	testcost.Linear(t, "environment", maxEnv-16, func(n int) {
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
			testcost.Linear(t, kind, n, func(n int) {
				if _, err := Container(inputs[n]); err != nil {
					t.Error(err)
				}
			})
		})
	}
}

// TestManyMappings holds the limit of a user namespace's mappings, of which the kernel allows 340.
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
