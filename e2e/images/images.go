// Package images lists the images that tests, benchmarks and `make run` use, and keeps them in an
// on-disk registry in the user's cache directory.
//
// Names are repository paths without a registry. The sets differ in their cost: Basic takes
// seconds, Python fetches a quarter of a gigabyte of packages.
package images

import (
	"fmt"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/micarun/mica/internal/testimage"
)

const searchPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// Basic are the images that the end-to-end tests and `make run` pull.
func Basic() []testimage.Image {
	return []testimage.Image{
		{Names: []string{"mica/busybox:latest", "mica/busybox:1.35"}, Layers: busybox(), Config: shell()},
		variant("zstd", testimage.Zstd),
		variant("uncompressed", testimage.Uncompressed),
		{Names: []string{"mica/busybox:docker"}, Layers: busybox(), Config: shell(), Docker: true},
		{Names: []string{"mica/busybox:index"}, Layers: marked("index"), Config: shell(), Index: true},
		{Names: []string{"mica/busybox:dockerindex"}, Layers: marked("dockerindex"), Config: shell(), Docker: true, Index: true},
		{Names: []string{"mica/tools:latest"}, Layers: tools(), Config: tooled()},
		{Names: []string{"mica/nginx:latest", "library/nginx:latest"}, Layers: nginx(80), Config: nginxConfig()},
		{Names: []string{"mica/layers40:latest"}, Layers: layers40(), Config: shell()},
		Pause(),
	}
}

// Pause is the image of containerd's pod sandbox; Mica has none.
func Pause() testimage.Image {
	return testimage.Image{
		Names:  []string{"pause:3.9", "pause:3.10"},
		Layers: []testimage.Layer{{Files: []testimage.File{{Path: "/pause", C: "e2e/images/src/pause.c"}}}},
		Config: ocispec.ImageConfig{Entrypoint: []string{"/pause"}, User: "65535:65535", WorkingDir: "/", Env: []string{searchPath}},
	}
}

// Python is an image of some 350 MB in six layers, like an application's.
func Python() testimage.Image {
	const lib = "/usr/lib/x86_64-linux-gnu/"
	layers := append(busybox(),
		testimage.Layer{Packages: []string{"python3"}},
		testimage.Layer{Packages: []string{"python3", "python3-numpy"}, Files: []testimage.File{
			// The packages' scripts would set up these alternatives.
			{Path: lib + "libblas.so.3", Symlink: "blas/libblas.so.3"},
			{Path: lib + "liblapack.so.3", Symlink: "lapack/liblapack.so.3"},
		}},
		testimage.Layer{Packages: []string{"python3", "python3-numpy", "python3-sympy", "python3-lxml", "python3-pil"}},
		testimage.Layer{Packages: []string{"python3-scipy"}, Only: true},
		testimage.Layer{Files: []testimage.File{{Path: "/app/main.py", Content: "import numpy\nprint('sum', int(numpy.arange(100).sum()))\n"}}},
	)
	return testimage.Image{
		Names:  []string{"mica/python:latest"},
		Layers: layers,
		Config: ocispec.ImageConfig{Env: []string{searchPath}, Cmd: []string{"python3", "/app/main.py"}, WorkingDir: "/app"},
	}
}

// Pythons are Python and variants of it for benchmarks of pulls: with zstd, with another application
// on the same layers, and with the same layers on another base.
func Pythons() []testimage.Image {
	zstd, app, rebased := Python(), Python(), Python()
	zstd.Names, app.Names, rebased.Names = []string{"mica/python:zstd"}, []string{"mica/python:app"}, []string{"mica/python:rebased"}
	rebased.Layers[0].Files = append(rebased.Layers[0].Files, testimage.File{Path: "/etc/base", Content: "another\n"})
	for n := range zstd.Layers {
		zstd.Layers[n].Compression = testimage.Zstd
	}
	app.Layers[len(app.Layers)-1] = testimage.Layer{Files: []testimage.File{{Path: "/app/main.py", Content: "print('another application')\n"}}}
	return []testimage.Image{Python(), zstd, app, rebased}
}

// shell is the config of an image whose default command is a shell.
func shell() ocispec.ImageConfig {
	return ocispec.ImageConfig{Env: []string{searchPath}, Cmd: []string{"sh"}}
}

// tooled is a config with a value in every field that a runtime reads.
func tooled() ocispec.ImageConfig {
	return ocispec.ImageConfig{
		Env:        []string{searchPath, "FROM_IMAGE=yes"},
		Entrypoint: []string{"/bin/sh", "-c"},
		Cmd:        []string{"echo from-image"},
		WorkingDir: "/work",
		User:       "app",
		StopSignal: "SIGUSR1",
		Labels:     map[string]string{"run.mica.test": "tools"},
	}
}

// busybox is the base: one layer with every applet as a hard link, users, and the directories that
// programs expect.
func busybox() []testimage.Layer {
	layer := userland("busybox-static")
	layer.Only = true
	return []testimage.Layer{layer}
}

