package spec

import (
	"math"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

func TestParseUlimits(t *testing.T) {
	got, err := ParseUlimits([]string{"nofile=1024:4096", "core=0", "memlock=1:unlimited", "stack=unlimited"})
	want := []specs.POSIXRlimit{
		{Type: "RLIMIT_NOFILE", Soft: 1024, Hard: 4096},
		{Type: "RLIMIT_CORE"},
		{Type: "RLIMIT_MEMLOCK", Soft: 1, Hard: math.MaxUint64},
		{Type: "RLIMIT_STACK", Soft: math.MaxUint64, Hard: math.MaxUint64},
	}
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		t.Errorf("%v, limits (-want +got):\n%s", err, diff)
	}
	if got, err := ParseUlimits(nil); err != nil || got != nil {
		t.Errorf("none: %v, %v", got, err)
	}
	for text, part := range map[string]string{
		"nofile":         "not one of",
		"files=1":        "not one of",
		"NOFILE=1":       "not one of",
		"nofile=":        `"" is neither`,
		"nofile=1:x":     `"x" is neither`,
		"nofile=-1":      `"-1" is neither`,
		"nofile=2:1":     "above the hard",
		"nofile=1,core=": "neither",
	} {
		if _, err := ParseUlimits([]string{text}); !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), part) {
			t.Errorf("%q: %v, want an error with %s", text, err, part)
		}
	}
	if _, err := ParseUlimits([]string{"core=1", "core=2"}); err == nil {
		t.Error("a limit that is set twice is accepted")
	}
}
