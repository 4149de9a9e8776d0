package oci

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// probeTimeout bounds one candidate's run, and separately its clean-up.
const probeTimeout = 45 * time.Second

// ProbeArgs describes the container that a probe runs.
type ProbeArgs struct {
	// WorkDir holds the probe's bundle and state. The probe removes what it makes there.
	WorkDir string
	// Binary is a statically linked executable, Args its arguments without argv[0]. It must exit
	// with status 0.
	Binary string
	Args   []string
	// SystemdCgroup is as in Options.
	SystemdCgroup bool
	// CgroupsPath is the probe container's cgroup; "" means a new cgroup at the top of the tree.
	CgroupsPath string
	// Seccomp is the probe container's profile; nil for none.
	Seccomp *specs.LinuxSeccomp
}

// Probe runs a container with each candidate in turn and returns the first one that works on this
// host, with an absolute Path. The errors say why each earlier candidate failed. If no candidate
// works, the returned Handler is zero.
func Probe(ctx context.Context, candidates []Handler, a ProbeArgs) (Handler, []error) {
	var errs []error
	for _, h := range candidates {
		path, err := exec.LookPath(h.Path)
		if err == nil {
			h.Path = path
			err = probe(ctx, h, a)
		}
		if err == nil {
			return h, errs
		}
		errs = append(errs, fmt.Errorf("probe %s: %w", h.Path, err))
	}
	if len(candidates) == 0 {
		errs = append(errs, fmt.Errorf("probe: no candidates: %w", errdefs.ErrInvalidArgument))
	}
	return Handler{}, errs
}

// probe runs one container to its end with h, in a state directory of its own.
func probe(ctx context.Context, h Handler, a ProbeArgs) (err error) {
	binary, err := filepath.EvalSymlinks(a.Binary)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(a.WorkDir, 0o700); err != nil {
		return err
	}
	dir, err := os.MkdirTemp(a.WorkDir, "probe-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	h.Root = filepath.Join(dir, "state")
	a.Binary = binary
	id := "mica-probe-" + strings.ToLower(rand.Text())
	if err := writeProbeBundle(dir, id, a); err != nil {
		return err
	}
	r := New(h, Options{SystemdCgroup: a.SystemdCgroup, Timeout: probeTimeout})
	_, err = r.run(ctx, nil, "run", "--bundle", dir, id)
	_, derr := r.run(context.WithoutCancel(ctx), nil, "delete", "--force", id)
	if errdefs.IsNotFound(derr) || err != nil {
		derr = nil // a successful run has deleted the container; after a failed one, err is the cause
	}
	return errors.Join(err, derr)
}

// writeProbeBundle writes a bundle with an empty root file system, into which the binary is
// bind-mounted.
func writeProbeBundle(dir, id string, a ProbeArgs) error {
	if err := os.Mkdir(filepath.Join(dir, "rootfs"), 0o755); err != nil {
		return err
	}
	text, err := json.Marshal(probeSpec(dir, id, a))
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "config.json"), text, 0o600)
}

func probeSpec(dir, id string, a ProbeArgs) *specs.Spec {
	cgroup := a.CgroupsPath
	switch {
	case cgroup == "" && a.SystemdCgroup:
		cgroup = "system.slice:mica:" + id
	case cgroup == "":
		cgroup = "/" + id
	}
	exe := "/" + filepath.Base(a.Binary)
	return &specs.Spec{
		Version:  "1.0.2", // crun before 1.9 refuses newer versions
		Hostname: "probe",
		Root:     &specs.Root{Path: filepath.Join(dir, "rootfs")},
		Process:  &specs.Process{Args: append([]string{exe}, a.Args...), Cwd: "/", NoNewPrivileges: true},
		Mounts: []specs.Mount{
			{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
			{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "mode=755", "size=65536k"}},
			{Destination: exe, Type: "bind", Source: a.Binary, Options: []string{"bind", "ro"}},
		},
		Linux: &specs.Linux{
			CgroupsPath: cgroup,
			Seccomp:     a.Seccomp,
			Namespaces: []specs.LinuxNamespace{
				{Type: specs.MountNamespace},
				{Type: specs.PIDNamespace},
				{Type: specs.IPCNamespace},
				{Type: specs.UTSNamespace},
				{Type: specs.NetworkNamespace},
			},
			Resources: &specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{{Allow: false, Access: "rwm"}}},
		},
	}
}
