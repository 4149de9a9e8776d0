package checkpoint

import (
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Fit is what CheckFit compares.
type Fit struct {
	// Was is the specification of the checkpointed container, Now the one of the new container.
	// Both have Process and Linux.
	Was, Now *specs.Spec
	// Exact requires that Now describes the checkpointed process itself, too.
	Exact bool
	// Config is the config of the new container.
	Config *runtimeapi.ContainerConfig
	// Streams are the checkpointed process's standard streams.
	Streams [3]Stream
}

// CheckFit returns ErrFailedPrecondition with all reasons if the checkpointed process cannot
// continue in the new container. CRIU restores the process with all its privileges, so it must not
// have had more than the new container gives.
func CheckFit(f Fit) error {
	problems := append(unfit(f.Was, f.Now, f.Exact), unfitStreams(f.Config, f.Streams)...)
	problems = append(problems, unfitUser(f.Config.GetLinux().GetSecurityContext(), f.Was.Process.User, f.Now.Process.User)...)
	if len(problems) > 0 {
		return fmt.Errorf("the checkpoint does not fit: %s: %w", strings.Join(problems, "; "), errdefs.ErrFailedPrecondition)
	}
	return nil
}

// CheckRuntime returns ErrFailedPrecondition unless an OCI runtime of a kind ("runc") and path can
// restore an archive made by the runtime called madeBy. Engines put the kind into longer names,
// such as io.containerd.runc.v2. An archive without a name passes.
func CheckRuntime(madeBy, kind, path string) error {
	lower := strings.ToLower(madeBy)
	if lower == "" || kind != "" && strings.Contains(lower, kind) {
		return nil
	}
	return fmt.Errorf("the checkpoint was made by OCI runtime %q and this container's is %q (%s): %w", madeBy, kind, path, errdefs.ErrFailedPrecondition)
}

// unfit returns why a process of the specification was cannot continue under the specification now.
func unfit(was, now *specs.Spec, exact bool) []string {
	problems := unfitMounts(was, now)
	problems = append(problems, unfitNamespaces(was, now)...)
	problems = append(problems, unfitPrivileges(was, now)...)
	if !exact {
		return problems
	}
	p, q := was.Process, now.Process
	for _, field := range []struct {
		name     string
		was, now any
		same     bool
	}{
		{"command", p.Args, q.Args, slices.Equal(p.Args, q.Args)},
		{"working directory", p.Cwd, q.Cwd, path.Clean(p.Cwd) == path.Clean(q.Cwd)},
		{"user", p.User.UID, q.User.UID, p.User.UID == q.User.UID},
		{"group", p.User.GID, q.User.GID, p.User.GID == q.User.GID},
		{"supplementary groups", p.User.AdditionalGids, q.User.AdditionalGids, sameSet(p.User.AdditionalGids, q.User.AdditionalGids)},
	} {
		if !field.same {
			problems = append(problems, fmt.Sprintf("its process has %s %q, not %q", field.name, fmt.Sprint(field.was), fmt.Sprint(field.now)))
		}
	}
	return append(problems, unfitEnvironment(p.Env, q.Env)...)
}

// set returns the elements of list. Sets keep comparisons linear: the author of a checkpoint
// controls the length of its lists.
func set[T comparable](list []T) map[T]bool {
	in := make(map[T]bool, len(list))
	for _, v := range list {
		in[v] = true
	}
	return in
}

func sameSet[T comparable](a, b []T) bool { return maps.Equal(set(a), set(b)) }

// without returns the elements of a that are not in b.
func without[T comparable](a, b []T) []T {
	in := set(b)
	var out []T
	for _, v := range a {
		if !in[v] {
			out = append(out, v)
		}
	}
	return out
}

// unfitEnvironment names only the variables, because values may be secrets. HOSTNAME may differ: it
// is the new pod's.
func unfitEnvironment(was, now []string) []string {
	var names []string
	have := map[string]bool{"HOSTNAME": true}
	for _, e := range append(without(was, now), without(now, was)...) {
		name, _, _ := strings.Cut(e, "=")
		if !have[name] {
			have[name] = true
			names = append(names, name)
		}
	}
	if len(names) == 0 {
		return nil
	}
	return []string{fmt.Sprintf("its process has another value of the environment variables %q", names)}
}

// unfitMounts requires the same bind mounts, because CRIU mounts exactly those of the checkpoint.
func unfitMounts(was, now *specs.Spec) []string {
	before, after := bindMounts(was), bindMounts(now)
	missing, extra := without(before, after), without(after, before)
	var problems []string
	if len(missing) > 0 {
		problems = append(problems, fmt.Sprintf("it has mounts that the config lacks: %q", missing))
	}
	if len(extra) > 0 {
		problems = append(problems, fmt.Sprintf("it lacks mounts of the config: %q", extra))
	}
	return problems
}

func bindMounts(s *specs.Spec) []string {
	var destinations []string
	for _, m := range s.Mounts {
		if m.Type == "bind" || slices.Contains(m.Options, "bind") || slices.Contains(m.Options, "rbind") {
			destinations = append(destinations, path.Clean(m.Destination))
		}
	}
	slices.Sort(destinations)
	return slices.Compact(destinations)
}

// unfitNamespaces compares whether each namespace belongs to the container, the pod or the node.
func unfitNamespaces(was, now *specs.Spec) []string {
	var problems []string
	for _, kind := range []specs.LinuxNamespaceType{
		specs.PIDNamespace, specs.NetworkNamespace, specs.IPCNamespace, specs.UTSNamespace, specs.UserNamespace,
	} {
		if before, after := whose(was, kind), whose(now, kind); before != after {
			problems = append(problems, fmt.Sprintf("its %s namespace was %s and would be %s", kind, before, after))
		}
	}
	return problems
}

func whose(s *specs.Spec, kind specs.LinuxNamespaceType) string {
	for _, n := range s.Linux.Namespaces {
		switch {
		case n.Type != kind:
		case n.Path == "":
			return "its own"
		default:
			return "the pod's"
		}
	}
	return "the node's"
}

// unfitUser compares the process's user with the one that the config requests. A config without a
// user allows any; so does one with root, because root can become any user.
func unfitUser(sc *runtimeapi.LinuxContainerSecurityContext, was, now specs.User) []string {
	if sc.GetRunAsUser() == nil && sc.GetRunAsUsername() == "" || now.UID == 0 {
		return nil
	}
	var problems []string
	if was.UID != now.UID {
		problems = append(problems, fmt.Sprintf("its process runs as user %d and the config asks for %d", was.UID, now.UID))
	}
	if more := without(append([]uint32{was.GID}, was.AdditionalGids...), append([]uint32{now.GID}, now.AdditionalGids...)); len(more) > 0 {
		problems = append(problems, fmt.Sprintf("its process has groups that the config does not give: %d of them, such as %d", len(more), more[0]))
	}
	return problems
}

// unfitPrivileges returns the privileges that the process had and must not have now.
func unfitPrivileges(was, now *specs.Spec) []string {
	var problems []string
	p, q := was.Process, now.Process
	if p.Terminal != q.Terminal {
		problems = append(problems, fmt.Sprintf("its process has a terminal: %t, and the config asks for one: %t", p.Terminal, q.Terminal))
	}
	if more := without(capabilities(p), capabilities(q)); len(more) > 0 {
		problems = append(problems, fmt.Sprintf("its process has capabilities that the config does not give: %q", more))
	}
	if q.NoNewPrivileges && !p.NoNewPrivileges {
		problems = append(problems, "its process can gain privileges and the config forbids that")
	}
	if now.Linux.Seccomp != nil && was.Linux.Seccomp == nil {
		problems = append(problems, "its process has no seccomp filter and the config asks for one")
	}
	if now.Root != nil && now.Root.Readonly && (was.Root == nil || !was.Root.Readonly) {
		problems = append(problems, "its root filesystem is writable and the config asks for a read-only one")
	}
	return problems
}

// capabilities returns all capabilities that a process can ever have.
func capabilities(p *specs.Process) []string {
	if p.Capabilities == nil {
		return nil
	}
	c := p.Capabilities
	all := slices.Concat(c.Bounding, c.Permitted, c.Effective, c.Inheritable, c.Ambient)
	slices.Sort(all)
	return slices.Compact(all)
}

// unfitStreams requires pipes for the streams that the new container connects.
func unfitStreams(cfg *runtimeapi.ContainerConfig, streams [3]Stream) []string {
	if cfg.GetTty() {
		return nil
	}
	var problems []string
	if streams[0].Pipe() != cfg.GetStdin() {
		problems = append(problems, fmt.Sprintf("its process reads %s and the config asks for stdin: %t", streams[0], cfg.GetStdin()))
	}
	for i, name := range []string{"stdout", "stderr"} {
		if !streams[i+1].Pipe() {
			problems = append(problems, fmt.Sprintf("its %s is %s and no pipe", name, streams[i+1]))
		}
	}
	return problems
}
