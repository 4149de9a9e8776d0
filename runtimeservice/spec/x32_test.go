package spec

import (
	"slices"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// The default profile contains x32 only if there are x32 system calls. A Localhost profile is not
// changed.
func TestX32InProfiles(t *testing.T) {
	architectures := func(lacks bool, kind runtimeapi.SecurityProfile_ProfileType) []specs.Arch {
		in := request()
		in.Host.LacksX32 = lacks
		in.SeccompProfile = []byte(`{"defaultAction":"SCMP_ACT_ALLOW","architectures":["SCMP_ARCH_X86_64","SCMP_ARCH_X32"]}`)
		security(&in).Seccomp = profile(kind, "")
		if kind == runtimeapi.SecurityProfile_Localhost {
			security(&in).Seccomp = profile(kind, "/profile.json")
		}
		s, err := Container(in)
		if err != nil {
			t.Fatal(err)
		}
		return s.Linux.Seccomp.Architectures
	}
	const fallback, local = runtimeapi.SecurityProfile_RuntimeDefault, runtimeapi.SecurityProfile_Localhost
	with := architectures(false, fallback)
	if !slices.Contains(with, specs.ArchX32) {
		t.Skipf("no x32 in the default profile of this architecture: %v", with)
	}
	if without := architectures(true, fallback); slices.Contains(without, specs.ArchX32) || len(without) != len(with)-1 {
		t.Errorf("architectures are %v, want %v without x32", without, with)
	}
	if kept := architectures(true, local); !slices.Contains(kept, specs.ArchX32) {
		t.Errorf("architectures of the node's own profile are %v, want them unchanged", kept)
	}
}
