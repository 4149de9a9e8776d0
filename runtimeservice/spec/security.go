package spec

import (
	"slices"
	"strings"

	"github.com/moby/profiles/seccomp"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// defaultMaskedPaths and defaultReadonlyPaths are the paths of Docker and of the kubelet's
// ProcMount Default.
func defaultMaskedPaths() []string {
	return []string{
		"/proc/asound", "/proc/acpi", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
		"/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/proc/scsi",
		"/sys/devices/virtual/powercap", "/sys/firmware",
	}
}

func defaultReadonlyPaths() []string {
	return []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}
}

// paths sets masked and read-only paths. An empty list means the defaults, except in a user
// namespace. There it is the kubelet's form of "procMount: Unmasked", which Kubernetes allows only
// in user namespaces.
func (b *builder) paths() error {
	if b.sc.GetPrivileged() {
		return nil
	}
	masked, readonly := b.sc.GetMaskedPaths(), b.sc.GetReadonlyPaths()
	if !b.userNamespace() {
		if len(masked) == 0 {
			masked = defaultMaskedPaths()
		}
		if len(readonly) == 0 {
			readonly = defaultReadonlyPaths()
		}
	}
	b.spec.Linux.MaskedPaths, b.spec.Linux.ReadonlyPaths = masked, readonly
	return nil
}

// seccomp sets the filter. In CRI a missing profile means unconfined. It runs after the
// capabilities are set, since the default profile depends on them.
func (b *builder) seccomp() error {
	if b.sc.GetPrivileged() {
		return nil
	}
	profile, err := seccompProfile(b.sc)
	if err != nil {
		return err
	}
	if profile == nil || profile.GetProfileType() == runtimeapi.SecurityProfile_Unconfined {
		return nil
	}
	if !b.in.Host.Seccomp {
		return unsupported("seccomp profile %s: this kernel has no seccomp", profile.GetProfileType())
	}
	if profile.GetProfileType() == runtimeapi.SecurityProfile_RuntimeDefault {
		if b.spec.Linux.Seccomp, err = seccomp.GetDefaultProfile(b.spec); err != nil {
			return err
		}
		if b.in.Host.LacksX32 {
			withoutX32(b.spec.Linux.Seccomp)
		}
		return nil
	}
	if len(b.in.SeccompProfile) == 0 {
		return invalid("seccomp profile %q is empty", profile.GetLocalhostRef())
	}
	b.spec.Linux.Seccomp, err = seccomp.LoadProfile(string(b.in.SeccompProfile), b.spec)
	if err != nil {
		return invalid("seccomp profile %q: %v", profile.GetLocalhostRef(), err)
	}
	if b.spec.Linux.Seccomp == nil || b.spec.Linux.Seccomp.DefaultAction == "" {
		return invalid("seccomp profile %q has no default action", profile.GetLocalhostRef())
	}
	return nil
}

// seccompProfile returns the requested profile, also from the deprecated field, and nil if none is
// requested.
func seccompProfile(sc *runtimeapi.LinuxContainerSecurityContext) (*runtimeapi.SecurityProfile, error) {
	if p := sc.GetSeccomp(); p != nil {
		return checkProfile("seccomp", p)
	}
	return parseProfile("seccomp", sc.GetSeccompProfilePath()) //nolint:staticcheck // deprecated: older clients send only this
}

// SeccompFile returns the path of the Localhost seccomp profile that the security context requests,
// "" if there is none or the container is privileged, since privileged containers have no profile.
// Errors are ErrInvalidArgument.
func SeccompFile(sc *runtimeapi.LinuxContainerSecurityContext) (string, error) {
	if sc.GetPrivileged() {
		return "", nil
	}
	profile, err := seccompProfile(sc)
	if err != nil || profile.GetProfileType() != runtimeapi.SecurityProfile_Localhost {
		return "", err
	}
	return profile.GetLocalhostRef(), nil
}

