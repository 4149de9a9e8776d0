package testimage

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"time"
)

// apt fetches packages through the machine's apt client, independently of the packages that are
// installed.
type apt struct {
	dir    string // of the fetched .deb files
	status string // an empty dpkg status file
}

func newApt(dir string) (*apt, error) {
	if err := os.MkdirAll(filepath.Join(dir, "partial"), 0o755); err != nil {
		return nil, fmt.Errorf("make package cache: %w", err)
	}
	a := &apt{dir: dir, status: filepath.Join(dir, "status")}
	if err := os.WriteFile(a.status, nil, 0o644); err != nil {
		return nil, fmt.Errorf("write empty package status: %w", err)
	}
	return a, nil
}

// closure fetches the packages with all their dependencies and returns their files in the order of
// installation.
func (a *apt) closure(ctx context.Context, packages []string) ([]string, error) {
	if len(packages) == 0 {
		return nil, nil
	}
	files, err := a.get(ctx, packages)
	if err == nil {
		return files, nil
	}
	// The package lists may be missing, or be so old that they name removed files.
	if err := update(ctx); err != nil {
		return nil, err
	}
	return a.get(ctx, packages)
}

func (a *apt) get(ctx context.Context, packages []string) ([]string, error) {
	files, err := a.list(ctx, packages)
	if err != nil {
		return nil, err
	}
	return files, a.fetch(ctx, packages, files)
}

// update fetches the package lists. It waits for a concurrent update, which apt itself does not.
func update(ctx context.Context) error {
	for {
		_, err := run(ctx, "apt-get", "update", "-q", "-o", "Acquire::Retries=3")
		if err == nil || !strings.Contains(err.Error(), "/lock") {
			return err
		}
		select {
		case <-time.After(time.Second):
		case <-ctx.Done():
			return err
		}
	}
}

// uriLine matches apt's line for a file that it would fetch:
//
//	'http://…' nginx_1.2_amd64.deb 532468 SHA256:…
var uriLine = regexp.MustCompile(`(?m)^'[^']*' (\S+\.deb) \d+`)

func (a *apt) list(ctx context.Context, packages []string) ([]string, error) {
	// With a separate archive directory, apt also lists files that it has already fetched.
	empty, err := os.MkdirTemp("", "mica-apt-")
	if err != nil {
		return nil, fmt.Errorf("make temporary directory: %w", err)
	}
	defer os.RemoveAll(empty)
	if err := os.Mkdir(filepath.Join(empty, "partial"), 0o755); err != nil {
		return nil, err
	}
	out, err := run(ctx, "apt-get", a.arguments(empty, packages, "--print-uris")...)
	if err != nil {
		return nil, err
	}
	var files []string
	for _, match := range uriLine.FindAllStringSubmatch(out, -1) {
		files = append(files, filepath.Join(a.dir, match[1]))
	}
	if len(files) == 0 {
		return nil, fmt.Errorf("list packages %s: apt names no file", strings.Join(packages, " "))
	}
	return files, nil
}

func (a *apt) fetch(ctx context.Context, packages, files []string) error {
	missing := false
	for _, file := range files {
		if _, err := os.Stat(file); err != nil {
			missing = true
		}
	}
	if !missing {
		return nil
	}
	_, err := run(ctx, "apt-get", a.arguments(a.dir, packages, "--download-only")...)
	return err
}

func (a *apt) arguments(archives string, packages []string, action string) []string {
	arguments := []string{
		"install", "-y", "-q", "--no-install-recommends", action,
		"-o", "Dir::State::status=" + a.status,
		"-o", "Dir::Cache::archives=" + archives,
		"-o", "Debug::NoLocking=true",
		"-o", "APT::Sandbox::User=root",
		"-o", "Acquire::Retries=3",
	}
	return append(arguments, packages...)
}

// packageName returns the name of the package in a .deb file.
func packageName(file string) string {
	name, _, _ := strings.Cut(filepath.Base(file), "_")
	return name
}

func run(ctx context.Context, name string, arguments ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, arguments...)
	cmd.Env = append(os.Environ(), "LC_ALL=C", "DEBIAN_FRONTEND=noninteractive")
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("run %s %s: %w: %s", name, arguments[0], err, lastLines(stderr.String(), 5))
	}
	return stdout.String(), nil
}

func lastLines(text string, n int) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "; ")
}
