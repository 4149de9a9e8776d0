package spec

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"github.com/moby/profiles/apparmor"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// appArmorDefault is the name of the default profile.
const appArmorDefault = "mica-default"

// LoadAppArmor loads the default profile, which is Docker's, into the kernel unless it is loaded.
// It returns its name for Host.AppArmorDefault, or "" on a node without AppArmor. It needs
// apparmor_parser if the profile is not loaded.
func LoadAppArmor() (string, error) {
	if !hasAppArmor() {
		return "", nil
	}
	loaded, err := apparmor.IsLoaded(appArmorDefault)
	if err == nil && !loaded {
		err = apparmor.InstallDefault(appArmorDefault)
	}
	if err != nil {
		return "", fmt.Errorf("load AppArmor profile %s: %w", appArmorDefault, err)
	}
	return appArmorDefault, nil
}

// EnsureAppArmor makes sure that the profile that the security context requests is loaded. It
// reloads the default profile, which an administrator may have removed. If any other profile is
// missing, it returns ErrFailedPrecondition.
func EnsureAppArmor(sc *runtimeapi.LinuxContainerSecurityContext, h Host) error {
	name, err := appArmorName(sc, h)
	if err != nil || name == "" {
		return err
	}
	loaded, err := apparmor.IsLoaded(name)
	switch {
	case errors.Is(err, fs.ErrNotExist): // without securityfs only the OCI runtime can find out
		return nil
	case err != nil:
		return fmt.Errorf("look for AppArmor profile %s: %w", name, err)
	case loaded:
		return nil
	case name != h.AppArmorDefault:
		return unsupported("apparmor profile %q is not loaded", name)
	}
	_, err = LoadAppArmor()
	return err
}

// appArmorName returns the name of a container's profile, "" for none. A container that requests no
// profile gets the default one if that is loaded. A privileged container is never confined.
func appArmorName(sc *runtimeapi.LinuxContainerSecurityContext, h Host) (string, error) {
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