// apparmorProfile is seccompProfile for AppArmor.
func apparmorProfile(sc *runtimeapi.LinuxContainerSecurityContext) (*runtimeapi.SecurityProfile, error) {
	if p := sc.GetApparmor(); p != nil {
		return checkProfile("apparmor", p)
	}
	return parseProfile("apparmor", sc.GetApparmorProfile()) //nolint:staticcheck // deprecated: older clients send only this
}

// parseProfile parses the deprecated text form of a profile.
func parseProfile(kind, text string) (*runtimeapi.SecurityProfile, error) {
	ref, local := strings.CutPrefix(text, "localhost/")
	switch {
	case text == "":
		return nil, nil
	case text == "unconfined":
		return &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Unconfined}, nil
	case text == "runtime/default" || text == "docker/default":
		return &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_RuntimeDefault}, nil
	case local:
		return checkProfile(kind, &runtimeapi.SecurityProfile{
			ProfileType: runtimeapi.SecurityProfile_Localhost, LocalhostRef: ref,
		})
	}
	return nil, invalid("unknown %s profile %q", kind, text)
}

func checkProfile(kind string, p *runtimeapi.SecurityProfile) (*runtimeapi.SecurityProfile, error) {
	switch p.GetProfileType() {
	case runtimeapi.SecurityProfile_Localhost:
		if p.GetLocalhostRef() == "" {
			return nil, invalid("%s profile Localhost without a localhost_ref", kind)
		}
		if kind == "seccomp" && !strings.HasPrefix(p.GetLocalhostRef(), "/") {
			return nil, invalid("seccomp profile %q is not an absolute path", p.GetLocalhostRef())
		}
	case runtimeapi.SecurityProfile_RuntimeDefault, runtimeapi.SecurityProfile_Unconfined:
		if p.GetLocalhostRef() != "" {
			return nil, invalid("%s profile %s with a localhost_ref", kind, p.GetProfileType())
		}
	default:
		return nil, invalid("unknown %s profile type %d", kind, p.GetProfileType())
	}
	return p, nil
}

// AppArmorProfile returns the name of a container's AppArmor profile, "" for none. A container that
// requests no profile gets the default one if that is loaded. A privileged container is never
// confined. Errors: ErrInvalidArgument, and ErrFailedPrecondition for a profile that this kernel
// cannot have.
func AppArmorProfile(sc *runtimeapi.LinuxContainerSecurityContext, h Host) (string, error) {
	if sc.GetPrivileged() {
		return "", nil
	}
	profile, err := apparmorProfile(sc)
	if err != nil {
		return "", err
	}
	if !h.AppArmor {
		if profile.GetProfileType() == runtimeapi.SecurityProfile_Localhost {
			return "", unsupported("apparmor profile %q: this kernel has no AppArmor", profile.GetLocalhostRef())
		}
		return "", nil
	}
	switch {
	case profile == nil:
		return h.AppArmorDefault, nil
	case profile.GetProfileType() == runtimeapi.SecurityProfile_Localhost:
		return strings.TrimPrefix(profile.GetLocalhostRef(), "localhost/"), nil
	case profile.GetProfileType() == runtimeapi.SecurityProfile_Unconfined:
		return "", nil
	case h.AppArmorDefault == "":
		return "", unsupported("apparmor profile RuntimeDefault: no default profile is loaded")
	}
	return h.AppArmorDefault, nil
}

// apparmor sets the profile.
func (b *builder) apparmor() error {
	name, err := AppArmorProfile(b.sc, b.in.Host)
	b.spec.Process.ApparmorProfile = name
	return err
}

func (b *builder) processLabel() string {
	if !b.in.Host.SELinux || b.sc.GetPrivileged() {
		return ""
	}
	return b.in.ProcessLabel
}

// withoutX32 removes the x32 architecture from a profile. The OCI runtime compiles the filter for
// every architecture at each start and exec. x32's share is a quarter of an exec's time.
func withoutX32(profile *specs.LinuxSeccomp) {
	profile.Architectures = slices.DeleteFunc(profile.Architectures, func(a specs.Arch) bool { return a == specs.ArchX32 })
}
