package spec

import (
	"path"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// ProcessArgs describes a process to run in an existing container.
type ProcessArgs struct {
	// Spec is the container's specification; it is not modified.
	Spec *specs.Spec
	// Args is the command line; it must not be empty.
	Args []string
	// Terminal requests a pseudo terminal.
	Terminal bool
}

// Process returns the process of an exec in the container of a.Spec: the container's user,
// environment, limits and confinement, with the given command line. Invalid arguments are
// ErrInvalidArgument.
func Process(a ProcessArgs) (*specs.Process, error) {
	if a.Spec == nil || a.Spec.Process == nil {
		return nil, invalid("specify exec: container has no process")
	}
	if len(a.Args) == 0 || a.Args[0] == "" {
		return nil, invalid("specify exec: command is empty")
	}
	for _, arg := range a.Args {
		if strings.ContainsRune(arg, 0) {
			return nil, invalid("specify exec: argument %q holds a NUL byte", arg)
		}
	}
	p := *a.Spec.Process
	p.Args = slices.Clone(a.Args)
	p.Terminal = a.Terminal
	p.ConsoleSize = nil
	p.Env = slices.Clone(p.Env)
	if a.Terminal && !hasEnv(p.Env, "TERM") {
		p.Env = append(p.Env, "TERM=xterm")
	}
	return &p, nil
}

func (b *builder) process() error {
	args, err := commandLine(b.in)
	if err != nil {
		return err
	}
	cwd, err := workingDir(b.in)
	if err != nil {
		return err
	}
	env, err := environment(b.in)
	if err != nil {
		return err
	}
	caps, err := b.capabilities()
	if err != nil {
		return err
	}
	adj, err := OOMScoreAdj(b.in.Config.GetLinux().GetResources(), b.in.Host)
	if err != nil {
		return err
	}
	b.spec.Process = &specs.Process{
		Terminal:        b.in.Config.GetTty(),
		User:            processUser(b.in.User),
		Args:            args,
		Env:             env,
		Cwd:             cwd,
		Capabilities:    caps,
		Rlimits:         clampRlimits(b.in.Rlimits, b.in.Host),
		NoNewPrivileges: b.sc.GetNoNewPrivs(),
		OOMScoreAdj:     &adj,
		SelinuxLabel:    b.processLabel(),
	}
	return nil
}

// processUser leaves out the primary group from the supplementary groups if an OCI runtime might
// interpret its number as a name.
func processUser(u User) specs.User {
	groups := slices.Clone(u.Additional)
	if u.NumberIsName {
		groups = slices.DeleteFunc(groups, func(id uint32) bool { return id == u.GID })
	}
	return specs.User{UID: u.UID, GID: u.GID, AdditionalGids: groups}
}

// commandLine combines the image's and the request's command as the Kubernetes documentation of
// "command" and "args" specifies. A command replaces both parts of the image's; args alone replace
// only its arguments. An entrypoint of one empty string means none: that is how Docker resets it.
func commandLine(in ContainerInput) ([]string, error) {
	command, args := in.Config.GetCommand(), in.Config.GetArgs()
	if len(command) == 0 {
		if command = in.Image.Entrypoint; len(command) == 1 && command[0] == "" {
			command = nil
		}
		if len(args) == 0 {
			args = in.Image.Cmd
		}
	}
	line := slices.Concat(command, args)
	if len(line) == 0 {
		return nil, invalid("no command: neither the request nor the image has one")
	}
	if line[0] == "" {
		return nil, invalid("command is an empty string")
	}
	for _, arg := range line {
		if strings.ContainsRune(arg, 0) {
			return nil, invalid("argument %q holds a NUL byte", arg)
		}
	}
	return line, nil
}

func workingDir(in ContainerInput) (string, error) {
	if strings.ContainsRune(in.Config.GetWorkingDir()+in.Image.WorkingDir, 0) {
		return "", invalid("working directory holds a NUL byte")
	}
	if n := max(len(in.Config.GetWorkingDir()), len(in.Image.WorkingDir)); n > maxPath {
		return "", invalid("working directory has %d bytes, more than %d", n, maxPath)
	}
	if dir := in.Config.GetWorkingDir(); dir != "" {
		if !path.IsAbs(dir) {
			return "", invalid("working directory %q is not absolute", dir)
		}
		return dir, nil
	}
	return path.Join("/", in.Image.WorkingDir), nil
}

// OOMScoreAdj returns the requested value, raised to the lowest that the kernel allows this process
// to set. A value out of range is ErrInvalidArgument.
func OOMScoreAdj(r *runtimeapi.LinuxContainerResources, h Host) (int, error) {
	adj := r.GetOomScoreAdj()
	if adj < -1000 || adj > 1000 {
		return 0, invalid("oom_score_adj %d is not in -1000..1000", adj)
	}
	return max(int(adj), h.OOMScoreAdjMin), nil
}

// clampRlimits lowers limits to this process's own unless it may raise them.
func clampRlimits(limits []specs.POSIXRlimit, h Host) []specs.POSIXRlimit {
	limits = slices.Clone(limits)
	if h.RaiseRlimits {
		return limits
	}
	for i := range limits {
		for _, held := range h.Rlimits {
			if held.Type == limits[i].Type {
				limits[i].Hard = min(limits[i].Hard, held.Hard)
				limits[i].Soft = min(limits[i].Soft, limits[i].Hard)
			}
		}
	}
	return limits
}

// annotations sets the annotations that containerd sets. Runtimes such as kata read them.
func (b *builder) annotations() error {
	in := b.in
	b.spec.Annotations = PodAnnotations(in.PodID, in.Pod)
	b.spec.Annotations["io.kubernetes.cri.container-type"] = "container"
	b.spec.Annotations[NameAnnotation] = in.Config.GetMetadata().GetName()
	b.spec.Annotations[ImageAnnotation] = imageName(in.Config.GetImage())
	return nil
}

// Annotations of an OCI specification that say which container it is of.
const (
	PodIDAnnotation = "io.kubernetes.cri.sandbox-id"
	NameAnnotation  = "io.kubernetes.cri.container-name"
	ImageAnnotation = "io.kubernetes.cri.image-name"
)

// PodAnnotations returns the annotations that are the same for all containers of a pod.
func PodAnnotations(id string, pod *runtimeapi.PodSandboxConfig) map[string]string {
	return map[string]string{
		PodIDAnnotation:                       id,
		"io.kubernetes.cri.sandbox-name":      pod.GetMetadata().GetName(),
		"io.kubernetes.cri.sandbox-namespace": pod.GetMetadata().GetNamespace(),
		"io.kubernetes.cri.sandbox-uid":       pod.GetMetadata().GetUid(),
	}
}

func imageName(image *runtimeapi.ImageSpec) string {
	if name := image.GetUserSpecifiedImage(); name != "" {
		return name
	}
	return image.GetImage()
}
