package spec

import (
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// TestPrivilegedIgnoresConfinement holds that a privileged container is not refused because of
// settings that do not apply to it.
func TestPrivilegedIgnoresConfinement(t *testing.T) {
	local := runtimeapi.SecurityProfile_Localhost
	for name, change := range map[string]func(in *ContainerInput){
		"missing seccomp profile":        func(in *ContainerInput) { security(in).Seccomp = profile(local, "/nonexistent/profile.json") },
		"seccomp profile without a name": func(in *ContainerInput) { security(in).Seccomp = profile(local, "") },
		"old seccomp field":              func(in *ContainerInput) { security(in).SeccompProfilePath = "localhost/profile.json" }, //nolint:staticcheck // deprecated: older clients send only this
		"seccomp on a kernel without it": func(in *ContainerInput) {
			in.Host.Seccomp = false
			security(in).Seccomp = profile(runtimeapi.SecurityProfile_RuntimeDefault, "")
		},
		"missing AppArmor profile": func(in *ContainerInput) { security(in).Apparmor = profile(local, "mica-no-such-profile") },
		"AppArmor on a kernel without it": func(in *ContainerInput) {
			in.Host.AppArmor = false
			security(in).Apparmor = profile(local, "mica-no-such-profile")
		},
		"unknown AppArmor profile": func(in *ContainerInput) { security(in).Apparmor = profile(99, "") },
		"relative masked path":     func(in *ContainerInput) { security(in).MaskedPaths = []string{"proc/kcore"} },
		"relative read-only path":  func(in *ContainerInput) { security(in).ReadonlyPaths = []string{"proc/sys"} },
		"unknown capability": func(in *ContainerInput) {
			security(in).Capabilities = &runtimeapi.Capability{AddCapabilities: []string{"FLY"}}
		},
		"profile of the pod": func(in *ContainerInput) { podSecurity(in).Seccomp = profile(local, "") },
	} {
		in := request()
		security(&in).Privileged, podSecurity(&in).Privileged = true, true
		change(&in)
		if err := ValidatePod(in.Pod); err != nil {
			t.Errorf("%s: pod: %v", name, err)
		}
		if path, err := SeccompFile(security(&in)); path != "" || err != nil {
			t.Errorf("%s: needs seccomp profile %q, %v", name, path, err)
		}
		if profile, err := AppArmorProfile(security(&in), in.Host); profile != "" || err != nil {
			t.Errorf("%s: needs AppArmor profile %q, %v", name, profile, err)
		}
		s, err := Container(in)
		if err != nil {
			t.Errorf("%s: %v", name, err)
		} else if s.Linux.Seccomp != nil || s.Process.ApparmorProfile != "" || len(s.Linux.MaskedPaths)+len(s.Linux.ReadonlyPaths) > 0 {
			t.Errorf("%s: confined by %v, %q, %q, %q", name, s.Linux.Seccomp, s.Process.ApparmorProfile, s.Linux.MaskedPaths, s.Linux.ReadonlyPaths)
		}
	}
}
