package nri

import (
	"slices"

	"github.com/containerd/nri/pkg/runtime-tools/generate"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtimetools "github.com/opencontainers/runtime-tools/generate"
)

// generator makes the small edits by which the NRI library applies adjustments. It differs from the
// generator of runtime-tools where that one would leave a part of the request undone.
//
// It caches the positions of environment variables, so nothing else may change the environment
// before the library has adjusted it.
type generator struct{ runtimetools.Generator }

var _ generate.UnderlyingGenerator = (*generator)(nil)

func newGenerator(s *specs.Spec) *generator {
	return &generator{runtimetools.NewFromSpec(s)}
}

// RemoveMount removes every mount at dest. The embedded method removes only the first.
func (g *generator) RemoveMount(dest string) {
	g.Config.Mounts = slices.DeleteFunc(g.Config.Mounts, func(m specs.Mount) bool { return m.Destination == dest })
}
