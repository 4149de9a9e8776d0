package spec

import (
	"math"
	"slices"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// Every limit of a container is explicit and never above the daemon's own, even if the daemon could
// raise its limits.
func TestDefaultUlimits(t *testing.T) {
	held := []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 256, Hard: 512}, {Type: "RLIMIT_STACK", Soft: 1, Hard: math.MaxUint64}}
	limits := WithDefaultUlimits([]specs.POSIXRlimit{{Type: "RLIMIT_CORE", Soft: 0, Hard: 5}}, Host{Rlimits: held, RaiseRlimits: true})
	for _, want := range []specs.POSIXRlimit{
		{Type: "RLIMIT_CORE", Soft: 0, Hard: 5},
		{Type: "RLIMIT_NOFILE", Soft: 512, Hard: 512},
		{Type: "RLIMIT_STACK", Soft: 8 << 20, Hard: math.MaxUint64},
		{Type: "RLIMIT_NPROC", Soft: math.MaxUint64, Hard: math.MaxUint64},
	} {
		if !slices.Contains(limits, want) {
			t.Errorf("no %+v among %+v", want, limits)
		}
	}
	for i, l := range limits {
		if slices.ContainsFunc(limits[:i], func(o specs.POSIXRlimit) bool { return o.Type == l.Type }) {
			t.Errorf("%s is limited twice", l.Type)
		}
	}
}
