// Package testspec checks in tests that the specification of a container follows the OCI runtime
// specification. The checks are those of github.com/opencontainers/runtime-tools. They look only at
// the specification, so a golden file and a bundle of a running node can be checked in the same
// way. The package is for tests only: no program of Mica links it.
package testspec

import (
	"errors"
	"slices"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	rfc2119 "github.com/opencontainers/runtime-tools/error"
	"github.com/opencontainers/runtime-tools/specerror"
	"github.com/opencontainers/runtime-tools/validate"
)

// Check validates a container's specification by runtime-tools, without looking at the host. It may
// be called concurrently and does not change s. What the specification only recommends is no error.
//
// It leaves out what the library cannot check here: the JSON schema, which it downloads; the root
// filesystem, which it expects in the bundle's directory; AppArmor profiles, which it expects in
// the container's root filesystem; versions before the library's own; mappings of a user namespace
// that exists already, which it takes for an error although runc needs them; and devices with the
// minor number 0, which it takes for invalid.
func Check(s *specs.Spec) error {
	v, err := validate.NewValidator(checkable(*s), "", false, "linux")
	if err != nil {
		return err
	}
	var errs []error
	for _, check := range []func() error{
		v.CheckPlatform, v.CheckMandatoryFields, v.CheckSemVer, v.CheckMounts, v.CheckProcess, v.CheckLinux, v.CheckAnnotations, v.CheckHooks,
	} {
		err := check()
		// The library also returns lists without errors.
		var list interface{ WrappedErrors() []error }
		if !errors.As(err, &list) {
			errs = append(errs, err)
			continue
		}
		for _, err := range list.WrappedErrors() {
			var rule *specerror.Error
			if !errors.As(err, &rule) || rule.Err.Level >= rfc2119.Must {
				errs = append(errs, err)
			}
		}
	}
	return errors.Join(errs...)
}

// checkable returns a copy without the parts that the library cannot check.
func checkable(s specs.Spec) *specs.Spec {
	s.Version = specs.Version
	if s.Process != nil {
		process := *s.Process
		process.ApparmorProfile = ""
		s.Process = &process
	}
	if s.Linux == nil {
		return &s
	}
	linux := *s.Linux
	linux.Devices = slices.DeleteFunc(slices.Clone(linux.Devices), func(d specs.LinuxDevice) bool { return d.Minor == 0 })
	if slices.ContainsFunc(linux.Namespaces, func(n specs.LinuxNamespace) bool { return n.Type == specs.UserNamespace && n.Path != "" }) {
		linux.UIDMappings, linux.GIDMappings = nil, nil
	}
	s.Linux = &linux
	return &s
}
