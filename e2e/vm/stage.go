package main

import (
	"context"
	_ "embed"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/micarun/mica/e2e/images"
)

// packageTests are the packages whose tests depend on the kind of machine.
type packageTests struct{ name, run string }

func kernelTests() []packageTests {
	return []packageTests{
		{"runtimeservice/cgroup", "."},
		{"runtimeservice/spec/lookup", "AppArmor|DetectHost"},
		{"overlay", "Mapped|MountVolatile|MountManyLayers"},
	}
}

// stage writes the directory that the machine mounts at /share. It returns the directory of images.
func stage(ctx context.Context, s settings, share string) (imageDir string, err error) {
	root, err := images.ModuleRoot()
	if err != nil {
		return "", err
	}
	list := images.Basic()
	if s.critest != "" {
		list = append(list, images.Conformance()...)
	}
	if imageDir, err = images.Prepare(ctx, list); err != nil {
		return "", err
	}
	bin, tests := filepath.Join(share, "bin"), filepath.Join(share, "tests")
	for _, dir := range []string{bin, tests} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return "", fmt.Errorf("make %s: %w", dir, err)
		}
	}
	if err := runCommand(ctx, "make", "-C", root, "build", "BIN="+bin); err != nil {
		return "", err
	}
	if err := os.CopyFS(filepath.Join(share, "systemd"), os.DirFS(filepath.Join(root, "packaging", "systemd"))); err != nil {
		return "", fmt.Errorf("copy units: %w", err)
	}
	if len(s.command) == 0 {
		err = s.stageTests(ctx, root, tests, bin)
	}
	if err != nil {
		return "", err
	}
	return imageDir, os.WriteFile(filepath.Join(share, "job"), []byte(s.job()), 0o644)
}

// stageTests builds each test binary into a separate directory with its test data, in which it
// runs.
func (s settings) stageTests(ctx context.Context, root, tests, bin string) error {
	names := []string{"e2e"}
	for _, p := range kernelTests() {
		names = append(names, p.name)
	}
	for _, name := range names {
		dir := filepath.Join(tests, name)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return fmt.Errorf("make %s: %w", dir, err)
		}
		if err := build(ctx, root, "test", "-c", "-o", filepath.Join(dir, "test"), "./"+name); err != nil {
			return err
		}
		data := filepath.Join(root, name, "testdata")
		if _, err := os.Stat(data); err == nil {
			if err := os.CopyFS(filepath.Join(dir, "testdata"), os.DirFS(data)); err != nil {
				return fmt.Errorf("copy test data: %w", err)
			}
		}
	}
	if s.critest == "" {
		return nil
	}
	if err := build(ctx, root, "build", "-o", filepath.Join(bin, "critest-node"), "./e2e/cmd/critest"); err != nil {
		return err
	}
	return runCommand(ctx, "cp", s.critest, filepath.Join(bin, "critest"))
}

// build runs a build command of Go for the machine, which does not have this machine's C library.
func build(ctx context.Context, root string, arguments ...string) error {
	cmd := exec.CommandContext(ctx, "go", arguments...)
	cmd.Dir = root
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	cmd.WaitDelay = 10 * time.Second
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("run go %s: %w: %s", strings.Join(arguments, " "), err, out)
	}
	return nil
}

//go:embed steps
var steps string

// job returns the shell script that the machine runs.
func (s settings) job() string {
	if len(s.command) > 0 {
		return "exec " + quoted(s.command) + "\n"
	}
	var b strings.Builder
	b.WriteString(steps)
	for _, p := range kernelTests() {
		fmt.Fprintf(&b, "package_tests %s\n", quoted([]string{p.name, p.run}))
	}
	b.WriteString("units\n")
	for _, n := range s.nodes {
		fmt.Fprintf(&b, "smoke %s\n", quoted([]string{n.driver, n.runtime, s.run}))
		if s.critest != "" {
			fmt.Fprintf(&b, "conformance %s %s\n", quoted([]string{n.driver, n.runtime}), s.critestFlags)
		}
	}
	b.WriteString("summary\n")
	return b.String()
}

// quoted joins words for a shell, with quotes where needed.
func quoted(words []string) string {
	var b strings.Builder
	for _, word := range words {
		b.WriteString(" '" + strings.ReplaceAll(word, "'", `'\''`) + "'")
	}
	return strings.TrimSpace(b.String())
}
