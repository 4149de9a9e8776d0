package archtest

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/micarun/mica"

// pkg is the part of `go list -json` that the tests use.
type pkg struct {
	ImportPath, Dir  string
	Standard         bool
	GoFiles, Imports []string
}

// path returns the package's path within the module, "." for its root.
func (p pkg) path() string {
	if p.ImportPath == module {
		return "."
	}
	return strings.TrimPrefix(p.ImportPath, module+"/")
}

// list runs go list in the module's root.
func list(t *testing.T, args ...string) []pkg {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", append([]string{"list", "-json=ImportPath,Dir,Standard,GoFiles,Imports"}, args...)...)
	cmd.Dir = "../.."
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v\n%s", err, &stderr)
	}
	var pkgs []pkg
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		var p pkg
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			return pkgs
		} else if err != nil {
			t.Fatal(err)
		}
		pkgs = append(pkgs, p)
	}
}

// mayImport lists the packages of this module that each package may import, in addition to the
// leaves in internal. The first matching row applies; a pattern with the suffix /... also matches
// packages below.
func mayImport() []struct {
	who  string
	what []string
} {
	return []struct {
		who  string
		what []string
	}{
		{"cmd/mica-keeper", []string{"runtimeservice/keeper/..."}},
		{"cmd/...", []string{"config", "cri", "dockerapi", "imageservice/...", "network/...", "overlay/...", "runtimeservice/..."}},
		{"config", []string{"cri", "dockerapi", "imageservice", "network", "overlay", "runtimeservice/..."}},
		{"cri", nil},
		{"dockerapi", []string{"imageservice", "runtimeservice", "overlay"}},
		{"runtimeservice", []string{"imageservice", "network", "overlay", "runtimeservice/..."}},
		{"runtimeservice/keeper", []string{"runtimeservice/keeper/..."}},
		{"runtimeservice/keeper/server", []string{"runtimeservice/keeper/wire"}},
		{"runtimeservice/spec/lookup", []string{"runtimeservice/spec"}},
		{"runtimeservice/state", nil},
		{"runtimeservice/stats", []string{"network", "overlay", "runtimeservice/cgroup"}},
		{"runtimeservice/...", nil},
		{"imageservice", []string{"imageservice/...", "overlay"}},
		{"imageservice/registry", nil},
		{"imageservice/imagestore", []string{"overlay"}},
		{"network", []string{"network/..."}},
		{"network/builtin", []string{"network/hostlocal"}},
		{"network/...", nil},
		{"overlay/...", nil},
		{"e2e/...", []string{"e2e/...", "config", "overlay", "runtimeservice/..."}},
		{"packaging", []string{"config"}},
		{"internal/imageconfig", []string{"internal/jsonlimit"}},
		{"internal/jsonfile", []string{"internal/atomicfile"}},
		{"internal/testregistry", []string{"internal/atomicfile"}},
		{"internal/...", nil},
	}
}

func matches(pattern, path string) bool {
	if below, ok := strings.CutSuffix(pattern, "/..."); ok {
		return path == below || strings.HasPrefix(path, below+"/")
	}
	return path == pattern
}

func TestImportsGoDownwards(t *testing.T) {
	for _, p := range list(t, "./...") {
		rule := slices.IndexFunc(mayImport(), func(r struct {
			who  string
			what []string
		},
		) bool {
			return matches(r.who, p.path())
		})
		if rule < 0 {
			t.Errorf("%s has no rule: add a row in mayImport and in docs/design.md", p.path())
			continue
		}
		for _, imported := range p.Imports {
			what, ours := strings.CutPrefix(imported, module+"/")
			leaf := matches("internal/...", what) && !matches("internal/...", p.path())
			if ours && !leaf && !slices.ContainsFunc(mayImport()[rule].what, func(w string) bool { return matches(w, what) }) {
				t.Errorf("%s imports %s", p.path(), what)
			}
		}
	}
}

// Protocols with many types are imported by one package only.
func TestLibrariesStayBehindTheirPackage(t *testing.T) {
	owners := map[string]string{
		"github.com/containerd/nri/...":               "runtimeservice/nri",
		"github.com/containerd/ttrpc/...":             "runtimeservice/nri",
		"tags.cncf.io/container-device-interface/...": "runtimeservice/cdi",
	}
	for _, p := range list(t, "./...") {
		for _, imported := range p.Imports {
			for library, owner := range owners {
				if matches(library, imported) && p.path() != owner {
					t.Errorf("%s imports %s, which only %s may", p.path(), imported, owner)
				}
			}
		}
	}
}

// The specification of a container depends only on its input.
func TestSpecDoesNoIO(t *testing.T) {
	forbidden := []string{
		"io/fs", "net/...", "os/...", "path/filepath", "syscall", "time", "golang.org/x/sys/...",
		"github.com/opencontainers/selinux/...", module + "/internal/mounts",
	}
	found := false
	for _, p := range list(t, "./runtimeservice/spec") {
		found = true
		for _, imported := range p.Imports {
			if slices.ContainsFunc(forbidden, func(f string) bool { return matches(f, imported) }) {
				t.Errorf("%s imports %s: move the look-up to runtimeservice/spec/lookup", p.path(), imported)
			}
		}
	}
	if !found {
		t.Error("runtimeservice/spec is missing")
	}
}

// Executables that run beside every container must stay small.
func TestKeeperLinksTheStandardLibraryOnly(t *testing.T) {
	for _, p := range list(t, "-deps", "./cmd/mica-keeper") {
		if !p.Standard && !matches(module+"/...", p.ImportPath) && !matches("golang.org/x/sys/...", p.ImportPath) {
			t.Errorf("mica-keeper links %s", p.ImportPath)
		}
	}
}
