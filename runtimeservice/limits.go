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
	return withLimits(spec, st), nil
}

// specWithoutSeccomp decodes a specification except for its seccomp filter, which is most of it.
type specWithoutSeccomp struct {
	specs.Spec
	Linux *struct {
		specs.Linux
		Seccomp skipped `json:"seccomp"`
	} `json:"linux"`
}

// skipped is a JSON value that is not decoded.
type skipped struct{}

func (skipped) UnmarshalJSON([]byte) error { return nil }

// currentSpecWithoutSeccomp is currentSpec without the seccomp filter, in a third of the time.
func currentSpecWithoutSeccomp(st state.ContainerState, dir string) (*specs.Spec, error) {
	var read specWithoutSeccomp
	if err := jsonfile.Read(filepath.Join(dir, specFile), &read); err != nil {
		return nil, fmt.Errorf("read specification: %w", err)
	}
	spec := read.Spec
	if read.Linux != nil {
		spec.Linux = &read.Linux.Linux
	}
	return withLimits(&spec, st), nil
}

// withLimits puts the limits into a specification that are in force.
func withLimits(spec *specs.Spec, st state.ContainerState) *specs.Spec {
	if st.Limits == nil {
		return spec
	}
	if score := st.Limits.OOMScoreAdj; score != nil && spec.Process != nil {
		spec.Process.OOMScoreAdj = score
	}
	if spec.Linux != nil {
		spec.Linux.Resources = limits.Merge(spec.Linux.Resources, st.Limits.Resources)
	}
	return spec
}
