// Package hooks adds OCI hooks to the specifications of containers by the files
// of hook directories, as CRI-O and Podman do: oci-hooks(5), schema 1.0.0.
//
// A file names an executable, the stages of a container's life that the OCI
// runtime is to run it in, and which containers it is for. The directories are
// read for each container, so that a file that was just written counts; a node
// without them pays a look at each. Nothing is ever written, and nothing run
// here: that is the OCI runtime's.
//
// A file that cannot be used is an error for every container, since nobody
// knows whether it was meant for that one: a hook that is silently left out may
// be one that keeps containers from something. The older schema 0.1.0 and
// Podman's stage precreate, in which a hook rewrites the specification, are
// such errors.
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

// Options say where hooks are described.
type Options struct {
	// Enable switches hooks on.
	Enable bool
	// Dirs hold hook files, *.json. Of two of one name the one in the later
	// directory counts. Default: /usr/share/containers/oci/hooks.d and
	// /etc/containers/oci/hooks.d.
	Dirs []string
}

// Container is what decides which hooks a container gets, besides its command.
type Container struct {
	// Annotations are the container's and its pod's.
	Annotations map[string]string
	// BindMounts says that files of the node were asked for in the container.
	BindMounts bool
}

// Injector adds hooks. A nil Injector adds none. It is safe for concurrent use.
type Injector struct{ dirs []string }

// New returns an injector that reads the directories of o, which need not
// exist; nil where o does not enable hooks.
func New(o Options) *Injector {
	if !o.Enable {
		return nil
	}
	if len(o.Dirs) == 0 {
		o.Dirs = []string{"/usr/share/containers/oci/hooks.d", "/etc/containers/oci/hooks.d"}
	}
	return &Injector{dirs: o.Dirs}
}

// Inject adds to s, behind the hooks that it has, those that are for the
// container, in the order of their files' names. The error is
// ErrFailedPrecondition and names the files that cannot be used; s is left
// alone then.
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

// Check returns what is wrong with the files that there are at this moment.
func (i *Injector) Check() error {
	_, err := i.read()
	return err
}

// read returns the hooks of all directories in their order.
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
		case errors.Is(err, fs.ErrNotExist): // taken away just now
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

// files returns the files that count, ordered by name as oci-hooks(5) has it.
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

// orderOf orders names without regard to case, and those that differ in it only
// by case, so that the order is always the same.
func orderOf(file string) string {
	name := filepath.Base(file)
	return strings.ToLower(name) + "\x00" + name
}
