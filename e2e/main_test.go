// Package e2e tests the built binaries from outside: each test has a separate node, images from a
// registry on loopback, and a CRI client.
//
// After every test, the node's own check must find no problem, and the census of processes, mounts,
// namespaces, cgroups, leases, links, rules, directories, descriptors and goroutines must be the
// same as before the first pod.
package e2e

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"k8s.io/klog/v2"

	"github.com/micarun/mica/e2e/images"
	"github.com/micarun/mica/internal/testcgroup"
)

const (
	// runtimeEnv names the OCI runtime to test with; `make test RUNTIME=` sets it.
	runtimeEnv = "MICA_E2E_RUNTIME"
	// binEnv names a directory of built binaries to test.
	binEnv = "MICA_E2E_BIN"
	// raceEnv builds the daemon with the race detector; `make race` sets it.
	raceEnv = "MICA_E2E_RACE"
)

// suite is the data shared by all tests; none changes it.
type suite struct {
	bin    string // directory of the binaries under test
	images string // directory of the images
	criu   string // a working CRIU, "" for none
}

// shared is set once, before the first test runs.
var shared suite

func TestMain(m *testing.M) {
	flag.Parse()
	klog.SetLogger(klog.Logger{}) // the CRI client logs every error that it returns
	code, err := run(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, "set up end-to-end tests:", err)
		code = 1
	}
	os.Exit(code)
}

func run(m *testing.M) (int, error) {
	if os.Geteuid() != 0 {
		fmt.Println("end-to-end tests need root; skipped")
		return 0, nil
	}
	if os.Getenv(runtimeEnv) == "crun" && testcgroup.Hybrid() {
		return 0, testcgroup.Enter()
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Minute) // a machine may have an empty build cache
	defer cancel()
	dir, err := os.MkdirTemp("", "mica-e2e-bin-")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(dir)
	if shared, err = prepare(ctx, dir); err != nil {
		return 0, err
	}
	return m.Run(), nil
}

// prepare builds the binaries into dir, unless binEnv names a directory of binaries, and builds the
// images.
func prepare(ctx context.Context, dir string) (suite, error) {
	if built := os.Getenv(binEnv); built != "" {
		dir = built
	} else if err := build(ctx, dir); err != nil {
		return suite{}, err
	}
	cache, err := images.Prepare(ctx, images.Basic())
	return suite{bin: filepath.Clean(dir), images: cache, criu: findCriu(ctx)}, err
}

func build(ctx context.Context, dir string) error {
	root, err := images.ModuleRoot()
	if err != nil {
		return err
	}
	// `make race` sets the variable to build the daemon with the race detector too.
	build := exec.CommandContext(ctx, "make", "-C", root, "build", "BIN="+dir, "RACE="+os.Getenv(raceEnv))
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("build binaries: %w: %s", err, out)
	}
	return nil
}

// findCriu returns the CRIU installed by e2e/install-criu, or "" if it does not work.
func findCriu(ctx context.Context) string {
	candidates := []string{"criu"}
	if cache, err := os.UserCacheDir(); err == nil {
		candidates = append(candidates, filepath.Join(cache, "mica-criu", "criu"))
	}
	for _, name := range candidates {
		path, err := exec.LookPath(name)
		if err == nil && exec.CommandContext(ctx, path, "check").Run() == nil {
			return path
		}
	}
	return ""
}
