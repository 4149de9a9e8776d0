package spec

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// TestVolumesOfOddImages holds which volumes an image may declare.
func TestVolumesOfOddImages(t *testing.T) {
	for _, c := range []struct {
		volumes []string
		want    []string
		says    string // "" if accepted
	}{
		{nil, nil, ""},
		{[]string{"/data", "/data/", "data", "/x/../data"}, []string{"/data"}, ""},
		{[]string{"relative/dir", "../../etc", "/sys/fs/cgroup", "/dev/shm", "/sys"}, []string{"/dev/shm", "/etc", "/relative/dir", "/sys", "/sys/fs/cgroup"}, ""},
		{[]string{"", "/data"}, []string{"/data"}, ""},
		{[]string{"/process"}, []string{"/process"}, ""},
		{[]string{"/"}, nil, `volume "/" of the image is the root filesystem`},
		{[]string{"/data", "//.."}, nil, `volume "//.." of the image is the root filesystem`},
		{[]string{"."}, nil, `volume "." of the image is the root filesystem`},
		{[]string{"/proc"}, nil, `volume "/proc" of the image is in /proc`},
		{[]string{"/x/../proc/sys"}, nil, `volume "/x/../proc/sys" of the image is in /proc`},
		{[]string{"/a\x00b"}, nil, "NUL"},
		{numbered("/v", maxImageVolumes), slices.Sorted(slices.Values(numbered("/v", maxImageVolumes))), ""},
		{numbered("/v", 10_000), nil, "10000 volumes of the image, the limit is 128"},
	} {
		image := ocispec.ImageConfig{Volumes: map[string]struct{}{}}
		for _, v := range c.volumes {
			image.Volumes[v] = struct{}{}
		}
		got, err := ImageVolumes(image)
		if c.says == "" && (err != nil || !slices.Equal(got, c.want)) {
			t.Errorf("%.5q: %.5q, %v, want %.5q", c.volumes, got, err, c.want)
		}
		if c.says != "" && (!errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), c.says)) {
			t.Errorf("%.5q: %v, want %q", c.volumes, err, c.says)
		}
		if verr := ValidateImage(image, nil); fmt.Sprint(verr) != fmt.Sprint(err) {
			t.Errorf("%.5q: ValidateImage = %v", c.volumes, verr)
		}
	}
}

// TestVolumeOverDevices holds that an image's volume at /dev, in which the OCI runtime makes no
// device files, is refused unless the request mounts something there instead.
func TestVolumeOverDevices(t *testing.T) {
	devices := []*runtimeapi.Mount{{HostPath: "/dev", ContainerPath: "/dev/"}}
	for _, c := range []struct {
		volume string
		mounts []*runtimeapi.Mount
		says   string // "" if accepted
	}{
		{"/dev", nil, `volume "/dev" of the image hides device files`},
		{"/x/../dev/", nil, `volume "/dev" of the image hides device files`},
		{"dev", []*runtimeapi.Mount{{HostPath: "/srv", ContainerPath: "/dev/srv"}}, `volume "/dev" of the image hides device files`},
		{"/dev/null", devices, `volume "/dev/null" of the image hides device files`},
		{"/dev", devices, ""},
		{"/dev/shm", nil, ""},
		{"/devices", nil, ""},
		{"/sys", nil, ""},
	} {
		err := ValidateImage(ocispec.ImageConfig{Volumes: map[string]struct{}{c.volume: {}}}, c.mounts)
		if c.says == "" && err != nil || c.says != "" && (!errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), c.says)) {
			t.Errorf("%s with mounts %v: %v, want %q", c.volume, c.mounts, err, c.says)
		}
	}
}

func numbered(name string, n int) []string {
	out := make([]string, n)
	for i := range out {
		out[i] = fmt.Sprintf("%s%d", name, i)
	}
	return out
}

// TestEnvironmentOfOddImages holds that entries of an image that are not variables are skipped, and
// no others.
func TestEnvironmentOfOddImages(t *testing.T) {
	in := request()
	in.Image.Env = []string{"FOO", "", "=x", "=", "A=", "B=b", "C==c", "D=d=e", "B=again", " SPACE=s", "PATH=/bin"}
	in.Config.Envs = []*runtimeapi.KeyValue{{Key: "D", Value: []byte("=")}, {Key: "FOO", Value: []byte("request")}}
	s, err := Container(in)
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"HOSTNAME=pod1", "A=", "B=again", "C==c", "D==", " SPACE=s", "PATH=/bin", "FOO=request", "HOME=/root"}
	if !slices.Equal(s.Process.Env, want) {
		t.Errorf("environment %q, want %q", s.Process.Env, want)
	}
}

// TestCommandsOfOddImages holds that an entrypoint of one empty string, with which Docker resets
// it, means none.
func TestCommandsOfOddImages(t *testing.T) {
	for _, c := range []struct {
		name                           string
		entrypoint, cmd, command, args []string
		want                           []string // nil if refused
	}{
		{"reset entrypoint", []string{""}, []string{"sh", "-c", "true"}, nil, nil, []string{"sh", "-c", "true"}},
		{"reset entrypoint, other arguments", []string{""}, []string{"sh"}, nil, []string{"id", "-u"}, []string{"id", "-u"}},
		{"reset entrypoint alone", []string{""}, nil, nil, nil, nil},
		{"empty entrypoint", []string{}, []string{"sh"}, nil, nil, []string{"sh"}},
		{"empty argument", []string{"/e"}, []string{""}, nil, nil, []string{"/e", ""}},
		{"entrypoint that begins with nothing", []string{"", "sh"}, nil, nil, nil, nil},
		{"empty command", nil, []string{""}, nil, nil, nil},
		{"command of the request", []string{""}, []string{"x"}, []string{"sh"}, nil, []string{"sh"}},
	} {
		in := request()
		in.Image.Entrypoint, in.Image.Cmd = c.entrypoint, c.cmd
		in.Config.Command, in.Config.Args = c.command, c.args
		s, err := Container(in)
		if c.want == nil && !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s: %v, want invalid argument", c.name, err)
		}
		if c.want != nil && (err != nil || !slices.Equal(s.Process.Args, c.want)) {
			t.Errorf("%s: %v, want %q", c.name, err, c.want)
		}
	}
}

// TestWorkingDirOfOddImages holds that a relative directory is relative to the root.
func TestWorkingDirOfOddImages(t *testing.T) {
	for dir, want := range map[string]string{"": "/", "srv": "/srv", "/srv/": "/srv", "../..": "/", "/a/../b": "/b", `C:\app`: `/C:\app`} {
		in := request()
		in.Image.WorkingDir = dir
		if s, err := Container(in); err != nil || s.Process.Cwd != want {
			t.Errorf("WORKDIR %q: %v, want %q", dir, err, want)
		}
	}
	in := request()
	in.Image.WorkingDir = "/a\x00b"
	if _, err := Container(in); !errdefs.IsInvalidArgument(err) {
		t.Errorf("NUL in WORKDIR: %v, want invalid argument", err)
	}
}
