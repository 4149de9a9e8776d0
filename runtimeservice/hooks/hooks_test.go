package hooks

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// tree makes hook directories with files and returns an injector that reads them. A key is a
// directory, 0 or 1, and a file name.
func tree(t *testing.T, files map[string]string) *Injector {
	t.Helper()
	root := t.TempDir()
	for name, text := range files {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return New(Options{Enable: true, Dirs: []string{filepath.Join(root, "0"), filepath.Join(root, "1"), filepath.Join(root, "absent")}})
}

func newSpec() *specs.Spec {
	return &specs.Spec{Process: &specs.Process{Args: []string{"/sbin/init", "--x"}}}
}

// always returns a hook file for every container, for one stage.
func always(arg, stage string) string {
	return fmt.Sprintf(`{"version": "1.0.0", "hook": {"path": "/bin/sh", "args": [%q]}, "when": {"always": true}, "stages": [%q]}`, arg, stage)
}

func args(hooks []specs.Hook) []string {
	var all []string
	for _, h := range hooks {
		all = append(all, strings.Join(h.Args, " "))
	}
	return all
}

func TestInjectInOrder(t *testing.T) {
	i := tree(t, map[string]string{
		"0/02-b.json": always("b", "createRuntime"), "0/01-A.json": always("A", "createRuntime"), "0/01-c.json": always("c", "createRuntime"),
		"0/masked.json": always("masked", "createRuntime"), "1/masked.json": always("mask", "createRuntime"),
		"0/note.txt": "{", "1/sub.json.off": "{",
	})
	s := newSpec()
	s.Hooks = &specs.Hooks{CreateRuntime: []specs.Hook{{Path: "/first", Args: []string{"there before"}}}}
	if err := i.Inject(s, Container{}); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"there before", "A", "c", "b", "mask"}, args(s.Hooks.CreateRuntime)); diff != "" {
		t.Errorf("hooks (-want +got):\n%s", diff)
	}
}

func TestInjectAtEveryStage(t *testing.T) {
	timeout := 5
	s := newSpec()
	err := tree(t, map[string]string{"0/all.json": `{"version": "1.0.0", "when": {"always": true}, "hook": {"path": "/bin/sh", "args": ["sh", "x"], "env": ["A=1"], "timeout": 5},
		"stages": ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"]}`}).Inject(s, Container{})
	if err != nil {
		t.Fatal(err)
	}
	one := []specs.Hook{{Path: "/bin/sh", Args: []string{"sh", "x"}, Env: []string{"A=1"}, Timeout: &timeout}}
	want := &specs.Hooks{CreateRuntime: one, CreateContainer: one, StartContainer: one, Poststart: one, Poststop: one}
	*stage(want, "prestart") = one
	if diff := cmp.Diff(want, s.Hooks); diff != "" {
		t.Errorf("hooks (-want +got):\n%s", diff)
	}
}

func TestWhen(t *testing.T) {
	annotated := Container{Annotations: map[string]string{"example.org/role": "database", "other": "web"}}
	for when, test := range map[string]struct {
		of   Container
		want bool
	}{
		`{"always": true}`:                                        {Container{}, true},
		`{"always": false}`:                                       {Container{}, false},
		`{"hasBindMounts": true}`:                                 {Container{}, false},
		`{"hasBindMounts": true} `:                                {Container{BindMounts: true}, true},
		`{"hasBindMounts": false}`:                                {Container{BindMounts: true}, false},
		`{"commands": ["/nothing$", ".*/init$"]}`:                 {Container{}, true},
		`{"commands": ["^init$"]}`:                                {Container{}, false},
		`{"commands": ["--x"]}`:                                   {Container{}, false},
		`{"annotations": {"^example\\.org/": "^data"}}`:           {annotated, true},
		`{"annotations": {"^example\\.org/": "^web$"}}`:           {annotated, false},
		`{"annotations": {"role": "data", "absent": ".*"}}`:       {annotated, false},
		`{"annotations": {"role": "data", "^other$": ".*"}}`:      {annotated, true},
		`{"annotations": {".*": ".*"}}`:                           {Container{}, false},
		`{"annotations": {"role": "."}, "always": true}`:          {annotated, true},
		`{"annotations": {"role": "."}, "commands": ["nothing"]}`: {annotated, false},
	} {
		s := newSpec()
		i := tree(t, map[string]string{"0/a.json": `{"version": "1.0.0", "hook": {"path": "/bin/sh"}, "when": ` + when + `, "stages": ["poststop"]}`})
		if err := i.Inject(s, test.of); err != nil {
			t.Errorf("%s: %v", when, err)
		}
		if got := s.Hooks != nil; got != test.want {
			t.Errorf("%s: injected %v, want %v", when, got, test.want)
		}
	}
}

