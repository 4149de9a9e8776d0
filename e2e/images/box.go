package images

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/micarun/mica/internal/testimage"
	"github.com/micarun/mica/internal/testregistry"
)

// prebuilt names the environment variable with a directory of images built on another machine.
const prebuilt = "MICA_E2E_IMAGES"

// Dir returns the directory of packages, layers and the registry: mica-images in the user's cache
// directory ($XDG_CACHE_HOME or ~/.cache), or the directory that MICA_E2E_IMAGES names.
func Dir() (string, error) {
	if dir := os.Getenv(prebuilt); dir != "" {
		return dir, nil
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("find cache directory: %w", err)
	}
	return filepath.Join(cache, "mica-images"), nil
}

// Prepare builds the missing images of list in Dir, which it returns. It uses images of another
// machine without a check.
func Prepare(ctx context.Context, list []testimage.Image) (dir string, err error) {
	if dir, err = Dir(); err != nil || os.Getenv(prebuilt) != "" {
		return dir, err
	}
	root, err := ModuleRoot()
	if err != nil {
		return "", err
	}
	return dir, Build(ctx, dir, root, list, func(testimage.Built) {})
}

// Registry returns a registry for the images in dir; they need not be built yet.
func Registry(dir string) *testregistry.Registry {
	return testregistry.New(testregistry.Options{Dir: filepath.Join(dir, "registry")})
}

// Build builds the missing images of list in dir. root is the root directory of this module. report
// is called for every finished image.
func Build(ctx context.Context, dir, root string, list []testimage.Image, report func(testimage.Built)) (err error) {
	builder, err := testimage.Open(ctx, testimage.Options{Dir: dir, Root: root, Store: Registry(dir)})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, builder.Close()) }()
	for _, image := range list {
		built, err := builder.Build(ctx, image)
		if err != nil {
			return err
		}
		report(built)
	}
	return nil
}

// ModuleRoot returns the root directory of this module: the nearest directory with a go.mod at or
// above the working directory.
func ModuleRoot() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", fmt.Errorf("find module root: %w", err)
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir, nil
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			return "", errors.New("find module root: no go.mod at or above the working directory")
		}
		dir = parent
	}
}
