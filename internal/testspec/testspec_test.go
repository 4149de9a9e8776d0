package testspec

import (
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

func TestCheck(t *testing.T) {
	valid := func() *specs.Spec {
		return &specs.Spec{
			Version: "1.0.2",
			Root:    &specs.Root{Path: "/srv/rootfs"},
			Process: &specs.Process{Cwd: "/", Args: []string{"true"}, ApparmorProfile: "mica-default"},
			Linux:   &specs.Linux{},
		}
	}
	for name, change := range map[string]func(s *specs.Spec){
		"":                 func(*specs.Spec) {},
		"not an absolute":  func(s *specs.Spec) { s.Process.Cwd = "tmp" },
		"args must":        func(s *specs.Spec) { s.Process.Args = nil },
		"same type":        func(s *specs.Spec) { s.Process.Rlimits = make([]specs.POSIXRlimit, 2) },
		"duplicated names": func(s *specs.Spec) { s.Linux.Namespaces = make([]specs.LinuxNamespace, 2) },
		"new User":         func(s *specs.Spec) { s.Linux.UIDMappings = make([]specs.LinuxIDMapping, 1) },
	} {
		s := valid()
		change(s)
		if err := Check(s); (err == nil) != (name == "") || err != nil && !strings.Contains(err.Error(), name) {
			t.Errorf("want an error about %q, have %v", name, err)
		}
	}
}
