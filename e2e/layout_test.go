package e2e

import (
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// documentedPaths returns the paths in the first column of the tables of docs/layout-on-disk.md:
// those of the data root and those of the state directory. A path that does not begin with the top
// directory of the cell's first path is relative to the first path's directory.
func documentedPaths(t *testing.T) (data, state []string) {
	t.Helper()
	page, err := os.ReadFile("../docs/layout-on-disk.md")
	if err != nil {
		t.Fatal(err)
	}
	quoted := regexp.MustCompile("`([^`]+)`")
	into := &data
	previous := ""
	for line := range strings.Lines(string(page)) {
		line = strings.TrimSpace(line)
		if line == "## The state directory" {
			into = &state
		}
		cells := strings.Split(line, "|")
		if len(cells) > 2 && previous != "" && !strings.HasPrefix(previous, "|") {
			t.Errorf("a table follows text without an empty line: %q", line)
		}
		if len(cells) > 2 && previous == "" && !strings.Contains(cells[1], "path") {
			t.Errorf("a table has no header: %q", line)
		}
		previous = line
		if len(cells) < 3 {
			continue
		}
		var first string
		for _, m := range quoted.FindAllStringSubmatch(cells[1], -1) {
			p := m[1]
			if first == "" {
				first = p
			} else if top, _, _ := strings.Cut(first, "/"); !strings.HasPrefix(p, top+"/") {
				p = path.Join(path.Dir(strings.TrimSuffix(first, "/")), p)
			}
			*into = append(*into, strings.TrimSuffix(p, "/"))
		}
	}
	return data, state
}

// pattern returns a regular expression for a documented path and everything below it.
func pattern(documented string) *regexp.Regexp {
	names := regexp.MustCompile(`<[^>]*>`).ReplaceAllString(documented, "\x00")
	return regexp.MustCompile("^" + strings.ReplaceAll(regexp.QuoteMeta(names), "\x00", "[^/]+") + "(/.*)?$")
}

// isAbove reports whether dir is a parent of a documented path.
func isAbove(dir, documented string) bool {
	names, depth := strings.Split(documented, "/"), strings.Count(dir, "/")+1
	return depth < len(names) && pattern(strings.Join(names[:depth], "/")).MatchString(dir)
}

// checkDocumented compares the content of a directory with its documented paths. rare are
// documented paths that this node need not have.
func (f *fixture) checkDocumented(root string, documented []string, rare, foreign []string) {
	f.t.Helper()
	missing := map[string]bool{}
	for _, p := range documented {
		missing[p] = !slices.Contains(rare, p)
	}
	f.no(filepath.WalkDir(root, func(name string, entry fs.DirEntry, err error) error {
		rel, _ := filepath.Rel(root, name)
		if err != nil || rel == "." {
			return err
		}
		if slices.Contains(foreign, rel) {
			if entry.IsDir() {
				return fs.SkipDir
			}
			return nil
		}
		covered, above := false, false
		for _, p := range documented {
			if pattern(p).MatchString(rel) {
				covered, missing[p] = true, false
			}
			above = above || entry.IsDir() && isAbove(rel, p)
		}
		if !covered && !above {
			f.t.Errorf("docs/layout-on-disk.md does not document %s", rel)
		}
		if covered && entry.IsDir() && strings.Count(rel, "/") > 3 {
			return fs.SkipDir // count only the documented names in a directory
		}
		return nil
	}))
	for p, is := range missing {
		if is {
			f.t.Errorf("docs/layout-on-disk.md names %s, which does not exist", p)
		}
	}
}

// docs/layout-on-disk.md documents every file of a node, and each documented path exists.
func TestLayoutOnDisk(t *testing.T) {
	f := start(t)
	f.pull(busyboxImage)
	p := f.runPod(f.podConfig())
	config := f.containerConfig(busyboxImage, "sleep", "1000")
	config.Mounts = []*runtimeapi.Mount{{ContainerPath: "/image", Readonly: true, Image: &runtimeapi.ImageSpec{Image: busyboxImage}}}
	f.start(p, config)
	_, err := f.Images.ImageFsInfo(f.ctx)
	f.no(err)
	f.eventually("the daemon writes the disk usage", func() bool {
		files, _ := filepath.Glob(filepath.Join(f.Data, "cri", "*-usage.json"))
		return len(files) == 2
	})
	data, state := documentedPaths(t)
	f.checkDocumented(f.Data, data, []string{
		"image/overlay2/imagedb/metadata/sha256/<ID>", "image/overlay2/layerdb/tmp", "cri/containers/<id>/volumes", "cri/containers/<id>/checkpoint",
		"cri/checkpoints/<name>/job.json", "cri/checkpoints/<name>/<id>",
		"network/tables/<network>", // of pods with host ports
	}, []string{"config.toml", "daemon.log", "certs.d", "net.d", "hooks.d", "logs"}) // made by package node
	f.checkDocumented(f.State, state, []string{"keeper/<id>/exit.json"}, []string{"nri.sock"})
}
