package spec

import (
	"bytes"
	"cmp"
	"slices"
	"strings"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// defaultPath is PATH for images that set none, as in Docker and containerd.
const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

const (
	// maxImageEnv bounds the environment entries of an image. Images have about ten. A thousand
	// come from a generator, and more are an attack.
	maxImageEnv = 4096
	// maxEnv bounds the total entries of image and request. The kubelet sends seven for each
	// service in the namespace, and there may be thousands of services.
	maxEnv = 32768
	// maxEnvBytes bounds their total length. By default the kernel gives a process 2 MiB for
	// environment and arguments (execve(2)).
	maxEnvBytes = 1 << 20
)

// checkEnv checks the number of environment entries and their total size against the limits.
func checkEnv(whose string, entries, limit, size int) error {
	if entries > limit {
		return invalid("%d environment entries of %s, the limit is %d", entries, whose, limit)
	}
	if size > maxEnvBytes {
		return invalid("%d bytes of environment of %s, the limit is %d", size, whose, maxEnvBytes)
	}
	return nil
}

// validateImageEnv checks the limits of an image's environment.
func validateImageEnv(env []string) error {
	size := 0
	for _, e := range env {
		size += len(e)
	}
	return checkEnv("the image", len(env), maxImageEnv, size)
}

// validateEnv checks a request's environment and its limits.
func validateEnv(env []*runtimeapi.KeyValue) error {
	size := 0
	for _, e := range env {
		if e.GetKey() == "" || strings.ContainsAny(e.GetKey(), "=\x00") || bytes.IndexByte(e.GetValue(), 0) >= 0 {
			return invalid("environment variable %q", e.GetKey())
		}
		size += len(e.GetKey()) + 1 + len(e.GetValue())
	}
	return checkEnv("the request", len(env), maxEnv, size)
}

// environment returns a container's environment. In order of increasing priority: TERM, HOSTNAME,
// the image's entries, the request's entries; then PATH and HOME if these set none. As in Docker
// and containerd, entries of the image that are not NAME=value are skipped, since the image's user
// cannot change them.
func environment(in ContainerInput) ([]string, error) {
	env := variables{at: map[string]int{}}
	if in.Config.GetTty() {
		env.set("TERM", "xterm")
	}
	if name := cmp.Or(in.Pod.GetHostname(), in.Host.Hostname); name != "" {
		env.set("HOSTNAME", name)
	}
	for _, e := range in.Image.Env {
		name, value, ok := strings.Cut(e, "=")
		if !ok || name == "" {
			continue
		}
		if strings.ContainsRune(e, 0) {
			return nil, invalid("image environment entry %q", e)
		}
		env.set(name, value)
	}
	for _, e := range in.Config.GetEnvs() {
		env.set(e.GetKey(), string(e.GetValue()))
	}
	if err := checkEnv("image and request", len(env.entries), maxEnv, env.size); err != nil {
		return nil, err
	}
	if !env.has("HOME") && in.User.Home != "" {
		env.set("HOME", in.User.Home)
	}
	if !env.has("PATH") {
		return slices.Insert(env.entries, 0, "PATH="+defaultPath), nil
	}
	return env.entries, nil
}

// variables is an environment under construction.
type variables struct {
	entries []string
	at      map[string]int // name → index among the entries
	size    int            // bytes of all entries
}

// set replaces the entry of the same name or appends a new one.
func (v *variables) set(name, value string) {
	entry := name + "=" + value
	v.size += len(entry)
	if i, ok := v.at[name]; ok {
		v.size -= len(v.entries[i])
		v.entries[i] = entry
		return
	}
	v.at[name] = len(v.entries)
	v.entries = append(v.entries, entry)
}

func (v *variables) has(name string) bool {
	_, ok := v.at[name]
	return ok
}

func hasEnv(env []string, name string) bool {
	return slices.ContainsFunc(env, func(e string) bool { return strings.HasPrefix(e, name+"=") })
}
