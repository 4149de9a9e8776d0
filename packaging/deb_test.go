package packaging

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
)

// shared has the results that the tests build once.
var shared struct {
	dir   string
	build func() error
}

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "mica-packaging-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	shared.dir = dir
	shared.build = sync.OnceValue(func() error {
		out, err := exec.Command("make", "-C", "..", "build", "BIN="+dir).CombinedOutput()
		if err != nil {
			return fmt.Errorf("make build: %w\n%s", err, out)
		}
		return nil
	})
	code := m.Run()
	_ = os.RemoveAll(dir)
	os.Exit(code)
}

// programs returns the directory of the built executables.
func programs(t *testing.T) string {
	t.Helper()
	if err := shared.build(); err != nil {
		t.Fatal(err)
	}
	return shared.dir
}

// deb builds the package with a unique version.
func deb(t *testing.T, version string) string {
	t.Helper()
	need(t, "dpkg-deb")
	cmd := exec.CommandContext(t.Context(), "deb/build", programs(t), t.TempDir())
	cmd.Env = append(os.Environ(), "DEB_VERSION="+version, "DEB_COMPRESS=gzip", "DEB_LEVEL=1")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("build the package: %v\n%s", err, &stderr)
	}
	return strings.TrimSpace(string(out))
}

// need skips the test if a program is not installed; CI installs all.
func need(t *testing.T, programs ...string) {
	t.Helper()
	for _, p := range programs {
		if _, err := exec.LookPath(p); err != nil {
			t.Skipf("%s is not installed", p)
		}
	}
}

func output(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

func TestPackageControl(t *testing.T) {
	path := deb(t, "1.2.3~rc.1")
	if filepath.Base(path) != "mica_1.2.3~rc.1_"+strings.TrimSpace(output(t, "dpkg", "--print-architecture"))+".deb" {
		t.Errorf("the package is %s", path)
	}
	for field, want := range map[string]string{
		"Package": "mica", "Version": "1.2.3~rc.1", "Depends": "crun | runc", "Installed-Size": `[1-9]\d+`,
		"Recommends": `.*containernetworking-plugins \| kubernetes-cni.*iptables \| nftables`,
	} {
		got := strings.TrimSpace(output(t, "dpkg-deb", "-f", path, field))
		if field == "Depends" || field == "Version" {
			want = regexp.QuoteMeta(want)
		}
		if !regexp.MustCompile("^" + want + "$").MatchString(got) {
			t.Errorf("%s: %s, want %s", field, got, want)
		}
	}
	control := t.TempDir()
	output(t, "dpkg-deb", "-e", path, control)
	if got := read(t, filepath.Join(control, "conffiles")); got != "/etc/mica/config.toml\n" {
		t.Errorf("conffiles: %s", got)
	}
}

// The package has the programs' version, in Debian's order.
func TestPackageVersion(t *testing.T) {
	version := strings.TrimSpace(output(t, filepath.Join(programs(t), "mica"), "version"))
	want := strings.ReplaceAll(strings.TrimPrefix(version, "v"), "-", "~")
	if got := strings.TrimSpace(output(t, "dpkg-deb", "-f", deb(t, ""), "Version")); got != want {
		t.Errorf("version %s is packaged as %s", version, got)
	}
}

func TestPackageContent(t *testing.T) {
	var files []string
	for line := range strings.Lines(output(t, "dpkg-deb", "-c", deb(t, "1.0"))) {
		f := strings.Fields(line)
		mode, owner, name := f[0], f[1], strings.TrimPrefix(f[5], ".")
		want := "-rw-r--r--"
		switch {
		case strings.HasSuffix(name, "/"):
			want = "drwxr-xr-x"
		case strings.Contains(name, "/bin/"), strings.Contains(name, "/libexec/"):
			want = "-rwxr-xr-x"
		}
		if mode != want || owner != "root/root" {
			t.Errorf("%s is %s of %s", name, mode, owner)
		}
		files = append(files, name)
	}
	for _, want := range []string{
		"/usr/bin/micad", "/usr/bin/mica", "/usr/bin/mica-keeper", "/usr/libexec/mica/mica-init",
		"/etc/mica/config.toml", "/etc/mica/conf.d/", "/etc/mica/certs.d/",
		"/usr/lib/systemd/system/micad.service", "/usr/lib/systemd/system/mica-keeper.service",
		"/usr/share/man/man8/micad.8.gz", "/usr/share/man/man8/mica-keeper.8.gz", "/usr/share/man/man1/mica.1.gz", "/usr/share/man/man5/mica.toml.5.gz",
		"/usr/share/bash-completion/completions/mica", "/usr/share/bash-completion/completions/micad",
		"/usr/share/zsh/vendor-completions/_mica", "/usr/share/fish/vendor_completions.d/mica.fish", "/usr/share/fish/vendor_completions.d/micad.fish",
		"/usr/share/doc/mica/copyright", "/usr/share/doc/mica/changelog.gz", "/usr/share/doc/mica/operations.md",
		"/usr/share/doc/mica/examples/crictl.yaml", "/usr/share/doc/mica/examples/kubeadm.yaml",
	} {
		if !slices.Contains(files, want) {
			t.Errorf("the package lacks %s", want)
		}
	}
}

func TestPackageIsReproducible(t *testing.T) {
	if a, b := read(t, deb(t, "1.0")), read(t, deb(t, "1.0")); a != b {
		t.Error("two builds of the same tree differ")
	}
}

func TestLintian(t *testing.T) {
	need(t, "lintian")
	for line := range strings.Lines(output(t, "lintian", "--fail-on", "error", deb(t, "1.0"))) {
		if strings.HasPrefix(line, "E:") || strings.HasPrefix(line, "W:") {
			t.Error(line)
		}
	}
}

func TestScriptsParse(t *testing.T) {
	for _, script := range []string{"preinst", "postinst", "prerm", "postrm"} {
		output(t, "sh", "-n", filepath.Join("deb", script))
	}
	output(t, "bash", "-n", filepath.Join("deb", "build"))
}
