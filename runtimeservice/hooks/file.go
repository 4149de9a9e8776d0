package hooks

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// schema is the supported version of hook files.
const schema = "1.0.0"

// hook is the content of a valid hook file.
type hook struct {
	specs.Hook
	stages []string
	when   when
}

// when selects a hook's containers: those that meet every condition that is set.
type when struct {
	always, bindMounts *bool
	annotations        []annotation
	commands           []*regexp.Regexp
}

// annotation is a condition: one of a container's annotations has to match it.
type annotation struct{ key, value *regexp.Regexp }

// file is the JSON form of a hook file.
type file struct {
	Version string      `json:"version"`
	Hook    *specs.Hook `json:"hook"`
	When    *struct {
		Always        *bool             `json:"always"`
		Annotations   map[string]string `json:"annotations"`
		Commands      []string          `json:"commands"`
		HasBindMounts *bool             `json:"hasBindMounts"`
	} `json:"when"`
	Stages []string `json:"stages"`
}

func readFile(path string) (hook, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return hook{}, err
	}
	var f file
	if err := json.Unmarshal(data, &f); err != nil {
		return hook{}, err
	}
	if f.Version != schema {
		return hook{}, fmt.Errorf("version %q is not supported, only %s", f.Version, schema)
	}
	if err := f.checkStages(); err != nil {
		return hook{}, err
	}
	if err := f.checkHook(); err != nil {
		return hook{}, err
	}
	conditions, err := f.conditions()
	return hook{Hook: *f.Hook, stages: f.Stages, when: conditions}, err
}

func (f file) checkStages() error {
	if len(f.Stages) == 0 {
		return errors.New("stages: none is named")
	}
	for _, s := range f.Stages {
		if s == "precreate" {
			return errors.New("stages: precreate is not supported")
		}
		if stage(&specs.Hooks{}, s) == nil {
			return fmt.Errorf("stages: %q is unknown", s)
		}
	}
	return nil
}

func (f file) checkHook() error {
	switch {
	case f.Hook == nil || f.Hook.Path == "":
		return errors.New("hook.path: is missing")
	case !filepath.IsAbs(f.Hook.Path):
		return fmt.Errorf("hook.path: %q is not an absolute path", f.Hook.Path)
	case f.Hook.Timeout != nil && *f.Hook.Timeout <= 0:
		return fmt.Errorf("hook.timeout: %d is not above 0", *f.Hook.Timeout)
	}
	// startContainer hooks run inside the container, so their executables are the container's
	// files.
	if !slices.ContainsFunc(f.Stages, func(s string) bool { return s != "startContainer" }) {
		return nil
	}
	if _, err := os.Stat(f.Hook.Path); err != nil {
		// Not wrapped: ErrNotExist would mean that the hook file itself does not exist.
		return fmt.Errorf("hook.path: %s", err.Error())
	}
	return nil
}

func (f file) conditions() (when, error) {
	if f.When == nil || f.When.Always == nil && f.When.HasBindMounts == nil && len(f.When.Annotations) == 0 && len(f.When.Commands) == 0 {
		return when{}, errors.New("when: no condition is set")
	}
	w := when{always: f.When.Always, bindMounts: f.When.HasBindMounts}
	for k, v := range f.When.Annotations {
		key, err := regexp.Compile(k)
		if err != nil {
			return w, fmt.Errorf("when.annotations: %w", err)
		}
		value, err := regexp.Compile(v)
		if err != nil {
			return w, fmt.Errorf("when.annotations: %w", err)
		}
		w.annotations = append(w.annotations, annotation{key, value})
	}
	for _, c := range f.When.Commands {
		command, err := regexp.Compile(c)
		if err != nil {
			return w, fmt.Errorf("when.commands: %w", err)
		}
		w.commands = append(w.commands, command)
	}
	return w, nil
}

func (w when) matches(s *specs.Spec, c Container) bool {
	if w.always != nil && !*w.always || w.bindMounts != nil && (!*w.bindMounts || !c.BindMounts) {
		return false
	}
	for _, a := range w.annotations {
		if !a.matches(c.Annotations) {
			return false
		}
	}
	if len(w.commands) == 0 {
		return true
	}
	return s.Process != nil && len(s.Process.Args) > 0 &&
		slices.ContainsFunc(w.commands, func(r *regexp.Regexp) bool { return r.MatchString(s.Process.Args[0]) })
}

func (a annotation) matches(annotations map[string]string) bool {
	for k, v := range annotations {
		if a.key.MatchString(k) && a.value.MatchString(v) {
			return true
		}
	}
	return false
}

// add adds the hook to its stages.
func (h hook) add(s *specs.Spec) {
	if s.Hooks == nil {
		s.Hooks = &specs.Hooks{}
	}
	for _, name := range h.stages {
		list := stage(s.Hooks, name)
		*list = append(*list, h.Hook)
	}
}

// stage returns the hooks of a stage, and nil for an unknown name.
func stage(h *specs.Hooks, name string) *[]specs.Hook {
	switch name {
	case "prestart":
		return &h.Prestart //nolint:staticcheck // deprecated: most hook files name this stage
	case "createRuntime":
		return &h.CreateRuntime
	case "createContainer":
		return &h.CreateContainer
	case "startContainer":
		return &h.StartContainer
	case "poststart":
		return &h.Poststart
	case "poststop":
		return &h.Poststop
	}
	return nil
}
