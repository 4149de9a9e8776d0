package spec

import (
	"fmt"

	"github.com/moby/profiles/apparmor"
)

// appArmorDefault is the name under which the default profile is loaded.
const appArmorDefault = "mica-default"

// LoadAppArmor loads the default profile, Docker's, into the kernel unless it
// is there, and returns its name for Host.AppArmorDefault. On a node without
// AppArmor the name is "". It needs apparmor_parser where the profile is not
// loaded.
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
