package images

import (
	"context"
	"strings"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/micarun/mica/internal/testimage"
)

// byDigest is the image that the conformance tool pulls by a fixed digest, which the substitute
// cannot have.
const byDigest = "k8s-staging-cri-tools/test-image-digest:latest"

// PrepareConformance builds the missing images of Conformance. It returns the directory of images
// and the digest of the substitute for the image that the tool pulls by digest.
func PrepareConformance(ctx context.Context) (dir, digest string, err error) {
	if dir, err = Prepare(ctx, Conformance()); err != nil {
		return "", "", err
	}
	repository, tag, _ := strings.Cut(byDigest, ":")
	found, err := Registry(dir).Digest(repository, tag)
	return dir, found.String(), err
}

// Conformance are substitutes, with the same repository paths, for the images that the Kubernetes
// project's CRI conformance tool uses.
func Conformance() []testimage.Image {
	const (
		e2e     = "e2e-test-images/"
		staging = "k8s-staging-cri-tools/"
	)
	list := []testimage.Image{
		// The shell of the static build would run its own applet instead of a masked ls.
		{Names: []string{e2e + "busybox:1.29-2"}, Layers: []testimage.Layer{userland("busybox")}, Config: shell()},
		{Names: []string{e2e + "nginx:1.14-2"}, Layers: nginx(80), Config: nginxConfig()},
		{Names: []string{staging + "hostnet-nginx-amd64:latest"}, Layers: nginx(12003), Config: nginxConfig()},
		{Names: []string{e2e + "httpd:2.4.39-4"}, Layers: httpd(), Config: httpdConfig()},
		{Names: []string{e2e + "nonewprivs:1.3"}, Layers: noNewPrivs(), Config: noNewPrivsConfig()},
		{Names: []string{staging + "test-image-predefined-group:latest"}, Layers: predefinedGroup(), Config: user("1000")},
		{
			Names:  []string{staging + "test-image-tags:1", staging + "test-image-tags:2", staging + "test-image-tags:3"},
			Layers: marked("same-image"), Config: shell(),
		},
		{Names: []string{staging + "test-image-tag:test", staging + "test-image-tag:all"}, Layers: marked("test-image-tag"), Config: shell()},
		Pause(),
	}
	users := map[string]string{"uid": "1002", "username": "www-data", "uid-group": "1003:1004", "username-group": "www-data:1004"}
	for _, name := range []string{"uid", "username", "uid-group", "username-group"} {
		list = append(list, testimage.Image{
			Names:  []string{staging + "test-image-user-" + name + ":latest"},
			Layers: busybox(), Config: user(users[name]),
		})
	}
	for _, name := range []string{"test-image-1", "test-image-2", "test-image-3", "test-image-latest"} {
		list = append(list, testimage.Image{Names: []string{staging + name + ":latest"}, Layers: marked(name), Config: shell()})
	}
	return append(list, testimage.Image{Names: []string{byDigest}, Layers: marked("test-image-digest"), Config: shell()})
}

func user(name string) ocispec.ImageConfig {
	config := shell()
	config.User = name
	return config
}

// httpd is busybox's web server. Its log has the server's name, which the tool expects.
func httpd() []testimage.Layer {
	return append(busybox(), testimage.Layer{Files: []testimage.File{
		{Path: "/www/index.html", Content: "<html><body><h1>It works!</h1></body></html>\n"},
		{Path: "/bin/serve", Mode: 0o755, Content: "#!/bin/sh\necho 'httpd: serving /www on port 80'\nexec httpd -f -v -p 80 -h /www\n"},
	}})
}

func httpdConfig() ocispec.ImageConfig {
	return ocispec.ImageConfig{Env: []string{searchPath}, Cmd: []string{"/bin/serve"}}
}

func noNewPrivs() []testimage.Layer {
	return []testimage.Layer{{Files: []testimage.File{
		{Path: "/nnp", C: "e2e/images/src/euid.c", Mode: 0o4755},
		{Path: "/etc/passwd", Content: passwd},
	}}}
}

func noNewPrivsConfig() ocispec.ImageConfig {
	return ocispec.ImageConfig{Env: []string{searchPath}, Entrypoint: []string{"/nnp"}}
}

func predefinedGroup() []testimage.Layer {
	return append(busybox(), testimage.Layer{Files: []testimage.File{
		{Path: "/etc/passwd", Content: passwd + "default-user:x:1000:1000::/home/default-user:/bin/sh\n"},
		{Path: "/etc/group", Content: group + "default-user:x:1000:\ngroup-defined-in-image:x:50000:default-user\n"},
	}})
}
