// Package hooks adds OCI hooks to containers' specifications from the files of hook directories, as
// CRI-O and Podman do: oci-hooks(5), schema 1.0.0.
//
// A file names an executable, the stages of a container's life cycle in which the OCI runtime runs
// it, and the containers that it applies to. The directories are read for each container, so a file
// that was just written is used. A node without these directories pays one failed look-up each. The
// package writes nothing and runs no hook; the OCI runtime runs them.
//
// An invalid file is an error for every container. The hook might apply to that container, and
// leaving it out silently could disable a restriction. The older schema 0.1.0 and Podman's stage
// precreate, in which a hook rewrites the specification, are such errors.
package hooks

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// Options configures an Injector.
type Options struct {
	// Enable switches hooks on.
	Enable bool
	// Dirs are the directories of hook files, *.json. If two files have the same name, the one in
	// the later directory is used. Default: /usr/share/containers/oci/hooks.d and
	// /etc/containers/oci/hooks.d.
	Dirs []string
}

// Container is the input that selects a container's hooks, besides its command.
type Container struct {
	// Annotations are those of the container and of its pod.
	Annotations map[string]string
	// BindMounts is true if the request mounts files of the node into the container.
	BindMounts bool
}

// Injector adds hooks. A nil Injector adds none. It is safe for concurrent use.
type Injector struct{ dirs []string }

// New returns an injector that reads the directories of o, which need not exist. It returns nil if
// o does not enable hooks.
func New(o Options) *Injector {
	if !o.Enable {
		return nil
	}
	if len(o.Dirs) == 0 {
		o.Dirs = []string{"/usr/share/containers/oci/hooks.d", "/etc/containers/oci/hooks.d"}
	}
	return &Injector{dirs: o.Dirs}
}

// Inject appends to s the hooks that apply to the container, in the order of their files' names. If
// a file is invalid, it returns ErrFailedPrecondition with the file's name and leaves s unchanged.
func (i *Injector) Inject(s *specs.Spec, c Container) error {
	hooks, err := i.read()
	if err != nil {
		return err
	}
	for _, h := range hooks {
		if h.when.matches(s, c) {
			h.add(s)
		}
	}
	return nil
}

// Check returns the errors of the current files, as Inject would.
func (i *Injector) Check() error {
	_, err := i.read()
	return err
}

// read returns the hooks of all directories, in order.
func (i *Injector) read() ([]hook, error) {
	if i == nil {
		return nil, nil
	}
	files, err := i.files()
	if err != nil {
		return nil, fmt.Errorf("read hooks: %w: %w", err, errdefs.ErrFailedPrecondition)
	}
	var hooks []hook
	var problems []error
	for _, file := range files {
		h, err := readFile(file)
		switch {
		case errors.Is(err, fs.ErrNotExist): // removed since the directory was read
		case err != nil:
			problems = append(problems, fmt.Errorf("hook file %s: %w", file, err))
		default:
			hooks = append(hooks, h)
		}
	}
	if len(problems) > 0 {
		return nil, fmt.Errorf("read hooks: %w: %w", errors.Join(problems...), errdefs.ErrFailedPrecondition)
	}
	return hooks, nil
}

// files returns the files in use, ordered by name as oci-hooks(5) specifies.
func (i *Injector) files() ([]string, error) {
	byName := map[string]string{}
	for _, dir := range i.dirs {
		entries, err := os.ReadDir(dir)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		for _, e := range entries {
			if filepath.Ext(e.Name()) == ".json" {
				byName[e.Name()] = filepath.Join(dir, e.Name())
			}
		}
	}
	var files []string
	for _, file := range byName {
		files = append(files, file)
	}
	slices.SortFunc(files, func(a, b string) int {
		return strings.Compare(orderOf(a), orderOf(b))
	})
	return files, nil
}

// orderOf returns a sort key that ignores case. Names that differ only in case are ordered by case,
// so that the order is always the same.
func orderOf(file string) string {
	name := filepath.Base(file)
	return strings.ToLower(name) + "\x00" + name
}
