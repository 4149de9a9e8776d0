package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestSmokeTestsExist(t *testing.T) {
	files, err := filepath.Glob("../*_test.go")
	if err != nil {
		t.Fatal(err)
	}
	var all strings.Builder
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		all.Write(text)
	}
	for _, name := range smokeTests() {
		if !strings.Contains(all.String(), "\nfunc "+name+"(t *testing.T)") {
			t.Errorf("there is no end-to-end test %s", name)
		}
	}
}

func TestParseKinds(t *testing.T) {
	got, err := parseKinds("systemd/crun,cgroupfs/runc")
	if want := []kind{{"systemd", "crun"}, {"cgroupfs", "runc"}}; err != nil || !slices.Equal(got, want) {
		t.Errorf("parseKinds = %v, %v", got, err)
	}
	for _, list := range []string{"", "systemd", "systemd/crun,"} {
		if got, err := parseKinds(list); err == nil {
			t.Errorf("parseKinds(%q) = %v", list, got)
		}
	}
}

// TestJob runs the parts of the job with substitutes that print their arguments.
func TestJob(t *testing.T) {
	s := settings{nodes: []kind{{"systemd", "runc"}, {"cgroupfs", "crun"}}, run: "^(A|B)$", critest: "/critest", critestFlags: "-ginkgo.focus 'a b'"}
	calls := strings.TrimPrefix(s.job(), steps)
	script := `
package_tests() { echo "package $#"; }
units() { echo units; }
smoke() { echo "smoke $*"; }
conformance() { echo "conformance $# $*"; }
summary() { echo summary; }
` + calls
	out, err := exec.CommandContext(t.Context(), "sh", "-euc", script).CombinedOutput()
	want := strings.Repeat("package 2\n", len(kernelTests())) + `units
smoke systemd runc ^(A|B)$
conformance 4 systemd runc -ginkgo.focus a b
smoke cgroupfs crun ^(A|B)$
conformance 4 cgroupfs crun -ginkgo.focus a b
summary
`
	if err != nil || string(out) != want {
		t.Errorf("the job does, %v:\n%s", err, out)
	}
}

func TestQuoted(t *testing.T) {
	words := []string{"a b", "it's", "$HOME", "", "*"}
	out, err := exec.CommandContext(t.Context(), "sh", "-c", `printf '%s\n' `+quoted(words)).Output()
	if err != nil || string(out) != strings.Join(words, "\n")+"\n" {
		t.Errorf("a shell prints %q: %v", out, err)
	}
}
