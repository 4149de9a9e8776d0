package cdi

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

func newSpec() *specs.Spec {
	return &specs.Spec{Process: &specs.Process{Env: []string{"PATH=/bin"}}, Linux: &specs.Linux{}}
}

func TestInject(t *testing.T) {
	s := newSpec()
	if err := New(Options{Dirs: []string{"testdata"}}).Inject(s, []string{"vendor.example/class=null0", "vendor.example/class=hooked"}); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"PATH=/bin", "VENDOR=present"}, s.Process.Env); diff != "" {
		t.Errorf("environment (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]specs.Mount{{Destination: "/vendor/lib", Source: "/usr/lib", Options: []string{"ro", "bind"}}}, s.Mounts); diff != "" {
		t.Errorf("mounts (-want +got):\n%s", diff)
	}
	if len(s.Linux.Devices) != 1 || s.Linux.Devices[0].Path != "/dev/vendor0" || s.Linux.Devices[0].Major != 1 || s.Linux.Devices[0].Minor != 3 {
		t.Errorf("devices: %+v, want /dev/vendor0 as the null device", s.Linux.Devices)
	}
	if rules := s.Linux.Resources.Devices; len(rules) != 1 || !rules[0].Allow || rules[0].Access != "rw" {
		t.Errorf("device rules: %+v, want one that allows rw", rules)
	}
	if s.Hooks == nil || len(s.Hooks.CreateContainer) != 1 || s.Hooks.CreateContainer[0].Path != "/usr/bin/vendor-hook" {
		t.Errorf("hooks: %+v", s.Hooks)
	}
}

func TestInjectRefuses(t *testing.T) {
	for _, test := range []struct {
		name, device, says string
		is                 func(error) bool
	}{
		{"a name that is none", "null0", "null0", errdefs.IsInvalidArgument},
		{"an unknown device", "vendor.example/class=absent", "vendor.example/class=absent", errdefs.IsNotFound},
		{"an unknown device, with the file that may have it", "other.example/class=x", "broken.json", errdefs.IsNotFound},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := newSpec()
			err := New(Options{Dirs: []string{"testdata"}}).Inject(s, []string{"vendor.example/class=null0", test.device})
			if !test.is(err) || !strings.Contains(err.Error(), test.says) {
				t.Errorf("got %v", err)
			}
			if diff := cmp.Diff(newSpec(), s); diff != "" {
				t.Errorf("the specification changed:\n%s", diff)
			}
		})
	}
}

// Device plugins write their files at any time, and the later directory counts.
func TestInjectReadsWhatIsThereNow(t *testing.T) {
	first, second := t.TempDir(), t.TempDir()
	injector := New(Options{Dirs: []string{first, second, filepath.Join(first, "absent")}})
	for _, step := range []struct{ dir, env string }{{first, "FROM=first"}, {second, "FROM=second"}} {
		file := `{"cdiVersion": "0.6.0", "kind": "v.example/c", "devices": [{"name": "d", "containerEdits": {"env": ["` + step.env + `"]}}]}`
		if err := os.WriteFile(filepath.Join(step.dir, "v.json"), []byte(file), 0o600); err != nil {
			t.Fatal(err)
		}
		s := newSpec()
		if err := injector.Inject(s, []string{"v.example/c=d"}); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff([]string{"PATH=/bin", step.env}, s.Process.Env); diff != "" {
			t.Errorf("environment (-want +got):\n%s", diff)
		}
	}
}
