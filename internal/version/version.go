// Package version tells the version of the executable that it is linked into, as
// the Go toolchain stamped it: the tag or pseudo-version of the module at build.
// There is no other place in which a version is written, so the daemon, its tool
// and what the kubelet is told cannot disagree about one build.
package version

import "runtime/debug"

// unstamped is what an executable says that was built outside a repository. It is
// a semantic version, because the kubelet parses it.
const unstamped = "v0.0.0-devel"

// String returns a semantic version with a leading v.
func String() string {
	info, ok := debug.ReadBuildInfo()
	if !ok || info.Main.Version == "" || info.Main.Version == "(devel)" {
		return unstamped
	}
	return info.Main.Version
}
