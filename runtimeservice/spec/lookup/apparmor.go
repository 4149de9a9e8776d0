package lookup

import (
	"errors"
	"fmt"
	"io/fs"

	"github.com/moby/profiles/apparmor"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/micarun/mica/runtimeservice/spec"
)

// appArmorDefault is the name of the default profile.
const appArmorDefault = "mica-default"

// LoadAppArmor loads the default profile, which is Docker's, into the kernel unless it is loaded.
// It returns its name for spec.Host.AppArmorDefault, or "" on a node without AppArmor. It needs
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
func EnsureAppArmor(sc *runtimeapi.LinuxContainerSecurityContext, h spec.Host) error {
	name, err := spec.AppArmorProfile(sc, h)
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
