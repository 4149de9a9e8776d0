package packaging

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/micarun/mica/config"
)

func read(t *testing.T, name string) string {
	t.Helper()
	data, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func TestSampleConfigIsTheDefault(t *testing.T) {
	if !bytes.Equal([]byte(read(t, "config.toml")), config.DefaultFile()) {
		t.Error("config.toml differs from what `mica config default` prints")
	}
}

func TestCrictlSpeaksToTheDefaultSocket(t *testing.T) {
	want := "unix://" + config.Default().Resolved().CRI.Socket
	for _, key := range []string{"runtime-endpoint", "image-endpoint"} {
		if !strings.Contains(read(t, "crictl.yaml"), "\n"+key+": "+want+"\n") {
			t.Errorf("crictl.yaml does not set %s to %s", key, want)
		}
	}
}

func TestUnitsUseTheDefaultPaths(t *testing.T) {
	defaults := config.Default().Resolved()
	for unit, lines := range map[string][]string{
		"micad.service": {
			"ExecStart=/usr/bin/micad --config " + config.DefaultPath,
			"RuntimeDirectory=" + strings.TrimPrefix(defaults.StateDir, "/run/"),
			"StateDirectory=" + strings.TrimPrefix(defaults.DataRoot, "/var/lib/"),
			"KillMode=process", "Delegate=yes", "Type=notify", "Before=kubelet.service",
		},
		"mica-keeper.service": {
			"ExecStart=/usr/bin/mica-keeper run --dir " + defaults.Keeper.Dir,
			"KillMode=process", "Delegate=yes",
		},
	} {
		text := read(t, filepath.Join("systemd", unit))
		for _, line := range lines {
			if !strings.Contains(text, "\n"+line+"\n") {
				t.Errorf("%s lacks %s", unit, line)
			}
		}
	}
}

// systemd's own parser reads the units, with existing executables in place of Mica's.
func TestSystemdUnderstandsTheUnits(t *testing.T) {
	analyze, err := exec.LookPath("systemd-analyze")
	if err != nil {
		t.Skip("systemd-analyze is not installed")
	}
	dir := t.TempDir()
	var units []string
	for _, name := range []string{"micad.service", "mica-keeper.service"} {
		text := regexp.MustCompile(`(?m)^ExecStart=\S+`).ReplaceAllString(read(t, filepath.Join("systemd", name)), "ExecStart=/bin/true")
		text = regexp.MustCompile(`(?m)^Documentation=.*\n`).ReplaceAllString(text, "")
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		units = append(units, path)
	}
	out, err := exec.CommandContext(t.Context(), analyze, append([]string{"verify", "--man=no"}, units...)...).CombinedOutput()
	for line := range strings.Lines(string(out)) {
		if strings.Contains(line, dir) || strings.Contains(line, "mica") {
			t.Errorf("systemd-analyze: %s", line)
		}
	}
	if err != nil && len(out) == 0 {
		t.Errorf("systemd-analyze: %v", err)
	}
}
