// Package cdi injects devices into OCI specifications by the Container Device
// Interface: vendors describe their devices in specification files, containers
// ask for them by name ("vendor.com/class=name").
//
// It is a thin cover of the CDI project's own library and has no state: the
// directories are read at each injection, so a file that a device plugin has
// just written counts, and containers without devices pay nothing. Nothing is
// ever written.
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

// Options say where devices are described.
type Options struct {
	// Dirs hold specification files, *.json and *.yaml. Of two that describe
	// one device the one of the later directory counts. Default: /etc/cdi and
	// /var/run/cdi.
	Dirs []string
}

// Injector injects devices. It is safe for concurrent use.
type Injector struct{ dirs []string }

// New returns an injector that reads the directories of o, which need not
// exist.
func New(o Options) *Injector {
	if len(o.Dirs) == 0 {
		o.Dirs = []string{"/etc/cdi", "/var/run/cdi"}
	}
	return &Injector{dirs: o.Dirs}
}

// Inject edits s as the devices of the given names want it: device nodes,
// mounts, environment, hooks. The error is ErrInvalidArgument for a name that
// is none, and ErrNotFound for a device that no specification describes; it
// then tells which files could not be read.
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

// unreadable tells what is wrong with specification files, of which one may
// describe the missing device.
func unreadable(cache *cdi.Cache) error {
	var problems []error
	byPath := cache.GetErrors()
	for _, path := range slices.Sorted(maps.Keys(byPath)) {
		problems = append(problems, fmt.Errorf("; %s: %w", path, errors.Join(byPath[path]...)))
	}
	return errors.Join(problems...)
}
