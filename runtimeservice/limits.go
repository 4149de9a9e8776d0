package runtimeservice

import (
	"cmp"
	"fmt"
	"path/filepath"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/micarun/mica/internal/jsonfile"
	"github.com/micarun/mica/runtimeservice/limits"
	"github.com/micarun/mica/runtimeservice/state"
)

// addLimits returns old, nil before the first update, with what another update has set. It modifies
// neither.
func addLimits(old *state.Limits, set state.Limits) *state.Limits {
	if old == nil {
		return &set
	}
	return &state.Limits{
		Resources:   limits.Merge(old.Resources, set.Resources),
		OOMScoreAdj: cmp.Or(set.OOMScoreAdj, old.OOMScoreAdj),
	}
}

// currentSpec reads a container's specification from a directory and puts the limits into it that
// are in force.
func currentSpec(st state.ContainerState, dir string) (*specs.Spec, error) {
	spec := new(specs.Spec)
	if err := jsonfile.Read(filepath.Join(dir, specFile), spec); err != nil {
		return nil, fmt.Errorf("read specification: %w", err)
	}
	if st.Limits == nil {
		return spec, nil
	}
	if score := st.Limits.OOMScoreAdj; score != nil && spec.Process != nil {
		spec.Process.OOMScoreAdj = score
	}
	if spec.Linux != nil {
		spec.Linux.Resources = limits.Merge(spec.Linux.Resources, st.Limits.Resources)
	}
	return spec, nil
}
