package cluster

import (
	"context"
	"path/filepath"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/micarun/mica/e2e/images"
	"github.com/micarun/mica/internal/testimage"
)

// The images of the cluster's pods. The registries are only names: each node has a registry on its
// loopback that serves every name.
const (
	Agnhost = "registry.test/mica/agnhost:latest"
	Busybox = "registry.test/mica/busybox:latest"
	Nginx   = "docker.io/library/nginx:latest"
	// Pinned is an image that the nodes' configuration pins.
	Pinned = "registry.test/pause:3.9"
)

// BuildImages builds the missing images and returns their directory. root is the root directory of
// the product's module, bin the directory of the Kubernetes programs.
func BuildImages(ctx context.Context, root, bin string) (string, error) {
	dir, err := images.Dir()
	if err != nil {
		return "", err
	}
	list := images.Basic()
	list = append(list, agnhost(list[0], filepath.Join(bin, "agnhost")))
	return dir, images.Build(ctx, dir, root, list, func(testimage.Built) {})
}

// agnhost is the Kubernetes project's test image, without the tools that its node tests do not use.
func agnhost(base testimage.Image, program string) testimage.Image {
	return testimage.Image{
		Names: []string{"mica/agnhost:latest"},
		Layers: append(base.Layers, testimage.Layer{Files: []testimage.File{
			{Path: "/agnhost", Host: program, Mode: 0o755},
		}}),
		Config: ocispec.ImageConfig{Env: base.Config.Env, Entrypoint: []string{"/agnhost"}, Cmd: []string{"pause"}},
	}
}

// BuildSuiteImages is BuildImages for the images of Suite.
func BuildSuiteImages(ctx context.Context, root, bin string) error {
	dir, err := images.Dir()
	if err != nil {
		return err
	}
	// One image contains another image's registry.
	if err := images.Build(ctx, dir, root, []testimage.Image{images.Pause()}, func(testimage.Built) {}); err != nil {
		return err
	}
	source, err := agnhostSource(ctx, root)
	if err != nil {
		return err
	}
	list, err := images.NodeTests(dir, filepath.Join(bin, "agnhost"), source)
	if err != nil {
		return err
	}
	return images.Build(ctx, dir, root, list, func(testimage.Built) {})
}
