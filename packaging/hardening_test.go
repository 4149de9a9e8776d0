package packaging

import (
	"encoding/json"
	"fmt"
	"maps"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// maxExposure is the exposure that systemd-analyze computed for the units when they were written,
// times ten. A unit that starts arbitrary containers is near the top of the scale: see
// absentOptions.
const maxExposure = 96

// Reasons why an option is absent from the units.
const (
	seccomp    = "installs a seccomp filter, which containers and exec sessions inherit"
	capability = "shrinks the bounding set, which containers and exec sessions inherit"
	privileges = "containers and exec sessions inherit it; setuid programs fail"
	mounts     = "makes a mount namespace; daemon, keeper and host must see each other's mounts"
	network    = "the daemon reaches registries and configures the host's network; OCI hooks run in the keeper's unit"
	devices    = "layers contain device nodes, and OCI hooks open devices"
	ids        = "the runtime acts for every user of every container"
	cgroups    = "the daemon makes the cgroups of pods"
	umask      = "daemon and keeper set their own umask"
)

// absentOptions are the expected findings of systemd-analyze, by option.
func absentOptions() map[string]string {
	return map[string]string{
		"SystemCallArchitectures": seccomp, "SystemCallFilter": seccomp, "RestrictNamespaces": seccomp, "RestrictAddressFamilies": seccomp,
		"RestrictRealtime": seccomp, "RestrictSUIDSGID": seccomp, "LockPersonality": seccomp, "MemoryDenyWriteExecute": seccomp,
		"ProtectClock": seccomp, "ProtectHostname": seccomp, "ProtectKernelLogs": seccomp, "ProtectKernelModules": seccomp,
		"CapabilityBoundingSet": capability, "NoNewPrivileges": privileges,
		"RootDirectory": mounts, "PrivateDevices": mounts, "PrivateMounts": mounts, "PrivateTmp": mounts, "ProcSubset": mounts, "ProtectControlGroups": mounts,
		"ProtectHome": mounts, "ProtectKernelTunables": mounts, "ProtectProc": mounts, "ProtectSystem": mounts,
		"PrivateNetwork": network, "IPAddressDeny": network, "DeviceAllow": devices,
		"User": ids, "PrivateUsers": ids, "Delegate": cgroups, "UMask": umask,
	}
}

// finding is one line of `systemd-analyze security --json=short`.
type finding struct {
	Set         *bool
	Name        string
	Description string
}

// option returns the name without the value: CapabilityBoundingSet for
// "CapabilityBoundingSet=~CAP_SYS_TIME".
func (f finding) option() string {
	name, _, _ := strings.Cut(f.Name, "=")
	return name
}

// systemd-analyze finds exactly the options that the units must not have.
func TestUnitsAreHardenedAsFarAsContainersAllow(t *testing.T) {
	analyze, err := exec.LookPath("systemd-analyze")
	if err != nil {
		t.Skip("systemd-analyze is not installed")
	}
	for _, unit := range []string{"micad.service", "mica-keeper.service"} {
		path := filepath.Join("systemd", unit)
		out, err := exec.CommandContext(t.Context(), analyze, "security", "--offline=yes", "--no-pager", "--json=short", path).Output()
		if err != nil {
			t.Fatalf("systemd-analyze security %s: %v", unit, err)
		}
		var findings []finding
		if err := json.Unmarshal(out, &findings); err != nil {
			t.Fatal(err)
		}
		missing := maps.Clone(absentOptions())
		for _, f := range findings {
			if f.Set == nil || *f.Set {
				continue
			}
			if absentOptions()[f.option()] == "" {
				t.Errorf("%s: %s: %s", unit, f.Name, f.Description)
			}
			delete(missing, f.option())
		}
		for _, name := range slices.Sorted(maps.Keys(missing)) {
			t.Errorf("%s: systemd-analyze does not report %s", unit, name)
		}
		limit := fmt.Sprintf("--threshold=%d", maxExposure)
		if out, err := exec.CommandContext(t.Context(), analyze, "security", "--offline=yes", "--no-pager", limit, path).CombinedOutput(); err != nil {
			t.Errorf("%s: the exposure has increased: %v\n%s", unit, err, out)
		}
	}
}

// Both units name each absent option with the reason.
func TestUnitsSayWhyOptionsAreAbsent(t *testing.T) {
	text := read(t, filepath.Join("systemd", "micad.service")) + read(t, filepath.Join("systemd", "mica-keeper.service"))
	for name, why := range absentOptions() {
		if (why == seccomp || why == capability || why == privileges || why == network || why == devices) && !strings.Contains(text, name+"=") {
			t.Errorf("no unit names the absent option %s", name)
		}
	}
}
