package oci

import (
	"context"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go/features"
)

// ShallowBinds is a features annotation for runtimes (crun before 1.9) with this limitation: in a
// container with a user namespace, a recursive bind mount covers only the source's own mount and
// none of the mounts below it.
const ShallowBinds = "run.mica.shallow-binds"

// Features returns the features that the runtime reports. For a crun without the features command
// it returns what that version is known to support. For any other runtime without the command it
// returns no optional features. It runs the executable, unless Options.Features is set.
func (r *Runtime) Features(ctx context.Context) (features.Features, error) {
	if r.options.Features != nil {
		return *r.options.Features, nil
	}
	out, err := r.run(ctx, nil, "features")
	if err == nil {
		var f features.Features
		if err := json.Unmarshal(out, &f); err != nil {
			return features.Features{}, fmt.Errorf("parse features of %s: %w", r.handler.Path, err)
		}
		return f, nil
	}
	if ctx.Err() != nil {
		return features.Features{}, err
	}
	version, verr := r.Version(ctx)
	if verr != nil {
		return features.Features{}, verr
	}
	if r.handler.Type == "crun" {
		return crunFeatures(version), nil
	}
	return features.Features{}, nil
}

// Annotations by which runc and crun (since 1.9) report their versions.
const (
	runcVersion = "org.opencontainers.runc.version"
	crunVersion = "run.oci.crun.version"
)

// StartPipe returns how the process of a created container is started through the pipe exec.fifo in
// its directory below --root, which then has to be removed: "read" (runc) means that the process
// waits for a reader, to which it writes a byte; "write" (crun) that it waits for a byte. "" means
// that only the runtime's start can do it. f are the runtime's Features.
func StartPipe(f features.Features) string {
	switch {
	case f.Annotations[runcVersion] != "":
		return "read"
	case f.Annotations[crunVersion] != "":
		return "write"
	}
	return ""
}

// PlainState reports whether the runtime's own state of a container that has ended is no more than the
// files in the container's directory below --root. f are the runtime's Features.
func PlainState(f features.Features) bool {
	return f.Annotations[runcVersion] != "" || f.Annotations[crunVersion] != ""
}

// crunFeatures lists a crun version's features according to its release notes. Recursive mount
// options were added in 1.4. 1.9 added the features command and recursive bind mounts in user
// namespaces.
func crunFeatures(version string) features.Features {
	yes := true
	f := features.Features{
		OCIVersionMin: "1.0.0", OCIVersionMax: "1.0.0",
		Annotations: map[string]string{ShallowBinds: "true"},
		Hooks:       []string{"prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"},
		MountOptions: []string{
			"async", "atime", "bind", "defaults", "dev", "diratime", "dirsync", "exec", "iversion", "mand",
			"noatime", "nodev", "nodiratime", "noexec", "noiversion", "nomand", "norelatime", "nostrictatime", "nosuid",
			"private", "rbind", "relatime", "remount", "ro", "rprivate", "rshared", "rslave", "runbindable", "rw",
			"shared", "slave", "strictatime", "suid", "sync", "tmpcopyup", "unbindable",
		},
		Linux: &features.Linux{
			Namespaces: []string{"cgroup", "ipc", "mount", "network", "pid", "user", "uts"},
			Cgroup:     &features.Cgroup{V1: &yes, V2: &yes, Systemd: &yes},
			Seccomp:    &features.Seccomp{Enabled: &yes},
			Apparmor:   &features.Apparmor{Enabled: &yes},
			Selinux:    &features.Selinux{Enabled: &yes},
		},
	}
	if number, ok := strings.CutPrefix(version, "crun version "); ok {
		f.Annotations[crunVersion] = number
	}
	if major, minor := versionNumbers(version); major > 1 || major == 1 && minor >= 4 {
		f.MountOptions = append(f.MountOptions,
			"ratime", "rdev", "rdiratime", "rexec", "rnoatime", "rnodev", "rnodiratime", "rnoexec", "rnorelatime",
			"rnostrictatime", "rnosuid", "rrelatime", "rro", "rrw", "rstrictatime", "rsuid")
	}
	return f
}

// versionNumbers parses "crun version 1.8.1".
func versionNumbers(text string) (major, minor int) {
	fields := strings.Fields(text)
	if len(fields) == 0 {
		return 0, 0
	}
	parts := strings.Split(fields[len(fields)-1], ".")
	major, _ = strconv.Atoi(parts[0])
	if len(parts) > 1 {
		minor, _ = strconv.Atoi(parts[1])
	}
	return major, minor
}
