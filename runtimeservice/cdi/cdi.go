// Package cdi injects devices into OCI specifications by the Container Device Interface (CDI).
// Vendors describe their devices in specification files, and containers request them by name
// ("vendor.com/class=name").
//
// The package is a thin wrapper of the CDI project's library and has no state. It reads the
// directories at each injection, so a file that a device plugin has just written is used, and
// containers without devices cost nothing. It writes nothing.
package cdi

import (
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"tags.cncf.io/container-device-interface/pkg/cdi"
	"tags.cncf.io/container-device-interface/pkg/parser"
)

// Options configures an Injector.
type Options struct {
	// Dirs are the directories of specification files, *.json and *.yaml. If two files describe the
	// same device, the one in the later directory is used. Default: /etc/cdi and /var/run/cdi.
	Dirs []string
}

// Injector injects devices. It is safe for concurrent use.
type Injector struct{ dirs []string }

// New returns an injector that reads the directories of o. They need not exist.
func New(o Options) *Injector {
	if len(o.Dirs) == 0 {
		o.Dirs = []string{"/etc/cdi", "/var/run/cdi"}
	}
	return &Injector{dirs: o.Dirs}
}

// Inject adds the devices with the given names to s: device nodes, mounts, environment, hooks. It
// returns ErrInvalidArgument for a malformed name and ErrNotFound for a device that no
// specification describes. The latter error also lists the files that could not be read.
func (i *Injector) Inject(s *specs.Spec, names []string) error {
	for _, name := range names {
		if _, _, _, err := parser.ParseQualifiedName(name); err != nil {
			return fmt.Errorf("device %q: %w: %w", name, err, errdefs.ErrInvalidArgument)
		}
	}
	cache, err := cdi.NewCache(cdi.WithSpecDirs(i.dirs...), cdi.WithAutoRefresh(false))
	if err != nil {
		return fmt.Errorf("read device specifications: %w", err)
	}
	missing, err := cache.InjectDevices(s, names...)
	if len(missing) > 0 {
		return fmt.Errorf("%w: %w%w", err, errdefs.ErrNotFound, unreadable(cache))
	}
	return err
}

// unreadable returns the errors of specification files. One of these files may describe the missing
// device.
func unreadable(cache *cdi.Cache) error {
	var problems []error
	byPath := cache.GetErrors()
	for _, path := range slices.Sorted(maps.Keys(byPath)) {
		problems = append(problems, fmt.Errorf("; %s: %w", path, errors.Join(byPath[path]...)))
	}
	return errors.Join(problems...)
}