func TestBadFilesAreNamed(t *testing.T) {
	const rest = `, "when": {"always": true}, "stages": ["poststop"]}`
	for name, test := range map[string]struct{ text, says string }{
		"no JSON":       {`{"version"`, "unexpected end"},
		"wrong type":    {`{"version": 1}`, "version"},
		"old":           {`{"hook": "/bin/sh", "stages": ["prestart"]}`, "hook"},
		"old, spelled":  {`{"version": "0.1.0", "hook": {"path": "/bin/sh"}` + rest, `"0.1.0" is not supported`},
		"no version":    {`{"hook": {"path": "/bin/sh"}` + rest, `version ""`},
		"no hook":       {`{"version": "1.0.0"` + rest, "hook.path"},
		"relative":      {`{"version": "1.0.0", "hook": {"path": "sh"}` + rest, "absolute"},
		"not installed": {`{"version": "1.0.0", "hook": {"path": "/absent/sh"}` + rest, "/absent/sh"},
		"timeout":       {`{"version": "1.0.0", "hook": {"path": "/bin/sh", "timeout": 0}` + rest, "timeout"},
		"no stages":     {`{"version": "1.0.0", "hook": {"path": "/bin/sh"}, "when": {"always": true}}`, "stages"},
		"strange stage": {always("x", "poststopp"), `"poststopp" is unknown`},
		"precreate":     {always("x", "precreate"), "precreate is not supported"},
		"no when":       {`{"version": "1.0.0", "hook": {"path": "/bin/sh"}, "stages": ["poststop"]}`, "when"},
		"empty when":    {`{"version": "1.0.0", "hook": {"path": "/bin/sh"}, "when": {}, "stages": ["poststop"]}`, "when"},
		"key":           {`{"version": "1.0.0", "hook": {"path": "/bin/sh"}, "when": {"annotations": {"[": ""}}, "stages": ["poststop"]}`, "when.annotations"},
		"value":         {`{"version": "1.0.0", "hook": {"path": "/bin/sh"}, "when": {"annotations": {"": "["}}, "stages": ["poststop"]}`, "when.annotations"},
		"command":       {`{"version": "1.0.0", "hook": {"path": "/bin/sh"}, "when": {"commands": ["a", "["]}, "stages": ["poststop"]}`, "when.commands"},
	} {
		t.Run(name, func(t *testing.T) {
			i := tree(t, map[string]string{"0/good.json": always("x", "poststop"), "1/bad.json": test.text})
			s := newSpec()
			err := i.Inject(s, Container{})
			if !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "1/bad.json: ") || !strings.Contains(err.Error(), test.says) {
				t.Errorf("error %v", err)
			}
			if i.Check() == nil {
				t.Error("the check finds nothing")
			}
			if diff := cmp.Diff(newSpec(), s); diff != "" {
				t.Errorf("the specification changed:\n%s", diff)
			}
		})
	}
}

func TestAllBadFilesAreNamedAtOnce(t *testing.T) {
	err := tree(t, map[string]string{"0/a.json": "1", "0/b.json": "2"}).Check()
	if err == nil || !strings.Contains(err.Error(), "a.json") || !strings.Contains(err.Error(), "b.json") {
		t.Errorf("error %v", err)
	}
}

// The executable of a startContainer hook is a file of the container.
func TestHooksInsideTheContainerNeedNotBeOnTheNode(t *testing.T) {
	s := newSpec()
	err := tree(t, map[string]string{"0/a.json": `{"version": "1.0.0", "hook": {"path": "/in/the/image"}, "when": {"always": true}, "stages": ["startContainer"]}`}).Inject(s, Container{})
	if err != nil || len(s.Hooks.StartContainer) != 1 {
		t.Errorf("hooks %+v, %v", s.Hooks, err)
	}
}

func TestNothingIsAddedWithoutDirectories(t *testing.T) {
	for name, i := range map[string]*Injector{"off": New(Options{Dirs: []string{"/"}}), "no directory": tree(t, nil)} {
		s := newSpec()
		if err := i.Inject(s, Container{}); err != nil || i.Check() != nil {
			t.Errorf("%s: %v", name, err)
		}
		if s.Hooks != nil {
			t.Errorf("%s: hooks %+v", name, s.Hooks)
		}
	}
}

func TestDirectoriesThatCannotBeRead(t *testing.T) {
	i := New(Options{Enable: true, Dirs: []string{"/bin/sh"}})
	if err := i.Check(); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "/bin/sh") {
		t.Errorf("error %v", err)
	}
}

// Files are read again for each container.
func TestInjectReadsWhatIsThereNow(t *testing.T) {
	i := tree(t, map[string]string{"0/a.json": always("first", "poststop")})
	count := func() []string {
		s := newSpec()
		if err := i.Inject(s, Container{}); err != nil {
			t.Fatal(err)
		}
		if s.Hooks == nil {
			return nil
		}
		return args(s.Hooks.Poststop)
	}
	before := count()
	path := filepath.Join(i.dirs[0], "a.json")
	if err := os.WriteFile(path, []byte(always("second", "poststop")), 0o600); err != nil {
		t.Fatal(err)
	}
	changed := count()
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([][]string{{"first"}, {"second"}, nil}, [][]string{before, changed, count()}); diff != "" {
		t.Errorf("hooks (-want +got):\n%s", diff)
	}
}
