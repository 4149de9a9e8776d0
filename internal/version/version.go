// Package version returns the version of the executable that it is linked into, as the Go toolchain
// stamped it: the tag or pseudo-version of the module. The version is written nowhere else, so the
// daemon, its tool and the version that the kubelet gets always agree for one build.
package version

import "runtime/debug"

// unstamped is the version of an executable that was built outside a repository. It is a semantic
// version, because the kubelet parses it.
const unstamped = "v0.0.0-devel"

// String returns a semantic version with a leading v. It may be called concurrently.
func String() string {
	info, ok := debug.ReadBuildInfo()
	if !ok || info.Main.Version == "" || info.Main.Version == "(devel)" {
		return unstamped
	}
	return info.Main.Version
}