// userland is a layer with one of Debian's builds of busybox.
func userland(build string) testimage.Layer {
	return testimage.Layer{
		Packages: []string{build},
		Applets:  true,
		Files: []testimage.File{
			{Path: "/dev", Dir: true},
			{Path: "/proc", Dir: true},
			{Path: "/sys", Dir: true},
			{Path: "/run", Dir: true},
			{Path: "/root", Dir: true, Mode: 0o700},
			{Path: "/home", Dir: true},
			{Path: "/tmp", Dir: true, Mode: 0o1777},
			{Path: "/var/tmp", Dir: true, Mode: 0o1777},
			{Path: "/var/run", Symlink: "/run"},
			{Path: "/usr/bin/pgrep", Content: pgrep, Mode: 0o755},
			{Path: "/usr/bin/ipcs", Content: "#!/bin/sh\nexec cat /proc/sysvipc/shm\n", Mode: 0o755},
			{Path: "/etc/passwd", Content: passwd},
			{Path: "/etc/group", Content: group},
			{Path: "/etc/shadow", Content: "root:*:19000:0:99999:7:::\n", Mode: 0o640},
		},
	}
}

// pgrep replaces the applet, which Debian's busybox does not have: pgrep NAME, or pgrep -f
// PART-OF-THE-COMMAND-LINE. ipcs, also missing, is replaced above and shows shared memory only.
const pgrep = `#!/bin/sh
field=comm
[ "$1" = -f ] && field=cmdline && shift
status=1
for dir in /proc/[0-9]*; do
	pid=${dir#/proc/}
	[ "$pid" = $$ ] && continue
	if tr '\0' ' ' 2>/dev/null <$dir/$field | grep -q -- "$1"; then
		echo "$pid"
		status=0
	fi
done
exit $status
`

const passwd = `root:x:0:0:root:/root:/bin/sh
daemon:x:1:1:daemon:/usr/sbin:/bin/false
www-data:x:33:33:www-data:/var/www:/bin/false
nobody:x:65534:65534:nobody:/home:/bin/false
`

const group = `root:x:0:
daemon:x:1:
www-data:x:33:
nogroup:x:65534:
`

func variant(tag string, compression testimage.Compression) testimage.Image {
	layers := marked(tag)
	for n := range layers {
		layers[n].Compression = compression
	}
	return testimage.Image{Names: []string{"mica/busybox:" + tag}, Layers: layers, Config: shell()}
}

// marked is busybox with a layer that makes it unique.
func marked(name string) []testimage.Layer {
	return append(busybox(), testimage.Layer{Files: []testimage.File{{Path: "/etc/mica-image", Content: name + "\n"}}})
}

// tools is busybox with the test programs, a user in groups of the image, and one of each kind of
// file.
func tools() []testimage.Layer {
	return append(busybox(), testimage.Layer{Files: []testimage.File{
		{Path: "/bin/lines", C: "e2e/images/src/lines.c"},
		{Path: "/bin/euid", C: "e2e/images/src/euid.c", Mode: 0o4755},
		{Path: "/work", Dir: true, UID: 1000, GID: 1000},
		{Path: "/etc/passwd", Content: passwd + "app:x:1000:1000:app:/work:/bin/sh\n"},
		{Path: "/etc/group", Content: group + "app:x:1000:\nstaff:x:50000:app\n"},
		{Path: "/etc/motd", Symlink: "mica-image"},
		{Path: "/etc/mica-image", Content: "tools\n"},
	}})
}

func layers40() []testimage.Layer {
	layers := busybox()
	for n := 1; n < 40; n++ {
		layers = append(layers, testimage.Layer{Files: []testimage.File{
			{Path: fmt.Sprintf("/layers/%02d", n), Content: fmt.Sprintf("%d\n", n)},
			{Path: "/layers/top", Content: fmt.Sprintf("%d\n", n)},
		}})
	}
	return layers
}

// nginx is Debian's nginx on busybox, listening on port.
func nginx(port int) []testimage.Layer {
	return append(busybox(),
		testimage.Layer{Packages: []string{"nginx"}},
		testimage.Layer{Files: []testimage.File{
			{Path: "/etc/nginx/sites-enabled/default", Content: fmt.Sprintf(
				"server {\n\tlisten %d default_server;\n\troot /var/www/html;\n\tserver_name _;\n}\n", port)},
			{Path: "/var/www/html/index.html", Content: "<html><body><h1>Welcome to nginx on Mica</h1></body></html>\n"},
			{Path: "/var/log/nginx/access.log", Symlink: "/dev/stdout"},
			{Path: "/var/log/nginx/error.log", Symlink: "/dev/stderr"},
		}},
	)
}

func nginxConfig() ocispec.ImageConfig {
	return ocispec.ImageConfig{
		Env:          []string{searchPath},
		Cmd:          []string{"nginx", "-g", "daemon off;"},
		StopSignal:   "SIGQUIT",
		ExposedPorts: map[string]struct{}{"80/tcp": {}},
	}
}
